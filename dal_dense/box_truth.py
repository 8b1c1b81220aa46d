"""Boxes of one image from its COCO annotations: the truth that is held back, or known from the start."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dal_dense.boxes import IGNORED, OBJECT, Boxes
from dal_dense.errors import DataError


def read_boxes(
    name: str, annotations: Sequence[Mapping[str, Any]], shape: tuple[int, ...], numbers: Mapping[int, int]
) -> Boxes:
    """Annotations as boxes in array order, cut at the frame's border.

    Crowds (`iscrowd` 1) are ground to ignore; categories that are not among the classes are left out.

    Args:
        name: the image, for messages.
        annotations: with `category_id` and `bbox` (x, y, width, height); polygons do where there is no box.
        shape: rows, columns of the frame.
        numbers: category id to class number.

    Raises:
        DataError: naming the annotation, if its box is missing, not finite, empty, turned inside out,
            or wholly outside the frame.
    """
    rows, columns = shape
    corners, classes, status = [], [], []
    for annotation in annotations:
        crowd = bool(annotation.get("iscrowd", 0))
        if not crowd and annotation["category_id"] not in numbers:
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
        classes.append(numbers.get(annotation["category_id"], 0))
        status.append(IGNORED if crowd else OBJECT)
    return Boxes.of(corners, classes, status)


def _box(what: str, annotation: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """x, y, width, height as they are written, or the bounds of the polygons."""
    given = annotation.get("bbox")
    if not given and isinstance(annotation.get("segmentation"), list):
        points = [float(v) for polygon in annotation["segmentation"] for v in polygon]
        xs, ys = points[0::2], points[1::2]
        given = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)] if points else None
    if not isinstance(given, Sequence) or len(given) != 4 or not all(isinstance(v, int | float) for v in given):
        raise DataError(f"{what} has no box; detection needs bbox: x, y, width, height")
    if not all(math.isfinite(v) for v in given):
        raise DataError(f"{what} has the box {list(given)}, which is not finite; correct or remove it")
    x, y, width, height = map(float, given)
    return x, y, width, height
