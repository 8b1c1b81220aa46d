"""Strategies whose every pick changes what all rows are worth: each shard names its best row, pick by pick."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dal_dense.acquire.shortlist import Picks, Rows, Shards, joined


def one_by_one(shards: Shards, first: Any, best: Callable[[Rows], tuple[int, float]]) -> Picks:
    """Take the best of what the shards name until they name nothing.

    Args:
        shards: each hands over the best of its affordable rows, with its `price` as an extra column, or none.
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
