"""Strategies that weigh every row by all others: shards hand over rows, all or a sample, and one place chooses."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from dal_dense.acquire.base import Aim, Round
from dal_dense.acquire.basket import Basket
from dal_dense.acquire.shards import BasketShard
from dal_dense.acquire.shortlist import Candidates, Picks, Rows, Shards
from dal_dense.acquire.survey import sample_of, survey_of, surveyed
from dal_dense.config import StrategyConfig
from dal_dense.offers import Offers

Strategy = Callable[[Offers, Basket, StrategyConfig, Round, Sequence[int]], None]
"""`strategy(offers, basket, options, when, quota_classes)` calls `basket.take` until nothing is affordable.

Rows come sorted by key, so "the first of equals" is the same in any order of the pool. They have no objects.
"""

EVERY = ("score", "class_score", "shares", "boundary", "objects", "area", "embedding", "extra")
"""Columns beside those of `shards.bare`. The `parts` stay where they are."""

SAMPLE = 1 << 16
"""Rows on offer that are weighed by each other in a minute on two cores, where time grows with their square."""


@dataclass(frozen=True)
class Whole:
    """A `ranking.Sharded` strategy of this kind. One place needs memory for the rows that it sees.

    It sees what is labelled, and of what is on offer as many rows as it may, drawn by key. If it can buy none of
    these, it sees four times as many.

    Attributes:
        strategy: spends the budget.
        columns: what it reads beside the columns of a basket.
        most: rows on offer that it sees at most.
    """

    strategy: Strategy
    columns: tuple[str, ...] = EVERY
    most: int = sys.maxsize

    def shard(self, offers: Offers, aim: Aim, number: int, known: Offers | None) -> WholeShard:
        """See `ranking.Sharded`."""
        return WholeShard(offers, aim, self.columns, number, known)

    def choose(self, shards: Shards, aim: Aim) -> Picks:
        """See `ranking.Sharded`."""
        most = self.most
        while True:
            rows = surveyed(shards, aim.when, most)
            sample = sample_of(rows.offers, aim.when, most)
            labelled = rows.offers.labelled.nonzero()[:, 0]
            if len(labelled) + len(sample) < len(rows.worth):
                rows = rows[torch.cat([labelled, sample]).sort().values]
            picks = self._chosen(rows, aim)
            if len(picks) or len(sample) < most:
                return picks
            most *= 4

    def _chosen(self, rows: Rows, aim: Aim) -> Picks:
        basket = Basket(rows.offers.to(aim.device), aim.budget)
        self.strategy(basket.offers, basket, aim.options, aim.when, aim.quota_classes)
        return Picks().and_those_of(basket, rows)


class WholeShard(BasketShard):
    """Rows of some images; 8 bytes a row beside the columns."""

    def __init__(
        self, offers: Offers, aim: Aim, columns: Sequence[str], number: int = 0, known: Offers | None = None
    ) -> None:
        """`columns`: as `Whole` has them; the rest as `acquire.shard_of`."""
        super().__init__(offers, aim.budget, number, known)
        self._columns, self._when = columns, aim.when

    def __call__(self, picks: Picks, count: int, ask: Any) -> Candidates:
        """Rows as `survey.survey_of` finds them, whatever is asked."""
        rows, floor = survey_of(self.offers, self._when, count)
        columns = {name: self._column(name, None if floor is None else rows) for name in self._columns}
        if floor is None:
            rows = torch.arange(len(self.offers), device=self.offers.device)
        return self.handed(rows, torch.zeros(len(rows), dtype=torch.float64), floor, **columns)

    def _column(self, name: str, rows: Int[Tensor, " K"] | None) -> Any:
        """Of these rows; None: the column itself, which is not copied."""
        column = getattr(self.offers, name)
        if rows is None:
            return column
        return {key: some[rows] for key, some in column.items()} if isinstance(column, dict) else column[rows]
