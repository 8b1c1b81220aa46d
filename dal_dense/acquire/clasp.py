"""ClaSP PE: class quotas and power noise that fades over the rounds (nnActive; Lüth et al. 2025).

Adapted from patches of one size to a budget in seconds, and never short: a class without
candidates passes its seconds on.
"""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from dal_dense import noise
from dal_dense.acquire.base import Aim
from dal_dense.acquire.turns import Turn, Turns
from dal_dense.acquire.values import log_of, scheduled_beta
from dal_dense.offers import Offers


def clasp(offers: Offers, aim: Aim, turn: Turn, objects: bool) -> Float64[Tensor, " N"]:
    """log(class score) + Gumbel / beta_t by quota class, or log(score) + Gumbel / beta_t."""
    seed, beta = aim.when.seed_for("clasp"), scheduled_beta(aim.options, aim.when)
    if turn is None:
        return log_of(offers.score) + noise.gumbel(offers.key, seed, "all") / beta
    score = offers.class_score[:, turn]
    value = log_of(score) + noise.gumbel(offers.key, seed, f"class {turn}") / beta
    return torch.where(score > 0, value, -torch.inf)


def clasp_turns(aim: Aim) -> Turns:
    """`class_share` of the seconds is split by class, the rest goes by the score.

    At each purchase the class that has had the fewest seconds is served; equal classes in a random order of the round.
    """
    seed, spent = aim.when.seed_for("clasp"), 0.0
    had = dict.fromkeys(sorted(aim.quota_classes, key=lambda c: noise.derive_seed(seed, "class", c)), 0.0)
    while had and spent < aim.options.class_share * aim.budget.seconds:
        c = min(had, key=had.__getitem__)
        paid = yield c
        if paid is None:
            del had[c]
        else:
            had[c] += paid
            spent += paid
    while (yield None) is not None:
        pass
