"""Strategies that weigh rows by each other: shards hand over all rows, or a sample, and one place chooses."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from dal_dense.acquire.base import Aim
from dal_dense.acquire.basket import Basket
from dal_dense.acquire.shards import BasketShard, bare, first_of, highest
from dal_dense.acquire.shortlist import ByWorth, Candidates, Picks, Rows, Shards, fill, joined
from dal_dense.acquire.survey import sample_draw
from dal_dense.offers import Offers

Strategy = Callable[[Basket, Aim], None]
"""`strategy(basket, aim)` calls `basket.take` with rows of `basket.offers` until nothing is affordable.

Rows come sorted by key, so "the first of equals" is the same in any order of the pool. They have no objects.
"""

EVERY = ("score", "class_score", "shares", "boundary", "objects", "area", "embedding", "extra")
"""Columns beside those of `shards.bare`. The `parts` stay where they are."""

SAMPLE = 1 << 16
"""Rows on offer with 32 features that are weighed by each other, pair by pair, in half a minute on two cores."""


@dataclass(frozen=True)
class Whole:
    """A `ranking.Sharded` strategy of this kind. One place needs memory for the rows that it sees.

    It sees what is labelled, and of what is on offer as many rows as it may, drawn by key: first of the rows that may
    be bought, then of the others. Where it saw a part only, what money is left buys others in the order of the draw,
    and their value is minus their place in it, from -1 to 0.

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
        rows = self._seen(shards)
        basket = Basket(rows.offers.to(aim.device), aim.budget)
        self.strategy(basket, aim)
        few = bare(rows.offers, torch.arange(len(rows.worth)), rows.offers.image_seconds)
        picks = Picks().and_those_of(basket, replace(rows, offers=few))
        every = int((~rows.offers.labelled).sum()) < self.most
        return picks if every else fill(shards, aim.budget, ByWorth(), picks)

    def _seen(self, shards: Shards) -> Rows:
        """What is labelled and the sample, sorted by key."""
        count = self.most if len(shards) == 1 else self.most // len(shards) * 5 // 4 + 64
        while True:
            rows, floor = joined(shards(Picks(), count, None))
            seen = self.most + int(rows.offers.labelled.sum())
            if floor is None or int((rows.worth >= floor[0]).sum()) >= seen:
                break
            count *= 2
        if len(rows.worth) <= seen:
            return rows
        return rows[first_of(rows.worth, rows.offers.key, seen).sort().values]


class WholeShard(BasketShard):
    """Rows of some images; 8 bytes a row beside the columns."""

    def __init__(
        self, offers: Offers, aim: Aim, columns: Sequence[str], number: int = 0, known: Offers | None = None
    ) -> None:
        """`columns`: as `Whole` has them; the rest as `acquire.shard_of`."""
        super().__init__(offers, aim.budget, number, known)
        self._columns, self._when = columns, aim.when

    def __call__(self, picks: Picks, count: int, ask: Any) -> Candidates:
        """Rows by their place in the draw.

        Args:
            picks: of all shards.
            count: at most so many, labelled ones apart.
            ask: None: the labelled rows and others, with the columns that the strategy reads; else those only that are
                affordable after the picks, without.
        """
        self.note(picks)
        labelled = self.offers.labelled
        if ask is not None:
            rows, floor = self.best(count, lambda here, price: self._place(here))
            return self.handed(rows, self._place(rows), floor)
        rows, floor = highest(self.offers.key, count, lambda here: (self._place(here), ~labelled[here]))
        rows = torch.cat([labelled.nonzero()[:, 0], rows])
        columns = {name: getattr(self.offers, name) for name in self._columns}
        if len(rows) == len(labelled):
            rows = torch.arange(len(labelled), device=labelled.device)  # all, so that no column is copied
        else:
            columns = {name: _of(column, rows) for name, column in columns.items()}
        return self.handed(rows, torch.where(labelled[rows], torch.inf, self._place(rows)), floor, **columns)

    def _place(self, rows: Tensor | slice) -> Float64[Tensor, " n"]:
        """The draw: above -1 for rows that may be bought, below for others."""
        closed = ~self.basket.buys(self.basket.price[rows])
        return -(sample_draw(self.offers.key[rows], self._when) + closed)


def _of(column: Any, rows: Int[Tensor, " K"]) -> Any:
    """A column of these rows; `extra` is a mapping of some."""
    return {name: some[rows] for name, some in column.items()} if isinstance(column, dict) else column[rows]
