"""PPAL: the most uncertain frames, thinned to a diverse batch (Yang et al. 2024).

The score is the task's (`uncertainty.score: difficulty_entropy` is PPAL's own). Adapted from a number
of frames to a budget in seconds: the candidates are the best rows that `POOL` budgets would buy together,
so crops are of different ground, as PPAL's frames are of themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dal_dense.acquire.base import Round
from dal_dense.acquire.basket import Basket
from dal_dense.acquire.matching import matching_distance
from dal_dense.acquire.shards import LocalShard
from dal_dense.acquire.shortlist import ByWorth, InTurn, fill
from dal_dense.acquire.values import summed_score
from dal_dense.config import StrategyConfig
from dal_dense.errors import ConfigError
from dal_dense.offers import Offers

POOL = 4.0
"""Budgets' worth of candidates, as published."""
AT_MOST = 4000
"""Candidates at most: memory grows with their square."""
ROUNDS = 100
"""k-medoid iterations at most, as published."""


def ppal(offers: Offers, basket: Basket, options: StrategyConfig, when: Round, quota_classes: Sequence[int]) -> None:
    """k-centre greedy, then k-medoids, over class-conditional matching distances of the candidates.

    Medoids that may not be bought, for they overlap or the money ends, are replaced by the row farthest
    from what is bought.

    Raises:
        ConfigError: if the offers carry no objects.
    """
    if offers.parts is None or offers.parts.embedding.shape[1] == 0:
        raise ConfigError("strategy.name ppal compares detected objects, and this task offers none; use hybrid")
    value = summed_score(offers)
    rows = _candidates(basket, value)
    if not len(rows):
        return
    apart = matching_distance(offers[rows].parts, len(rows)).double()  # type: ignore[arg-type]
    centres = _spread(basket.copy(), rows, apart, value)
    for centre in _medoids(apart, centres):
        row = int(rows[centre])
        if bool(basket.affordable()[row]):
            basket.take(row, value[row])
    _spread(basket, rows, apart, value)
    while (best := basket.best(value)) is not None:  # money is left and no candidate is: on by score
        basket.take(best, value[best])


def _candidates(basket: Basket, value: Float[Tensor, " N"]) -> Int[Tensor, " K"]:
    """The best rows that may be asked together for `POOL` budgets, best first; caps left aside."""
    budget = replace(basket.budget, seconds=POOL * basket.budget.seconds, max_per_image=None, max_per_group=None)
    pool = LocalShard(basket.offers, budget, value.double())
    pool.basket.price[~basket.affordable()] = torch.inf  # what one budget does not buy, a larger one is not asked for
    picks = fill(InTurn([pool]), budget, ByWorth(), most=AT_MOST)
    return torch.zeros(0, dtype=torch.int64) if picks.rows is None else picks.rows.row.to(value.device)


def _spread(
    basket: Basket, rows: Int[Tensor, " K"], apart: Float[Tensor, "K K"], value: Float[Tensor, " N"]
) -> list[int]:
    """Fill the basket with the candidate farthest from those taken; positions among `rows`."""
    place = {int(row): i for i, row in enumerate(rows.tolist())}
    taken = [place[r] for r in basket.rows if r in place]
    far = apart[taken].amin(0) if taken else torch.full_like(apart[0], torch.inf)
    among = torch.zeros(len(value), dtype=torch.bool, device=value.device)
    among[rows] = True
    chosen: list[int] = []
    while True:
        rank = torch.zeros_like(value, dtype=torch.float64)
        rank[rows] = far if taken or chosen else value[rows]  # the first is the most uncertain
        row = basket.best(rank, among=among)
        if row is None:
            return chosen
        basket.take(row, value[row])
        chosen.append(place[row])
        far = torch.minimum(far, apart[place[row]])


def _medoids(apart: Float[Tensor, "K K"], centres: list[int]) -> list[int]:
    """k-medoids by alternation, from these centres."""
    for _ in range(ROUNDS):
        nearest = apart[centres].argmin(0)
        moved = []
        for k in range(len(centres)):
            members = (nearest == k).nonzero()[:, 0]
            within = apart[members][:, members].sum(1)
            moved.append(int(members[within.argmin()]) if len(members) else centres[k])
        if moved == centres:
            break
        centres = moved
    return centres
