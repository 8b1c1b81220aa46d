"""Detectron2's targets where only part of a window is labelled.

Detectron2 knows no ignored ground: what is no object is background. Each built model is therefore
given three small overrides, on the instance and not on the class, so that other models in the same
program stay as they are:

RPN         its matcher answers -1 for anchors that may not be background, before anchors are sampled
RoI heads   proposals that are neither positives nor may be background are dropped before sampling
RetinaNet   labels of anchors that may not be background become -1

Two more things change on the way. An object that overlaps no anchor is matched with none: Detectron2's
own matcher would then call every anchor that overlaps nothing a positive. RetinaNet divides its losses by
the positives of the batch at hand, not by a running mean, which is no part of the weights and would be lost
when a fit is resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from detectron2.modeling import RetinaNet
from detectron2.structures import Boxes, pairwise_iou
from jaxtyping import Float
from torch import Tensor

from dal_dense.tasks.detection_backend import Sample
from dal_dense.tasks.detection_partial import may_be_background

POSITIVE, BACKGROUND, IGNORED = 1, 0, -1
"""A matcher's answers."""


@dataclass(frozen=True)
class Ground:
    """What is known of one window; see `detection_backend.Sample`."""

    known: Float[Tensor, "rows cols"]
    absent: Float[Tensor, "k 4"]

    def allows(self, boxes: Float[Tensor, "n 4"]) -> Tensor:
        """May each of these boxes be background, if it is no positive?"""
        return may_be_background(boxes, self.known, self.absent)


@dataclass
class Teaching:
    """The windows that are being learnt from, in the order of the batch."""

    grounds: list[Ground] = field(default_factory=list)

    def begin(self, samples: Sequence[Sample], device: torch.device) -> None:
        """Take the ground of the next batch."""
        self.grounds = [Ground(s.known.to(device), s.absent.to(device)) for s in samples]


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
        model.label_anchors = partial(_label_anchors, model.num_classes, model.label_anchors, teaching)
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


def _label_anchors(
    classes: int, stock: Any, teaching: Teaching, anchors: list[Any], gt_instances: list[Any]
) -> tuple[list[Tensor], list[Tensor]]:
    """RetinaNet: class of each anchor, `classes` for background, -1 for ignored."""
    labels, boxes = stock(anchors, gt_instances)
    flat = Boxes.cat(anchors).tensor
    for each, ground in zip(labels, teaching.grounds, strict=True):
        each[(each == classes) & ~ground.allows(flat)] = IGNORED
    return labels, boxes


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
