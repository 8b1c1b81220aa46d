"""N axis-aligned boxes in array index space, half-open, 2-D and 3-D alike.

`start[n, a] <= index < stop[n, a]` along array axis `a`, in the order the file stores its axes
(rows, columns for frames; i, j, k of the NIfTI header for volumes). Nothing here knows of
spacing, affines or images: only `tasks/` and `exchange/` convert axes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""One region as plain numbers: (start, stop), one entry an axis."""


@dataclass(frozen=True)
class Regions:
    """N boxes. Shapes: `start` and `stop` are int64 `(N, axes)`, on one device.

    Raises:
        ValueError: if the two differ in shape, or a box has a side of length zero or less.
    """

    start: Int[Tensor, "regions axes"]
    stop: Int[Tensor, "regions axes"]

    def __post_init__(self) -> None:
        if self.start.shape != self.stop.shape or self.start.ndim != 2:
            raise ValueError(
                f"start and stop must both be (regions, axes); got {tuple(self.start.shape)} "
                f"and {tuple(self.stop.shape)}"
            )
        if (self.stop <= self.start).any():
            bad = int((self.stop <= self.start).any(1).nonzero()[0, 0])
            raise ValueError(
                f"region {bad} is empty: start {self.start[bad].tolist()}, "
                f"stop {self.stop[bad].tolist()}; stop must exceed start on every axis"
            )

    @classmethod
    def of(cls, boxes: Iterable[Box], axes: int, device: torch.device | str = "cpu") -> Regions:
        """From plain (start, stop) pairs; `axes` fixes the width when there are none."""
        pairs = list(boxes)
        flat = torch.tensor(pairs, dtype=torch.int64, device=device).reshape(-1, 2, axes)
        return cls(flat[:, 0], flat[:, 1])

    def __len__(self) -> int:
        return self.start.shape[0]

    def __getitem__(self, rows: Int[Tensor, " k"] | Bool[Tensor, " regions"] | slice) -> Regions:
        return Regions(self.start[rows], self.stop[rows])

    @property
    def axes(self) -> int:
        """Dimensions of the arrays these boxes lie in: 2 or 3."""
        return self.start.shape[1]

    def boxes(self) -> Iterator[Box]:
        """As plain numbers, for JSON, SQLite and slicing."""
        for a, b in zip(self.start.tolist(), self.stop.tolist(), strict=True):
            yield tuple(a), tuple(b)

    def volume(self) -> Int[Tensor, " regions"]:
        """Voxels or pixels in each box."""
        first, *rest = (self.stop - self.start).unbind(1)  # prod(1) over so few axes takes several times as long
        return functools.reduce(torch.mul, rest, first)

    def clip(self, shape: Sequence[int]) -> Regions:
        """The part inside an array of this shape; boxes wholly outside are dropped."""
        top = torch.as_tensor(tuple(shape), device=self.start.device)
        start = self.start.clamp_min(0)
        stop = torch.minimum(self.stop, top)
        keep = (stop > start).all(1)
        return Regions(start[keep], stop[keep])

    def overlaps(self, other: Regions) -> Bool[Tensor, "regions others"]:
        """Do box n here and box m there share a voxel? O(N M) memory; one bit a pair."""
        if len(self) == 0 or len(other) == 0:
            return torch.zeros(len(self), len(other), dtype=torch.bool, device=self.start.device)
        low = torch.maximum(self.start[:, None], other.start[None])
        high = torch.minimum(self.stop[:, None], other.stop[None])
        return (high > low).all(-1)

    def to(self, device: torch.device | str) -> Regions:
        """The same boxes on another device."""
        return Regions(self.start.to(device), self.stop.to(device))


def joined(*parts: Regions) -> Regions:
    """All boxes of all parts, in order."""
    return Regions(torch.cat([p.start for p in parts]), torch.cat([p.stop for p in parts]))


def slices(box: Box) -> tuple[slice, ...]:
    """Index an array with one box: `array[slices(box)]`."""
    return tuple(slice(a, b) for a, b in zip(*box, strict=True))


def tile(shape: Sequence[int], size: Sequence[int]) -> Regions:
    """Cover an array with disjoint boxes of this size, the last ones cut at the border."""
    if len(shape) != len(size) or min(size) < 1:
        raise ValueError(f"size {tuple(size)} does not fit an array of shape {tuple(shape)}")
    axes = [torch.arange(0, n, s) for n, s in zip(shape, size, strict=True)]
    start = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(shape))
    stop = torch.minimum(start + torch.tensor(tuple(size)), torch.tensor(tuple(shape)))
    return Regions(start, stop)
