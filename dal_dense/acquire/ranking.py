"""Strategies that choose from a pool in shards, and those among them that give each row a worth of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dal_dense.acquire.base import Aim, Budget, Round
from dal_dense.acquire.shards import PART, BasketShard, LocalShard
from dal_dense.acquire.shortlist import ByWorth, Picks, Shards, fill
from dal_dense.config import StrategyConfig
from dal_dense.offers import Offers


@runtime_checkable
class Sharded(Protocol):
    """A strategy: what each part of a pool hands over, and the choice from all parts."""

    def shard(self, offers: Offers, aim: Aim, number: int, known: Offers | None) -> BasketShard:
        """One part of a pool, as `acquire.shard_of` describes it."""
        ...

    def choose(self, shards: Shards, aim: Aim) -> Picks:
        """What the budget buys of all parts."""
        ...


def by_worth(shards: Shards, budget: Budget) -> Picks:
    """The rows of the greatest worth."""
    return fill(shards, budget, ByWorth())


Worth = Callable[[Offers, StrategyConfig, Round], Float[Tensor, " N"]]
"""Offers, options and round to the worth of each row, which depends on that row alone."""


@dataclass(frozen=True)
class Ranking:
    """A `Sharded` strategy by the worth of rows.

    Attributes:
        worth: of each row.
        buy: shards and budget to picks.
    """

    worth: Worth
    buy: Callable[[Shards, Budget], Picks] = by_worth

    def shard(self, offers: Offers, aim: Aim, number: int, known: Offers | None) -> LocalShard:
        """See `Sharded`."""
        return LocalShard(offers, aim.budget, worth_of(self.worth, offers, aim.options, aim.when), number, known)

    def choose(self, shards: Shards, aim: Aim) -> Picks:
        """See `Sharded`."""
        return self.buy(shards, aim.budget)


def worth_of(worth: Worth, offers: Offers, options: StrategyConfig, when: Round) -> Float64[Tensor, " N"]:
    """The worth of all rows, some rows at a time, so that temporary columns stay small."""
    offers = replace(offers, parts=None)
    found = torch.empty(len(offers), dtype=torch.float64, device=offers.device)
    for start in range(0, len(offers), PART):
        here = slice(start, start + PART)
        found[here] = worth(offers[here], options, when)
    return found
