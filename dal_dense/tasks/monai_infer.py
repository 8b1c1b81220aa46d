"""Probabilities and features of whole images: sliding windows with Gaussian blending, draws streamed.

A draw is one softmax output of the whole model grid. Each goes into `DrawSums` and is dropped, so
memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations, islice
from math import prod

import torch
from jaxtyping import Float
from monai.inferers import sliding_window_inference
from torch import Tensor
from torch.nn import functional as nnf

from dal_dense.config import UncertaintyConfig
from dal_dense.noise import derive_seed
from dal_dense.tasks.monai_networks import Network
from dal_dense.tasks.monai_weights import Model
from dal_dense.tasks.training import deterministic, mixed_precision, seeded
from dal_dense.uncertainty import DrawSums

CELL = 8
"""Model-grid voxels along the edge of a feature cell, at most."""

VOXELS_A_SOFTMAX = 1 << 22
"""Voxels whose logits are turned into probabilities at once."""

WINDOWS = {"cpu": 4, "cuda": 16}
"""Windows a forward pass; others: as cpu."""


@dataclass(frozen=True)
class Windows:
    """How an image is cut into windows.

    Attributes:
        patch: window size.
        overlap: share of a window that the next one repeats.
        device: where the network runs.
    """

    patch: tuple[int, ...]
    overlap: float
    device: torch.device


def window_logits(
    network: Network, image: Float[Tensor, "channels *grid"], windows: Windows, cells: FeatureCells | None = None
) -> Float[Tensor, "classes *grid"]:
    """Blended logits of a whole image; the features of each window go into `cells`.

    Images smaller than a window are padded at the far ends with 0, as training crops are. On CUDA the
    convolution algorithms are the deterministic ones, as in training.
    """
    grid = image.shape[1:]
    short = [max(0, p - n) for p, n in zip(windows.patch, grid, strict=True)]
    padded = nnf.pad(image, [x for n in reversed(short) for x in (0, n)])

    def run(window: Tensor, places: Sequence[Sequence[slice]]) -> Tensor:
        with mixed_precision(windows.device):
            if cells is None:
                logits: Tensor = network(window)
            else:
                logits, features = network.with_features(window)
        if cells is not None:
            cells.add(features, [place[2:] for place in places])
        return logits.float()

    with torch.no_grad(), deterministic(windows.device):
        blended = sliding_window_inference(
            padded[None].to(windows.device),
            windows.patch,
            WINDOWS.get(windows.device.type, WINDOWS["cpu"]),
            run,
            overlap=windows.overlap,
            mode="gaussian",
            with_coord=True,
        )
    inside: Tensor = blended[0][(slice(None), *(slice(0, n) for n in grid))]
    return inside


class FeatureCells:
    """Features of overlapping windows averaged on a coarse grid whose cells divide the image evenly.

    An axis of n voxels has ceil(n / CELL) cells, each n / ceil(n / CELL) voxels long: a cell then covers
    the same share of the axis on the stored grid, where `offer_maps` looks regions up. Each
    deep voxel counts by how much of it lies in a cell; what lies in the padding beyond the image counts for none.
    """

    def __init__(self, grid: Sequence[int]) -> None:
        self._grid = tuple(grid)
        self._shape = tuple(-(-n // CELL) for n in grid)
        self._sum: Tensor | None = None
        self._count: Tensor | None = None

    def add(self, features: Float[Tensor, "batch channels *deep"], places: Sequence[Sequence[slice]]) -> None:
        """Take in the feature maps of some windows, each where its window lies."""
        if self._sum is None or self._count is None:
            self._sum = features.new_zeros(features.shape[1], *self._shape, dtype=torch.float32)
            self._count = features.new_zeros(self._shape, dtype=torch.float32)
        for total, place in zip(features.float(), places, strict=True):
            count = total.new_ones(total.shape[1:])
            cells = []
            for part, deep, n, m in zip(place, count.shape, self._grid, self._shape, strict=True):
                first, share = _overlap(part, deep, n, m)
                share = share.to(total.device)
                total = torch.tensordot(total, share, dims=([1], [1]))  # the axis done goes last: a full turn in all
                count = torch.tensordot(count, share, dims=([0], [1]))
                cells.append(slice(first, first + len(share)))
            self._sum[(slice(None), *cells)] += total
            self._count[tuple(cells)] += count

    def mean(self) -> Float[Tensor, "channels *coarse"]:
        """Mean feature of each cell; the windows must cover the image.

        Raises:
            ValueError: if no window was added.
        """
        if self._sum is None or self._count is None:
            raise ValueError("no window was added; run one with features first")
        return self._sum / self._count


def _overlap(part: slice, deep: int, grid: int, cells: int) -> tuple[int, Float[Tensor, "cells deep"]]:
    """Voxels that each cell shares with each of a window's deep voxels along one axis, from the first cell touched."""
    start, stop = int(part.start), int(part.stop)  # MONAI's are NumPy's
    first, last = start * cells // grid, min(cells, -(-stop * cells // grid))
    edges = torch.arange(first, last + 1, dtype=torch.float64) * (grid / cells)
    steps = start + torch.arange(deep + 1, dtype=torch.float64) * ((stop - start) / deep)
    high = torch.minimum(edges[1:, None], steps[None, 1:])
    low = torch.maximum(edges[:-1, None], steps[None, :-1])
    return first, (high - low).clamp_min(0).float()


