"""Rules that rank rows, over more rows than can be looked at for every pick.

A shard (all of the pool, or the images of one machine) hands over its best rows and its floor: the rank that no
other row of it reaches, whatever is bought; or a rule says how far others may rise by what is bought. Picks are made
among the rows handed over as long as they do not rank below the highest floor; then the shards reckon with the picks
and hand over their next best. So the choice is that of the plain rule, which looks at every row for every pick, for
any number of shards and any order of rows, while only some thousand rows are held at once. It is the lazy evaluation
of greedy rules (Minoux 1978) with bounds from ranks instead of submodularity.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from dal_dense.acquire.base import Budget, Selection
from dal_dense.acquire.basket import Basket
from dal_dense.offers import Offers, concat

COUNT = 4096
"""Rows that all shards together hand over at a time, those of the same images apart."""
LEAST = 64
"""Rows that one shard hands over at least."""
MOST = 1 << 18
"""Rows that all shards together hand over at most, unless none of those can be bought; rows of a few columns."""
FEW = 1 / 64
"""Share of the rows handed over: where fewer are bought, four times as many are asked for next."""
_INSTANT = 1e-9
"""Seconds that stand for a price of zero."""


@dataclass(frozen=True)
class Rows:
    """Some rows of some shards, with what is needed to choose among them, on the CPU.

    Attributes:
        offers: the rows with the columns that a basket reads, and those that the rule needs, if any;
            `image_seconds` is the image's opening.
        shard, row: where they come from.
        worth: a number a row that the rule ranks by, with the price or without.
    """

    offers: Offers
    shard: Int[Tensor, " K"]
    row: Int[Tensor, " K"]
    worth: Float64[Tensor, " K"]

    def __getitem__(self, rows: Tensor) -> Rows:
        return Rows(self.offers[rows], self.shard[rows], self.row[rows], self.worth[rows])

    @classmethod
    def of(cls, parts: Sequence[Rows]) -> Rows:
        """All rows of all parts, in order; one part is not copied. One without rows may lack columns."""
        parts = [p for p in parts if len(p.worth)] or parts[:1]
        if len(parts) == 1:
            return parts[0]
        return cls(
            concat([p.offers for p in parts]),
            torch.cat([p.shard for p in parts]),
            torch.cat([p.row for p in parts]),
            torch.cat([p.worth for p in parts]),
        )


@dataclass(frozen=True)
class Picks:
    """Rows taken so far, in order.

    Attributes:
        rows: which; None before the first.
        seconds, values: of each, as `Selection` reports them.
        spent: their seconds, summed in the order of purchase.
    """

    rows: Rows | None = None
    seconds: tuple[float, ...] = ()
    values: tuple[float, ...] = ()
    spent: float = 0.0

    def __len__(self) -> int:
        return len(self.seconds)

    @property
    def taken(self) -> Rows:
        """`rows` of a plan that something was affordable for.

        Raises:
            ValueError: if there are none: a fault of the rule.
        """
        if self.rows is None or not len(self):
            raise ValueError("nothing was chosen, though something is affordable: a fault of the rule")
        return self.rows

    def selection(self, rows: Int[Tensor, " K"]) -> Selection:
        """What is reported of them, where they are these rows of some offers."""
        seconds = torch.tensor(self.seconds, dtype=torch.float64, device=rows.device)
        return Selection(rows, seconds, torch.tensor(self.values, dtype=torch.float32, device=rows.device))

    def begin_with(self, first: Picks) -> bool:
        """Are these the first picks, in the same order, and perhaps more?"""
        n = len(first)
        if self.rows is None or first.rows is None:
            return n == 0
        same = torch.equal(self.rows.shard[:n], first.rows.shard) and torch.equal(self.rows.row[:n], first.rows.row)
        return n <= len(self) and same

    def since(self, first: Picks) -> Picks:
        """Those that came after these first ones."""
        n = len(first)
        rows = None if self.rows is None else self.rows[torch.arange(n, len(self))]
        return Picks(rows, self.seconds[n:], self.values[n:], self.spent)

    def and_then(self, more: Picks) -> Picks:
        """With those that came after."""
        rows = [p.rows for p in (self, more) if p.rows is not None]
        return Picks(
            Rows.of(rows) if rows else None, self.seconds + more.seconds, self.values + more.values, more.spent
        )

    def and_those_of(self, basket: Basket, rows: Rows) -> Picks:
        """With what a basket over `rows`, to which these picks are known, has bought."""
        new = rows[torch.tensor(basket.rows, dtype=torch.int64)]
        return self.and_then(Picks(new, tuple(basket.seconds), tuple(basket.values), basket.spent))


@dataclass(frozen=True)
class Candidates:
    """What a shard hands over.

    Attributes:
        rows: its best.
        floor: rank and key of the last; every other row ranks below. None if there is no other.
    """

    rows: Rows
    floor: tuple[float, int] | None


Shard = Callable[[Picks, int, Any], Candidates]
"""`shard(picks, count, ask)`: its `count` best rows that are affordable after these picks, by what is asked.

