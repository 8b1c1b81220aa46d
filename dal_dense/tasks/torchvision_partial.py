"""Targets of torchvision's detectors where only part of a window is labelled.

Overlaps are taken in chunks of anchors, so that 2,000 boxes in a window need no matrix of
gigabytes. An object that overlaps no anchor is matched with none (torchvision's own matcher then
makes positives of all anchors).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import box_iou

from dal_dense.tasks.detection_partial import CHUNK, may_be_background, overlaps, points_known

BACKGROUND, IGNORED = -1, -2
"""Instead of the row of a matched object, as torchvision numbers them (`Matcher`)."""

BLOCK = 1 << 20
"""Entries of a matrix of overlaps of anchors: the smaller, the more objects are far from all of its anchors."""

POSITIVE = 0.5
"""IoU from which a proposal is a positive of the second stage."""

RADIUS = 1.5
"""FCOS: points within so many strides of an object's centre are its positives (Tian et al. 2020)."""

Target = dict[str, Tensor]
"""boxes, labels, absent, known, ignored: the columns of a `Sample`."""


def match_anchors(anchors: Float[Tensor, "n 4"], target: Target, *, high: float, low: float) -> Int[Tensor, " n"]:
    """Row of the object that each anchor is matched with, `BACKGROUND` or `IGNORED`.

    An anchor is matched with its best object from IoU `high` on, or if no anchor overlaps some object
    more. Below `low` it is background where that may be said, see `may_be_background`.
    """
    boxes = target["boxes"]
    matched = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
    quality = anchors.new_zeros(len(anchors))
    reach = anchors.new_zeros(len(boxes))
    best = []  # of each chunk: its anchors, and the objects that none before it overlaps more
    for rows, near in _chunks(boxes, anchors):
        block = box_iou(boxes[near], anchors[rows])
        quality[rows], first = block.max(0)
        matched[rows] = near[first]
        most = block.amax(1)
        reach[near] = torch.maximum(reach[near], most)
        best.append((rows, near[(most == reach[near]) & (most > 0)]))
    result = torch.where(quality >= high, matched, BACKGROUND)
    result[(quality >= low) & (quality < high)] = IGNORED
    result[(result == BACKGROUND) & ~_allowed(anchors, target)] = IGNORED
    for rows, near in best:  # few overlaps are taken again: an object gets better in few chunks
        last_hope = (box_iou(boxes[near], anchors[rows]) == reach[near, None]).any(0)
        result[rows] = torch.where(last_hope, matched[rows], result[rows])
    return result


def _allowed(boxes: Float[Tensor, "n 4"], target: Target) -> Bool[Tensor, " n"]:
    return may_be_background(boxes, target["known"], target["absent"], target["ignored"])


