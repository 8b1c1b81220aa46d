"""k-means++ seeding (Arthur & Vassilvitskii 2007): the next row is drawn in proportion to D^2.

D is the distance to the nearest row taken. A row may be the outer product of several factors, as BADGE's gradients are:
inner products of outer products are products of inner products, so the long vectors are never built. The draw is the
largest of log D^2 + Gumbel noise (Gumbel-max; Yellott 1977), keyed by row and pick: the order of rows does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dal_dense import noise
from dal_dense.select.blocks import square

TINY = 1e-30
"""Squared distance that stands for zero: where all are copies, the draw is even."""


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
        self._factors, self._key, self._seed, self._longest_first = factors, key, seed, longest_first
        self._length = torch.stack([square(f) for f in factors]).prod(0)
        # what rounding of the products may leave of a copy's distance
        self._rounding = 2 * (sum(f.shape[1] for f in factors) + 8) * 2.0**-24
        self._far: Tensor | None = None
        self._taken = 0

    def next(self, allowed: Bool[Tensor, " N"]) -> tuple[int, float]:
        """An allowed row and the noisy log D^2 by which it won; of equals the smaller row."""
        squared = self._length if self._far is None else self._far
        value = squared.double().clamp_min(TINY).log()
        if self._far is None and not self._longest_first:
            value = torch.zeros_like(value)
        if self._far is not None or not self._longest_first:
            value = value + noise.gumbel(self._key, self._seed, f"pick {self._taken}")
        row = int(torch.where(allowed, value, -torch.inf).argmax())
        return row, float(value[row])

    def add(self, row: int) -> None:
        """Take a row."""
        inner = torch.stack([f @ f[row] for f in self._factors]).prod(0)
        both = self._length + self._length[row]
        apart = both - 2 * inner
        apart = torch.where(apart > self._rounding * both, apart, 0)
        self._far = apart if self._far is None else torch.minimum(self._far, apart)
        self._taken += 1
