"""What an expert would have to draw in a box: length of contours, number of objects, ground to look at.

Volumes are drawn slice by slice, so lengths and objects are counted inside axial slices and summed
over them. The same functions serve the model's probabilities (predicted cost) and one-hot truth
(true cost), so that a perfect model predicts its cost exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import pi, prod

import cv2
import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from dal_dense.pieces import in_groups
from dal_dense.regions import Regions

IGNORE = 255  # tasks.base.IGNORE; not imported, since costs must not depend on tasks

CROFTON = pi / 4
"""Length of a curve without preferred direction over the length of its staircase on the grid."""


def contour_length(
    label_or_probs: Tensor | np.ndarray, spacing: Sequence[float], axial_axis: int | None
) -> Float[Tensor, ""]:
    """Length of all contours between classes, mm (volumes, summed over axial slices) or pixels.

    By the co-area formula the total variation of p_c is the mean, over thresholds, of the perimeter
    of {p_c > threshold}; half its sum over the classes counts every contour between two classes once
    (Fleming & Rishel 1960). The staircase that a grid measures is turned into a length by the
    Cauchy-Crofton factor pi/4 of two directions: right on average over directions, 21 % short for a
    line along an axis, 11 % long for a diagonal.

    Args:
        label_or_probs: probabilities (classes, *grid), or class numbers (*grid). Steps to or from
            `IGNORE` are left out.
        spacing: voxel size, one number a grid axis.
        axial_axis: grid axis across slices, along which nothing is drawn; None for frames.

    Returns:
        One float32 number on the device of the input. Only steps between two voxels of the array
        count: the border of the array is no contour.

    Raises:
        ValueError: if the array has neither as many axes as the spacing nor one more.
    """
    values = label_or_probs
    if isinstance(values, np.ndarray):
        values = torch.from_numpy(np.array(values, order="C"))  # a copy: arrays from the ledger are read-only
    if values.ndim not in (len(spacing), len(spacing) + 1):
        raise ValueError(f"array of shape {tuple(values.shape)} does not fit a grid with spacing {tuple(spacing)}")
    channels = values.ndim - len(spacing)
    total = torch.zeros((), device=values.device)
    for axis, face in _faces(spacing, axial_axis):
        steps = _variation(values, axis) if channels else _changes(values, axis)
        total = total + face * steps
    return CROFTON * total


def _faces(spacing: Sequence[float], axial_axis: int | None) -> list[tuple[int, float]]:
    """In-plane axes, each with the length of the voxel edge that a step along it crosses."""
    plane = [a for a in range(len(spacing)) if a != axial_axis]
    return [(a, prod(spacing[b] for b in plane if b != a)) for a in plane]


def _variation(probs: Tensor, axis: int) -> Tensor:
    """Half the sum of absolute steps along a grid axis; on the CPU float64 in between."""
    if probs.device.type == "cpu":  # OpenCV makes no copy, and adds up the same way with any number of threads
        rows = probs.detach().float().flatten(axis + 1).flatten(0, axis).numpy()
        step = prod(probs.shape[axis + 2 :])
        return torch.tensor(cv2.norm(rows[:, step:], rows[:, :-step], cv2.NORM_L1) / 2 if rows.shape[1] > step else 0.0)
    steps = [p.float().diff(dim=axis + 1).abs_().sum() for p in in_groups(probs)]
    return torch.stack(steps).sum() / 2


def _changes(label: Tensor, axis: int) -> Tensor:
    before, after = label.narrow(axis, 0, label.shape[axis] - 1), label.narrow(axis, 1, label.shape[axis] - 1)
    return ((before != after) & (before != IGNORE) & (after != IGNORE)).sum()


def object_count(label: Integer[np.ndarray, "*grid"], axial_axis: int | None, background: int | None) -> int:
    """Connected objects, each class and each axial slice for itself: what has to be begun and finished.

    Pixels that touch by a corner belong together.

    Args:
        label: class numbers, (rows, columns) or with an axial axis; `IGNORE` is no object.
        axial_axis: grid axis across slices; None for frames.
        background: class that nobody draws; None if every class is drawn (road scenes).
    """
    slices_first = label[None] if axial_axis is None else np.moveaxis(label, axial_axis, 0)
    count, rows, columns = slices_first.shape
    # one picture of all slices, each with an empty row below, so that a class takes one call
    picture = np.full((count, rows + 1, columns), IGNORE, dtype=label.dtype)
    picture[:, :-1] = slices_first
    picture = picture.reshape(-1, columns)
    drawn = [c for c in np.flatnonzero(np.bincount(label.ravel())) if c not in (IGNORE, background)]
    return sum(cv2.connectedComponents((picture == c).view(np.uint8), connectivity=8)[0] - 1 for c in drawn)


def area_of(regions: Regions, spacing: Sequence[float], axial_axis: int | None) -> Float[Tensor, " regions"]:
    """Ground to look through: mm^2 summed over axial slices (volumes), pixels^2 (frames); float32."""
    pixel = prod(s for a, s in enumerate(spacing) if a != axial_axis)
    return regions.volume().float() * pixel
