"""Masks: label values of a file, or COCO annotations, become class numbers and `IGNORE`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from pycocotools import mask as rle

from dal_dense.errors import DataError
from dal_dense.frames import frame_header, stored_values
from dal_dense.records import IGNORE, Header
from dal_dense.volumes import is_nifti, nifti_array, volume_header

SAME_PLACE = 0.05
"""How far a corner of a mask's grid may lie from the image's, as a share of the smallest voxel side.

Headers carry rounded numbers; a wrong pairing, a flip or a half-voxel shift is ten times more.
"""
Annotation = Mapping[str, Any]


def read_mask(path: Path, *, like: Header, mapping: Mapping[int, int]) -> UInt8[np.ndarray, "*grid"]:
    """Class numbers of an index mask (NIfTI, PNG) on the image's own grid.

    Args:
        path: the mask.
        like: the image's header; shape and affine must agree.
        mapping: label value in the file to class number (or `IGNORE`).

    Raises:
        DataError: if it cannot be read, lies on another grid, is in colour, or holds a value that
            is no whole number or no class.
    """
    if is_nifti(path):
        header = volume_header(path)
        check_same_grid(path, header, like)
        values = nifti_array(path)
        if values.ndim != 3:
            raise DataError(f"{path}: a mask needs one channel, this has {values.shape[-1]}; write one index mask")
    else:
        check_same_grid(path, frame_header(path), like)
        values = _frame_values(path)
    return to_classes(path, values, mapping)


def _frame_values(path: Path) -> Shaped[np.ndarray, "rows cols"]:
    if path.suffix.lower() != ".png":
        raise DataError(f"{path}: JPEG changes label values; save index masks as PNG")
    values, mode = stored_values(path)
    if values.ndim != 2:
        raise DataError(
            f"{path}: a colour mask (mode {mode}), but an index mask with one label value a pixel is needed; "
            "convert its colours to label values"
        )
    return values


def check_same_grid(path: Path, found: Header, like: Header, what: str = "mask") -> None:
    """Refuse a mask (or channel) of another shape, or whose voxels lie elsewhere than the image's.

    Raises:
        DataError: with both shapes, or with the distance in mm.
    """
    if found.shape != like.shape:
        raise DataError(
            f"{path}: the {what} has shape {found.shape}, its image {like.shape}; pair the right files, or resample it"
        )
    if found.affine is None or like.affine is None:
        return
    corners = np.indices((2,) * 3).reshape(3, -1) * (np.array(like.shape)[:, None] - 1)
    corners = np.concatenate([corners, np.ones((1, corners.shape[1]))])
    apart = float(np.linalg.norm(((found.affine - like.affine) @ corners)[:3], axis=0).max())
    if apart > SAME_PLACE * min(like.spacing):
        raise DataError(
            f"{path}: the {what}'s affine differs from its image's, by up to {apart:.3g} mm; "
            "pair the right files, resample it, or correct its header"
        )


def to_classes(
    path: Path, values: Shaped[np.ndarray, "*grid"], mapping: Mapping[int, int]
) -> UInt8[np.ndarray, "*grid"]:
    """Label values as class numbers.

    Raises:
        DataError: listing the values that are no whole numbers or no classes, with their counts.
    """
    if values.dtype.kind == "f":
        whole = np.rint(values)
        odd = ~(np.abs(values - whole) < 1e-4)  # also true for NaN
        if odd.any():
            raise DataError(f"{path}: label values {_counts(values[odd])} are not whole numbers; write an integer mask")
        values = whole.astype(np.int64)
    if values.dtype.kind == "b":
        values = values.astype(np.uint8)
    classes, known = _look_up(values, mapping)
    if not known.all():
        raise DataError(
            f"{path}: label values {_counts(values[~known])} are outside the classes {sorted(mapping)}; "
            "correct the mask, add them to data.classes, or name one as data.ignore_index"
        )
    return classes


def _look_up(values: np.ndarray, mapping: Mapping[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers, and which values are in the mapping."""
    if values.dtype.itemsize <= 2:
        limits = np.iinfo(values.dtype)
        table = np.zeros(1 << (8 * values.dtype.itemsize), np.uint8)
        listed = np.zeros(len(table), bool)
        for value, number in mapping.items():
            if limits.min <= value <= limits.max:
                table[value], listed[value] = number, True  # a negative value counts from the end, here and below
        return table[values], listed[values]
    keys = np.array(sorted(mapping), dtype=np.int64)
    numbers = np.array([mapping[int(k)] for k in keys], dtype=np.uint8)
    place = np.searchsorted(keys, values).clip(max=len(keys) - 1)
    return numbers[place], keys[place] == values


