"""Labelled regions become training windows: batch i is a pure function of (labels, seed, i).

    kind    what is shown                         what is known
    crop    the region, no pixel beyond it        all of it
    image   a window of task.train.patch          all of it
    box     a window of task.train.patch          the box alone, and what else is labelled there

Where a window shows more than a labelled region, an object cut at the region's border may go on
beyond it: such a box is ground to ignore there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as nnf

from dal_dense.boxes import ABSENT, COLUMNS, IGNORED, OBJECT, Boxes, area
from dal_dense.config import DetectionConfig, TrainConfig
from dal_dense.errors import DataError, Stopped
from dal_dense.images import read_image
from dal_dense.noise import derive_seed
from dal_dense.records import ImageRecord
from dal_dense.regions import Box
from dal_dense.tasks.base import Hooks, LabelledImage
from dal_dense.tasks.detection_backend import Sample
from dal_dense.tasks.detection_partial import area_table
from dal_dense.tasks.parts import part_seed
from dal_dense.tasks.shelf import Shelf

HELD = 4 << 30
"""Bytes of labelled ground in memory, some 1500 frames of 1280 x 720; what is beyond is read again when it is shown."""

FULL = 0.9
"""Share of a batch's pixels from which it is full: zoomed windows differ by rounding."""
MOST = 4
"""Times `train.batch` windows that a batch holds at most, however small they are."""

SHARP = 0.5
"""Share of windows that are shown at their own scale, as at inference."""

SAME = 0.5
"""Share of a single box on ground labelled as a whole from which no window is made for it; none is on offer either."""

LEAST_SIDE = 1.0
"""Pixels of the scaled frame: an object with a shorter side cannot be taught and is ignored."""

HALF_RANGE = 127.5
"""`train.intensity` is in units of an image scaled to -1..1."""


@dataclass(frozen=True)
class Piece:
    """Ground of one frame on the network's scale.

    Attributes:
        record: the frame.
        window: the piece in the stored frame.
        size: rows and columns of the piece on the network's scale.
        boxes: in the piece's coordinates.
        own: rows of `boxes` that this piece is there for.
        known: rectangles of known ground, (top, left, bottom, right).
        whole: shown whole; else in windows of the training patch.
        shelf: keeps pixels.
    """

    record: ImageRecord
    window: Box
    size: tuple[int, int]
    boxes: Boxes
    own: NDArray[np.int64]
    known: NDArray[np.float64]
    whole: bool
    shelf: Shelf = field(repr=False, compare=False)

    def pixels(self, frame: NDArray[np.float32] | None = None) -> Tensor:
        """RGB 0..255 (3, *size); uint8 wherever that loses nothing.

        Args:
            frame: as it is stored, if it was read already; else it is read where the shelf does not hold the piece.
        """
        return self.shelf.get((self.record.id, self.window), lambda: self._cut(frame))

    def _cut(self, frame: NDArray[np.float32] | None) -> Tensor:
        """Cut first and scale afterwards, so that no pixel beyond the window has any influence."""
        (top, left), (bottom, right) = self.window
        stored = read_image(self.record, channels=3) if frame is None else frame
        image = resized(torch.from_numpy(np.ascontiguousarray(stored[:, top:bottom, left:right])), self.size)
        whole_numbers = image.round().clamp(0, 255)
        if self.size != (bottom - top, right - left) or torch.equal(whole_numbers, image):
            return whole_numbers.to(torch.uint8)
        return image


def factor_of(shape: Sequence[int], long_side: int | None) -> float:
    """What a frame of this shape is scaled by."""
    return 1.0 if long_side is None else long_side / max(shape)


