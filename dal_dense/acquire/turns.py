"""Strategies with several rankings of the rows, of which one counts at each purchase, by what was bought before.

A shard hands over the best rows by one ranking and its floor, as for rules with a single one (`shortlist`). A row's
worth in a ranking never changes, so a list once handed over is good until its rows rank below the floor.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from dal_dense.acquire.base import Aim
from dal_dense.acquire.basket import Basket
from dal_dense.acquire.shards import BasketShard
from dal_dense.acquire.shortlist import COUNT, LEAST, MOST, Candidates, Picks, Rows, Shards, joined, next_count
from dal_dense.offers import Offers

Turn = int | None
"""A quota class, or None: the ranking without one."""

Turns = Generator[Turn, float | None, None]
"""Yields the ranking of the next purchase, and is sent the seconds paid; None where the ranking has no row left."""

WorthOf = Callable[[Offers, Aim, Turn, bool], Float64[Tensor, " N"]]
"""Offers without objects, aim, ranking, whether there were objects, to the worth of each row; -inf: not by this one."""


@dataclass(frozen=True)
class ByTurns:
    """A `ranking.Sharded` strategy of this kind.

    Attributes:
        worth: of rows in one of the rankings; of each it depends on that row alone.
        turns: whose turn it is.
    """

    worth: WorthOf
    turns: Callable[[Aim], Turns]

    def shard(self, offers: Offers, aim: Aim, number: int, known: Offers | None) -> TurnShard:
        """See `ranking.Sharded`."""
        return TurnShard(offers, aim, self.worth, number, known)

    def choose(self, shards: Shards, aim: Aim) -> Picks:
        """See `ranking.Sharded`."""
        turns, lists, picks = self.turns(aim), _Lists(shards), Picks()
        turn = next(turns)
        while True:
            lists.ask(turn, picks)
            rows, ranks = lists.union()
            basket = Basket(rows.offers, aim.budget)
            if picks.rows is not None:
                basket.note(picks.rows.offers, picks.spent)
            try:
                while turn in ranks:
                    rank, paid = ranks[turn], None
                    row = basket.best(rank, rank > -torch.inf)
                    if not lists.sure(turn, None if row is None else (float(rank[row]), int(rows.offers.key[row]))):
                        break
                    if row is not None:
                        paid = basket.take(row, rank[row])
                        lists.bought(turn)
                    turn = turns.send(paid)
            except StopIteration:
                return picks.and_those_of(basket, rows)
            picks = picks.and_those_of(basket, rows)


class _Lists:
    """The best rows by each ranking that had a turn, as shards handed them over."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._found: dict[Turn, tuple[Rows, tuple[float, int] | None]] = {}
        self._count: dict[Turn, int] = {}
        self._bought: dict[Turn, int] = {}

    def ask(self, turn: Turn, picks: Picks) -> None:
        """Have the list of a ranking made, or made anew: a longer one if little was bought by the last."""
        each = len(self._shards)
        count = self._count.get(turn, max(LEAST, COUNT // each))
        if turn in self._found:
            count = next_count(count, self._bought[turn], each, MOST)
        self._count[turn], self._bought[turn] = count, 0
        self._found[turn] = joined(self._shards(picks, count, turn))

    def union(self) -> tuple[Rows, dict[Turn, Float64[Tensor, " K"]]]:
        """The rows of all lists, each once and sorted by key; their worth by ranking, -inf where a list lacks them."""
        every = Rows.of([rows for rows, _ in self._found.values()])
        keys, place = torch.unique(every.offers.key, return_inverse=True)
        first = torch.full_like(keys, len(place)).scatter_reduce_(0, place, torch.arange(len(place)), "amin")
        ranks = {}
        places = torch.split(place, [len(rows.row) for rows, _ in self._found.values()])
        for (turn, (rows, _)), here in zip(self._found.items(), places, strict=True):
            ranks[turn] = torch.full((len(keys),), -torch.inf, dtype=torch.float64).index_put_((here,), rows.worth)
        return every[first], ranks

    def sure(self, turn: Turn, best: tuple[float, int] | None) -> bool:
        """Does no row outside the list rank above the best of the list that is affordable (rank and key)?"""
        floor = self._found[turn][1]
        return floor is None or (best is not None and (-best[0], best[1]) <= (-floor[0], floor[1]))

    def bought(self, turn: Turn) -> None:
        """Note a purchase by the list of a ranking."""
        self._bought[turn] += 1


class TurnShard(BasketShard):
    """Rows of some images and what has been bought of them; 8 bytes a row beside the columns."""

    def __init__(self, offers: Offers, aim: Aim, worth: WorthOf, number: int = 0, known: Offers | None = None) -> None:
        """`worth`: as `ByTurns` has it; the rest as `acquire.shard_of`."""
        super().__init__(offers, aim.budget, number, known)
        self._aim, self._worth, self._objects = aim, worth, offers.parts is not None
        self._slim = replace(offers, embedding=offers.embedding[:, :0], parts=None)

    def __call__(self, picks: Picks, count: int, ask: Turn) -> Candidates:
        """Its `count` best rows by one ranking that are affordable after these picks."""
        self.note(picks)

        def worth(rows: Tensor | slice) -> Float64[Tensor, " n"]:
            return self._worth(self._slim[rows], self._aim, ask, self._objects)

        rows, floor = self.best(count, lambda here, price: worth(here))
        return self.handed(rows, worth(rows), floor)
