"""Labelled boxes of a frame: objects, ground to ignore, and predictions that a person rejected.

Corners are continuous pixel coordinates in array order, `(first row, first column, last row, last
column)`; pixel `(r, c)` covers `r..r+1` and `c..c+1`, so a whole frame is `(0, 0, rows, columns)`.
A label of a region is the table of its boxes, float64 `(n, 6)`: corners, class number, status.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer, UInt8

from dal_dense.errors import LabelError
from dal_dense.regions import Box

OBJECT, IGNORED, ABSENT = 0, 1, 2
"""Status: an object; ground that says nothing (crowd, DontCare, a sliver of an object cut by the
region's border); a prediction that was looked at and is no object."""
COLUMNS = 6


@dataclass(frozen=True)
class Boxes:
    """N boxes of one frame.

    Attributes:
        corners: float64 (N, 4).
        classes: class numbers of the pool, int64 (N,); of no meaning for `IGNORED`.
        status: `OBJECT`, `IGNORED` or `ABSENT`, uint8 (N,).
    """

    corners: Float[np.ndarray, "boxes 4"]
    classes: Integer[np.ndarray, " boxes"]
    status: UInt8[np.ndarray, " boxes"]

    @classmethod
    def of(
        cls, corners: Sequence[Sequence[float | int]] | np.ndarray, classes: Sequence[int], status: Sequence[int] = ()
    ) -> Boxes:
        """From plain numbers; every box is an object if no status is given."""
        return cls(
            np.asarray(corners, np.float64).reshape(-1, 4),
            np.asarray(classes, np.int64).reshape(-1),
            np.asarray(status if len(status) else [OBJECT] * len(classes), np.uint8).reshape(-1),
        )

    @classmethod
    def from_table(cls, table: Float[np.ndarray, "boxes 6"]) -> Boxes:
        """Back from `table`."""
        return cls(table[:, :4].astype(np.float64), table[:, 4].astype(np.int64), table[:, 5].astype(np.uint8))

    def table(self) -> Float[np.ndarray, "boxes 6"]:
        """What the ledger keeps."""
        return np.concatenate([self.corners, self.classes[:, None], self.status[:, None]], axis=1).astype(np.float64)

    def __len__(self) -> int:
        return len(self.corners)

    def __getitem__(self, rows: np.ndarray | slice) -> Boxes:
        return Boxes(self.corners[rows], self.classes[rows], self.status[rows])

    @property
    def objects(self) -> Boxes:
        """Those that are objects."""
        return self[self.status == OBJECT]

    def within(self, region: Box, least: float) -> Boxes:
        """The boxes as someone sees them who sees the region alone.

        Boxes are cut at the region's border; an object of which a smaller share than `least` is
        visible becomes ground to ignore; boxes outside are dropped.
        """
        (top, left), (bottom, right) = region
        cut = np.clip(self.corners, [top, left, top, left], [bottom, right, bottom, right])
        seen = area(cut) / np.maximum(area(self.corners), 1e-12)
        status = np.where((self.status == OBJECT) & (seen < least), IGNORED, self.status).astype(np.uint8)
        return Boxes(cut, self.classes, status)[area(cut) > 0]


def area(corners: Float[np.ndarray, "boxes 4"]) -> Float[np.ndarray, " boxes"]:
    """Square pixels; 0 for a box turned inside out."""
    sides = np.maximum(corners[:, 2:] - corners[:, :2], 0)
    product: np.ndarray = sides.prod(1)
    return product


def iou(one: Float[np.ndarray, "n 4"], other: Float[np.ndarray, "m 4"]) -> Float[np.ndarray, "n m"]:
    """Intersection over union of every pair."""
    shared = _shared(one, other)
    share: np.ndarray = shared / np.maximum(area(one)[:, None] + area(other)[None] - shared, 1e-12)
    return share


def covered(one: Float[np.ndarray, "n 4"], other: Float[np.ndarray, "m 4"]) -> Float[np.ndarray, "n m"]:
    """Share of each box of `one` that each box of `other` covers."""
    share: np.ndarray = _shared(one, other) / np.maximum(area(one)[:, None], 1e-12)
    return share


def _shared(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    product: np.ndarray = np.maximum(high - low, 0).prod(-1)
    return product


def checked_table(
    what: str, table: np.ndarray, region: Box | None, n_classes: int | None
) -> Float[np.ndarray, "boxes 6"]:
    """A table of boxes, proven to fit its region; float noise at the border is cut off.

    Without a region (kind box: a fixed box may reach beyond the predicted one) boxes may lie anywhere in the
    image, whose far borders nobody tells here.

    Raises:
        LabelError: on another shape, numbers that are not finite, a box that is empty, turned inside
            out or outside the region, or a class or status that does not exist.
    """
    if table.ndim != 2 or table.shape[1] != COLUMNS:
        raise LabelError(f"{what}: the boxes have shape {table.shape}; {COLUMNS} numbers a box are expected")
    if not np.isfinite(table).all():
        raise LabelError(f"{what}: a box holds NaN or infinite numbers; correct it and return the label again")
    (top, left), (bottom, right) = region or ((0, 0), (np.inf, np.inf))
    for row in table.tolist():
        r0, c0, r1, c1, number, status = row
        box = f"{what}: the box with rows {r0:g}..{r1:g} and columns {c0:g}..{c1:g}"
        if min(r1, bottom) <= max(r0, top) or min(c1, right) <= max(c0, left):
            raise LabelError(f"{box} is empty, turned inside out or outside its ground; draw it again")
        if r0 < top - 0.5 or c0 < left - 0.5 or r1 > bottom + 0.5 or c1 > right + 0.5:
            where = "the image" if region is None else f"its region, rows {top}..{bottom} and columns {left}..{right}"
            raise LabelError(f"{box} leaves {where}; cut it there")
        if status not in (OBJECT, IGNORED, ABSENT):
            raise LabelError(f"{box} has the status {status:g}; it must be 0, 1 or 2")
        if status == OBJECT and not (number == int(number) and 1 <= number < (n_classes or np.inf)):
            raise LabelError(f"{box} is of class {number:g}, outside 1..{(n_classes or 256) - 1}; name a class")
    bounds = np.array([[top, left, top, left], [bottom, right, bottom, right]], np.float64)
    cut = np.clip(table[:, :4], bounds[0], bounds[1])
    return np.ascontiguousarray(np.concatenate([cut, table[:, 4:]], axis=1), dtype=np.float64)
