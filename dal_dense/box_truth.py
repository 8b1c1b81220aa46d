"""Boxes of one image from its COCO annotations: the truth that is held back, or known from the start."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dal_dense.boxes import IGNORED, OBJECT, Boxes
from dal_dense.errors import DataError
from dal_dense.records import IGNORE


def read_boxes(
    name: str, annotations: Sequence[Mapping[str, Any]], shape: tuple[int, ...], numbers: Mapping[int, int]
) -> Boxes:
    """Annotations as boxes in array order, cut at the frame's border.

    Crowds (`iscrowd` or `ignore` 1) and categories that the settings ignore are ground to ignore; categories
    that are not among the classes, or are background, are left out.

    Args:
        name: the image, for messages.
        annotations: with `category_id` and `bbox` (x, y, width, height); polygons do where there is no box.
        shape: rows, columns of the frame.
        numbers: category id to class number or `IGNORE`.

    Raises:
        DataError: naming the annotation, if its box is missing, not finite, empty, turned inside out,
            or wholly outside the frame.
    """
    rows, columns = shape
    corners, classes, status = [], [], []
    for annotation in annotations:
        number = numbers.get(annotation["category_id"], 0)
        ignored = number == IGNORE or bool(annotation.get("iscrowd")) or bool(annotation.get("ignore"))
        if number == 0 and not ignored:
            continue
        what = f"{name}: annotation {annotation.get('id', '?')}"
        x, y, width, height = _box(what, annotation)
        if width <= 0 or height <= 0:
            raise DataError(
                f"{what} has a box of width {width:g} and height {height:g}; "
                "write x, y of its upper left corner, width and height, or remove it"
            )
        cut = (max(y, 0.0), max(x, 0.0), min(y + height, float(rows)), min(x + width, float(columns)))
        if cut[2] <= cut[0] or cut[3] <= cut[1]:
            raise DataError(
                f"{what} has its box at x {x:g}, y {y:g}, outside the frame of {columns} x {rows} (width x height); "
                "correct or remove it"
            )
        corners.append(cut)
        classes.append(0 if ignored else number)
        status.append(IGNORED if ignored else OBJECT)
    return Boxes.of(corners, classes, status)


def _box(what: str, annotation: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """x, y, width, height as they are written, or the bounds of the polygons."""
    given = annotation.get("bbox")
    if not given and isinstance(annotation.get("segmentation"), list):
        given = _bounds(what, annotation["segmentation"])
    if not isinstance(given, Sequence) or len(given) != 4 or not all(isinstance(v, int | float) for v in given):
        raise DataError(f"{what} has no box; detection needs bbox: x, y, width, height")
    if not all(math.isfinite(v) for v in given):
        raise DataError(f"{what} has the box {list(given)}, which is not finite; correct or remove it")
    x, y, width, height = map(float, given)
    return x, y, width, height


def _bounds(what: str, polygons: Sequence[Any]) -> list[float] | None:
    xs: list[float] = []
    ys: list[float] = []
    for polygon in polygons:
        numbers = isinstance(polygon, list) and all(isinstance(v, int | float) for v in polygon)
        if not numbers or len(polygon) % 2:
            raise DataError(f"{what} has a polygon that is no list of x, y, x, y, ...; correct or remove it")
        xs += polygon[0::2]
        ys += polygon[1::2]
    return [float(v) for v in (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))] if xs else None
