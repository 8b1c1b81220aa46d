"""From a map to regions: box means at every position, and the best boxes that do not overlap.

Positions are every `stride`-th voxel and the last one that fits, so no ground is out of reach.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from dal_dense.pieces import in_groups
from dal_dense.regions import Box, Regions, slices
from dal_dense.window_sums import means_at

Array = TypeVar("Array", np.ndarray, Tensor)
Stride = int | Sequence[int]
"""Step between candidate positions, one number or one an axis."""


def fitted(size: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """The box size, cut to the image on every axis where it is larger.

    Raises:
        ValueError: if the two differ in length, or a side is below 1.
    """
    if len(size) != len(shape) or min(size) < 1:
        raise ValueError(f"box size {tuple(size)} does not fit an image of shape {tuple(shape)}")
    return tuple(min(s, n) for s, n in zip(size, shape, strict=True))


def starts(shape: Sequence[int], size: Sequence[int], stride: Stride = 1) -> tuple[list[int], ...]:
    """First voxels of all candidate boxes, an ascending list an axis."""
    steps = (stride,) * len(shape) if isinstance(stride, int) else tuple(stride)
    if len(steps) != len(shape) or min(steps) < 1:
        raise ValueError(f"stride {stride} does not fit an image of shape {tuple(shape)}; give numbers >= 1")
    columns = []
    for n, s, step in zip(shape, fitted(size, shape), steps, strict=True):
        column = list(range(0, n - s + 1, step))
        columns.append(column if column[-1] == n - s else [*column, n - s])
    return tuple(columns)


def box_means(
    values: Float[Tensor, "*grid"],
    size: Sequence[int],
    stride: Stride = 1,
    weight: Float[Tensor, "*grid"] | None = None,
) -> Float[Tensor, "*positions"]:
    """Mean over the box at every position of `starts(values.shape, size, stride)`; float32.

    Args:
        values: a map.
        size: box size; cut to the image where it is larger.
        stride: of the positions.
        weight: multiplied in, voxel by voxel.
    """
    return means_at(values, fitted(size, values.shape), starts(values.shape, size, stride), weight)


def coarse_stride(size: Sequence[int], stride: int) -> tuple[int, ...]:
    """Steps for `topk_means`: half a box or the stride asked for, whichever is larger."""
    return tuple(max(stride, side // 2, 1) for side in size)


def topk_means(
    values: Float[Tensor, "*grid"], size: Sequence[int], stride: Stride, share: float
) -> Float[Tensor, "*positions"]:
    """Mean of the largest `share` of voxels in the box at every position; float32.

    Not separable: the work is positions x box, so give a coarse stride (`coarse_stride`). One slab
    of boxes is unfolded at a time.
    """
    box = fitted(size, values.shape)
    first, *rest = starts(values.shape, size, stride)
    rows = []
    for start in first:
        slab = values.narrow(0, start, box[0]).float()
        for axis, column in enumerate(rest, start=1):
            slab = slab.unfold(axis, box[axis], 1).index_select(axis, torch.tensor(column, device=slab.device))
        voxels = slab.movedim(0, -1).flatten(len(rest))  # (*other positions, voxels of the box)
        rows.append(voxels.topk(_top(share, voxels.shape[-1]), sorted=False).values.mean(-1))
    return torch.stack(rows)


def means_in(
    values: Float[Tensor, "maps *grid"], regions: Regions, weight: Float[Tensor, "*grid"] | None = None
) -> Float[Tensor, "regions maps"]:
    """Mean of each map, times `weight` where given, in each of a few boxes; float32."""
    rows = []
    for box in regions.boxes():
        maps, factor = values[(slice(None), *slices(box))], None if weight is None else weight[slices(box)]
        rows.append(means_of(maps, factor))
    return torch.stack(rows) if rows else values.new_zeros(0, values.shape[0], dtype=torch.float32)


def means_of(maps: Float[Tensor, "maps *box"], weight: Float[Tensor, "*box"] | None = None) -> Float32[Tensor, " maps"]:
    """Mean of each map, times `weight` where given, over all that there is."""
    if maps.device.type == "cpu":
        return _means_on_cpu(maps, weight)
    axes = tuple(range(1, maps.ndim))
    some = in_groups(maps)
    return torch.cat([(m if weight is None else m * weight).mean(axes, dtype=torch.float32) for m in some])


def _means_on_cpu(maps: Float[Tensor, "maps *box"], weight: Float[Tensor, "*box"] | None) -> Float32[Tensor, " maps"]:
    """By NumPy: it wakes no threads for a box, and sums rows pairwise, which is exact to float32."""
    flat = maps.detach().float().numpy().reshape(len(maps), -1)
    if weight is None:
        return torch.from_numpy(flat.mean(1))
    factor = weight.detach().float().numpy().reshape(-1)
    return torch.tensor([float((values * factor).mean()) for values in flat])


def topk_in(values: Float[Tensor, "*grid"], regions: Regions, share: float) -> Float[Tensor, " regions"]:
    """Mean of the largest `share` of voxels in each of a few boxes; float32."""
    rows = []
    for box in regions.boxes():
        voxels = values[slices(box)].flatten().float()
        rows.append(voxels.topk(_top(share, voxels.numel()), sorted=False).values.mean())
    return torch.stack(rows) if rows else values.new_zeros(0, dtype=torch.float32)


def _top(share: float, voxels: int) -> int:
    return max(1, math.ceil(share * voxels))


def peaks(
    scores: Float32[Tensor, "*positions"],
    size: Sequence[int],
    stride: Stride,
    count: int,
    blocked: Regions,
    shape: Sequence[int],
) -> tuple[Regions, Float[Tensor, " k"]]:
    """The best box, then the best that does not overlap it, and so on: at most `count` boxes.

    Exact greedy selection over all positions, with ties going to the lowest index. The maximum of
    each row (last axis) is kept, so that a pick searches the maxima and one row, and only the rows
    that it blocked in part are looked at again.

    Args:
        scores: one number a position of `starts(shape, size, stride)`; -inf is never chosen. Used up:
            what can no longer be chosen is overwritten with -inf.
        size: box size; cut to the image where it is larger.
        stride: as the scores were made with.
        count: how many boxes at most.
        blocked: ground that no chosen box may touch.
        shape: the image's grid.

    Returns:
        Boxes in the order of choice, on the device of the scores, and their scores.

    Raises:
        ValueError: if the scores are not of the positions' shape.
    """
    box = fitted(size, shape)
    columns = starts(shape, size, stride)
    if tuple(scores.shape) != tuple(map(len, columns)):
        raise ValueError(f"scores are {tuple(scores.shape)}, positions {tuple(map(len, columns))}")
    for start, stop in blocked.boxes():
        scores[touching(columns, box, start, stop)] = -math.inf
    on_cpu = scores.device.type == "cpu"  # where torch would wake its threads for a few rows
    picked = _greedily(scores.numpy(), columns, box) if on_cpu else _greedily(scores, columns, box)
    picks = list(islice(picked, count))
    boxes = Regions.of([taken for taken, _ in picks], len(box), scores.device)
    return boxes, torch.tensor([value for _, value in picks], device=scores.device)


def _greedily(left: Array, columns: Sequence[list[int]], box: Sequence[int]) -> Iterator[tuple[Box, float]]:
    best = _row_maxima(left)
    while True:
        row: tuple[int, ...] = tuple(map(int, np.unravel_index(int(best.argmax()), tuple(best.shape))))
        value = float(best[row])
        if value == -math.inf:
            return
        place = (*row, int(left[row].argmax()))
        start = tuple(c[i] for c, i in zip(columns, place, strict=True))
        stop = tuple(a + s for a, s in zip(start, box, strict=True))
        yield (start, stop), value
        shadow = touching(columns, box, start, stop)
        left[shadow] = -math.inf
        best[shadow[:-1]] = _row_maxima(left[shadow[:-1]])


def _row_maxima(values: Array) -> Array:
    if isinstance(values, Tensor):
        return values.amax(-1)
    maxima: np.ndarray = values.max(-1)
    return maxima


def touching(
    columns: Sequence[list[int]], box: Sequence[int], start: Sequence[int], stop: Sequence[int]
) -> tuple[slice, ...]:
    """Positions whose box shares a voxel with start..stop; they form one block."""
    return tuple(
        slice(bisect_right(column, low - side), bisect_left(column, high))
        for column, side, low, high in zip(columns, box, start, stop, strict=True)
    )
