"""Probabilities and features of whole images: sliding windows with Gaussian blending, draws streamed.

A draw is one softmax output of the whole model grid. Each goes into `DrawSums` and is dropped, so
memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any

import torch
from jaxtyping import Float
from monai.inferers import sliding_window_inference
from torch import Tensor
from torch.nn import functional as nnf

from dal_dense.config import UncertaintyConfig
from dal_dense.noise import derive_seed
from dal_dense.tasks.monai_fit import mixed_precision, seeded
from dal_dense.tasks.monai_networks import Network
from dal_dense.tasks.monai_weights import Model
from dal_dense.uncertainty import DrawSums

CELL = 8
"""Model-grid voxels along the edge of a feature cell."""

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

    Images smaller than a window are padded at the far ends with 0, as training crops are.
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
                cells.add(features, [place[2:] for place in places], windows.patch)
        return logits.float()

    with torch.no_grad():
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
    """Features of overlapping windows averaged on a coarse grid of cells, `CELL` voxels an edge."""

    def __init__(self, grid: Sequence[int]) -> None:
        self._shape = tuple(-(-n // CELL) for n in grid)
        self._sum: Tensor | None = None
        self._count: Tensor | None = None

    def add(
        self, features: Float[Tensor, "batch channels *deep"], places: Sequence[Sequence[slice]], patch: Sequence[int]
    ) -> None:
        """Take in the feature maps of some windows, each where its window lies."""
        cells = tuple(max(1, p // CELL) for p in patch)
        pool: Any = nnf.adaptive_avg_pool2d if features.ndim == 4 else nnf.adaptive_avg_pool3d
        pooled = pool(features.float(), cells)
        if self._sum is None or self._count is None:
            self._sum = pooled.new_zeros(pooled.shape[1], *self._shape)
            self._count = pooled.new_zeros(self._shape)
        for window, place in zip(pooled, places, strict=True):
            axes = [
                ((torch.arange(n, device=pooled.device) + 0.5) * (p / n) + part.start).long() // CELL
                for n, p, part in zip(cells, patch, place, strict=True)
            ]
            # cells of a padded window may lie outside the image: they count for none
            kept = [a < n for a, n in zip(axes, self._shape, strict=True)]
            window = window[(slice(None), *torch.meshgrid(*[k.nonzero()[:, 0] for k in kept], indexing="ij"))]
            where = torch.meshgrid(*[a[k] for a, k in zip(axes, kept, strict=True)], indexing="ij")
            flat = _flat(where, self._shape)
            self._sum.view(len(self._sum), -1).index_add_(1, flat, window.flatten(1))
            self._count.view(-1).index_add_(0, flat, torch.ones_like(flat, dtype=self._count.dtype))

    def mean(self) -> Float[Tensor, "channels *coarse"]:
        """Mean feature of each cell; a cell that no window's centre fell into takes its neighbours' mean.

        Raises:
            ValueError: if no window was added.
        """
        if self._sum is None or self._count is None:
            raise ValueError("no window was added; run one with features first")
        pool: Any = nnf.avg_pool2d if self._count.ndim == 2 else nnf.avg_pool3d
        total, count = self._sum, self._count
        while bool((count == 0).any()):
            near = _box(pool, total), _box(pool, count[None])[0]
            empty = count == 0
            total, count = torch.where(empty, near[0], total), torch.where(empty, near[1], count)
        return total / count


def _box(pool: Any, values: Float[Tensor, "channels *coarse"]) -> Float[Tensor, "channels *coarse"]:
    """Mean over a cell and its neighbours, counting zeros outside."""
    padded = nnf.pad(values, (1, 1) * (values.ndim - 1))
    box: Tensor = pool(padded[None], 3, 1)[0]
    return box


def _flat(where: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    flat = torch.zeros_like(where[0])
    for index, n in zip(where, shape, strict=True):
        flat = flat * n + index
    return flat.reshape(-1)


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
        sums.add(torch.softmax(pass_logits(draw, image, windows, wanted) / temperature, 0))
    return sums, cells.mean() if cells is not None else None


@contextmanager
def _dropping(draw: Pass, device: torch.device) -> Iterator[None]:
    if draw.dropout is None:
        yield
        return
    with draw.network.dropping(), seeded(draw.dropout, device):
        yield
