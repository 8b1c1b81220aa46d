"""Training crops from partly labelled images: batch i is a pure function of (labels, seed, i).

Only the ground around labelled regions is kept, so memory follows what is labelled and not the
pool. A crop is placed on a labelled voxel, moved into the image as far as it goes and sampled once:
flip, rotation and zoom are one affine grid, linear for the image, nearest for the label, with no
label outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as nnf

from dal_dense.config import TrainConfig
from dal_dense.errors import DataError
from dal_dense.noise import derive_seed
from dal_dense.regions import Box, slices
from dal_dense.tasks.base import IGNORE
from dal_dense.tasks.parts import part_seed

CENTRES = 16384
"""Crop centres remembered a piece and class; a random subset of the labelled voxels where there are more."""

WARPED = 0.5
"""Share of crops that are rotated and zoomed; the others stay sharp, as at inference."""


@dataclass(frozen=True)
class Piece:
    """Ground around labelled regions of one image, on the model grid.

    Attributes:
        image: float32 (channels, *grid).
        label: uint8 (*grid), `IGNORE` where nothing is known.
        spacing: voxel size, so that rotations are rigid in space.
        centres: class number to flat indices of labelled voxels of this piece's own regions.
        counts: labelled voxels a class among them, int64 (classes,).
    """

    image: Tensor
    label: Tensor
    spacing: tuple[float, ...]
    centres: Mapping[int, NDArray[np.int64]] = field(repr=False)
    counts: NDArray[np.int64]


def cut_pieces(
    image: Float[Tensor, "channels *grid"],
    label: UInt8[Tensor, "*grid"],
    numbers: Int[Tensor, "*grid"],
    *,
    keep: Sequence[int],
    train: TrainConfig,
    spacing: Sequence[float],
    classes: int,
    seed: int,
) -> list[Piece]:
    """The parts of an image that crops on its labelled regions can reach.

    Args:
        image: on the model grid.
        label: class numbers or `IGNORE`, on the model grid.
        numbers: which labelled region a voxel belongs to, from 1; 0 is none.
        keep: the region numbers to train on; labels of all others are hidden.
        train: crop size, largest rotation and zoom: how far crops reach.
        spacing: voxel size of the model grid.
        classes: number of classes.
        seed: picks the crop centres that are remembered, where there are very many.
    """
    wanted = torch.zeros(int(numbers.max()) + 1, dtype=torch.bool)
    wanted[[n for n in keep if n < len(wanted)]] = True
    shown = torch.where(wanted[numbers.long()], label, IGNORE)
    found = ndimage.find_objects(numbers.numpy())
    cores = {n: found[n - 1] for n in keep if n <= len(found) and found[n - 1] is not None}
    reach = [(n, _reach(core, label.shape, spacing, train)) for n, core in cores.items()]
    return [
        _piece(image, shown, numbers, members, box, tuple(spacing), classes, seed) for members, box in _merge(reach)
    ]


def _reach(core: tuple[slice, ...], shape: Sequence[int], spacing: Sequence[float], train: TrainConfig) -> Box:
    """The box that holds every voxel that crops on `core` read, however they are turned and zoomed."""
    sides = []
    for part, n, p in zip(core, shape, train.patch, strict=True):
        voxel = np.arange(part.start, part.stop)
        first = np.clip(voxel - p // 2, 0, max(n - p, 0))  # as in `_window`
        sides.append((voxel, voxel - first, first + p - 1 - voxel))
    farthest = np.array(
        [max(below.max(), above.max()) * s for (_, below, above), s in zip(sides, spacing, strict=True)]
    )
    tilt = _largest_tilt(len(shape), train.rotate_degrees)
    start, stop = [], []
    for axis, ((voxel, below, above), n, s) in enumerate(zip(sides, shape, spacing, strict=True)):
        if tilt > np.pi / 2:
            below = above = np.maximum(below, above)
        across = float(np.linalg.norm(np.delete(farthest, axis)))
        step = s * (1 - train.scale)
        start.append(max(0, int(np.floor((voxel - _turned(below * s, across, tilt) / step).min()))))
        stop.append(min(n, int(np.ceil((voxel + _turned(above * s, across, tilt) / step).max())) + 1))
    return tuple(start), tuple(stop)


def _largest_tilt(axes: int, degrees: float) -> float:
    """Radians by which rotations of at most so many degrees in each plane may turn an axis from its place.

    The diagonal of their product is cos a in the plane, and in space cos a cos b or
    cos a cos c - sin a sin b sin c up to signs.
    """
    angle = np.deg2rad(min(degrees, 180.0))
    if axes == 2 or angle >= np.pi / 2:
        return float(angle) if axes == 2 else float(np.pi)
    return float(np.arccos(np.cos(angle) ** 2 - np.sin(angle) ** 3))


def _turned(along: NDArray[np.int64] | NDArray[np.float64], across: float, tilt: float) -> NDArray[np.float64]:
    """How far along an axis a point gets, so far out along and across it, that is tilted by at most `tilt`."""
    best = np.minimum(np.arctan2(across, along), tilt)
    reached: NDArray[np.float64] = along * np.cos(best) + across * np.sin(best)
    return reached


def _merge(boxes: list[tuple[int, Box]]) -> list[tuple[list[int], Box]]:
    """Join boxes wherever one joint box takes no more memory than the two apart."""
    groups: list[tuple[list[int], Box]] = []
    for number, box in boxes:
        members, grown = [number], box
        again = True
        while again:
            again = False
            for i, (others, other) in enumerate(groups):
                joint = _hull(grown, other)
                if _volume(joint) <= _volume(grown) + _volume(other):
                    members, grown, again = others + members, joint, True
                    del groups[i]
                    break
        groups.append((members, grown))
    return groups


def _hull(a: Box, b: Box) -> Box:
    return tuple(map(min, a[0], b[0])), tuple(map(max, a[1], b[1]))


def _volume(box: Box) -> int:
    return int(np.prod([b - a for a, b in zip(*box, strict=True)]))


def _piece(
    image: Tensor,
    shown: Tensor,
    numbers: Tensor,
    members: Sequence[int],
    box: Box,
    spacing: tuple[float, ...],
    classes: int,
    seed: int,
) -> Piece:
    cut = slices(box)
    label = shown[cut].contiguous()
    own = np.isin(numbers[cut].numpy(), list(members)).reshape(-1)
    flat = np.where(own, label.numpy().reshape(-1), IGNORE)
    order = np.argsort(flat, kind="stable")
    edges = np.searchsorted(flat[order], np.arange(classes + 1))
    rng = np.random.default_rng(derive_seed(seed, *box[0], *box[1]))
    centres = {}
    for c in range(classes):
        voxels = order[edges[c] : edges[c + 1]]
        if len(voxels) > CENTRES:
            voxels = rng.choice(voxels, CENTRES, replace=False)
        if len(voxels):
            centres[c] = voxels.astype(np.int64)
    whole = (slice(None), *cut)
    return Piece(image[whole].contiguous().clone(), label.clone(), spacing, centres, np.diff(edges).astype(np.int64))


@dataclass(frozen=True)
class Crops:
    """All pieces of a fit, and how crops are drawn from them.

    Args:
        pieces: labelled ground.
        train: patch, batch and augmentation.
        flips: model-grid axes that may be flipped.
        background: class 0 is background, and no crop is aimed at it on purpose.
        seed: everything random comes from it, the iteration and the part.

    Raises:
        DataError: if no voxel is labelled.
    """

    pieces: tuple[Piece, ...]
    train: TrainConfig
    flips: tuple[int, ...]
    background: bool
    seed: int

    def __post_init__(self) -> None:
        if not self.pieces or sum(int(p.counts.sum()) for p in self.pieces) == 0:
            raise DataError(
                "no labelled voxel is left to train on: labels hold only the ignore value, or vanish on the "
                "model grid; label something, or take a finer task.spacing or task.frame_size"
            )

    @cached_property
    def _counts(self) -> NDArray[np.int64]:
        return np.stack([p.counts for p in self.pieces])

    @cached_property
    def _aimed(self) -> NDArray[np.int64]:
        present = np.flatnonzero(self._counts.any(0)).astype(np.int64)
        return present[present > 0] if self.background else present

    def batch(
        self, iteration: int, device: torch.device, part: int = 0
    ) -> tuple[Float[Tensor, "batch channels *patch"], UInt8[Tensor, "batch *patch"]]:
        """Crops and labels of one part of an optimiser step; the same whenever and wherever they are asked for."""
        rng = np.random.default_rng(part_seed(self.seed, "batch", iteration, part))
        draws = [self._place(rng, aim) for aim in self._aims(rng)]
        straight = [d for d in draws if not d.warped]
        warped = [d for d in draws if d.warped]
        crops = [_straight(self.pieces[d.piece], d, self.train.patch) for d in straight]
        image = [c[0].to(device) for c in crops]
        label = [c[1].to(device) for c in crops]
        if warped:
            reach = np.max([np.abs(d.matrix) @ np.array(self.train.patch) for d in warped], axis=0)
            size = tuple(int(n) for n in np.ceil(reach) + 2)
            blocks = [_block(self.pieces[d.piece], d, size, self.train.patch) for d in warped]
            ground, known, affine = (torch.stack(part).to(device) for part in zip(*blocks, strict=True))
            sampled = _sample(ground, known, affine, self.train.patch)
            image += list(sampled[0])
            label += list(sampled[1])
        return self._shade(torch.stack(image), rng), torch.stack(label)

    def _aims(self, rng: np.random.Generator) -> list[bool]:
        """Which crops of a part are centred on a class drawn with equal chance: `foreground` of them on average."""
        n = self.train.batch // self.train.parts
        aimed = int(n * self.train.foreground + rng.random())
        return [i < aimed for i in range(n)]

    def _place(self, rng: np.random.Generator, aim: bool) -> _Draw:
        if aim and len(self._aimed):
            number = int(rng.choice(self._aimed))
            piece = _pick(rng, self._counts[:, number])
        else:
            piece = _pick(rng, self._counts.sum(1))
            number = _pick(rng, self._counts[piece])
        chosen = self.pieces[piece]
        voxel = np.array(np.unravel_index(rng.choice(chosen.centres[number]), chosen.label.shape))
        warped = bool(rng.random() < WARPED)
        return _Draw(piece, voxel, self._matrix(rng, chosen.spacing, warped), warped)

    def _matrix(self, rng: np.random.Generator, spacing: Sequence[float], warped: bool) -> NDArray[np.float64]:
        """Crop index steps to image index steps: flips, and for some a rotation (rigid in space) and a zoom."""
        n = len(spacing)
        matrix = np.eye(n)
        angles = np.deg2rad(self.train.rotate_degrees) * rng.uniform(-1, 1, n * (n - 1) // 2)
        zoom = 1 + self.train.scale * rng.uniform(-1, 1)
        if warped:
            for (a, b), angle in zip(combinations(range(n), 2), angles, strict=True):
                turn = np.eye(n)
                turn[[a, b], [a, b]] = np.cos(angle)
                turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
                matrix = matrix @ turn
            matrix = matrix * np.array(spacing)[None] / np.array(spacing)[:, None] / zoom
        signs = np.ones(n)
        for axis in self.flips:
            signs[axis] = rng.choice((-1.0, 1.0))
        return matrix * signs[None]

    def _shade(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """Random contrast about a crop's mean, then random brightness."""
        strength = self.train.intensity
        if strength == 0:
            return image
        draw = torch.from_numpy(rng.uniform(-strength, strength, (2, image.shape[0])).astype(np.float32))
        contrast, brightness = draw.to(image.device).reshape(2, -1, *(1,) * (image.ndim - 1))
        mean = image.mean(tuple(range(1, image.ndim)), keepdim=True)
        shaded: Tensor = (image - mean) * (1 + contrast) + mean + brightness
        return shaded