def _chunks(boxes: Tensor, anchors: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """One chunk of anchors after the other, and the rows of the objects that may overlap some of it.

    Anchors come row by row of a grid, so that most objects are far from most chunks.
    """
    step = max(1, BLOCK // max(1, len(boxes)))
    for start in range(0, len(anchors) if len(boxes) else 0, step):
        rows = slice(start, min(start + step, len(anchors)))
        low, high = anchors[rows, :2].amin(0), anchors[rows, 2:].amax(0)
        near = ((boxes[:, :2] < high) & (boxes[:, 2:] > low)).all(1).nonzero()[:, 0]
        if len(near):
            yield rows, near


class PartialRPN(RegionProposalNetwork):  # type: ignore[misc]
    """Ignores anchors that may not be background; a batch that teaches nothing costs nothing."""

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[Target]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """1 for a positive, 0 for background, -1 for neither, and the matched boxes."""
        labels, wanted = [], []
        matcher = self.proposal_matcher
        for each, target in zip(anchors, targets, strict=True):
            matched = match_anchors(each, target, high=matcher.high_threshold, low=matcher.low_threshold)
            labels.append(torch.where(matched >= 0, 1.0, torch.where(matched == BACKGROUND, 0.0, -1.0)))
            boxes = target["boxes"] if len(target["boxes"]) else each.new_zeros(1, 4)
            wanted.append(boxes[matched.clamp_min(0)])
        return labels, wanted

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Torchvision's, but 0 and not NaN where all anchors are ignored."""
        if all(bool((each < 0).all()) for each in labels):
            return objectness.sum() * 0, pred_bbox_deltas.sum() * 0
        both: tuple[Tensor, Tensor] = super().compute_loss(objectness, pred_bbox_deltas, labels, regression_targets)
        return both


def usable_proposals(proposals: Sequence[Tensor], targets: Sequence[Target]) -> list[Tensor]:
    """Proposals that are positives or may be background; torchvision samples among what is left."""
    kept = []
    for boxes, target in zip(proposals, targets, strict=True):
        kept.append(boxes[_allowed(boxes, target) | overlaps(boxes, target["boxes"], POSITIVE)])
    return kept


def match_points(anchors: Float[Tensor, "n 4"], target: Target, per_level: Sequence[int]) -> Int[Tensor, " n"]:
    """FCOS: row of the object that each point is responsible for, `BACKGROUND` or `IGNORED`.

    A point is background where its pixel is known, or where it would be responsible for a rejected
    prediction, were that an object, and its pixel is not ignored.

    Args:
        anchors: one square a point, as large as its level's stride.
        target: what is known.
        per_level: points a level, finest first.
    """
    result = responsible(anchors, target["boxes"], per_level)
    centre = (anchors[:, :2] + anchors[:, 2:]) / 2
    rejected = (responsible(anchors, target["absent"], per_level) >= 0) & ~points_known(centre, target["ignored"])
    result[(result < 0) & ~points_known(centre, target["known"]) & ~rejected] = IGNORED
    return result


def responsible(
    anchors: Float[Tensor, "n 4"], boxes: Float[Tensor, "m 4"], per_level: Sequence[int]
) -> Int[Tensor, " n"]:
    """FCOS with centre sampling: the smallest box that a point lies in, of its level's range of sizes; or -1."""
    result = torch.full((len(anchors),), BACKGROUND, dtype=torch.int64, device=anchors.device)
    if not len(boxes):
        return result
    stride = anchors[:, 2] - anchors[:, 0]
    least, most = stride * 4, stride * 8
    least[: per_level[0]] = 0
    most[len(most) - per_level[-1] :] = torch.inf
    middle, area = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).prod(1)
    step = max(1, CHUNK // len(boxes))
    for start in range(0, len(anchors), step):
        rows = slice(start, min(start + step, len(anchors)))
        point = ((anchors[rows, :2] + anchors[rows, 2:]) / 2)[:, None]
        near = (point - middle).abs().amax(2) < RADIUS * stride[rows, None]
        sides = torch.cat([point - boxes[:, :2], boxes[:, 2:] - point], 2)
        far = sides.amax(2)
        fits = near & (sides.amin(2) > 0) & (far > least[rows, None]) & (far < most[rows, None])
        smallest, row = torch.where(fits, area, torch.inf).min(1)
        result[rows] = torch.where(smallest.isfinite(), row, BACKGROUND)
    return result


def batch_losses(
    head: Any,
    targets: Sequence[Target],
    outputs: dict[str, Tensor],
    anchors: Sequence[Tensor],
    match: Callable[[Tensor, Target], Tensor],
) -> dict[str, Tensor]:
    """RetinaNet's or FCOS's own losses on what is not ignored, over the positives of the batch.

    Torchvision's RetinaNet divides by each image's positives: those of a crowded window would weigh little.

    Args:
        head: of the network.
        targets: what is known of each image.
        outputs: of the head.
        anchors: of each image.
        match: row of each anchor's object, `BACKGROUND` or `IGNORED`.
    """
    totals: dict[str, Tensor] = {}
    positives = 0
    for i, (target, each) in enumerate(zip(targets, anchors, strict=True)):
        matched = match(each, target)
        used = matched != IGNORED
        found = int((matched >= 0).sum())
        some = {name: value[i : i + 1, used] for name, value in outputs.items()}
        for name, loss in head.compute_loss([target], some, [each[used]], [matched[used]]).items():
            totals[name] = totals.get(name, 0) + loss * max(1, found)
        positives += found
    return {name: total / max(1, positives) for name, total in totals.items()}
