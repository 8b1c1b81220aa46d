"""What some strategies must know of a pool before they choose: all labelled rows, and a sample of the others."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from dal_dense import noise
from dal_dense.acquire.base import Round
from dal_dense.acquire.shards import highest
from dal_dense.acquire.shortlist import Picks, Shards, joined
from dal_dense.offers import Offers


def surveyed(shards: Shards, when: Round, size: int) -> Offers:
    """The labelled rows, and at least those of the others that are in the sample; sorted by key.

    Args:
        shards: asked None, each hands over rows as `survey_of` has them.
        when: seeds the draw.
        size: of the sample.
    """
    count = 2 * size // len(shards) + 1
    while True:
        rows, floor = joined(shards(Picks(), count, None))
        ahead = -sample_draw(rows.offers.key, when) >= (-math.inf if floor is None else floor[0])
        if floor is None or int((ahead & ~rows.offers.labelled).sum()) >= size:
            return rows.offers
        count *= 4


def survey_of(offers: Offers, when: Round, count: int) -> tuple[Int[Tensor, " K"], tuple[float, int] | None]:
    """A shard's labelled rows, and the first `count` others by the draw; rank and key of the last if there are more."""
    key, labelled = offers.key, offers.labelled
    drawn, floor = highest(key, count, lambda here: (-sample_draw(key[here], when), ~labelled[here]))
    return torch.cat([labelled.nonzero()[:, 0], drawn]), floor


def sample_of(known: Offers, when: Round, size: int) -> Offers:
    """The sample among surveyed rows, in their order."""
    free = known[~known.labelled]
    return free[sample_draw(free.key, when).argsort(stable=True)[:size].sort().values]


def sample_draw(key: Int[Tensor, " n"], when: Round) -> Float64[Tensor, " n"]:
    """By which rows are drawn into the sample, the smallest first; seeded as for `hybrid`, whoever asks."""
    return noise.uniform(key, when.seed_for("hybrid"), "sample")
