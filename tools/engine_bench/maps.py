"""Cases: from probability draws to maps, box means and peaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dal_dense import scores, uncertainty
from dal_dense.regions import Regions, slices
from dal_dense.uncertainty import DrawSums
from engine_bench.case import Case, Way

SIDE = 48
NAMES = ("predictive_entropy", "mutual_information", "margin")
SCORE = "mutual_information"


@dataclass(frozen=True)
class Draws:
    """Draws of one image: draw k is `base` from plane k on, so that they differ and cost nothing to make."""

    base: Tensor
    count: int

    def __getitem__(self, k: int) -> Tensor:
        if k >= self.count:
            raise IndexError(k)
        return self.base[:, k : k + self.base.shape[1] - self.count]


def make_draws(device: str, classes: int, grid: tuple[int, ...], count: int) -> Draws:
    """Organs in the middle and sure background around, as in a CT; made in place: the largest fill half a machine."""
    shape = (grid[0] + count, *grid[1:])
    generator = torch.Generator().manual_seed(0)
    axes = [torch.linspace(-1, 1, n, device=device) for n in shape]
    far = sum(x.pow(2).view([-1 if i == a else 1 for i in range(3)]) for a, x in enumerate(axes))
    base = torch.zeros(classes, *shape, device=device)
    for values in base[1:]:
        coarse = torch.randn(1, 1, *(-(-n // 8) for n in shape), generator=generator).to(device)
        values.copy_(functional.interpolate(4 * coarse, size=shape, mode="trilinear")[0, 0]).sub_(12 * far)
    for part in torch.split(base, 8, 1):
        part.copy_(torch.softmax(part, 0))
    return Draws(base, count)


Crops = tuple[Regions, list[float], Tensor]
"""Boxes, their scores, their class shares."""


def ours(draws: Draws) -> Crops:
    """Running sums, separable box sums, greedy peaks."""
    sums = DrawSums()
    for draw in draws:
        sums.add(draw)
    mean, maps = sums.finish(NAMES)
    means = scores.box_means(maps[SCORE], (SIDE,) * 3)
    boxes, values = scores.peaks(means, (SIDE,) * 3, 1, 20, Regions.of([], 3, mean.device), maps[SCORE].shape)
    return boxes, values.tolist(), scores.means_in(mean, boxes)


def plain(draws: Draws) -> Crops:
    """All draws stacked, the formulas as they stand, a convolution, a full sort, a scan over its windows."""
    from scipy.signal import fftconvolve

    stack = torch.stack(list(draws))
    mean = stack.mean(0)
    top = mean.topk(2, 0).values
    maps = {
        "predictive_entropy": uncertainty.predictive_entropy(stack),
        "mutual_information": uncertainty.mutual_information(stack),
        "margin": 1 - (top[0] - top[1]),
    }
    kernel = np.full((SIDE,) * 3, SIDE**-3, dtype=np.float32)
    means = fftconvolve(maps[SCORE].numpy(), kernel, mode="valid")
    found: list[tuple[int, ...]] = []
    values = []
    for window in np.argsort(means, axis=None)[::-1]:
        rows, column = divmod(int(window), means.shape[2])
        start = (*divmod(rows, means.shape[1]), column)
        if all(any(abs(a - b) >= SIDE for a, b in zip(start, other, strict=True)) for other in found):
            found.append(start)
            values.append(float(means[start]))
            if len(found) == 20:
                break
    boxes = Regions.of([(s, tuple(a + SIDE for a in s)) for s in found], 3)
    shares = torch.stack([mean[(slice(None), *slices(box))].flatten(1).mean(1) for box in boxes.boxes()])
    return boxes, values, shares


def exact(draws: Draws, boxes: Regions) -> Tensor:
    """Scores of boxes from stacked draws in float64."""
    return torch.stack(
        [
            uncertainty.mutual_information(torch.stack([d[(slice(None), *slices(b))].double() for d in draws])).mean()
            for b in boxes.boxes()
        ]
    )


def judge_crops(draws: Draws, found: Crops) -> Mapping[str, float]:
    """The scores, and how far they are from those in float64."""
    boxes, values, shares = found
    error = (exact(draws, boxes).cpu() - torch.tensor(values, dtype=torch.float64)).abs().max()
    apart = int(boxes.overlaps(boxes).sum()) == len(boxes)
    return {
        "boxes": len(boxes) if apart else 0,
        "sum of scores": sum(values),
        "largest error": float(error),
        "sum of shares": float(shares.sum()),
    }


CASES: tuple[Case, ...] = (
    Case(
        name="crops 256^3",
        work=f"5 draws of 6 classes over 256^3 voxels, three maps, the 20 best disjoint {SIDE}^3 crops at stride 1, "
        "their class shares",
        goal=">= 20 times less CPU time than plain, <= 1/5 of its memory",
        make=lambda device: make_draws(device, 6, (256, 256, 256), 5),
        ways={"dal_dense": Way(ours, cuda=True), "plain": Way(plain)},
        judge=judge_crops,
    ),
)
"""Cases."""
