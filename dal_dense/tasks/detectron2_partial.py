"""Detectron2's targets where only part of a window is labelled.

Detectron2 knows no ignored ground: what is no object is background. Each built model is therefore
given three small overrides, on the instance and not on the class, so that other models in the same
program stay as they are:

RPN         its matcher answers -1 for anchors that may not be background, before anchors are sampled
RoI heads   proposals that are neither positives nor may be background are dropped before sampling
RetinaNet   labels of anchors that may not be background become -1
FCOS        likewise of points; its loss knows no -1, so such points answer a sure no, which costs nothing

Two more things change on the way. An object that overlaps no anchor is matched with none: Detectron2's
own matcher would then call every anchor that overlaps nothing a positive. RetinaNet and FCOS divide their
losses by the positives of the batch at hand, not by a running mean, which is no part of the weights and
would be lost when a fit is resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from detectron2.modeling import FCOS, RetinaNet
from detectron2.structures import Boxes, Instances, pairwise_iou
from jaxtyping import Float
from torch import Tensor

from dal_dense.tasks.detection_backend import Sample
from dal_dense.tasks.detection_partial import may_be_background, points_known

POSITIVE, BACKGROUND, IGNORED = 1, 0, -1
"""A matcher's answers."""

SURE_NO = -1e4
"""A logit whose focal loss as background is exactly 0."""


@dataclass(frozen=True)
class Ground:
    """What is known of one window; see `detection_backend.Sample`."""

    known: Float[Tensor, "rows cols"]
    absent: Float[Tensor, "k 4"]
    ignored: Float[Tensor, "rows cols"]

    def allows(self, boxes: Float[Tensor, "n 4"]) -> Tensor:
        """May each of these boxes be background, if it is no positive?"""
        return may_be_background(boxes, self.known, self.absent, self.ignored)


@dataclass
class Teaching:
    """The windows that are being learnt from, in the order of the batch."""

    grounds: list[Ground] = field(default_factory=list)

    def begin(self, samples: Sequence[Sample], device: torch.device) -> None:
        """Take the ground of the next batch."""
        self.grounds = [Ground(s.known.to(device), s.absent.to(device), s.ignored.to(device)) for s in samples]


