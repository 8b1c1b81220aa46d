"""Shards whose rows lie on this machine: their best rows, as `shortlist.fill` asks for them.

Why a floor holds where worths do not change. A price changes only when the row's image is opened, which
takes the opening off. The row that opens an image ranks above the floor, so it is among the rows handed
over; with it go all rows of its image that would rank above the floor at the lower price.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from dal_dense.acquire.base import Budget
from dal_dense.acquire.basket import Basket
from dal_dense.acquire.shortlist import Candidates, Picks, Rows, rank_of
from dal_dense.offers import Offers
from dal_dense.regions import Regions

PART = 1 << 18
"""Rows that are looked at together, so that temporary columns are small."""


@dataclass(frozen=True)
class Stock:
    """What may be bought of some rows before anything is.

    Attributes:
        rows: how many there are.
        free: how many of them may be taken.
        cheapest: least seconds that one of these costs; infinite if there is none.
    """

    rows: int
    free: int
    cheapest: float

    @classmethod
    def of(cls, basket: Basket) -> Stock:
        """That of an empty basket."""
        free = int((basket.price < torch.inf).sum())
        return cls(len(basket.price), free, float(basket.price.min()) if free else torch.inf)


RankOf = Callable[[Tensor | slice, Float64[Tensor, " n"]], Float64[Tensor, " n"]]
"""Rows and their prices to ranks; a row's rank never falls as its price does."""


class BasketShard(ABC):
    """Rows of some images and what has been bought of them; 8 bytes a row beside the columns."""

    def __init__(self, offers: Offers, budget: Budget, number: int = 0, known: Offers | None = None) -> None:
        """`number`: of this shard; `known`: labelled rows of the other ones, as `Basket` wants them."""
        self.offers, self.number, self.known = offers, number, known
        self.basket, self._noted = Basket(offers, budget, known), Picks()

    @abstractmethod
    def __call__(self, picks: Picks, count: int, ask: Any) -> Candidates:
        """See `shortlist.Shard`."""

    def note(self, picks: Picks) -> None:
        """Reckon with picks of all shards. Where they do not go on from those of the last call, another plan begins."""
        if not picks.begin_with(self._noted):
            self.begin(self.basket.budget)
        if picks.rows is not None:
            self.basket.note(picks.rows.offers[torch.arange(len(self._noted), len(picks))], picks.spent)
        self._noted = picks

    def begin(self, budget: Budget) -> None:
        """Begin a plan with an empty basket."""
        del self.basket  # before the next is made: two would take as much again
        self.basket, self._noted = Basket(self.offers, budget, self.known), Picks()

    def best(self, count: int, rank: RankOf) -> tuple[Int[Tensor, " K"], tuple[float, int] | None]:
        """The rows of highest rank that are affordable; rank and key of the last if there are more."""
        price, buys = self.basket.price, self.basket.buys
        return highest(self.offers.key, count, lambda here: (rank(here, price[here]), buys(price[here])))

    def with_mates(self, rows: Int[Tensor, " K"], floor: float, rank: RankOf) -> Int[Tensor, " L"]:
        """With the rows of the same images that would reach the floor once their image is open."""
        mates, _ = self.basket.blocks.rows_of(torch.unique(self.offers.image[rows]))
        ranks = rank(mates, self.basket.opened(mates))
        mates = mates[self.basket.buys(self.basket.price[mates]) & (ranks >= floor)]
        both: Tensor = torch.unique(torch.cat([rows, mates]))
        return both

    def handed(
        self,
        rows: Int[Tensor, " K"],
        worth: Float64[Tensor, " K"],
        floor: tuple[float, int] | None = None,
        *,
        extra: Mapping[str, Tensor] | None = None,
        **columns: Any,
    ) -> Candidates:
        """These rows with the columns that a basket reads, and others by name; on the CPU."""
        offers = bare(self.offers, rows, self.basket.opening_of(rows))
        more = {name: column.cpu() for name, column in (extra or {}).items()}
        moved = {name: column.to("cpu") for name, column in columns.items()}
        offers = replace(offers, extra={**offers.extra, **more}, **moved)
        return Candidates(Rows(offers, torch.full((len(rows),), self.number), rows.cpu(), worth.cpu()), floor)