def _counts(values: np.ndarray) -> str:
    """`7 (12 times), 9 (once)`, at most five of them."""
    found, counts = np.unique(values, return_counts=True)
    shown = [f"{v:g} ({'once' if n == 1 else f'{n} times'})" for v, n in zip(found[:5], counts[:5], strict=True)]
    return ", ".join(shown) + (f" and {len(found) - 5} more" if len(found) > 5 else "")


def rasterise(
    name: str, annotations: Sequence[Annotation], shape: tuple[int, ...], numbers: Mapping[int, int]
) -> UInt8[np.ndarray, "rows cols"]:
    """COCO annotations of one image as class numbers; ground that none covers is background, 0.

    Crowd regions (`iscrowd` 1) become `IGNORE`. Objects lie over crowds, small ones over large.

    Args:
        name: the image, for messages.
        annotations: with `category_id` and `segmentation` (polygons or RLE); crowds may have a `bbox` only.
        shape: rows, columns.
        numbers: category id to class number; other categories are background.

    Raises:
        DataError: if a segmentation is missing, malformed, or of another image size.
    """
    mask = np.zeros(shape, np.uint8)
    drawn: list[tuple[bool, int, int, np.ndarray, int]] = []
    for annotation in annotations:
        crowd = bool(annotation.get("iscrowd", 0))
        if crowd or annotation["category_id"] in numbers:
            inside = _inside(f"{name}: annotation {annotation.get('id', '?')}", annotation, shape)
            drawn.append((not crowd, -int(inside.sum()), len(drawn), inside, annotation["category_id"]))
    for is_object, _, _, inside, category in sorted(drawn, key=lambda d: d[:3]):
        mask[inside] = numbers[category] if is_object else IGNORE
    return mask


def _inside(what: str, annotation: Annotation, shape: tuple[int, ...]) -> np.ndarray:
    """Pixels of one annotation, bool (rows, columns)."""
    rows, cols = shape
    form = annotation.get("segmentation")
    if not form and annotation.get("iscrowd") and annotation.get("bbox"):
        x, y, width, height = map(float, annotation["bbox"])
        form = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    if not form:
        raise DataError(f"{what} has no segmentation, only a box; segmentation needs polygons or RLE")
    if isinstance(form, list):
        if any(len(p) < 6 or len(p) % 2 for p in form):
            raise DataError(f"{what} has a polygon that is not a list of at least 3 points x, y; correct it")
        codes = rle.frPyObjects([list(map(float, p)) for p in form], rows, cols)
        return np.asarray(rle.decode(codes).any(-1))
    return _from_rle(what, form, shape)


def _from_rle(what: str, form: Mapping[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    rows, cols = shape
    if list(form.get("size", ())) != [rows, cols]:
        raise DataError(f"{what} is an RLE of size {form.get('size')}, its image is {[rows, cols]}; correct either")
    counts = form.get("counts")
    runs = counts if isinstance(counts, list) else _runs(counts)
    if not runs or min(runs) < 0 or sum(runs) != rows * cols:  # pycocotools would read memory that is not its own
        raise DataError(f"{what} has RLE counts that do not add up to {rows} x {cols} pixels; write it again")
    code = rle.frPyObjects(dict(form), rows, cols) if isinstance(counts, list) else form
    return np.asarray(rle.decode(code), dtype=bool)


def _runs(counts: object) -> list[int]:
    """Run lengths of a compressed RLE: 5 bits a character, differences to the run before last; [] if damaged."""
    text = counts.encode() if isinstance(counts, str) else counts
    if not isinstance(text, bytes):
        return []
    runs: list[int] = []
    value = shift = 0
    for byte in text:
        code = byte - 48
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs if shift == 0 else []
