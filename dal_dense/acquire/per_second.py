"""Most summed score a second of the expert's time.

Cost-effective greedy for a knapsack: rank by value over price, and compare with the best single
item, for the ratio rule alone can be arbitrarily bad (Khuller, Moss & Naor 1999; Leskovec et al.
2007, CEF).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from dal_dense.acquire.base import Budget, Round
from dal_dense.acquire.basket import Basket
from dal_dense.acquire.shortlist import ByWorth, Picks, Shards, fill, joined, rank_of
from dal_dense.acquire.values import summed_score
from dal_dense.config import StrategyConfig
from dal_dense.offers import Offers


def per_second(offers: Offers, options: StrategyConfig, when: Round) -> Float[Tensor, " N"]:
    """Score times volume."""
    return summed_score(offers)


def better_of_two(shards: Shards, budget: Budget) -> Picks:
    """Worth over seconds, the image's opening included until it is paid.

    If the best single region is worth more than all that this buys, it is taken first and the
    rest of the budget filled by the same rule. Where regions neither overlap nor share openings and
    no cap binds, the result is worth at least half of the best possible.
    """
    single, plan = _single(shards, budget), fill(shards, budget, ByWorth(per_second=True))
    if single.rows is None or plan.rows is None or float(single.rows.worth.sum()) <= float(plan.rows.worth.sum()):
        return plan
    return fill(shards, budget, ByWorth(per_second=True), single)


def _single(shards: Shards, budget: Budget) -> Picks:
    """The region of the greatest worth that the budget buys."""
    rows, _ = joined(shards(Picks(), 1, False))
    basket = Basket(rows.offers, budget)
    row = basket.best(rows.worth)
    if row is not None:
        basket.take(row, rank_of(rows.worth, basket.price, True)[row])
    return Picks().and_those_of(basket, rows)
