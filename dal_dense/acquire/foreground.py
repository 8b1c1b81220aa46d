"""Random regions, most of them where the model sees foreground.

The strong baseline of nnActive (Lüth et al. 2025), "Random 66% FG", draws from ground truth; this
one draws from the prediction, so it can be run on data that nobody has labelled.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dal_dense import noise
from dal_dense.acquire.base import Round
from dal_dense.acquire.basket import Basket
from dal_dense.acquire.values import log_of
from dal_dense.config import StrategyConfig
from dal_dense.offers import Offers

FOREGROUND_SHARE = 0.66
"""Share of the seconds that is drawn by predicted foreground; the rest is plain random."""


def foreground_random(
    offers: Offers, basket: Basket, options: StrategyConfig, when: Round, quota_classes: Sequence[int]
) -> None:
    """Draw a quota class, then a region in proportion to its predicted volume of that class.

    Only boxes that were drawn blindly stand for the pool, so only they are drawn while there are any.
    The draw within a class is without replacement (Gumbel top-k; Kool et al. 2019). A class that
    has no region left is drawn no more.
    """
    seed = when.seed_for("foreground_random")
    blind = offers.extra.get("random", torch.ones_like(offers.score)) > 0  # peaks of a score are no random sample
    volume = offers.extent if offers.parts is None else offers.objects  # ground by class, or objects by class
    classes = list(quota_classes)
    while classes and basket.spent < FOREGROUND_SHARE * basket.budget.seconds:
        c = classes[noise.derive_seed(seed, "class", len(basket.rows), len(classes)) % len(classes)]
        weight = offers.shares[:, c] * volume
        value = log_of(weight) + noise.gumbel(offers.key, seed, f"class {c}")
        row = basket.best(value, among=blind & (weight > 0))
        if row is None:
            classes.remove(c)
        else:
            basket.take(row, value[row])
    draw = blind + noise.uniform(offers.key, seed, "order")  # the others only where no blind box is left
    while (row := basket.best(draw)) is not None:
        basket.take(row, draw[row])
