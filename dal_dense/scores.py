"""From a map to regions: box means at every position, and the best boxes that do not overlap.

The mean over each box of a size, at every position, takes two additions per doubling of the side
and axis, whatever the size: window sums of length 2k are two of length k. No running total over
the whole axis is kept, so float32 is safe, a box of zeros scores exactly 0, boxes of equal content
score exactly equal, and one bad voxel spoils only the boxes that hold it.

Positions are every `stride`-th voxel and the last one that fits, so no ground is out of reach.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from dal_dense.regions import Regions, slices

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


def box_means(values: Float[Tensor, "*grid"], size: Sequence[int], stride: Stride = 1) -> Float[Tensor, "*positions"]:
    """Mean over the box at every position of `starts(values.shape, size, stride)`; float32."""
    box = fitted(size, values.shape)
    means = values.float()
    for axis, (side, column) in enumerate(zip(box, starts(values.shape, size, stride), strict=True)):
        means = _window_sums(means, side, axis)
        if len(column) < means.shape[axis]:
            means = means.index_select(axis, torch.tensor(column, device=means.device))
        means = means / side
    return means


def _window_sums(values: Tensor, side: int, axis: int) -> Tensor:
    """Sums of `side` neighbours along an axis, by doubling; the binary digits of `side` say which to join."""
    positions = values.shape[axis] - side + 1
    total: Tensor | None = None
    done, width, block = 0, 1, values  # block: sums of `width` neighbours; total: of the first `done`
    while True:
        if side & width:
            part = block.narrow(axis, done, positions)
            total = part if total is None else total + part
            done += width
        if done == side:
            return total if total is not None else values
        left = block.shape[axis] - width
        block = block.narrow(axis, 0, left) + block.narrow(axis, width, left)
        width *= 2


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


def means_in(values: Float[Tensor, "maps *grid"], regions: Regions) -> Float[Tensor, "regions maps"]:
    """Mean of each map in each of a few boxes; float32."""
    grid = tuple(range(1, values.ndim))
    rows = [values[(slice(None), *slices(box))].mean(grid, dtype=torch.float32) for box in regions.boxes()]
    return torch.stack(rows) if rows else values.new_zeros(0, values.shape[0], dtype=torch.float32)


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
    scores: Float[Tensor, "*positions"],
    size: Sequence[int],
    stride: Stride,
    count: int,
    blocked: Regions,
    shape: Sequence[int],
) -> tuple[Regions, Float[Tensor, " k"]]:
    """The best box, then the best that does not overlap it, and so on: at most `count` boxes.

    Exact greedy selection over all positions, with ties going to the lowest index. The maximum of
    each row (first axis) is kept, so that a pick looks again only at the rows whose boxes it blocked.

    Args:
        scores: one number a position of `starts(shape, size, stride)`; -inf is never chosen.
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
    left = scores.float().clone()
    for start, stop in blocked.boxes():
        left[touching(columns, box, start, stop)] = -math.inf
    best = left.flatten(1).amax(1)
    chosen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    values: list[float] = []
    while len(chosen) < count:
        row = int(best.argmax())
        value = float(best[row])
        if value == -math.inf:
            break
        place = (row, *map(int, torch.unravel_index(left[row].argmax(), left.shape[1:])))
        start = tuple(c[i] for c, i in zip(columns, place, strict=True))
        stop = tuple(a + s for a, s in zip(start, box, strict=True))
        chosen.append((start, stop))
        values.append(value)
        shadow = touching(columns, box, start, stop)
        left[shadow] = -math.inf
        best[shadow[0]] = left[shadow[0]].flatten(1).amax(1)
    return Regions.of(chosen, len(box), scores.device), torch.tensor(values, device=scores.device)


def touching(
    columns: Sequence[list[int]], box: Sequence[int], start: Sequence[int], stop: Sequence[int]
) -> tuple[slice, ...]:
    """Positions whose box shares a voxel with start..stop; they form one block."""
    return tuple(
        slice(bisect_right(column, low - side), bisect_left(column, high))
        for column, side, low, high in zip(columns, box, start, stop, strict=True)
    )
