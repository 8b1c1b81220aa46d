"""k-means++ seeding (Arthur & Vassilvitskii 2007): the next row is drawn in proportion to D^2.

D is the distance to the nearest row taken. A row may be the outer product of several factors, as BADGE's gradients are:
inner products of outer products are products of inner products, so the long vectors are never built.

The draws are one race. Every row has one exponential variate, keyed, and arrives once its rate D^2, added up over time,
has reached it: whoever comes next does so with chance D^2 over the sum, for exponential variates have no memory. D only
falls, so an arrival worked out with fewer rows taken is never too late: only the first to come are looked at anew, and
all rows meet the rows taken a block at a time. Neither blocks nor the order of rows change the draw, but for rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from dal_dense import noise
from dal_dense.select.blocks import blocks, square

TINY = 1e-30
"""Squared distance that stands for zero: where all are copies, the draw is even."""
BLOCK = 16
"""Rows taken that all rows meet at once; also how often one draw looks at arrivals before all are worked out."""


class Seeding:
    """k-means++ over rows that are products of factors. Memory O(N), time O(N) times the factors' widths a pick."""

    def __init__(
        self, factors: Sequence[Float[Tensor, "N _"]], key: Int[Tensor, " N"], seed: int, *, longest_first: bool
    ) -> None:
        """Nothing is taken yet.

        Args:
            factors: float32; row i stands for the outer product of their rows i.
            key: keys of the rows, for their draws.
            seed: of this use.
            longest_first: begin with the longest vector; else with an even draw.
        """
        self._factors = factors
        self._length = torch.stack([square(f) for f in factors]).prod(0)
        self._first = self._length if longest_first else noise.uniform(key, seed, "first")
        # what rounding of the products may leave of a copy's distance
        self._rounding = 2 * (sum(f.shape[1] for f in factors) + 8) * 2.0**-24
        self._left = -noise.uniform(key, seed, "race").log()  # at the time of the first of `_times`
        self._far: Tensor | None = None  # as of then
        self._arrival = torch.zeros_like(self._left)  # never too late
        self._taken: list[int] = []  # since then
        self._times = [0.0]
        self._named = -1, 0.0

    def next(self, allowed: Bool[Tensor, " N"]) -> tuple[int, float]:
        """An allowed row and its D^2 (before any row is taken its length, or its draw); of equals the smaller row."""
        if self._far is None:
            row = int(torch.where(allowed, self._first, -torch.inf).argmax())
            return row, float(self._first[row])
        looks = 0
        while True:
            row = int(torch.where(allowed, self._arrival, torch.inf).argmin())
            far, _, arrival = self._now(slice(row, row + 1))
            if arrival <= self._arrival[row]:
                self._named = row, float(arrival)
                return row, float(far)
            self._arrival[row] = arrival[0]
            looks += 1
            if looks == BLOCK:
                self._catch_up()

    def add(self, row: int) -> None:
        """Take a row; where `next` named it, time goes on to its arrival. Others must be chosen without that name."""
        if self._far is None:
            self._far = self._apart(slice(None), [row])[:, 0]
            self._arrival = self._left / _rate(self._far)
            return
        named, arrival = self._named
        self._taken.append(row)
        self._times.append(max(self._times[-1], arrival) if row == named else self._times[-1])
        if len(self._taken) == BLOCK:
            self._catch_up()

    def _catch_up(self) -> None:
        """Let every row meet the rows taken."""
        assert self._far is not None
        for part in blocks(len(self._far), max(BLOCK, *(f.shape[1] for f in self._factors)), self._far.device):
            self._far[part], self._left[part], self._arrival[part] = self._now(part)
        self._taken, self._times = [], self._times[-1:]

    def _now(self, rows: slice) -> tuple[Float[Tensor, " n"], Float64[Tensor, " n"], Float64[Tensor, " n"]]:
        """Squared distance, what is left of the variate, and the arrival of these rows, with all that is taken."""
        assert self._far is not None
        far, left = self._far[rows], self._left[rows]
        apart = self._apart(rows, self._taken)
        for column, (before, after) in enumerate(pairwise(self._times)):
            left = left - _rate(far) * (after - before)
            far = torch.minimum(far, apart[:, column])
        return far, left, self._times[-1] + left / _rate(far)

    def _apart(self, rows: slice, taken: Sequence[int]) -> Float[Tensor, "n m"]:
        """Squared distances of these rows to some rows taken."""
        inner = torch.stack([f[rows] @ f[taken].T for f in self._factors]).prod(0)
        both = self._length[rows, None] + self._length[taken]
        apart = both - 2 * inner
        return torch.where(apart > self._rounding * both, apart, 0)


def _rate(far: Float[Tensor, " n"]) -> Float64[Tensor, " n"]:
    return far.double().clamp_min(TINY)
