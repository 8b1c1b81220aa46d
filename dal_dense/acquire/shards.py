"""A shard whose rows lie on this machine: its best rows, as `shortlist.fill` asks for them.

Why its floor holds. A value never changes, and a price changes only when the row's image is opened, which
takes the opening off. The row that opens an image ranks above the floor, so it is among the rows handed
over; with it go all rows of its image that would rank above the floor at the lower price.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from dal_dense.acquire.base import Budget
from dal_dense.acquire.basket import Basket
from dal_dense.acquire.shortlist import Candidates, Picks, Rows, rank_of
from dal_dense.offers import Offers
from dal_dense.regions import Regions

PART = 1 << 18
"""Rows that are looked at together, so that temporary columns are small."""
_ROUNDING = 1 - 2.0**-23
"""Once its image is open, a row may be cheaper than was paid for by the rounding of one float32 sum, not more."""


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


class LocalShard:
    """Rows of some images, on any device; 8 bytes a row beside the columns and the worth."""

    def __init__(
        self,
        offers: Offers,
        budget: Budget,
        worth: Float64[Tensor, " N"],
        number: int = 0,
        known: Offers | None = None,
    ) -> None:
        """`number`: of this shard; `known`: labelled rows of the other ones, as `Basket` wants them."""
        self.offers, self.worth, self.number, self.known = offers, worth, number, known
        self._budget = budget
        self.basket = Basket(offers, budget, known)
        self._noted = Picks()

    def __call__(self, picks: Picks, count: int, per_second: bool) -> Candidates:
        """Its `count` best rows that may be affordable after these picks.

        Args:
            picks: of all shards. Where they do not go on from those of the last call, another plan begins.
            count: at most so many, mates apart.
            per_second: rank by worth over price.
        """
        if not picks.begin_with(self._noted):
            del self.basket  # before the next is made: two would take as much again
            self.basket, self._noted = Basket(self.offers, self._budget, self.known), Picks()
        if picks.rows is not None:
            self.basket.note(picks.rows.offers[torch.arange(len(self._noted), len(picks))], picks.spent)
        self._noted = picks
        rows, floor = self._best(count, per_second)
        if floor is not None and per_second:
            rows = self._with_mates(rows, floor[0])
        return Candidates(self._rows(rows), floor)

    def _best(self, count: int, per_second: bool) -> tuple[Int[Tensor, " K"], tuple[float, int] | None]:
        """The rows of highest rank; rank and key of the last if there are more."""
        key, n = self.offers.key, len(self.offers)
        rows, ranks, floor = key[:0], self.worth[:0], -torch.inf
        for start in range(0, n, PART):
            here = slice(start, min(start + PART, n))
            price = self.basket.price[here]
            rank = rank_of(self.worth[here], price, per_second)
            found = (self._near(price) & (rank >= floor)).nonzero()[:, 0]
            rows, ranks = torch.cat([rows, found + start]), torch.cat([ranks, rank[found]])
            if len(rows) > count:
                kept = _first(ranks, key[rows], count)
                rows, ranks = rows[kept], ranks[kept]
                floor = float(ranks.min())
        if floor == -torch.inf:
            return rows, None
        return rows, (floor, int(key[rows[ranks == floor]].max()))

    def _with_mates(self, rows: Int[Tensor, " K"], floor: float) -> Int[Tensor, " L"]:
        """With the rows of the same images that would reach the floor once their image is open."""
        mates, _ = self.basket.blocks.rows_of(torch.unique(self.offers.image[rows]))
        rank = rank_of(self.worth[mates], self.offers.seconds[mates].double(), True)
        mates = mates[self._near(self.basket.price[mates]) & (rank >= floor)]
        both: Tensor = torch.unique(torch.cat([rows, mates]))
        return both

    def _near(self, price: Float64[Tensor, " n"]) -> Tensor:
        """Rows that are affordable or may become so: no other one ever does."""
        return self.basket.spent + price * _ROUNDING <= self.basket.budget.seconds

    def _rows(self, rows: Int[Tensor, " K"]) -> Rows:
        picked = _bare(self.offers, rows, self.basket.opening_of(rows))
        return Rows(picked, torch.full((len(rows),), self.number), rows.cpu(), self.worth[rows].cpu())


def labelled_of(offers: Offers) -> Offers:
    """The labelled rows, as a shard makes them known to others: without scores and features, on the CPU."""
    rows = offers.labelled.nonzero()[:, 0]
    return _bare(offers, rows, offers.image_seconds[rows])


def _bare(o: Offers, rows: Int[Tensor, " K"], opening: Float[Tensor, " K"]) -> Offers:
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


def _first(rank: Float64[Tensor, " n"], key: Int[Tensor, " n"], count: int) -> Int[Tensor, " count"]:
    """Positions of the highest ranks, of equals those of the smaller keys; in no order."""
    last = rank.topk(count).values[-1]
    above, level = (rank > last).nonzero()[:, 0], (rank == last).nonzero()[:, 0]
    return torch.cat([above, level[key[level].argsort(stable=True)[: count - len(above)]]])