class KnownGroundMatcher:
    """A matcher that ignores what may not be background.

    Args:
        inner: Detectron2's own.

    Attributes:
        allowed: for each image still to come, which candidates may be background; empty: all may.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.allowed: list[Tensor] = []

    def __call__(self, quality: Float[Tensor, "objects candidates"]) -> tuple[Tensor, Tensor]:
        """Matched object and answer of each candidate."""
        matches, answers = self.inner(quality)
        if quality.numel():
            answers[(answers == POSITIVE) & (quality.amax(0) <= 0)] = self.inner.labels[0]
        if self.allowed:  # taken only now: Detectron2 tries again on the CPU if the matrix did not fit
            allowed = self.allowed.pop(0).to(answers.device)
            answers[(answers == BACKGROUND) & ~allowed] = IGNORED
        return matches, answers


def teach_partly(model: Any) -> Teaching:
    """Put the overrides on a built model; the result is told what is known before each batch."""
    teaching = Teaching()
    if isinstance(model, RetinaNet):
        model.anchor_matcher = KnownGroundMatcher(model.anchor_matcher)
        model.label_anchors = partial(_label, model.num_classes, model.label_anchors, _allowed_anchors, teaching)
        model._ema_update = _of_this_batch
        return teaching
    if isinstance(model, FCOS):
        allowed = partial(_allowed_points, model.num_classes, model.label_anchors)
        model.label_anchors = partial(_label, model.num_classes, model.label_anchors, allowed, teaching)
        model.losses = partial(_losses_of_points, model.num_classes, model.losses)
        model._ema_update = _of_this_batch
        return teaching
    rpn, heads = model.proposal_generator, model.roi_heads
    rpn.anchor_matcher = KnownGroundMatcher(rpn.anchor_matcher)
    rpn.label_and_sample_anchors = partial(
        _label_and_sample_anchors, rpn.anchor_matcher, rpn.label_and_sample_anchors, teaching
    )
    heads.label_and_sample_proposals = partial(
        _label_and_sample_proposals, heads.proposal_matcher, heads.label_and_sample_proposals, teaching
    )
    return teaching


def _label(
    classes: int,
    stock: Any,
    allowed: Callable[[list[Any], Ground], Tensor],
    teaching: Teaching,
    anchors: list[Any],
    gt_instances: list[Any],
) -> tuple[list[Tensor], list[Tensor]]:
    """RetinaNet and FCOS: class of each anchor or point, `classes` for background, -1 for ignored."""
    labels, boxes = stock(anchors, gt_instances)
    for each, ground in zip(labels, teaching.grounds, strict=True):
        each[(each == classes) & ~allowed(anchors, ground)] = IGNORED
    return labels, boxes


def _allowed_anchors(anchors: list[Any], ground: Ground) -> Tensor:
    return ground.allows(Boxes.cat(anchors).tensor)


def _allowed_points(classes: int, stock: Any, anchors: list[Any], ground: Ground) -> Tensor:
    """Points on known pixels; those responsible for a rejected prediction, were it an object, unless ignored."""
    known = ground.known
    rejected = Instances((known.shape[0] - 1, known.shape[1] - 1))
    rejected.gt_boxes = Boxes(ground.absent)
    rejected.gt_classes = torch.zeros(len(ground.absent), dtype=torch.int64, device=known.device)
    ((labels,), _) = stock(anchors, [rejected])
    centres = Boxes.cat(anchors).get_centers()
    allowed: Tensor = points_known(centres, known) | ((labels != classes) & ~points_known(centres, ground.ignored))
    return allowed


def _losses_of_points(
    classes: int, stock: Any, anchors: list[Any], logits: list[Tensor], labels: list[Tensor], deltas: list[Tensor],
    *rest: Any,
) -> dict[str, Tensor]:  # fmt: skip
    """FCOS: an ignored point is no positive, so that its class alone could teach; it answers a sure no.

    Raises:
        FloatingPointError: if boxes are NaN, of which Detectron2 says only that they are bad.
    """
    if torch.stack([each.isnan().any() for each in deltas]).any():
        raise FloatingPointError("FCOS predicts boxes that are NaN")
    ignored = torch.stack(labels) == IGNORED
    levels = torch.split(ignored, [each.shape[1] for each in logits], 1)
    quiet = [each.masked_fill(gone[..., None], SURE_NO) for each, gone in zip(logits, levels, strict=True)]
    judged = [each.masked_fill(each == IGNORED, classes) for each in labels]
    losses: dict[str, Tensor] = stock(anchors, quiet, judged, deltas, *rest)
    return losses


def _label_and_sample_anchors(
    matcher: KnownGroundMatcher, stock: Any, teaching: Teaching, anchors: list[Any], gt_instances: list[Any]
) -> tuple[list[Tensor], list[Tensor]]:
    """RPN: the matcher is told what may be background; Detectron2 samples from its answers."""
    flat = Boxes.cat(anchors).tensor
    matcher.allowed = [ground.allows(flat) for ground in teaching.grounds]
    labels: tuple[list[Tensor], list[Tensor]] = stock(anchors, gt_instances)
    return labels


def _label_and_sample_proposals(
    matcher: Any, stock: Any, teaching: Teaching, proposals: list[Any], targets: list[Any]
) -> list[Any]:
    """RoI heads: sample among proposals that are positives or may be background."""
    usable = []
    for some, target, ground in zip(proposals, targets, teaching.grounds, strict=True):
        keep = ground.allows(some.proposal_boxes.tensor)
        if len(target) and len(some):
            keep |= matcher(pairwise_iou(target.gt_boxes, some.proposal_boxes))[1] == POSITIVE
        usable.append(some[keep])
    sampled: list[Any] = stock(usable, targets)
    return sampled


def _of_this_batch(name: str, value: int | float, initial_value: int | float, momentum: float = 0.9) -> int | float:
    """Instead of a running mean of the positives."""
    return value
