"""One frame's detections become its rows of `Offers`; the function that both detection adapters share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dal_dense import candidates, scores
from dal_dense.box_looks import look_figures, look_windows
from dal_dense.box_scores import box_scores
from dal_dense.box_windows import quiet, worth
from dal_dense.config import QueryConfig, UncertaintyConfig
from dal_dense.costs import CostModel
from dal_dense.detections import Detections, FramePrediction
from dal_dense.errors import DataError
from dal_dense.noise import region_keys
from dal_dense.offer_maps import RANDOM
from dal_dense.offers import KINDS, Offers, Parts, concat
from dal_dense.query_sizes import array_size
from dal_dense.records import Header
from dal_dense.regions import Box, Regions, joined, slices
from dal_dense.tasks.base import Judged

SAME = 0.5
"""IoU from which two boxes are taken to mean one object; share of a box on known ground from which it is known."""


@dataclass(frozen=True, kw_only=True)
class BoxSpec:
    """What is on offer in one frame.

    Attributes:
        kind: crop, image or box.
        sizes: of crops, and of the look windows of kind box: rows and columns of the stored frame, cut to it.
        costs: seconds an action.
        per_image: candidates kept a size; of crops, as many again for class quotas, and as many drawn blindly.
        stride: step of candidate windows, pixels.
        score: score of a box, see `box_scores`.
        combine: how boxes' scores become a window's; dense: the mean of the dense map instead.
        classes: number of classes, background included.
        matching: rows carry the embeddings of their objects.
    """

    kind: Literal["crop", "image", "box"]
    sizes: tuple[tuple[int, ...], ...]
    costs: CostModel
    per_image: int
    stride: int
    score: str
    combine: Literal["sum", "mean", "max", "dense"]
    classes: int
    matching: bool = False


def box_spec(
    query: QueryConfig,
    header: Header,
    costs: CostModel,
    *,
    uncertainty: UncertaintyConfig,
    classes: int,
    matching: bool = False,
) -> BoxSpec:
    """What the settings mean on one frame."""
    kind = query.kind
    if kind == "slice":
        raise ValueError("slices are of volumes; the settings refuse them for detection")
    return BoxSpec(
        kind=kind,
        sizes=tuple(array_size(s, "voxel", header) for s in query.sizes) if kind != "image" else (),
        costs=costs,
        per_image=query.per_image,
        stride=query.stride,
        score=uncertainty.score,
        combine=uncertainty.combine,
        classes=classes,
        matching=matching,
    )


def frame_offers(
    pred: FramePrediction,
    spec: BoxSpec,
    *,
    image_id: str,
    image: int,
    group: int,
    labelled: Regions,
    blocked: Regions,
    judged: Judged | None = None,
    seed: int = 0,
) -> Offers:
    """Candidate regions of one frame, none on labelled or blocked ground; rows of labelled ground come last.

    Of kind box, a region is one predicted box, rounded to pixels. Boxes that overlap by less than IoU 0.5 are two
    objects, so a verified neighbour does not hide it; nor does labelled or blocked ground that holds less than half.
    After the boxes come look windows, crops where an object may have been missed (`box_looks`); they touch no ground
    that is labelled, blocked or judged.

    Args:
        pred: the frame's detections.
        spec: what is on offer.
        image_id: id in the pool; keys and blind windows depend on it and on the box alone.
        image: row of the image in the round's listing.
        group: number of its group.
        labelled: ground that is labelled.
        blocked: ground that was asked and is not answered, or was rejected.
        judged: of kind box, the boxes that were asked one by one.
        seed: of the blind windows.

    Raises:
        DataError: if the detector gave numbers that are not finite.
    """
    _check(pred, image_id)
    device = pred.found.corners.device
    labelled, blocked = labelled.to(device), blocked.to(device)
    answered, waiting = (judged.answered.to(device), judged.open.to(device)) if judged else (labelled[:0],) * 2
    values = box_scores(spec.score, pred.found, pred.difficulty.to(device)).float().clamp_min(0)
    taken = joined(labelled, blocked)
    blank = partial(_blank, pred=pred, spec=spec, image_id=image_id, image=image, group=group)
    if spec.kind == "box":
        asked = joined(answered, waiting)
        regions, rows = _box_candidates(pred, taken, asked)
        found = _box_rows(blank(regions), pred, spec, values, rows)
        found.extra[RANDOM] = torch.ones_like(found.score)  # every prediction is on offer: none was sought out
        windows = look_windows(pred, spec.sizes, spec.stride, spec.per_image, joined(taken, asked))
        found = concat([found, _look_rows(blank(windows), pred, spec, values)])
    else:
        sought, drawn = _windows(pred, spec, values, taken, image_id, seed)
        regions = candidates.distinct(image_id, [sought, drawn])
        found = _window_rows(blank(regions), pred, spec, values)
        found.extra[RANDOM] = torch.isin(found.key, region_keys(image_id, drawn)).float()
    places = joined(labelled, answered)
    known = blank(places)
    kind = torch.full_like(known.kind, KINDS.index("crop"))
    kind[len(labelled) :] = KINDS.index("box")
    known = replace(
        known,
        kind=kind,
        objects=_inside(pred.found, places).float() @ pred.found.scores.float(),
        labelled=torch.ones_like(known.labelled),
        extra={name: torch.zeros_like(known.score) for name in found.extra},
    )
    return concat([found, known])


def _check(pred: FramePrediction, image_id: str) -> None:
    columns = {
        "corners": pred.found.corners, "probs": pred.found.probs, "embedding": pred.found.embedding,
        "dense": pred.dense, "features": pred.features,
    }  # fmt: skip
    for name, column in columns.items():
        if not column.isfinite().all():
            raise DataError(
                f"{image_id}: the detector's {name} hold NaN or infinite numbers; "
                "look at the frame, or lower task.train.lr if the fit went astray"
            )


def _blank(regions: Regions, pred: FramePrediction, spec: BoxSpec, image_id: str, image: int, group: int) -> Offers:
    """Rows with their place, embedding and class shares; no score, no cost."""
    n, device = len(regions), regions.start.device
    zero = torch.zeros(n, device=device)
    inside = _inside(pred.found, regions)
    return Offers(
        image=torch.full((n,), image, dtype=torch.int64, device=device),
        group=torch.full((n,), group, dtype=torch.int64, device=device),
        regions=regions,
        kind=torch.full((n,), KINDS.index(spec.kind), dtype=torch.uint8, device=device),
        key=region_keys(image_id, regions),
        score=zero,
        class_score=torch.zeros(n, spec.classes, device=device),
        shares=_shares(inside.float() @ pred.found.probs.float()),
        boundary=zero,
        objects=zero,
        area=zero,
        seconds=zero,
        image_seconds=zero,
        embedding=_pooled(pred, regions),
        labelled=torch.zeros(n, dtype=torch.bool, device=device),
        parts=_parts(pred.found, inside, spec.matching),
    )


def _inside(found: Detections, regions: Regions) -> Bool[Tensor, "N M"]:
    """Does the centre of each predicted box lie in each region?"""
    middle = (found.corners[:, :2] + found.corners[:, 2:]) / 2
    return ((middle[None] >= regions.start[:, None]) & (middle[None] < regions.stop[:, None])).all(-1)


def _shares(mass: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
    """Expected objects by class as shares; all background where none is expected."""
    mass = mass.clone()
    mass[:, 0] = 0
    empty = mass.sum(1) <= 1e-6
    mass[empty, 0] = 1
    return mass / mass.sum(1, keepdim=True)


def _parts(found: Detections, inside: Bool[Tensor, "N M"], matching: bool) -> Parts:
    row, box = inside.nonzero().unbind(1)
    return Parts(row, found.classes[box], found.scores[box].float(), _embedded(found, matching)[box])


def _embedded(found: Detections, matching: bool) -> Float[Tensor, "M E"]:
    """Objects' embeddings, of width 0 unless a strategy reads them: an object is in many windows."""
    return found.embedding.float() if matching else found.embedding[:, :0].float()


