"""How hard each class is for a detector, measured on what it was trained on (PPAL; Yang et al. 2024).

The quality of an object is the best p^0.6 * IoU^0.4 over the boxes found on it; the difficulty of a
class is 1 less the mean quality of its objects.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import box_iou

from dal_dense.errors import Stopped
from dal_dense.tasks.base import Hooks
from dal_dense.tasks.detection_backend import Detector, Rows, Sample
from dal_dense.tasks.detection_ground import Windows
from dal_dense.tasks.training import deterministic, mixed_precision

MOST = 200
"""Training windows that are looked at."""

SURE = 0.6
"""PPAL's weight of the probability against the overlap."""

UNSEEN = 1.0
"""Difficulty of a class of which no object was seen."""


def class_difficulty(detector: Detector, windows: Windows, classes: int, hooks: Hooks) -> tuple[float, ...]:
    """Difficulty by class number, 0..1; background has 0.

    Raises:
        Stopped: the person asked to stop.
    """
    device = next(detector.module.parameters()).device
    step = max(1, -(-len(windows.pieces) // MOST))
    found = [(torch.zeros(0, dtype=torch.int64), torch.zeros(0))]
    for number in range(0, len(windows.pieces), step):
        if hooks.stopping():
            raise Stopped
        sample = windows.plain(number)
        if len(sample.boxes):
            with torch.no_grad(), mixed_precision(device), deterministic(device):
                rows = detector.rows(detector.look(sample.image))
            found.append((sample.classes, qualities(rows, sample)))
    kinds, quality = (torch.cat(column) for column in zip(*found, strict=True))
    means = [float(quality[kinds == c].mean()) if (kinds == c).any() else 1 - UNSEEN for c in range(1, classes)]
    return (0.0, *(1 - mean for mean in means))


def qualities(rows: Rows, sample: Sample) -> Float[Tensor, " n"]:
    """Of each object of a window."""
    if not len(rows.boxes):
        return torch.zeros(len(sample.boxes))
    overlap = box_iou(sample.boxes, rows.boxes.float().cpu())
    sure = rows.probs.float().cpu()[:, sample.classes].T
    best: Tensor = (sure**SURE * overlap ** (1 - SURE)).amax(1)
    return best
