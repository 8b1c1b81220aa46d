"""Random regions, most of them where the model sees foreground.

The strong baseline of nnActive (Lüth et al. 2025), "Random 66% FG", draws from ground truth; this
one draws from the prediction, so it can be run on data that nobody has labelled.
"""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from dal_dense import noise
from dal_dense.acquire.base import Aim
from dal_dense.acquire.turns import Turn, Turns
from dal_dense.acquire.values import log_of
from dal_dense.offers import Offers

FOREGROUND_SHARE = 0.66
"""Share of the seconds that is drawn by predicted foreground; the rest is plain random."""


def foreground_random(offers: Offers, aim: Aim, turn: Turn, objects: bool) -> Float64[Tensor, " N"]:
    """A draw in proportion to the predicted volume of a quota class (objects of it, where there are some), or any draw.

    Only boxes that were drawn blindly stand for the pool, so only they are drawn while there are any.
    """
    seed = aim.when.seed_for("foreground_random")
    blind = offers.extra.get("random", torch.ones_like(offers.score)) > 0  # peaks of a score are no random sample
    if turn is None:
        return blind + noise.uniform(offers.key, seed, "order")  # the others only where no blind box is left
    weight = offers.shares[:, turn] * (offers.objects if objects else offers.extent)
    value = log_of(weight) + noise.gumbel(offers.key, seed, f"class {turn}")
    return torch.where(blind & (weight > 0), value, -torch.inf)


def foreground_turns(aim: Aim) -> Turns:
    """Draw a quota class, then a region by it, while the foreground's share lasts; then any region.

    The draw within a class is without replacement (Gumbel top-k; Kool et al. 2019). A class that
    has no region left is drawn no more.
    """
    seed, spent, bought = aim.when.seed_for("foreground_random"), 0.0, 0
    classes = list(aim.quota_classes)
    while classes and spent < FOREGROUND_SHARE * aim.budget.seconds:
        c = classes[noise.derive_seed(seed, "class", bought, len(classes)) % len(classes)]
        paid = yield c
        if paid is None:
            classes.remove(c)
        else:
            spent += paid
            bought += 1
    while (yield None) is not None:
        pass
