"""The mean over a box at every position of an image, in time that does not depend on the box.

A window sum of length 2k is two of length k, so an axis takes two additions per doubling of the side, and
the axes are done one after the other. No running total over the whole axis is kept, so float32 is safe, a box
of zeros scores exactly 0, boxes of equal content score exactly equal, and one bad voxel spoils only the boxes
that hold it.

All axes but the first are done for a few planes at a time, and the first for a few columns at a time, so that
the many additions happen in the cache and only one intermediate of the image's size exists. A slab is added up
as one flat array, at shifts of an axis's step: sums that run over the end of a row come out too, and are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from dal_dense.pieces import divide, empty, in_pieces

ON_CPU = 1 << 18
"""Voxels a slab: the few slabs that one sum needs fit a core's cache."""

ON_GPU = 1 << 24
"""Voxels a slab."""


def means_at(
    values: Float[Tensor, "*grid"],
    box: Sequence[int],
    columns: Sequence[Sequence[int]],
    weight: Float[Tensor, "*grid"] | None = None,
) -> Float32[Tensor, "*positions"]:
    """Means at the given first voxels.

    Args:
        values: what to take the mean of.
        box: its sides, none longer than the image's.
        columns: first voxels of all boxes, an ascending list an axis.
        weight: multiplied in, voxel by voxel, without a product of the image's size.
    """
    length, *rest = values.shape
    picks = [
        _pick(n - side + 1, column, values.device) for n, side, column in zip(values.shape, box, columns, strict=True)
    ]
    maps = [m.detach().float() for m in ([values] if weight is None else [values, weight])]
    across = empty([length, *map(len, columns[1:])], values.device)
    means = empty([*map(len, columns)], values.device)
    strips, filled = across.view(length, -1), means.view(len(means), -1)
    slab = ON_CPU if values.is_cpu else ON_GPU
    planes = min(max(1, slab // prod(rest)), length)
    columns_a_strip = min(max(1, slab // length), strips.shape[1])

    def inner(parts: Sequence[slice]) -> None:
        spare = list(across.new_empty(3, planes * prod(rest)))
        for part in parts:
            _copy(_inner_sums([m[part] for m in maps], box[1:], picks[1:], spare), across[part])

    def outer(parts: Sequence[slice]) -> None:
        spare = list(across.new_empty(3, columns_a_strip * length))
        for part in parts:
            width = part.stop - part.start
            flat = spare[2][: length * width]
            _copy(strips[:, part], flat.view(length, width))
            sums = _window_sums(flat, box[0], width, spare).view(-1, width)
            divide(_picked(sums, 0, picks[0]), prod(box), filled[:, part])

    in_pieces(length, planes, values.device, inner)
    in_pieces(strips.shape[1], columns_a_strip, values.device, outer)
    return means


def _inner_sums(
    slabs: Sequence[Float32[Tensor, "planes *rest"]],
    box: Sequence[int],
    picks: Sequence[Int[Tensor, " _"] | None],
    spare: list[Tensor],
) -> Float32[Tensor, "planes *positions"]:
    """Sums of the slabs' product over all axes but the first, at the positions wanted."""
    planes, *rest = slabs[0].shape
    if len(slabs) == 1:
        flat = slabs[0].contiguous().view(-1)
    else:
        flat = spare[2][: slabs[0].numel()]
        _multiply(slabs[0], slabs[1], flat.view(planes, *rest))
    steps = [prod(rest[axis:]) for axis in range(len(rest) + 1)]
    for side, step in zip(box, steps[1:], strict=True):
        flat = _window_sums(flat, side, step, spare)
    sums = flat.as_strided([planes, *(n - side + 1 for n, side in zip(rest, box, strict=True))], steps)
    for axis, pick in enumerate(picks, start=1):
        sums = _picked(sums, axis, pick)
    return sums


def _window_sums(flat: Float32[Tensor, " n"], side: int, step: int, spare: list[Tensor]) -> Float32[Tensor, " places"]:
    """Sums of `side` values that lie `step` apart, by doubling: the binary digits of `side` from the left.

    Neither `flat` nor the result lies in the first two of the three spare arrays, which change places for that.
    """
    sums, width = flat, 1
    for digit in bin(side)[3:]:
        spare[0], spare[1] = spare[1], spare[0]
        sums = _add(sums[: -width * step], sums[width * step :], spare[0])
        width *= 2
        if digit == "1":
            sums = _add(sums[:-step], flat[width * step :], spare[0])
            width += 1
    if side > 1:
        spare[0], spare[2] = spare[2], spare[0]
    return sums


def _pick(places: int, column: Sequence[int], device: torch.device) -> Int[Tensor, " _"] | None:
    """Which of an axis's positions are wanted; None: all."""
    return None if len(column) == places else torch.tensor(column, device=device)


def _picked(sums: Tensor, axis: int, pick: Int[Tensor, " _"] | None) -> Tensor:
    return sums if pick is None else sums.index_select(axis, pick)


def _add(one: Float32[Tensor, " n"], other: Float32[Tensor, " n"], out: Float32[Tensor, " m"]) -> Float32[Tensor, " n"]:
    """The sum, at the beginning of `out`. On the CPU by NumPy, as below: it starts no threads of its own."""
    out = out[: one.shape[0]]
    if out.is_cpu:
        np.add(one.numpy(), other.numpy(), out=out.numpy())
        return out
    return torch.add(one, other, out=out)


def _multiply(one: Tensor, other: Tensor, out: Tensor) -> None:
    if out.is_cpu:
        np.multiply(one.numpy(), other.numpy(), out=out.numpy())
    else:
        torch.mul(one, other, out=out)


def _copy(values: Tensor, out: Tensor) -> None:
    if out.is_cpu:
        np.copyto(out.numpy(), values.numpy())
    else:
        out.copy_(values)
