"""Strategies whose every pick changes what all rows are worth: each shard names its best row, pick by pick."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from dal_dense.acquire.shards import BasketShard, bare
from dal_dense.acquire.shortlist import Candidates, Picks, Rows, Shards, joined


def one_by_one(shards: Shards, first: Any, best: Callable[[Rows], tuple[int, float]]) -> Picks:
    """Take the best of what the shards name until they name nothing.

    Args:
        shards: each hands over the best of its affordable rows, as `named` has it, or none.
        first: what they are asked the first time; True after that.
        best: place and value of the best of some rows, which are sorted by key.
    """
    picks, ask = Picks(), first
    while True:
        rows, _ = joined(shards(picks, 1, ask))
        ask = True
        if not len(rows.worth):
            return picks
        row, value = best(rows)
        paid = float(rows.offers.extra["price"][row])
        picks = picks.and_then(Picks(rows[torch.tensor([row])], (paid,), (value,), picks.spent + paid))


def named(
    shard: BasketShard,
    rows: Int[Tensor, " K"],
    worth: Float64[Tensor, " K"],
    more: Mapping[str, Tensor] | None = None,
    *,
    embedding: bool = False,
    by_class: bool = False,
) -> Candidates:
    """Rows of a shard with what they cost now, `more` columns by name, and where wanted features and those by class."""
    offers = bare(shard.offers, rows, shard.basket.opening_of(rows))
    extra = {"price": shard.basket.price[rows], **(more or {})}
    offers = replace(offers, extra={**offers.extra, **{name: column.cpu() for name, column in extra.items()}})
    if embedding:
        offers = replace(offers, embedding=shard.offers.embedding[rows].cpu())
    if by_class:
        class_score, shares = (column[rows].cpu() for column in (shard.offers.class_score, shard.offers.shares))
        offers = replace(offers, class_score=class_score, shares=shares)
    return Candidates(Rows(offers, torch.full((len(rows),), shard.number), rows.cpu(), worth.cpu()), None)
