"""Cases: from probability draws to maps, box means and peaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dal_dense import scores, uncertainty
from dal_dense.costs import PRESETS
from dal_dense.offer_maps import DensePrediction, OfferSpec, offers_from_maps
from dal_dense.offers import Offers
from dal_dense.regions import Regions, slices
from dal_dense.uncertainty import DrawSums
from engine_bench.case import Case, Way

SIDE = 48
SMALLEST = torch.finfo(torch.float32).tiny
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


def summed(draws: Draws) -> DrawSums:
    """One draw after the other."""
    sums = DrawSums()
    for draw in draws:
        sums.add(draw)
    return sums


def ours(draws: Draws) -> Crops:
    """Running sums, separable box sums, greedy peaks."""
    mean, maps = summed(draws).finish(NAMES)
    means = scores.box_means(maps[SCORE], (SIDE,) * 3)
    boxes, values = scores.peaks(means, (SIDE,) * 3, 1, 20, Regions.of([], 3, mean.device), maps[SCORE].shape)
    return boxes, values.tolist(), scores.means_in(mean, boxes)


def plain(draws: Draws) -> Crops:
    """All draws stacked, the formulas as they stand, a convolution, a full sort, a scan over its windows."""
    from scipy.signal import fftconvolve

    stack = torch.stack(list(draws))
    mean = stack.mean(0)
    top = mean.topk(2, 0).values
    total = uncertainty.predictive_entropy(stack)
    maps = {
        "predictive_entropy": total,
        "mutual_information": total - uncertainty.expected_entropy(stack),
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


def offers(draws: Draws) -> Offers:
    """From draws to rows on offer, all classes with quotas."""
    mean, maps = summed(draws).finish(NAMES[:2])
    spec = OfferSpec(
        kind="crop", sizes=((SIDE,) * 3,), spacing=(0.8, 0.8, 1.5), axial_axis=2, costs=PRESETS["ct_contour"],
        per_image=20, score=SCORE, quota_classes=tuple(range(1, len(mean))),
    )  # fmt: skip
    none = Regions.of([], 3)
    prediction = DensePrediction(mean, maps)
    return offers_from_maps(prediction, spec, image_id="ct", image=0, group=0, labelled=none, blocked=none)


def judge_offers(draws: Draws, found: Offers) -> Mapping[str, float]:
    """How far the first rows' scores are from those of stacked float64 draws."""
    error = (exact(draws, found.regions[:5]) - found.score[:5]).abs().max()
    return {"offers": len(found), "largest error": float(error)}


Sums = tuple[Draws, Tensor, Tensor]
"""Draws, and running sums to add them to."""


def make_sums(device: str) -> Sums:
    """Sums that the system has given its pages already."""
    draws = make_draws(device, 14, (128, 512, 256), 8)
    total = torch.zeros(draws[0].shape, device=device)
    return draws, total, torch.zeros_like(total[0])


def judge_sums(sums: Sums, result: object) -> Mapping[str, float]:
    """Mean and mean entropy against float64, in a few planes; a GPU has added every draw twice."""
    draws, total, entropies = sums
    some = torch.stack([d[:, :4].double() for d in draws])
    added = round(float(total[:, 0, 0, 0].sum()))
    mean = (total[:, :4] / added - some.mean(0)).abs().max()
    entropy = (entropies[:4] / added - uncertainty.expected_entropy(some)).abs().max()
    return {"largest error of p": float(mean), "of H": float(entropy)}


def added_by(how: Callable[[Tensor, Tensor, Tensor], None]) -> Callable[[Sums], None]:
    """Add all draws in one way."""

    def run(sums: Sums) -> None:
        for draw in sums[0]:
            how(draw, sums[1], sums[2])

    return run


@cache
def compiled() -> Callable[[Tensor, Tensor, Tensor], None]:
    """The same formula for torch.compile to fuse."""

    def add(probs: Tensor, total: Tensor, entropies: Tensor) -> None:
        total += probs
        entropies -= (probs * probs.clamp_min(SMALLEST).log()).sum(0)

    made: Callable[[Tensor, Tensor, Tensor], None] = torch.compile(add)
    return made


def least_traffic(sums: Sums) -> float:
    """Bytes: p is read, both sums are read and written."""
    draws, total, entropies = sums
    return draws.count * 4.0 * (3 * total.numel() + 2 * entropies.numel())


def bald_ours(draws: Draws) -> Tensor:
    """Running sums."""
    return summed(draws).finish(NAMES[1:2])[1][SCORE]


def bald_baal(draws: Draws) -> Tensor:
    """baal's BALD, with the draws along the last axis as it wants them."""
    from baal.active.heuristics import BALD

    found = BALD(reduction="none").get_uncertainties(torch.stack(list(draws), -1)[None].numpy())
    return torch.from_numpy(found[0])


def judge_bald(draws: Draws, found: Tensor) -> Mapping[str, float]:
    """Against float64, in a few planes."""
    some = torch.stack([d[:, :4].double() for d in draws])
    return {"largest error": float((found[:4].cpu() - uncertainty.mutual_information(some).cpu()).abs().max())}


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
    Case(
        name="bald 256x256x128",
        work="mutual information of every voxel, 5 draws of 6 classes over 256 x 256 x 128 voxels",
        goal="none; baal's heuristics need all draws at once",
        make=lambda device: make_draws(device, 6, (128, 256, 256), 5),
        ways={"dal_dense": Way(bald_ours, cuda=True), "baal": Way(bald_baal, needs="baal", peer=True)},
        judge=judge_bald,
    ),
    Case(
        name="draws 512x512x300",
        work=f"20 draws of 14 classes over 512 x 512 x 300 voxels, one at a time, to offers: {SIDE}^3 crops at "
        "stride 1, by score and by class, with all their figures",
        goal="<= 6 GB (5722 MiB) beside a draw, scores within 1e-5 of float64; on one H200 <= 1 s",
        make=lambda device: make_draws(device, 14, (512, 512, 300), 20),
        ways={"dal_dense": Way(offers, cuda=True)},
        judge=judge_offers,
    ),
    Case(
        name="accumulate",
        work="8 draws of 14 classes over 128 x 512 x 256 voxels added to running sums of p and H(p)",
        goal="on one H200 >= 60 % of the copy bandwidth",
        make=make_sums,
        ways={
            "dal_dense": Way(added_by(uncertainty.accumulate), cuda=True),
            "torch.compile": Way(added_by(lambda *sums: compiled()(*sums)), cuda=True, cpu=False),
            "plain torch": Way(added_by(uncertainty.accumulate_plainly), cuda=True),
        },
        judge=judge_sums,
        moved=least_traffic,
    ),
)
"""Cases."""
