"""A COCO json that came back, drawn into label arrays.

What counts as reviewed is said in `coco_document`. Where annotations overlap, the smaller lies on top (ties: the
later in the file). Ground without annotation is background; in a pool without a background class it stays unlabelled.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from pycocotools import mask as rle

from dal_dense.errors import LabelError
from dal_dense.exchange.asked import Asked, Returned
from dal_dense.exchange.coco_document import Drawn, Runs, Sheet, Values, read_sheets
from dal_dense.query import SidecarRegion
from dal_dense.regions import slices


def read_document(path: Path, asked: Asked, file: str) -> tuple[list[Returned], list[str]]:
    """Every reviewed region of one COCO json; what cannot be taken is told and hides nothing else.

    Args:
        path: the file.
        asked: what was asked.
        file: how messages name it.

    Raises:
        LabelError: if the file as a whole is no COCO json.
    """
    return read_sheets(path, asked, file, Drawn, _labels)


def _labels(
    sheet: Sheet,
    entries: list[SidecarRegion],
    annotations: list[Drawn],
    values: Values,
    asked: Asked,
    file: str,
) -> list[Returned]:
    shape = sheet.shape
    empty = asked.ignore if asked.background is None else asked.background
    label = np.full(shape, empty, np.uint8)
    layers: list[tuple[int, int, list[int]]] = []  # area, class, run lengths: masks of a whole frame would not fit
    for annotation in annotations:
        where = f"{file}: {sheet.image.file_name!r}, annotation {annotation.id}"
        value = sheet.value(annotation, values, asked, where)
        if value is None:
            continue
        counts = run_lengths(annotation.segmentation, shape, where)
        layers.append((sum(counts[1::2]), value, counts))
    for _, value, counts in sorted(layers, key=lambda layer: -layer[0]):
        # not by pycocotools: it leaves memory unset where run lengths end too early
        label[np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(shape, order="F")] = value
    return [Returned(e.region.id, _cut(label, sheet, e), None, file) for e in entries]


def _cut(label: UInt8[np.ndarray, "h w"], sheet: Sheet, entry: SidecarRegion) -> UInt8[np.ndarray, "r c"]:
    return label if sheet.is_crop else np.ascontiguousarray(label[slices(entry.region.box)])


def run_lengths(drawing: list[list[float]] | Runs | None, shape: tuple[int, int], where: str) -> list[int]:
    """Polygons or a mask of any spelling as checked run lengths."""
    if isinstance(drawing, Runs):
        return _checked(drawing, shape, where)
    if not drawing:
        raise LabelError(f"{where}: has a box but no outline; draw it as polygon or mask")
    limit = 2 * max(shape)  # a rasteriser's memory grows with the coordinates
    for polygon in drawing:
        if len(polygon) < 6 or len(polygon) % 2:
            raise LabelError(f"{where}: a polygon needs at least 3 points, x and y each; it has {len(polygon)} numbers")
        if max(map(abs, polygon)) > limit:
            raise LabelError(f"{where}: a polygon reaches {max(map(abs, polygon)):g}, far outside the image")
    merged = rle.merge(rle.frPyObjects(drawing, *shape))
    return _checked(Runs(size=list(shape), counts=merged["counts"].decode("ascii")), shape, where)


def _checked(runs: Runs, shape: tuple[int, int], where: str) -> list[int]:
    if tuple(runs.size) != shape:
        raise LabelError(f"{where}: mask of size {runs.size}, expected {list(shape)} (rows, columns)")
    counts = _unpacked(runs.counts, where) if isinstance(runs.counts, str) else runs.counts
    if min(counts, default=-1) < 0 or sum(counts) != shape[0] * shape[1]:
        raise LabelError(f"{where}: run lengths sum to {sum(counts)}, expected {shape[0] * shape[1]}; export it again")
    return counts


def _unpacked(text: str, where: str) -> list[int]:
    """COCO's packed run lengths: 5 bits a character, low bits first, from the fourth on as differences."""
    counts: list[int] = []
    value = place = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or place > 8:
            raise LabelError(f"{where}: run lengths are damaged; export the mask again")
        value |= (bits & 31) << 5 * place
        place += 1
        if not bits & 32:
            if bits & 16:
                value -= 1 << 5 * place
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = place = 0
    if place:
        raise LabelError(f"{where}: run lengths break off; export the mask again")
    return counts
