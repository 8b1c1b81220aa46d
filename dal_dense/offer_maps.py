"""One image's maps become its rows of `Offers`; the function that all dense adapters share.

The maps are reduced on the device where they lie and can be dropped afterwards. Candidates come
from `candidates.py`; exact figures (class shares, contour length, objects, embedding) are worked
out for these few boxes only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from dal_dense import candidates, scores, uncertainty
from dal_dense.contours import area_of, contour_length, object_count
from dal_dense.costs import CostModel, CostPrior
from dal_dense.errors import ConfigError, DataError
from dal_dense.noise import region_keys
from dal_dense.offers import KINDS, Offers, concat
from dal_dense.pieces import in_pieces
from dal_dense.regions import Regions, joined, slices

RANDOM = "random"
"""Name in `Offers.extra` of the mark of boxes that were drawn blindly (1) rather than sought out (0)."""


@dataclass(frozen=True)
class DensePrediction:
    """What a model says of one image.

    Attributes:
        mean: mean class probabilities on the image's own grid.
        maps: uncertainty maps by name (`uncertainty.MAPS`), each of that grid.
        features: network features on a coarser grid of the same orientation, or None.
    """

    mean: Float[Tensor, "classes *grid"]
    maps: dict[str, Tensor]
    features: Float[Tensor, "channels *coarse"] | None = None


@dataclass(frozen=True, kw_only=True)
class OfferSpec:
    """What is on offer in one image.

    Attributes:
        kind: crop, slice (axial) or image.
        sizes: crop sizes in voxels or pixels, in the image's array axis order; larger ones are cut to the image.
        spacing: voxel size in mm an array axis; 1 for frames.
        axial_axis: array axis across axial slices; None for frames.
        costs: seconds an action.
        per_image: candidates kept a size; as many again for class quotas, and as many drawn blindly.
        stride: step of candidate boxes; 1 is exact.
        score: name of the map that scores a voxel.
        pooling: mean over the box, or topk: mean of its top share.
        topk: that share.
        quota_classes: classes that quotas are for: all but background. Class 0 counts as background,
            which nobody draws, where it is not among them.
    """

    kind: Literal["crop", "slice", "image"]
    sizes: tuple[tuple[int, ...], ...]
    spacing: tuple[float, ...]
    axial_axis: int | None
    costs: CostModel
    per_image: int = 12
    stride: int = 1
    score: str = "predictive_entropy"
    pooling: Literal["mean", "topk"] = "mean"
    topk: float = 0.1
    quota_classes: tuple[int, ...] = ()

    @property
    def background(self) -> int | None:
        """The class that nobody draws."""
        return 0 if self.quota_classes and 0 not in self.quota_classes else None


def offers_from_maps(
    pred: DensePrediction,
    spec: OfferSpec,
    *,
    image_id: str,
    image: int,
    group: int,
    labelled: Regions,
    blocked: Regions,
    seed: int = 0,
) -> Offers:
    """Candidate regions of one image, none on labelled or blocked ground; rows of the labelled boxes come last.

    Args:
        pred: the image's maps.
        spec: what is on offer.
        image_id: id in the pool; keys and random boxes depend on it and on the box alone.
        image: row of the image in the round's listing.
        group: number of its group.
        labelled: ground that is labelled; its rows carry shares and embedding, and cost and score 0.
        blocked: ground that was asked and is not answered, or was rejected.
        seed: of the random boxes.

    Raises:
        ConfigError: if the score has no map, or the sizes do not fit the image.
        DataError: if a map holds NaN or Inf.
    """
    entropy = pred.maps.get("predictive_entropy")
    if entropy is None:
        entropy = uncertainty.entropy(pred.mean)
    _check(pred, spec, image_id, entropy)
    device = pred.mean.device
    labelled, blocked = labelled.to(device), blocked.to(device)
    sought, drawn = _candidates(pred, spec, entropy, joined(labelled, blocked), image_id, seed)
    fresh = candidates.distinct(image_id, [sought, drawn])
    blank = [_blank(r, spec, len(pred.mean), image_id, image, group) for r in (fresh, labelled)]
    found = _figures(pred, spec, entropy, blank[0])
    found.extra[RANDOM] = torch.isin(found.key, region_keys(image_id, drawn)).float()
    known = replace(
        blank[1],
        shares=_normalised(scores.means_in(pred.mean, labelled)),
        embedding=_embedding(pred, labelled),
        labelled=torch.ones_like(blank[1].labelled),
        extra={name: torch.zeros_like(blank[1].score) for name in found.extra},
    )
    return concat([found, known])


def geometry_offers(
    image_id: str,
    shape: Sequence[int],
    spec: OfferSpec,
    prior: CostPrior,
    *,
    seed: int,
    image: int,
    group: int,
    labelled: Regions,
    blocked: Regions,
    classes: int,
) -> Offers:
    """Candidate regions where there is no model: drawn by seed, priced by the prior; on the CPU.

    Scores are 0, shares uniform, the embedding has width 0.

    Args:
        image_id: id in the pool.
        shape: the image's grid.
        spec: what is on offer; `per_image` boxes a size.
        prior: how much there is to draw in unseen ground.
        seed: of the boxes; another seed gives others.
        image: row of the image in the round's listing.
        group: number of its group.
        labelled: ground that is labelled; its rows come last, at no cost.
        blocked: ground that was asked and is not answered, or was rejected.
        classes: number of classes.

    Raises:
        ConfigError: if the sizes do not fit the image.
    """
    labelled, taken = labelled.to("cpu"), joined(labelled.to("cpu"), blocked.to("cpu"))
    sizes = candidates.box_sizes(spec.kind, spec.sizes, shape, spec.axial_axis)
    parts = [candidates.random_boxes(image_id, shape, size, spec.per_image, taken, seed) for size in sizes]
    fresh, known = (
        _blank(r, spec, classes, image_id, image, group) for r in (candidates.distinct(image_id, parts), labelled)
    )
    area = area_of(fresh.regions, spec.spacing, spec.axial_axis)
    boundary, objects = area * (prior.boundary / 1000), area * (prior.objects / 1000)
    found = replace(
        fresh,
        area=area,
        boundary=boundary,
        objects=objects,
        seconds=spec.costs.seconds(area, boundary, objects),
        image_seconds=torch.full_like(area, spec.costs.image_seconds),
    )
    return concat([found, replace(known, labelled=torch.ones_like(known.labelled))])


def _check(pred: DensePrediction, spec: OfferSpec, image_id: str, entropy: Tensor) -> None:
    if spec.score not in pred.maps:
        raise ConfigError(
            f"uncertainty.score: {spec.score} is not among the maps {', '.join(pred.maps)}; compute it too"
        )
    if not (_finite(entropy) and _finite(pred.maps[spec.score])):
        raise DataError(
            f"image {image_id}: the model's output holds NaN or Inf; look for such voxels in the image, "
            "and lower task.train.lr if many images are named"
        )


def _finite(values: Tensor) -> bool:
    """Without a temporary: NaN and Inf show in the extremes."""
    return all(math.isfinite(x) for x in values.aminmax())


def _covered(taken: Regions, shape: Sequence[int]) -> bool:
    """Does one box cover the whole image? There is nothing to seek then; an image is blocked like that."""
    return any(not any(start) and stop == tuple(shape) for start, stop in taken.boxes())


def _candidates(
    pred: DensePrediction, spec: OfferSpec, entropy: Tensor, taken: Regions, image_id: str, seed: int
) -> tuple[Regions, Regions]:
    """Boxes sought out by score and by class, and boxes drawn blindly."""
    shape = tuple(entropy.shape)
    if _covered(taken, shape):
        return taken[:0], taken[:0]
    topk = spec.topk if spec.pooling == "topk" else None
    sought, drawn = [taken[:0]], [taken[:0]]
    for size in candidates.box_sizes(spec.kind, spec.sizes, shape, spec.axial_axis):
        score = pred.maps[spec.score]
        sought.append(candidates.peak_boxes(score, size, spec.stride, spec.per_image, taken, topk=topk))
        for c, count in candidates.share_out(spec.per_image, spec.quota_classes):  # by p_c H(p), the class's share of H
            p = pred.mean[c]
            sought.append(candidates.peak_boxes(p, size, spec.stride, count, taken, weight=entropy))
        blind = candidates.random_boxes(image_id, shape, size, spec.per_image, taken, seed)
        drawn.append(blind.to(entropy.device))
    return candidates.distinct(image_id, sought), candidates.distinct(image_id, drawn)


def _blank(regions: Regions, spec: OfferSpec, classes: int, image_id: str, image: int, group: int) -> Offers:
    """Rows with nothing but their place: no score, no cost, uniform shares."""
    n, device = len(regions), regions.start.device
    zero = torch.zeros(n, device=device)
    return Offers(
        image=torch.full((n,), image, dtype=torch.int64, device=device),
        group=torch.full((n,), group, dtype=torch.int64, device=device),
        regions=regions,
        kind=torch.full((n,), KINDS.index(spec.kind), dtype=torch.uint8, device=device),
        key=region_keys(image_id, regions),
        score=zero,
        class_score=torch.zeros(n, classes, device=device),
        shares=torch.full((n, classes), 1 / classes, device=device),
        boundary=zero,
        objects=zero,
        area=zero,
        seconds=zero,
        image_seconds=zero,
        embedding=torch.zeros(n, 0, device=device),
        labelled=torch.zeros(n, dtype=torch.bool, device=device),
    )


def _figures(pred: DensePrediction, spec: OfferSpec, entropy: Tensor, blank: Offers) -> Offers:
    """The rows with their exact figures."""
    boxes, n, device = blank.regions, len(blank), pred.mean.device
    extra = {name: _means(values, boxes) for name, values in pred.maps.items()}
    shares, class_score = torch.empty_like(blank.shares), torch.empty_like(blank.class_score)
    boundary, labels = torch.empty(n, device=device), []
    for row, box in enumerate(boxes.boxes()):
        probs = pred.mean[(slice(None), *slices(box))].contiguous()  # one copy for all that looks at it
        shares[row] = scores.means_of(probs)
        class_score[row] = scores.means_of(probs, entropy[slices(box)])
        boundary[row] = contour_length(probs, spec.spacing, spec.axial_axis)
        labels.append(uncertainty.likeliest(probs))
    area = area_of(boxes, spec.spacing, spec.axial_axis)
    embedding = _embedding(pred, boxes)
    score = extra[spec.score]
    if spec.pooling == "topk":
        score = scores.topk_in(pred.maps[spec.score], boxes, spec.topk)
    objects = _objects(labels, spec).to(device)  # last: a GPU has all its work by then
    return replace(
        blank,
        score=score.clamp_min(0),
        class_score=class_score.clamp_min(0),
        shares=_normalised(shares),
        boundary=boundary,
        objects=objects,
        area=area,
        seconds=spec.costs.seconds(area, boundary, objects),
        image_seconds=torch.full_like(area, spec.costs.image_seconds),
        embedding=embedding,
        extra=extra,
    )


def _objects(labels: Sequence[Integer[Tensor, "..."]], spec: OfferSpec) -> Float[Tensor, " N"]:
    """Objects in each box, from its class numbers; on the CPU, by as many threads as torch uses."""
    count = torch.empty(len(labels))

    def work(rows: Sequence[slice]) -> None:
        for row in rows:
            count[row] = object_count(labels[row.start].cpu().numpy(), spec.axial_axis, spec.background)

    in_pieces(len(labels), 1, count.device, work)
    return count


def _means(values: Tensor, boxes: Regions) -> Float[Tensor, " N"]:
    return scores.means_in(values[None], boxes)[:, 0]


def _normalised(shares: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
    """Blended windows sum to 1 only nearly."""
    shares = shares.clamp_min(0)
    return shares / shares.sum(1, keepdim=True)


def _embedding(pred: DensePrediction, boxes: Regions) -> Float[Tensor, "N E"]:
    """Mean of the features over every coarse cell that the box reaches into; the cells divide the grid evenly."""
    if pred.features is None:
        return torch.zeros(len(boxes), 0, device=pred.mean.device)
    device = boxes.start.device
    grid = torch.tensor(pred.mean.shape[1:], device=device)
    coarse = torch.tensor(pred.features.shape[1:], device=device)
    start = boxes.start * coarse // grid
    stop = -(-boxes.stop * coarse // grid)  # rounded up: never empty, never outside
    return scores.means_in(pred.features, Regions(start, stop))