All rows of an image lie in one shard; `image`, `group` and `key` mean the same in all of them.
"""


@runtime_checkable
class Shards(Protocol):
    """All shards of a pool, wherever they lie."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __call__(self, picks: Picks, count: int, ask: Any) -> Sequence[Candidates]:
        """What each answers; one without any rows need not."""
        ...


@dataclass(frozen=True)
class InTurn:
    """Shards of this process, asked one after the other."""

    shards: Sequence[Shard]

    def __len__(self) -> int:
        return len(self.shards)

    def __call__(self, picks: Picks, count: int, ask: Any) -> list[Candidates]:
        """See `Shards`."""
        return [shard(picks, count, ask) for shard in self.shards]


@runtime_checkable
class Rule(Protocol):
    """What rows are ranked by while a basket fills."""

    def asks(self) -> Any:
        """What shards are to rank by now; it travels to other processes."""
        ...

    def begins(self, rows: Rows) -> None:
        """Choose among these rows from now on."""
        ...

    def ranks(self, price: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """Of those rows, at these prices."""
        ...

    def takes(self, row: int) -> None:
        """Reckon with the purchase of one of them."""
        ...

    def lifted(self, floor: float) -> float:
        """What a floor may have risen to since the shards were asked."""
        ...

    @property
    def most(self) -> int:
        """Rows that all shards together hand over at most, unless none of those can be bought."""
        ...


class ByWorth:
    """The rule of rows that have a worth of their own."""

    def __init__(self, *, per_second: bool = False) -> None:
        """`per_second`: rank by worth over the price at the time, not by worth alone."""
        self._per_second = per_second

    def asks(self) -> Any:
        """See `Rule`."""
        return self._per_second

    def begins(self, rows: Rows) -> None:
        """See `Rule`."""
        self._worth = rows.worth

    def ranks(self, price: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """See `Rule`."""
        return rank_of(self._worth, price, self._per_second)

    def takes(self, row: int) -> None:
        """See `Rule`: no rank changes."""

    def lifted(self, floor: float) -> float:
        """See `Rule`: it stays where it was."""
        return floor

    @property
    def most(self) -> int:
        """See `Rule`."""
        return MOST


def fill(shards: Shards, budget: Budget, rule: Rule, picks: Picks | None = None, *, most: int = sys.maxsize) -> Picks:
    """Take the row of the highest rank that is affordable, again and again; of equals the smaller key.

    Args:
        shards: the pool.
        budget: seconds and caps.
        rule: what rows are ranked by.
        picks: what is taken already.
        most: stop when so many are taken.
    """
    picks = picks or Picks()
    count = max(LEAST, COUNT // len(shards))
    while True:
        rows, floor = joined(shards(picks, count, rule.asks()))
        rule.begins(rows)
        basket = Basket(rows.offers, budget)
        if picks.rows is not None:
            basket.note(picks.rows.offers, picks.spent)
        while len(picks) + len(basket.rows) < most:
            rank = rule.ranks(basket.price)
            row = basket.best(rank)
            if row is None:
                break
            if floor and (-float(rank[row]), int(rows.offers.key[row])) > (-rule.lifted(floor[0]), floor[1]):
                break
            basket.take(row, rank[row])
            rule.takes(row)
        picks = picks.and_those_of(basket, rows)
        if floor is None or len(picks) == most:
            return picks
        count = next_count(count, len(basket.rows), len(shards), rule.most)


def next_count(count: int, bought: int, shards: int, most: int) -> int:
    """Rows that each shard is asked for next: more where few were bought, for a cap or a gap has closed most of them.

    Args:
        count: rows that each was asked for.
        bought: how many of them, of all shards, were bought.
        shards: how many shards there are.
        most: rows that all of them hand over at most, unless nothing was bought.
    """
    at_once = count * shards
    return 4 * count if not bought or (bought < FEW * at_once and at_once < most) else count


def rank_of(worth: Float64[Tensor, " n"], price: Float64[Tensor, " n"], per_second: bool) -> Float64[Tensor, " n"]:
    """What rows are ranked by at these prices."""
    return worth / price.clamp_min(_INSTANT) if per_second else worth


def joined(found: Sequence[Candidates]) -> tuple[Rows, tuple[float, int] | None]:
    """The rows of all shards, sorted by key, and the highest floor."""
    rows = Rows.of([c.rows for c in found])
    floors = [c.floor for c in found if c.floor is not None]
    highest = max(floors, key=lambda f: (f[0], -f[1])) if floors else None
    return rows[rows.offers.key.argsort(stable=True)], highest
