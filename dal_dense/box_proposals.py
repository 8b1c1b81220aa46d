"""What the model itself would answer to the regions asked of one frame; both detection adapters share it."""

from __future__ import annotations

import numpy as np
import torch

from dal_dense.boxes import OBJECT
from dal_dense.detections import FramePrediction
from dal_dense.regions import Regions, slices
from dal_dense.tasks.base import Proposal


def frame_proposals(pred: FramePrediction, regions: Regions, *, boxes_only: bool = False) -> list[Proposal]:
    """The predicted boxes inside each region, cut at its border, and the dense map there.

    Args:
        pred: the frame's detections.
        regions: what is asked.
        boxes_only: kind box: of each region only the box that it stands for.
    """
    corners = pred.found.corners.double().cpu().numpy()
    classes = pred.found.classes.double().cpu().numpy()
    sure = pred.found.scores.double().cpu().numpy()
    dense = pred.dense_map().float().cpu().numpy()
    pixels = pred.pixels()
    whole = torch.cat([pixels.start, pixels.stop], 1).cpu().numpy()
    proposals = []
    for box in regions.boxes():
        (top, left), (bottom, right) = box
        cut = np.clip(corners, [top, left, top, left], [bottom, right, bottom, right])
        middle = (corners[:, :2] + corners[:, 2:]) / 2
        here = ((middle >= (top, left)) & (middle < (bottom, right))).all(1) & (cut[:, 2:] > cut[:, :2]).all(1)
        rows = np.flatnonzero(here)
        if boxes_only:
            rows = np.flatnonzero((whole == (top, left, bottom, right)).all(1))[:1]  # best first
            cut[rows] = (top, left, bottom, right)
        table = np.column_stack([cut[rows], classes[rows], np.full(len(rows), float(OBJECT))])
        proposals.append(Proposal(table, np.ascontiguousarray(dense[slices(box)]), sure[rows]))
    return proposals
