"""Draws of a detector become one prediction of a frame: kept boxes and a dense map.

All draws score the same rows, so their mean needs no matching of boxes; suppression runs once, on
the mean scores. Memory does not grow with the number of draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor
from torchvision.ops import batched_nms

from dal_dense.config import DetectionConfig, UncertaintyConfig
from dal_dense.detections import Detections, FramePrediction
from dal_dense.errors import DataError
from dal_dense.noise import derive_seed
from dal_dense.tasks.detection_backend import Detector, Look, Rows
from dal_dense.tasks.detection_ground import factor_of, resized
from dal_dense.tasks.training import deterministic, mixed_precision

LEAST_SIDE = 1e-2
"""Pixels of the scaled frame: boxes with a shorter side are dropped, as torchvision does."""

BASE = 1.3
"""CALD's base point."""


@dataclass
class RowSums:
    """Running sums over draws of the same rows."""

    count: int = 0
    probs: Tensor = field(default_factory=lambda: torch.zeros(()))
    entropy: Tensor = field(default_factory=lambda: torch.zeros(()))
    boxes: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: Tensor = field(default_factory=lambda: torch.zeros(()))
    first: Rows | None = None
    mirrored: Rows | None = None

    def add(self, rows: Rows, *, mirrored: bool = False) -> None:
        """Take one draw in; its rows must be those of the first."""
        if self.first is None:
            self.first = rows
        if mirrored:
            self.mirrored = rows
        moved = rows.boxes.double() - self.first.boxes.double()  # small numbers, whose squares keep their digits
        self.count += 1
        self.probs = self.probs.to(rows.probs.device) + rows.probs.float()
        self.entropy = self.entropy.to(rows.probs.device) + torch.special.entr(rows.probs.float()).sum(1)
        self.boxes = self.boxes.to(moved.device) + moved
        self.squares = self.squares.to(moved.device) + moved**2

    def kept(self, detection: DetectionConfig) -> Detections:
        """Suppression on mean scores; corners still x0 y0 x1 y1 of the scaled frame."""
        if self.first is None:
            raise ValueError("no draw was added; call add() at least once")
        probs = self.probs / self.count
        shift = self.boxes / self.count
        boxes = (self.first.boxes.double() + shift).float()
        rows = suppressed(probs, boxes, detection)
        deviation = (self.squares / self.count - shift**2).clamp_min(0).mean(1).sqrt().float()
        side = (boxes[:, 2:] - boxes[:, :2]).mean(1).clamp_min(1e-6)
        steady = torch.ones_like(side) if self.mirrored is None else consistency(self.first, self.mirrored)
        return Detections(
            corners=boxes[rows],
            probs=probs[rows],
            expected_entropy=(self.entropy / self.count).clamp_min(0)[rows],
            spread=(deviation / side)[rows],
            consistency=steady[rows],
            embedding=self.first.embedding[rows].float(),
        )


def suppressed(
    probs: Float[Tensor, "R C"], boxes: Float[Tensor, "R 4"], detection: DetectionConfig
) -> Int[Tensor, " N"]:
    """The rows that are kept, best first: each for its likeliest object class, suppressed within the class."""
    score, kind = probs[:, 1:].max(1)
    large = ((boxes[:, 2:] - boxes[:, :2]) >= LEAST_SIDE).all(1)
    rows = ((score > detection.min_score) & large).nonzero()[:, 0]
    kept = batched_nms(boxes[rows].float(), score[rows].float(), kind[rows], detection.nms_iou)
    return rows[kept[: detection.max_boxes]]


def consistency(one: Rows, other: Rows) -> Float[Tensor, " R"]:
    """CALD's m of each row against itself in the mirror (Yu et al. 2022).

    m = |IoU + 1/2 (1 - JS) (max p + max p') - 1.3|, with the Jensen-Shannon divergence in nats over the
    whole distribution and the maximum over object classes.
    """
    a, b = one.boxes.float(), other.boxes.float()
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    shared = (high - low).clamp_min(0).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - shared
    p, q = one.probs.float(), other.probs.float()
    both = torch.special.entr((p + q) / 2).sum(1)
    divergence = (both - (torch.special.entr(p) + torch.special.entr(q)).sum(1) / 2).clamp_min(0)
    sure = p[:, 1:].amax(1) + q[:, 1:].amax(1)
    agreement: Tensor = shared / union.clamp_min(1e-6) + 0.5 * (1 - divergence) * sure
    return (agreement - BASE).abs()