class LocalShard(BasketShard):
    """A shard whose rows have a worth of their own, 8 bytes a row more."""

    def __init__(
        self,
        offers: Offers,
        budget: Budget,
        worth: Float64[Tensor, " N"],
        number: int = 0,
        known: Offers | None = None,
    ) -> None:
        """`worth`: of each row; the rest as for `BasketShard`."""
        super().__init__(offers, budget, number, known)
        self.worth = worth

    def __call__(self, picks: Picks, count: int, ask: bool) -> Candidates:
        """Its `count` best rows that are affordable after these picks.

        Args:
            picks: of all shards.
            count: at most so many, mates apart.
            ask: rank by worth over price.
        """
        self.note(picks)

        def rank(rows: Tensor | slice, price: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
            return rank_of(self.worth[rows], price, ask)

        rows, floor = self.best(count, rank)
        if floor is not None and ask:
            rows = self.with_mates(rows, floor[0], rank)
        return self.handed(rows, self.worth[rows], floor)


def labelled_of(offers: Offers) -> Offers:
    """The labelled rows, as a shard makes them known to others: without scores and features, on the CPU."""
    rows = offers.labelled.nonzero()[:, 0]
    return bare(offers, rows, offers.image_seconds[rows])


def bare(o: Offers, rows: Int[Tensor, " K"], opening: Float[Tensor, " K"]) -> Offers:
    """Some rows of which no column is left but those that a basket reads, on the CPU."""
    zero, none = torch.zeros(len(rows), device=o.device), torch.zeros(len(rows), 0, device=o.device)
    picked = Offers(
        image=o.image[rows],
        group=o.group[rows],
        regions=Regions(o.regions.start[rows], o.regions.stop[rows]),
        kind=o.kind[rows],
        key=o.key[rows],
        score=zero,
        class_score=none,
        shares=none,
        boundary=zero,
        objects=zero,
        area=zero,
        seconds=o.seconds[rows],
        image_seconds=opening,
        embedding=none,
        labelled=o.labelled[rows],
        extra={"time": o.extra["time"][rows]} if "time" in o.extra else {},
    )
    return picked.to("cpu")


def highest(
    key: Int[Tensor, " N"], count: int, ranked: Callable[[slice], tuple[Float64[Tensor, " n"], Bool[Tensor, " n"]]]
) -> tuple[Int[Tensor, " K"], tuple[float, int] | None]:
    """The rows of highest rank, of equals those of the smaller keys; rank and key of the last if there are more.

    Args:
        key: of all rows.
        count: at most so many.
        ranked: ranks of some rows, and which of them count.
    """
    rows = key[:0]
    ranks, floor = rows.double(), -torch.inf
    for start in range(0, len(key), PART):
        here = slice(start, min(start + PART, len(key)))
        rank, fit = ranked(here)
        found = (fit & (rank >= floor)).nonzero()[:, 0]
        rows, ranks = torch.cat([rows, found + start]), torch.cat([ranks, rank[found]])
        if len(rows) > count:
            kept = first_of(ranks, key[rows], count)
            rows, ranks = rows[kept], ranks[kept]
            floor = float(ranks.min())
    if floor == -torch.inf:
        return rows, None
    return rows, (floor, int(key[rows[ranks == floor]].max()))


def first_of(rank: Float64[Tensor, " n"], key: Int[Tensor, " n"], count: int) -> Int[Tensor, " count"]:
    """Positions of the highest ranks, of equals those of the smaller keys; in no order."""
    last = rank.topk(count).values[-1]
    above, level = (rank > last).nonzero()[:, 0], (rank == last).nonzero()[:, 0]
    return torch.cat([above, level[key[level].argsort(stable=True)[: count - len(above)]]])