@dataclass(frozen=True)
class Pass:
    """One draw: which network, flipped along which axes, with which dropout seed (None: no dropout)."""

    network: Network
    flips: tuple[int, ...] = ()
    dropout: int | None = None


def passes(model: Model, draws: UncertaintyConfig, flips: Sequence[int], image_id: str) -> Iterator[Pass]:
    """The draws that the settings ask for, the same whatever was predicted before."""
    first = model.networks[0]
    if draws.draws == "mc_dropout":
        for k in range(draws.count):
            yield Pass(first, dropout=derive_seed(0, "mc_dropout", image_id, k))
    elif draws.draws == "flips":
        chosen = (axes for n in range(len(flips) + 1) for axes in combinations(flips, n))
        for axes in islice(chosen, draws.count):
            yield Pass(first, flips=axes)
    elif draws.draws == "single":
        yield Pass(first)
    else:
        for network in model.networks:
            yield Pass(network)


def measured_passes(model: Model) -> list[Pass]:
    """The prediction that is measured and calibrated: all members of an ensemble, else one plain pass."""
    if model.card.role == "members":
        return [Pass(network) for network in model.networks]
    return [Pass(model.networks[0])]


def pass_logits(
    draw: Pass, image: Float[Tensor, "channels *grid"], windows: Windows, cells: FeatureCells | None = None
) -> Float[Tensor, "classes *grid"]:
    """Logits of one draw, flipped back."""
    axes = [a + 1 for a in draw.flips]
    with _dropping(draw, windows.device):
        logits = window_logits(draw.network, image.flip(axes) if axes else image, windows, cells)
    return logits.flip(axes) if axes else logits


def draw_sums(
    draws: Sequence[Pass] | Iterator[Pass],
    image: Float[Tensor, "channels *grid"],
    windows: Windows,
    temperature: float,
    *,
    features: bool,
) -> tuple[DrawSums, Float[Tensor, "features *coarse"] | None]:
    """All draws of one image, streamed; features come from the first network's unflipped passes."""
    sums, cells, first = DrawSums(), FeatureCells(image.shape[1:]) if features else None, None
    for draw in draws:
        first = first or draw.network
        wanted = cells if draw.network is first and not draw.flips else None
        sums.add(_softmax_in_place(pass_logits(draw, image, windows, wanted), temperature))
    return sums, cells.mean() if cells is not None else None


def _softmax_in_place(logits: Float[Tensor, "classes *grid"], temperature: float) -> Float[Tensor, "classes *grid"]:
    """Probabilities instead of logits, a few planes at a time: with many classes a second draw may not fit."""
    planes = max(1, VOXELS_A_SOFTMAX // prod(logits.shape[2:]))
    for part in torch.split(logits, planes, 1):
        part.copy_(torch.softmax(part / temperature, 0))
    return logits


@contextmanager
def _dropping(draw: Pass, device: torch.device) -> Iterator[None]:
    if draw.dropout is None:
        yield
        return
    with draw.network.dropping(), seeded(draw.dropout, device):
        yield
