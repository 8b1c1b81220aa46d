"""Sums of p and of H(p), and the maps of them, on the CPU: all temporaries stay in the cache.

The logarithms are OpenCV's, a table and a polynomial in vector code on every processor: half the time of
NumPy's, a sixth of torch's. They are off by less than 1e-6, and p log p by less than 1e-7. All classes of a piece
go into one call: threads must take turns in between, and with a call a class they wait for half of the time.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy.typing import NDArray
from torch import Tensor

from dal_dense.pieces import ON_CPU, in_pieces

Floats = NDArray[np.float32]

LONG = 2 * ON_CPU
"""Voxels a piece where torch has no part: calls that take longer make threads take turns less often."""

LEAST = np.full(LONG, -104, np.float32)
"""Stands for the logarithm of 0, and is below all others: p log p is 0 all the same. An array, since NumPy's extremes
with one number are no vector code."""

VALUES = 12 * ON_CPU
"""Probabilities a piece, of all classes together: more would leave the cache, fewer would be too many calls."""


class Scratch:
    """What one thread needs for a piece; made once for many, since to touch new memory takes as long as the work."""

    def __init__(self, classes: int) -> None:
        voxels = step(classes)
        self.logs, self.probs = np.empty((2, classes, voxels), np.float32)
        self.rows = np.empty((4, voxels), np.float32)
        self._zeros = False  # seen: their logarithm is not finite. The sums do not depend on it

    def read(self, probs: Float[Tensor, "classes voxels"]) -> Floats:
        """The probabilities as float32: as they lie, or copied."""
        if probs.dtype == torch.float32:
            return probs.numpy()
        p = self.probs[:, : probs.shape[1]]
        for row, given in zip(p, probs, strict=True):
            for few in range(0, len(row), ON_CPU):  # of which torch starts no threads
                torch.from_numpy(row[few : few + ON_CPU]).copy_(given[few : few + ON_CPU])
        return p

    def plogp(self, p: Floats) -> Floats:
        """Sum of p log p over the classes: minus the entropy."""
        n = p.shape[1]
        logs, sums = self.logs[:, :n], self.rows[0, :n]
        cv2.log(p, logs)
        if not self._zeros:  # to look for them first would be another pass
            np.einsum("cv,cv->v", p, logs, out=sums)
            self._zeros = not np.isfinite(sums.sum())
        if self._zeros:
            np.einsum("cv,cv->v", p, np.fmax(logs, LEAST[:n], out=logs), out=sums)
        return sums

    def entropy(self, probs: Float32[Tensor, "classes voxels"]) -> Float32[Tensor, " voxels"]:
        """H(p), good until the next piece; p may exceed 1 by rounding, where -p log p is below 0."""
        sums = self.plogp(probs.numpy())
        return torch.from_numpy(np.maximum(np.negative(sums, out=sums), np.float32(0), out=sums))

    def two_largest(
        self, probs: Float32[Tensor, "classes voxels"]
    ) -> tuple[Float32[Tensor, " voxels"], Float32[Tensor, " voxels"]]:
        """Probabilities of the two likeliest classes, good until the next piece."""
        p = probs.numpy()
        first, second, less = self.rows[1:, : p.shape[1]]
        np.maximum(p[0], p[1], out=first)
        np.minimum(p[0], p[1], out=second)
        for other in p[2:]:
            np.minimum(first, other, out=less)
            np.maximum(second, less, out=second)
            np.maximum(first, other, out=first)
        return torch.from_numpy(first), torch.from_numpy(second)


def step(classes: int) -> int:
    """Voxels a piece."""
    return min(LONG, max(1, VALUES // classes))


def accumulate(
    probs: Float[Tensor, "classes voxels"],
    total: Float32[Tensor, "classes voxels"] | None,
    entropy: Float32[Tensor, " voxels"],
) -> None:
    """Add p to `total`, where given, and H(p) to `entropy`, both in place."""
    probs, rows, sums = probs.detach(), entropy.numpy(), None if total is None else total.numpy()

    def work(pieces: Sequence[slice]) -> None:
        scratch = Scratch(len(probs))
        for piece in pieces:
            p = scratch.read(probs[:, piece])
            np.subtract(rows[piece], scratch.plogp(p), out=rows[piece])
            if sums is not None:
                np.add(sums[:, piece], p, out=sums[:, piece])

    in_pieces(len(rows), step(len(probs)), entropy.device, work)
