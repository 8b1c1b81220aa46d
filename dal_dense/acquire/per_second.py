"""Most summed score a second of the expert's time.

Cost-effective greedy for a knapsack: rank by value over price, and compare with the best single
item, for the ratio rule alone can be arbitrarily bad (Khuller, Moss & Naor 1999; Leskovec et al.
2007, CEF).
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from dal_dense.acquire.base import Round
from dal_dense.acquire.basket import Basket
from dal_dense.acquire.values import summed_score
from dal_dense.config import StrategyConfig
from dal_dense.offers import Offers

_INSTANT = 1e-9
"""Seconds that stand for a price of zero."""


def per_second(
    offers: Offers, basket: Basket, options: StrategyConfig, when: Round, quota_classes: Sequence[int]
) -> None:
    """Score times volume over seconds, the image's opening included until it is paid.

    If the best single region is worth more than all that this buys, it is taken first and the
    rest of the budget filled by the same rule. Where regions neither overlap nor share openings and
    no cap binds, the result is worth at least half of the best possible.
    """
    value = summed_score(offers)
    plan = basket.copy()
    _fill(plan, value)
    single = basket.best(value)
    if single is not None and float(value[single]) > float(value[plan.rows].sum()):
        basket.take(single, value[single] / basket.price[single].clamp_min(_INSTANT))
    _fill(basket, value)


def _fill(basket: Basket, value: Float[Tensor, " N"]) -> None:
    while True:
        rate = value / basket.price.clamp_min(_INSTANT)
        row = basket.best(rate)
        if row is None:
            return
        basket.take(row, rate[row])
