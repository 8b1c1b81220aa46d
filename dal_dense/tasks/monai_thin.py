"""Labelled regions that fall between the voxels of a coarser grid are put back on it.

Nearest resampling asks each grid voxel for one source voxel, so a slice or crop thinner than a grid
voxel is seen by none. Here its source voxels are asked instead where they lie on the grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Integer
from numpy.typing import NDArray
from scipy import ndimage

from dal_dense.tasks.base import IGNORE

TIE = 1e-4
"""Share of a grid voxel below which two distances are one: affines are float32 at places."""


@dataclass(frozen=True)
class _Landing:
    """Where one region's source voxels fall: flat grid voxels, each once, and the label that each gets."""

    voxels: NDArray[np.intp]
    labels: NDArray[np.int64]


def put_back(
    moved: Int[np.ndarray, "2 *grid"], source: Integer[np.ndarray, "2 *source"], forward: Float[np.ndarray, "rows rows"]
) -> None:
    """Give every region that is in `source` but not in `moved` the free voxels it falls on; changes `moved`.

    Where all of them are taken it gets one, from a region that has several. Only regions that
    fall on one and the same voxel, each with no other, still lose all but one of them.

    Args:
        moved: labels and region numbers (from 1; 0 is none) on the grid, C-contiguous.
        source: the same as stored.
        forward: homogeneous matrix from source index to grid index.
    """
    label, number = moved[0].reshape(-1), moved[1].reshape(-1)
    boxes = ndimage.find_objects(source[1].astype(np.int32, copy=False))
    sizes = np.bincount(number, minlength=len(boxes) + 1)
    lost = [n for n, box in enumerate(boxes, 1) if box is not None and sizes[n] == 0]
    landed = {n: _land(source, n, boxes[n - 1], forward, moved.shape[1:]) for n in lost}
    for n in sorted(lost, key=lambda n: (len(landed[n].voxels), n)):  # who has least choice chooses first
        here = landed[n]
        chosen = np.flatnonzero(number[here.voxels] == 0)
        if not len(chosen):
            chosen = _seat(here, sizes[number[here.voxels]])
        voxels = here.voxels[chosen]
        np.subtract.at(sizes, number[voxels], 1)
        sizes[n] += len(voxels)
        label[voxels], number[voxels] = here.labels[chosen], n


def _land(source: np.ndarray, n: int, box: tuple[slice, ...], forward: np.ndarray, shape: tuple[int, ...]) -> _Landing:
    """The grid voxels nearest to region n's source voxels.

    Of several source voxels that fall on one, the nearest to its middle counts, as in nearest
    resampling and whatever its class, so that no class grows; a known label goes before `IGNORE`,
    and the first in C order decides a tie.
    """
    index = np.argwhere(source[1][box] == n) + [part.start for part in box]
    label = source[0][tuple(index.T)].astype(np.int64)
    place = index @ forward[:-1, :-1].T + forward[:-1, -1]
    nearest = np.clip(np.floor(place + 0.5 + TIE).astype(np.int64), 0, np.array(shape) - 1)
    away = np.rint(((place - nearest) ** 2).sum(1) / TIE)
    flat = np.ravel_multi_index(tuple(nearest.T), shape)
    order = np.lexsort((away, label == IGNORE, flat))
    voxels, first = np.unique(flat[order], return_index=True)
    return _Landing(voxels, label[order][first])


def _seat(here: _Landing, holders: NDArray[np.int64]) -> NDArray[np.intp]:
    """The one voxel to take from another region (or none), by how many voxels each one's holder has.

    A known label, then the region's rarest class, which its neighbours on the grid are likeliest to
    lack, then the largest holder.
    """
    _, which, count = np.unique(here.labels, return_inverse=True, return_counts=True)
    order = np.lexsort((-holders, count[which], here.labels == IGNORE))
    return order[holders[order] > 1][:1]
