"""Strategies that weigh every row by all others: shards hand over all their rows, and one place chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dal_dense.acquire.base import Aim, Round
from dal_dense.acquire.basket import Basket
from dal_dense.acquire.shards import BasketShard
from dal_dense.acquire.shortlist import Candidates, Picks, Shards, joined
from dal_dense.config import StrategyConfig
from dal_dense.offers import Offers

Strategy = Callable[[Offers, Basket, StrategyConfig, Round, Sequence[int]], None]
"""`strategy(offers, basket, options, when, quota_classes)` calls `basket.take` until nothing is affordable.

Rows come sorted by key, so "the first of equals" is the same in any order of the pool. They have no objects.
"""

EVERY = ("score", "class_score", "shares", "boundary", "objects", "area", "embedding", "extra")
"""Columns beside those of `shards.bare`. The `parts` stay where they are."""


@dataclass(frozen=True)
class Whole:
    """A `ranking.Sharded` strategy of this kind. One place needs memory for all rows.

    Attributes:
        strategy: spends the budget.
        columns: what it reads beside the columns of a basket.
    """

    strategy: Strategy
    columns: tuple[str, ...] = EVERY

    def shard(self, offers: Offers, aim: Aim, number: int, known: Offers | None) -> WholeShard:
        """See `ranking.Sharded`."""
        return WholeShard(offers, aim, self.columns, number, known)

    def choose(self, shards: Shards, aim: Aim) -> Picks:
        """See `ranking.Sharded`."""
        rows, _ = joined(shards(Picks(), 1, True))
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
        self._columns = columns

    def __call__(self, picks: Picks, count: int, ask: Any) -> Candidates:
        """All its rows, whatever is asked."""
        offers = self.offers
        rows = torch.arange(len(offers), device=offers.device)
        columns = {name: getattr(offers, name) for name in self._columns}
        return self.handed(rows, torch.zeros(len(rows), dtype=torch.float64), **columns)