@dataclass(frozen=True)
class _Draw:
    piece: int
    voxel: NDArray[np.int64]
    matrix: NDArray[np.float64]
    warped: bool


def _pick(rng: np.random.Generator, weights: NDArray[np.int64]) -> int:
    edges = np.cumsum(weights)
    return int(np.searchsorted(edges, rng.integers(edges[-1]), side="right"))


def _window(piece: Piece, draw: _Draw, patch: Sequence[int]) -> NDArray[np.int64]:
    """First voxel of the upright crop: the drawn voxel in its middle, moved into the image as far as it goes."""
    shape, edge = np.array(piece.label.shape), np.array(patch)
    first: NDArray[np.int64] = np.minimum(np.maximum(draw.voxel - edge // 2, 0), np.maximum(shape - edge, 0))
    return first


def _cut(piece: Piece, first: NDArray[np.int64], size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """A box of a piece; beyond its border the image is 0 and the label `IGNORE`."""
    inside = [(max(0, f), min(n, f + s)) for f, s, n in zip(first.tolist(), size, piece.label.shape, strict=True)]
    here = tuple(slice(a, b) for a, b in inside)
    there = tuple(slice(a - f, b - f) for (a, b), f in zip(inside, first.tolist(), strict=True))
    image = torch.zeros(piece.image.shape[0], *size)
    label = torch.full(tuple(size), IGNORE, dtype=torch.uint8)
    image[(slice(None), *there)] = piece.image[(slice(None), *here)]
    label[there] = piece.label[here]
    return image, label


def _straight(piece: Piece, draw: _Draw, patch: Sequence[int]) -> tuple[Tensor, Tensor]:
    """An upright crop, perhaps flipped; no voxel is resampled."""
    image, label = _cut(piece, _window(piece, draw, patch), patch)
    flips = np.flatnonzero(np.diag(draw.matrix) < 0).tolist()
    return (image.flip([a + 1 for a in flips]), label.flip(flips)) if flips else (image, label)


def _block(piece: Piece, draw: _Draw, size: Sequence[int], patch: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """The ground one warped crop is sampled from, and the affine from crop index to block index, (axes, axes + 1).

    The crop's pivot falls exactly on the drawn voxel, so a labelled slice one voxel thick is hit
    under any rotation.
    """
    edge = np.array(patch)
    pivot = draw.voxel - _window(piece, draw, patch)
    pivot = np.where(np.diag(draw.matrix) < 0, edge - 1 - pivot, pivot)
    offset = draw.voxel - draw.matrix @ pivot
    lowest = offset + np.minimum(draw.matrix * (edge - 1), 0).sum(1)
    first = np.floor(lowest + 1e-6).astype(np.int64)
    affine = np.concatenate([draw.matrix, (offset - first)[:, None]], axis=1)
    return *_cut(piece, first, size), torch.from_numpy(affine.astype(np.float32))


def _sample(
    image: Float[Tensor, "batch channels *block"],
    label: UInt8[Tensor, "batch *block"],
    affine: Float[Tensor, "batch axes columns"],
    patch: Sequence[int],
) -> tuple[Float[Tensor, "batch channels *patch"], UInt8[Tensor, "batch *patch"]]:
    """One affine sample a crop: linear for the image, nearest for the label, `IGNORE` outside."""
    block = torch.tensor(label.shape[1:], device=affine.device)
    axes = [torch.arange(n, dtype=torch.float32, device=affine.device) for n in patch]
    index = torch.stack([*torch.meshgrid(*axes, indexing="ij"), torch.ones(tuple(patch), device=affine.device)], -1)
    place = index.reshape(1, -1, index.shape[-1]) @ affine.transpose(1, 2)
    grid = (2 * place / (block - 1) - 1).flip(-1)  # grid_sample wants the last axis first
    crops = nnf.grid_sample(
        image, grid.reshape(len(image), *patch, -1), mode="bilinear", padding_mode="zeros", align_corners=True
    )
    nearest = place.round().long()
    inside = ((nearest >= 0) & (nearest < block)).all(-1)
    nearest = torch.minimum(nearest.clamp_min_(0), block - 1)
    flat = nearest[..., 0]
    for axis, n in enumerate(block.tolist()[1:], start=1):
        flat = flat * n + nearest[..., axis]
    values = torch.where(inside, label.flatten(1).gather(1, flat), IGNORE)
    return crops, values.reshape(len(label), *patch).to(torch.uint8)
