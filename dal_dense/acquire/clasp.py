"""ClaSP PE: class quotas and power noise that fades over the rounds (nnActive; Lüth et al. 2025).

Adapted from patches of one size to a budget in seconds, and never short: a class without
candidates passes its seconds on.
"""

from __future__ import annotations

from collections.abc import Sequence

from dal_dense import noise
from dal_dense.acquire.base import Round
from dal_dense.acquire.basket import Basket
from dal_dense.acquire.values import log_of, scheduled_beta
from dal_dense.config import StrategyConfig
from dal_dense.offers import Offers


def clasp(offers: Offers, basket: Basket, options: StrategyConfig, when: Round, quota_classes: Sequence[int]) -> None:
    """log(class score) + Gumbel / beta_t by class quota, then log(score) + Gumbel / beta_t.

    `class_share` of the seconds is split by serving, at each purchase, the class that has had
    the fewest seconds; equal classes are served in a random order of the round.
    """
    seed, beta = when.seed_for("clasp"), scheduled_beta(options, when)
    had = dict.fromkeys(sorted(quota_classes, key=lambda c: noise.derive_seed(seed, "class", c)), 0.0)
    while had and basket.spent < options.class_share * basket.budget.seconds:
        c = min(had, key=had.__getitem__)
        score = offers.class_score[:, c]
        value = log_of(score) + noise.gumbel(offers.key, seed, f"class {c}") / beta
        row = basket.best(value, among=score > 0)
        if row is None:
            del had[c]
        else:
            had[c] += basket.take(row, value[row])
    value = log_of(offers.score) + noise.gumbel(offers.key, seed, "all") / beta
    while (row := basket.best(value)) is not None:
        basket.take(row, value[row])
