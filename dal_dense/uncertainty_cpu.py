"""Sums of p and of H(p), and the maps of them, on the CPU: all temporaries stay in the cache.

The logarithms are OpenCV's, a table and a polynomial in vector code on every processor: half the time of
NumPy's, a sixth of torch's. They are off by less than 1e-6, and p log p by less than 1e-7. Of a draw one class of
a piece at a time is read, and all is done with it before the next. Threads must take turns between calls, so
pieces are long, and only NumPy and OpenCV are called for float32 draws.
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

LONG = 4 * ON_CPU
"""Voxels a piece of a draw, at most: the four or five rows of them that a thread needs fit the last cache."""

PIECES = 16
"""Pieces that an image is cut into at least, as far as they keep `ON_CPU` voxels: work for four threads."""

VALUES = 24 * ON_CPU
"""Probabilities a piece of the mean, of all classes together, which several maps read."""

LEAST = np.full(LONG, -104, np.float32)
"""Stands for the logarithm of 0, and is below all others: p log p is 0 all the same. An array, since NumPy's extremes
with one number are no vector code."""


class Scratch:
    """What one thread needs for a piece; made once for many, since to touch new memory takes as long as the work."""

    def __init__(self, voxels: int) -> None:  # LONG at most
        self._rows = np.empty((5, voxels), np.float32)  # the first three are results
        self._zeros = False  # seen: their logarithm is not finite. The sums do not depend on it

    def plogp(self, probs: Floats | Tensor, total: Floats | None = None) -> Floats:
        """Sum of p log p over the classes, minus the entropy, good until the next call.

        Args:
            probs: (classes, voxels), float32 as an array or any type as a tensor.
            total: where p is added on the way.
        """
        sums = self._plogp(probs, total)
        if not self._zeros and not np.isfinite(sums.sum()):  # to look for zeros first would be another pass
            self._zeros = True
            sums = self._plogp(probs, None)
        return sums

    def _plogp(self, probs: Floats | Tensor, total: Floats | None) -> Floats:
        sums, _, _, logs, copy = self._rows[:, None, : probs.shape[1]]
        sums.fill(0)
        for c in range(len(probs)):
            p = _row(probs[c], copy)
            cv2.log(p, logs)
            if self._zeros:
                np.fmax(logs, LEAST[: logs.shape[1]], out=logs)
            cv2.accumulateProduct(p, logs, sums)
            if total is not None:
                cv2.accumulate(p, total[c, None])
        found: Floats = sums[0]
        return found

    def entropy(self, probs: Float32[Tensor, "classes voxels"]) -> Float32[Tensor, " voxels"]:
        """H(p), good until the next piece; p may exceed 1 by rounding, where -p log p is below 0."""
        sums = self.plogp(probs.numpy())
        return torch.from_numpy(np.maximum(np.negative(sums, out=sums), np.float32(0), out=sums))

    def two_largest(
        self, probs: Float32[Tensor, "classes voxels"]
    ) -> tuple[Float32[Tensor, " voxels"], Float32[Tensor, " voxels"]]:
        """Probabilities of the two likeliest classes, good until the next piece."""
        p = probs.numpy()
        _, first, second, less, _ = self._rows[:, : p.shape[1]]
        np.maximum(p[0], p[1], out=first)
        np.minimum(p[0], p[1], out=second)
        for other in p[2:]:
            np.minimum(first, other, out=less)
            np.maximum(second, less, out=second)
            np.maximum(first, other, out=first)
        return torch.from_numpy(first), torch.from_numpy(second)


def _row(given: Floats | Tensor, copy: Floats) -> Floats:
    """One class as a row of float32: as it lies, or copied."""
    if isinstance(given, Tensor):
        for few in range(0, len(given), ON_CPU):  # of which torch starts no threads
            torch.from_numpy(copy[0, few : few + ON_CPU]).copy_(given[few : few + ON_CPU])
    elif given.strides[0] == given.itemsize:
        return given[None]
    else:
        copy[0] = given
    return copy


def step(classes: int) -> int:
    """Voxels a piece of the mean."""
    return min(LONG, max(1, VALUES // classes))


def accumulate(
    probs: Float[Tensor, "classes voxels"],
    total: Float32[Tensor, "classes voxels"] | None,
    entropy: Float32[Tensor, " voxels"],
) -> None:
    """Add p to `total`, where given, and H(p) to `entropy`, both in place."""
    probs, rows, sums = probs.detach(), entropy.numpy(), None if total is None else total.numpy()
    given = probs.numpy() if probs.dtype == torch.float32 else probs
    length = min(LONG, max(ON_CPU, -(-len(rows) // PIECES)))

    def work(pieces: Sequence[slice]) -> None:
        scratch = Scratch(length)
        for piece in pieces:
            plogp = scratch.plogp(given[:, piece], None if sums is None else sums[:, piece])
            np.subtract(rows[piece], plogp, out=rows[piece])

    in_pieces(len(rows), length, entropy.device, work)
