"""Strategies that give each row a worth of its own, and take rows by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dal_dense.acquire.base import Budget, Round
from dal_dense.acquire.shards import PART
from dal_dense.acquire.shortlist import Picks, Shards, fill
from dal_dense.config import StrategyConfig
from dal_dense.offers import Offers


@dataclass(frozen=True)
class Ranking:
    """A strategy that can be run on pools larger than memory, and in shards.

    Attributes:
        worth: offers, options and round to the worth of each row, which depends on that row alone.
        choose: shards and budget to picks.
    """

    worth: Callable[[Offers, StrategyConfig, Round], Float[Tensor, " N"]]
    choose: Callable[[Shards, Budget], Picks] = fill


def worth_of(rule: Ranking, offers: Offers, options: StrategyConfig, when: Round) -> Float64[Tensor, " N"]:
    """The worth of all rows, some rows at a time, so that temporary columns stay small."""
    offers = replace(offers, parts=None)
    worth = torch.empty(len(offers), dtype=torch.float64, device=offers.device)
    for start in range(0, len(offers), PART):
        here = slice(start, start + PART)
        worth[here] = rule.worth(offers[here], options, when)
    return worth