def resized(image: Float[Tensor, "3 h w"], size: tuple[int, int]) -> Float[Tensor, "3 h2 w2"]:
    """Bilinear, with a prefilter where it shrinks; itself if the size is right."""
    if tuple(image.shape[1:]) == size:
        return image
    return nnf.interpolate(image[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0]


def gather(
    labelled: Sequence[LabelledImage],
    *,
    detection: DetectionConfig,
    train: TrainConfig,
    hooks: Hooks,
    held: int = HELD,
) -> tuple[Piece, ...]:
    """Read each labelled frame and keep only the ground that windows can show, `held` bytes of it in memory.

    Raises:
        DataError: if a frame cannot be read, is not RGB, or a region lies outside it.
        Stopped: the person asked to stop.
    """
    pieces: list[Piece] = []
    shelf = Shelf(held)
    for i, known in enumerate(labelled):
        if hooks.stopping():
            raise Stopped
        hooks.progress("reading labelled images", i, len(labelled))
        if len(known.regions):
            frame = read_image(known.record, channels=3)
            for piece in _cut(known, (frame.shape[1], frame.shape[2]), detection, train, shelf):
                piece.pixels(frame)
                pieces.append(piece)
    return tuple(pieces)


def _cut(
    known: LabelledImage, shape: tuple[int, int], detection: DetectionConfig, train: TrainConfig, shelf: Shelf
) -> list[Piece]:
    """The pieces of one frame of this shape."""
    factor = factor_of(shape, detection.long_side)
    regions = list(known.regions.boxes())
    kinds = known.kinds or ("crop",) * len(regions)
    tables = [Boxes.from_table(np.asarray(label, np.float64).reshape(-1, 6)) for label in known.labels]
    for region in regions:
        if any(b > n for b, n in zip(region[1], shape, strict=True)):
            raise DataError(
                f"{known.record.paths[0]}: the labelled region {region} lies outside the frame's {shape[0]} rows and "
                f"{shape[1]} columns; was the image replaced after it was labelled? Put the old file back"
            )
    grounds = [i for i, kind in enumerate(kinds) if kind != "box"]
    rects = np.array([[*regions[i][0], *regions[i][1]] for i in grounds], np.float64).reshape(-1, 4)
    piece = partial(_piece, record=known.record, factor=factor, shelf=shelf)
    pieces = [piece(regions[i], tables[i], None, rects[n : n + 1], kinds[i] == "crop") for n, i in enumerate(grounds)]
    single = [i for i, kind in enumerate(kinds) if kind == "box"]
    beyond = [_seen_beyond(tables[i], regions[i], shape) for i in grounds]
    everything, rows = _joined([*beyond, *(tables[i] for i in single)])
    for i, own in zip(single, rows[len(grounds) :], strict=True):
        if _share_on(rects, regions[i]) < SAME:
            pieces.append(piece(_around(regions[i], shape, factor, train), everything, own, rects, False))
    return pieces


def _share_on(rects: NDArray[np.float64], region: Box) -> float:
    """Share of a box on ground that is labelled as a whole, where all its objects are taught already."""
    (top, left), (bottom, right) = region
    on = np.zeros((bottom - top, right - left), bool)
    for r0, c0, r1, c1 in np.maximum(rects - [top, left, top, left], 0).astype(int):
        on[r0:r1, c0:c1] = True
    return float(on.mean())


def _seen_beyond(boxes: Boxes, region: Box, shape: Sequence[int]) -> Boxes:
    """The boxes of a region for windows that show more: what its border may have cut is ignored."""
    touches = at_border(boxes.corners, region, shape)
    status = np.where((boxes.status == OBJECT) & touches, IGNORED, boxes.status).astype(np.uint8)
    return Boxes(boxes.corners, boxes.classes, status)


def at_border(corners: NDArray[np.float64], region: Box, shape: Sequence[int]) -> NDArray[np.bool_]:
    """Boxes, all inside a region, that its border may have cut; that of the frame (of this shape) cuts none."""
    edges = np.array([*region[0], *region[1]], np.float64)
    inner = np.array([region[0][0] > 0, region[0][1] > 0, region[1][0] < shape[0], region[1][1] < shape[1]])
    touching: NDArray[np.bool_] = ((np.abs(corners - edges) < 1) & inner).any(1)
    return touching


def _joined(parts: Sequence[Boxes]) -> tuple[Boxes, list[NDArray[np.int64]]]:
    """All tables as one, of equal rows the first alone, and where each table's rows are in it."""
    rows = np.concatenate([np.zeros((0, COLUMNS)), *(part.table() for part in parts)])
    _, first, place = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    kept = np.sort(first)
    mine = np.searchsorted(kept, first)[place.reshape(-1)]
    ends = np.cumsum([len(part) for part in parts])
    return Boxes.from_table(rows[kept]), [np.unique(each) for each in np.split(mine, ends)[:-1]]


def _around(region: Box, shape: Sequence[int], factor: float, train: TrainConfig) -> Box:
    """The ground that windows on a box can reach, moved into the frame as far as it goes."""
    start, stop = [], []
    for a, b, n, p in zip(*region, shape, train.patch, strict=True):
        side = min(n, max(b - a, int(np.ceil(p / factor / (1 - train.scale)))))
        first = min(max(0, (a + b - side) // 2), n - side)
        start.append(first)
        stop.append(first + side)
    return tuple(start), tuple(stop)


def _piece(
    window: Box, boxes: Boxes, own: NDArray[np.int64] | None, known: NDArray[np.float64], whole: bool,
    *, record: ImageRecord, factor: float, shelf: Shelf,
) -> Piece:  # fmt: skip
    """Boxes and known ground of the stored frame, moved into the piece."""
    (top, left), (bottom, right) = window
    size = (max(1, round((bottom - top) * factor)), max(1, round((right - left) * factor)))
    origin = np.array([top, left, top, left], np.float64)
    scale = np.array([size[0] / (bottom - top), size[1] / (right - left)] * 2)
    moved = Boxes((boxes.corners - origin) * scale, boxes.classes, boxes.status)
    rows = np.arange(len(boxes)) if own is None else own
    return Piece(record, window, size, moved, rows, (known - origin) * scale, whole, shelf)


@dataclass(frozen=True)
class Windows:
    """Where batches come from.

    Attributes:
        pieces: all labelled ground.
        train: batch size, patch, augmentation.
        least: objects cut by a window to a smaller share are ignored.
        seed: of every draw.
    """

    pieces: tuple[Piece, ...]
    train: TrainConfig
    least: float
    seed: int

    @cached_property
    def _objects(self) -> list[NDArray[np.int64]]:
        """(piece, row) of every object, an array a class that occurs."""
        rows = [
            (piece.boxes.classes[r], n, r)
            for n, piece in enumerate(self.pieces)
            for r in piece.own
            if piece.boxes.status[r] == OBJECT
        ]
        table = np.array(rows, np.int64).reshape(-1, 3)
        return [table[table[:, 0] == c, 1:] for c in np.unique(table[:, 0])]

    def batch(self, iteration: int, part: int = 0) -> list[Sample]:
        """The windows of one part of an iteration.

        All parts together hold about `train.batch` patches of pixels, so that small crops teach as much.
        """
        rng = np.random.default_rng(part_seed(self.seed, "windows", iteration, part))
        patches = self.train.batch // self.train.parts
        wanted = FULL * patches * math.prod(self.train.patch)
        samples: list[Sample] = []
        pixels = 0
        while pixels < wanted and len(samples) < MOST * patches:
            samples.append(self._draw(rng))
            pixels += samples[-1].image[0].numel()
        return samples

    def plain(self, number: int) -> Sample:
        """A window of one piece without augmentation, on one of its objects if it has any."""
        rng = np.random.default_rng(derive_seed(self.seed, "plain", number))
        piece = self.pieces[number]
        mine = piece.own[piece.boxes.status[piece.own] == OBJECT]
        row = int(rng.choice(mine)) if len(mine) else None
        return _sample(piece, *_place(piece, row, self.train.patch, 1.0, rng), 1.0, self.least)

    def _draw(self, rng: np.random.Generator) -> Sample:
        train = self.train
        row: int | None = None
        if self._objects and rng.random() < train.foreground:
            number, row = rng.choice(self._objects[rng.integers(len(self._objects))]).tolist()
        else:
            number = int(rng.integers(len(self.pieces)))
        piece = self.pieces[number]
        scale = 1.0 if rng.random() < SHARP else 1 + train.scale * rng.uniform(-1, 1)
        sample = _sample(piece, *_place(piece, row, train.patch, scale, rng), scale, self.least)
        for axis, name in ((1, "left_right"), (0, "up_down")):
            if name in train.flip_axes and rng.random() < 0.5:
                sample = _flipped(sample, axis)
        contrast, brightness = rng.uniform(-1, 1, 2) * train.intensity
        shown = (sample.image - HALF_RANGE) * (1 + contrast) + HALF_RANGE * (1 + brightness)
        return Sample(shown.clamp(0, 255), sample.boxes, sample.classes, sample.absent, sample.known, sample.ignored)


def _place(
    piece: Piece, row: int | None, patch: Sequence[int], scale: float, rng: np.random.Generator
) -> tuple[list[int], list[int]]:
    """First and last pixel of a window in a piece: anywhere, or so that it holds the middle of a box."""
    if piece.whole:
        return [0, 0], list(piece.size)
    start, stop = [], []
    for axis, n in enumerate(piece.size):
        side = min(n, max(1, round(patch[axis] / scale)))
        low, high = 0, n - side
        if row is not None:
            middle = int(piece.boxes.corners[row, [axis, axis + 2]].mean())
            low, high = max(low, min(middle - side + 1, high)), min(high, max(middle, low))
        start.append(int(rng.integers(low, high + 1)))
        stop.append(start[-1] + side)
    return start, stop


def _sample(piece: Piece, start: Sequence[int], stop: Sequence[int], scale: float, least: float) -> Sample:
    """One window, scaled."""
    (top, left), (bottom, right) = start, stop
    size = max(1, round((bottom - top) * scale)), max(1, round((right - left) * scale))
    image = resized(piece.pixels()[:, top:bottom, left:right].float(), size)
    origin = np.array([top, left, top, left], np.float64)
    factor = np.array([size[0] / (bottom - top), size[1] / (right - left)] * 2)
    window = (tuple(start), tuple(stop))
    boxes = piece.boxes
    cut = np.clip(boxes.corners, origin, [bottom, right, bottom, right])
    half = area(cut) >= 0.5 * area(boxes.corners)
    seen = boxes[(boxes.status != ABSENT) | half].within(window, least)
    corners = (seen.corners - origin) * factor
    small = (corners[:, 2:] - corners[:, :2]).min(1, initial=np.inf) < LEAST_SIDE
    status = np.where((seen.status == OBJECT) & small, IGNORED, seen.status)
    known, ignored = torch.zeros(size, dtype=torch.bool), torch.zeros(size, dtype=torch.bool)
    for r0, c0, r1, c1 in np.clip(((piece.known - origin) * factor).round(), 0, None).astype(int):
        known[r0:r1, c0:c1] = True
    for r0, c0, r1, c1 in corners[status == IGNORED]:
        ignored[int(r0) : int(np.ceil(r1)), int(c0) : int(np.ceil(c1))] = True
    turned = torch.from_numpy(corners[:, [1, 0, 3, 2]].astype(np.float32))
    there, rejected = torch.from_numpy(status == OBJECT), torch.from_numpy(status == ABSENT)
    classes = torch.from_numpy(seen.classes)[there]
    return Sample(image, turned[there], classes, turned[rejected], area_table(known & ~ignored), area_table(ignored))


def _flipped(sample: Sample, axis: int) -> Sample:
    """Mirrored: axis 1 left to right, axis 0 upside down."""
    column = 0 if axis == 1 else 1
    length = sample.image.shape[axis + 1]

    def turn(boxes: Tensor) -> Tensor:
        turned = boxes.clone()
        turned[:, column], turned[:, column + 2] = length - boxes[:, column + 2], length - boxes[:, column]
        return turned

    def mirrored(table: Tensor) -> Tensor:
        ground = (table[1:, 1:] - table[:-1, 1:] - table[1:, :-1] + table[:-1, :-1]) > 0.5
        return area_table(ground.flip(axis))

    return Sample(
        sample.image.flip(axis + 1), turn(sample.boxes), sample.classes, turn(sample.absent),
        mirrored(sample.known), mirrored(sample.ignored),
    )  # fmt: skip