def draws(
    detectors: Sequence[Detector],
    uncertainty: UncertaintyConfig,
    look: Look,
    image: Float[Tensor, "3 h w"],
    image_id: str,
) -> Iterator[tuple[Look, Rows, bool]]:
    """Each draw's look, rows, and whether it was mirrored; the same whatever was predicted before.

    Args:
        detectors: ensemble members or snapshots.
        uncertainty: which draws.
        look: the first detector's; its rows are those of all draws.
        image: on the network's scale.
        image_id: dropout draws depend on it.
    """
    first = detectors[0]
    if uncertainty.draws == "mc_dropout":
        seeds = [derive_seed(0, "mc_dropout", image_id, k) for k in range(uncertainty.count)]
        for rows in first.draws(look, seeds):
            yield look, rows, False
        return
    yield look, first.rows(look), False
    if uncertainty.draws == "flips" and uncertainty.count > 1:
        turned = first.look(image, like=look, flip=True)
        yield turned, first.rows(turned), True
    elif uncertainty.draws in ("ensemble", "checkpoints"):
        for other in detectors[1:]:
            seen = other.look(image, like=look)
            yield seen, other.rows(seen), False


def predict_frame(
    detectors: Sequence[Detector],
    frame: Float32[np.ndarray, "3 rows cols"],
    *,
    image_id: str,
    detection: DetectionConfig,
    uncertainty: UncertaintyConfig,
    difficulty: Sequence[float],
    turn: AbstractContextManager[object] | None = None,
) -> FramePrediction:
    """All that the engine asks of one frame.

    Args:
        detectors: ensemble members or snapshots; the first one proposes.
        frame: RGB, 0..255, as stored.
        image_id: dropout draws depend on it.
        detection: scale, suppression.
        uncertainty: which draws.
        difficulty: of each class.
        turn: held while the networks look.

    Raises:
        DataError: if a network gave numbers that are not finite, whether or not a box would be kept.
    """
    device = next(detectors[0].module.parameters()).device
    shape = (frame.shape[1], frame.shape[2])
    factor = factor_of(shape, detection.long_side)
    size = (max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor)))
    image = resized(torch.from_numpy(frame).to(device), size)
    sums = RowSums()
    with turn or nullcontext(), torch.no_grad(), mixed_precision(device), deterministic(device):
        first = last = detectors[0].look(image)
        dense, looks = first.dense.float(), 1
        for look, rows, mirrored in draws(detectors, uncertainty, first, image, image_id):
            sums.add(rows, mirrored=mirrored)
            if look is not last:  # dropout draws share one look
                dense, last, looks = dense + look.dense.float(), look, looks + 1
        _check(sums, first, dense, image_id)
        found = sums.kept(detection)
    return FramePrediction(
        shape=shape,
        found=_stored(found, shape, size),
        dense=dense / looks,
        features=first.features.float(),
        difficulty=torch.tensor(difficulty, device=device),
        floor=detection.min_score if len(found) < detection.max_boxes else float(found.scores[-1]),
    )


def _check(sums: RowSums, look: Look, dense: Tensor, image_id: str) -> None:
    """NaN is above no threshold: unless it is told here, a broken network is one that finds nothing."""
    columns = {"corners": sums.boxes, "probs": sums.probs, "dense": dense, "features": look.features}
    for name, column in columns.items():  # a sum with NaN or an infinite number in it is not finite
        if not column.isfinite().all():
            raise DataError(
                f"{image_id}: the detector's {name} hold NaN or infinite numbers; "
                "look at the frame, or lower task.train.lr if the fit went astray"
            )


def _stored(found: Detections, shape: tuple[int, int], size: tuple[int, int]) -> Detections:
    """Corners in array order on the stored frame, inside it."""
    back = torch.tensor([shape[0] / size[0], shape[1] / size[1]] * 2, device=found.corners.device)
    top = torch.tensor([*shape, *shape], device=found.corners.device)
    corners = torch.minimum((found.corners[:, [1, 0, 3, 2]] * back).clamp_min(0), top)
    return Detections(corners, found.probs, found.expected_entropy, found.spread, found.consistency, found.embedding)
