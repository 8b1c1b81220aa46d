"""PPAL: the most uncertain frames, thinned to a diverse batch (Yang et al. 2024).

The score is the task's (`uncertainty.score: difficulty_entropy` is PPAL's own). Adapted from a number
of frames to a budget in seconds: the candidates are the best rows that `POOL` budgets would buy together,
so crops are of different ground, as PPAL's frames are of themselves.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum

import torch
from jaxtyping import Float32, Float64, Int
from torch import Tensor

from dal_dense.acquire.base import Aim, Budget
from dal_dense.acquire.basket import Basket
from dal_dense.acquire.matching import matching_distance
from dal_dense.acquire.per_second import per_second
from dal_dense.acquire.ranking import worth_of
from dal_dense.acquire.shards import PART, LocalShard
from dal_dense.acquire.shortlist import ByWorth, Candidates, Picks, Shards, fill, joined
from dal_dense.errors import ConfigError
from dal_dense.offers import Offers, Parts

POOL = 4.0
"""Budgets' worth of candidates, as published."""
AT_MOST = 4000
"""Candidates at most: memory grows with their square."""
ROUNDS = 100
"""k-medoid iterations at most, as published."""


class Step(Enum):
    """What shards are asked for."""

    CANDIDATES = "the best rows that `POOL` budgets buy"
    OBJECTS = "the candidates once more, with their objects"
    REST = "the best rows that the money left buys"


class PpalShard(LocalShard):
    """Rows with their objects; 16 bytes a row beside the columns."""

    def __init__(self, offers: Offers, aim: Aim, number: int = 0, known: Offers | None = None) -> None:
        """As `acquire.shard_of`.

        Raises:
            ConfigError: if the offers carry no objects.
        """
        if offers.parts is None or offers.parts.embedding.shape[1] == 0:
            raise ConfigError("strategy.name ppal compares detected objects, and this task offers none; use hybrid")
        super().__init__(offers, aim.budget, worth_of(per_second, offers, aim.options, aim.when), number, known)
        self._own = aim.budget

    def __call__(self, picks: Picks, count: int, ask: Step | bool) -> Candidates:
        """What the step wants; `worth` is the score of the whole region.

        Args:
            picks: of all shards in this step; for `OBJECTS` the candidates.
            count: at most so many, but for `OBJECTS`.
            ask: which step.
        """
        if ask is Step.OBJECTS:
            return self._with_objects(picks)
        if ask is Step.REST and self.basket.budget is not self._own:
            self.begin(self._own)
        if ask is Step.CANDIDATES and not len(picks):
            self.begin(wide(self._own))
            self.basket.price[self.basket.price > self._own.seconds] = torch.inf  # no budget buys these
        return super().__call__(picks, count, False)

    def _with_objects(self, picks: Picks) -> Candidates:
        """Its own of these picks."""
        rows = picks.taken.row[picks.taken.shard == self.number].to(self.offers.device)
        return self.handed(rows, self.worth[rows], parts=self._objects_of(rows))

    def _objects_of(self, rows: Int[Tensor, " K"]) -> Parts:
        """As `Parts.of_rows`, for a few rows: no temporary column is as long as those of all rows or objects."""
        parts = self.offers.parts
        assert parts is not None
        found = [torch.isin(row, rows).nonzero()[:, 0] for row in torch.split(parts.row, PART)]
        mine = torch.cat([some + number * PART for number, some in enumerate(found)])
        wanted, place = rows.sort()
        new = place[torch.searchsorted(wanted, parts.row[mine])]
        return Parts(new, parts.classes[mine], parts.weight[mine], parts.embedding[mine])


class Ppal:
    """k-centre greedy, then k-medoids, over class-conditional matching distances of the candidates.

    Medoids that may not be bought, for they overlap or the money ends, are replaced by the candidate farthest
    from what is bought. Money that no candidate can use is spent by score.
    """

    shard = PpalShard

    def choose(self, shards: Shards, aim: Aim) -> Picks:
        """See `ranking.Sharded`."""
        rows, _ = joined(shards(candidates(shards, aim.budget), 1, Step.OBJECTS))
        rows = rows[rows.worth.argsort(descending=True, stable=True)]  # so of equals the better one is taken
        basket = Basket(rows.offers, aim.budget)
        parts, rows = rows.offers.parts, replace(rows, offers=replace(rows.offers, parts=None))
        assert parts is not None
        thin(basket, matching_distance(parts.to(aim.device), len(rows.worth)).cpu(), rows.worth)
        return fill(shards, aim.budget, _Asking(Step.REST), Picks().and_those_of(basket, rows))


class _Asking(ByWorth):
    """The rule of scores, in one step."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self._step = step

    def asks(self) -> Step:
        """See `shortlist.Rule`."""
        return self._step


def wide(budget: Budget) -> Budget:
    """What buys the candidates; caps bind the choice, not them."""
    return replace(budget, seconds=POOL * budget.seconds, max_per_image=None, max_per_group=None)


def candidates(shards: Shards, budget: Budget) -> Picks:
    """The best rows that may be asked together for `POOL` budgets."""
    return fill(shards, wide(budget), _Asking(Step.CANDIDATES), most=AT_MOST)


def thin(basket: Basket, apart: Float32[Tensor, "K K"], worth: Float64[Tensor, " K"]) -> None:
    """Fill a basket over the candidates with medoids, then with those farthest from what is taken.

    Args:
        basket: empty.
        apart: distances of the candidates.
        worth: of each.
    """
    trial = basket.copy()
    _spread(trial, apart, worth)
    for centre in medoids(apart, trial.rows):
        if bool(basket.affordable()[centre]):
            basket.take(centre, worth[centre])
    _spread(basket, apart, worth)


def _spread(basket: Basket, apart: Float32[Tensor, "K K"], worth: Float64[Tensor, " K"]) -> None:
    """Take the row farthest from those taken, again and again; the first is that of the greatest worth."""
    far = apart[basket.rows].amin(0) if basket.rows else None
    while (row := basket.best(worth if far is None else far)) is not None:
        basket.take(row, worth[row])
        far = apart[row] if far is None else torch.minimum(far, apart[row])


def medoids(apart: Float32[Tensor, "K K"], centres: list[int]) -> list[int]:
    """k-medoids by alternation, from these centres."""
    for _ in range(ROUNDS if centres else 0):
        nearest = apart[centres].argmin(0)
        moved = []
        for k in range(len(centres)):
            members = (nearest == k).nonzero()[:, 0]
            within = apart[members][:, members].sum(1, dtype=torch.float64)
            moved.append(int(members[within.argmin()]) if len(members) else centres[k])
        if moved == centres:
            break
        centres = moved
    return centres