def _pooled(pred: FramePrediction, regions: Regions) -> Float[Tensor, "N E"]:
    """Mean of the backbone's features over every coarse cell that a region reaches into."""
    device = regions.start.device
    grid = torch.tensor(pred.shape, device=device)
    coarse = torch.tensor(pred.features.shape[1:], device=device)
    return scores.means_in(
        pred.features.float(), Regions(regions.start * coarse // grid, -(-regions.stop * coarse // grid))
    )


# kind box


def _box_candidates(pred: FramePrediction, taken: Regions, judged: Regions) -> tuple[Regions, Int[Tensor, " n"]]:
    """Predicted boxes that nobody has judged, rounded to pixels, and their rows among the detections."""
    boxes = pred.pixels()
    free = (_share_on(taken, boxes, pred.shape) < SAME) & ~(overlap(boxes, judged) >= SAME).any(1)
    first: dict[Box, int] = {}
    for row, (box, ok) in enumerate(zip(boxes.boxes(), free.tolist(), strict=True)):
        if ok:  # best first; two that round to one region are one question
            first.setdefault(box, row)
    rows = torch.tensor(list(first.values()), dtype=torch.int64, device=boxes.start.device)
    return boxes[rows], rows


def _share_on(ground: Regions, boxes: Regions, shape: tuple[int, int]) -> Float[Tensor, " N"]:
    """Share of each box that lies on the ground, pieces of ground taken together."""
    known = torch.zeros(1, *shape, device=boxes.start.device)
    for place in ground.boxes():
        known[0][slices(place)] = 1
    return scores.means_in(known, boxes)[:, 0] if len(ground) else known.new_zeros(len(boxes))


def overlap(one: Regions, other: Regions) -> Float[Tensor, "N M"]:
    """Intersection over union of every pair of boxes."""
    low = torch.maximum(one.start[:, None], other.start[None])
    high = torch.minimum(one.stop[:, None], other.stop[None])
    shared = (high - low).clamp_min(0).prod(-1).float()
    return shared / (one.volume()[:, None] + other.volume()[None] - shared).clamp_min(1)


def _box_rows(
    blank: Offers, pred: FramePrediction, spec: BoxSpec, values: Float[Tensor, " M"], rows: Int[Tensor, " N"]
) -> Offers:
    """A prediction of score s is right with chance s^2, an object to be fixed with s (1 - s), else none."""
    probs, sure = pred.found.probs[rows].float(), pred.found.scores[rows].float()
    value, costs = values[rows], spec.costs
    seconds = costs.region_seconds + costs.verify_seconds + sure * (1 - sure) * costs.fix_seconds
    return replace(
        blank,
        score=value,
        class_score=value[:, None] * _shares(probs),
        shares=_shares(probs),
        objects=sure,
        seconds=seconds,
        image_seconds=torch.full_like(seconds, costs.image_seconds),
        parts=Parts(
            torch.arange(len(rows), device=rows.device), pred.found.classes[rows], sure,
            _embedded(pred.found, spec.matching)[rows],
        ),
    )  # fmt: skip


def _look_rows(blank: Offers, pred: FramePrediction, spec: BoxSpec, values: Float[Tensor, " M"]) -> Offers:
    """Crops to draw what the model missed; of what is missed, the classes are those of the frame's boxes."""
    objects, whole = look_figures(pred, values, blank.regions)
    shares = _shares(pred.found.probs.float().sum(0, keepdim=True)).repeat(len(blank), 1)
    by_class = whole[:, None] * shares
    by_class[:, 0] = 0
    rows = _searched(blank, spec, whole, by_class, objects)
    kind = torch.full_like(rows.kind, KINDS.index("crop"))
    return replace(rows, kind=kind, shares=shares, extra={RANDOM: torch.zeros_like(whole)})


# kinds crop and image


def _windows(
    pred: FramePrediction, spec: BoxSpec, values: Float[Tensor, " M"], taken: Regions, image_id: str, seed: int
) -> tuple[Regions, Regions]:
    """Windows sought out by score and by class, and windows drawn blindly."""
    sought, drawn = [taken[:0]], [taken[:0]]
    dense = pred.dense_map()
    shares = _shares(pred.found.probs.float())
    quotas = [count for _, count in candidates.share_out(spec.per_image, range(1, spec.classes))]
    for size in candidates.box_sizes(spec.kind, spec.sizes, pred.shape, None):
        maps = worth(pred, spec.combine, values, dense, shares, size, spec.stride)
        for field, count in zip(maps, [spec.per_image, *quotas], strict=True):
            sought.append(scores.peaks(field, size, spec.stride, count, taken, pred.shape)[0])
        blind = candidates.random_boxes(image_id, pred.shape, size, spec.per_image, taken, seed)
        drawn.append(blind.to(dense.device))
    return candidates.distinct(image_id, sought), candidates.distinct(image_id, drawn)


def _window_rows(blank: Offers, pred: FramePrediction, spec: BoxSpec, values: Float[Tensor, " M"]) -> Offers:
    """The rows with their exact figures; scores are a pixel's, so that windows of any size compare."""
    boxes, found = blank.regions, pred.found
    inside = _inside(found, boxes).float()
    whole = _combined(pred, spec, values, inside, boxes)
    by_class = inside @ (values[:, None] * _shares(found.probs.float()))
    objects = inside @ found.scores.float()
    scale = whole / by_class.sum(1).clamp_min(1e-12)
    return _searched(blank, spec, whole, by_class * scale[:, None], objects)


def _searched(
    blank: Offers,
    spec: BoxSpec,
    whole: Float[Tensor, " N"],
    by_class: Float[Tensor, "N C"],
    objects: Float[Tensor, " N"],
) -> Offers:
    """Rows of ground that is looked through and whose objects are drawn, valued a pixel."""
    pixels = blank.regions.volume().float()
    seconds = spec.costs.seconds(pixels, torch.zeros_like(pixels), objects)
    return replace(
        blank,
        score=whole / pixels,
        class_score=by_class / pixels[:, None],
        objects=objects,
        area=pixels,
        seconds=seconds,
        image_seconds=torch.full_like(seconds, spec.costs.image_seconds),
    )


def _combined(
    pred: FramePrediction, spec: BoxSpec, values: Tensor, inside: Float[Tensor, "N M"], boxes: Regions
) -> Float[Tensor, " N"]:
    """What a whole window is worth."""
    if spec.combine == "dense":
        pixels = boxes.volume().float()
        return scores.means_in(pred.dense_map()[None], boxes)[:, 0].clamp_min(0) * pixels
    if spec.combine == "max":
        return (inside * values).amax(1) if len(values) else torch.zeros(len(boxes), device=inside.device)
    total = inside @ values
    if spec.combine == "mean":
        return total / inside.sum(1).clamp_min(1)
    return total + quiet(pred.dense, values) * scores.means_in(pred.dense_map()[None], boxes)[:, 0]
