"""Look windows: ground where a detector may have missed an object, to be asked beside its boxes (`query.kind: box`).

A prediction can be verified, fixed or rejected; an object that was never proposed can only be drawn by somebody who
looks for it. Windows are sought where the dense map is highest beside the kept boxes: on a box the map is high too,
and that ground is a question already.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from dal_dense import candidates, scores
from dal_dense.box_scores import binary_entropy
from dal_dense.detections import FramePrediction
from dal_dense.regions import Regions, joined, slices

EDGE = 0.25
"""Share of a kept box's side that a window may cut off; so little of an object need not be drawn, see `min_visible`."""

LEAST = 0.01
"""Least chance that the surest dropped box is given; `min_score` may be 0."""


def look_windows(
    pred: FramePrediction, sizes: Sequence[Sequence[int]], stride: int, count: int, taken: Regions
) -> Regions:
    """The best windows of each size by the dense map that no kept box covers; those of a size do not overlap.

    None reaches beyond the outer quarter of a kept box, so none holds its centre, and a window and the boxes of its
    frame may all be asked in one round.

    Args:
        pred: the frame's detections.
        sizes: rows and columns.
        stride: step of the windows' places, pixels.
        count: windows at most, a size.
        taken: ground that no window may touch: labelled, asked, judged.

    Raises:
        ConfigError: if a size has another number of axes than a frame.
    """
    field = _uncovered(pred)
    taken = joined(taken, _cores(pred))
    found = [
        candidates.peak_boxes(field, size, stride, count, taken)
        for size in candidates.box_sizes("crop", sizes, pred.shape, None)
    ]
    windows = joined(taken[:0], *found)
    return windows[scores.means_in(field[None], windows)[:, 0] > 0]


def look_figures(
    pred: FramePrediction, values: Float[Tensor, " M"], windows: Regions
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Objects to expect in each window, and what the whole window is worth in the unit of the boxes' values.

    What the detector saw there it dropped, for a score of at most `floor`, f. If as many boxes have a score in f/2..f
    as in f..2f, and so on down, then all that were dropped hold together as many objects as the kept ones in f..2f
    (1/2 + 1/4 + ... = 1), and are taken to be worth as much. They, and one box of chance f more so that there is no
    zero, are spread over the dense map; a window has the share of the map in it that no kept box covers. (By the rate
    of all kept boxes' scores to the map, many times too many objects are expected: those were found.)

    One box more is worth the mean of those in f..2f, or where there are none the entropy of f.

    Args:
        pred: the frame's detections.
        values: of the kept boxes.
        windows: as `look_windows` found them.
    """
    dense, sure = pred.dense.float(), pred.found.scores.float()
    least = sure.new_tensor([max(pred.floor, LEAST)])
    low = sure <= 2 * least
    one = values[low].mean() if low.any() else binary_entropy(least)
    objects, worth = least + sure[low].sum(), one + values[low].sum()
    mean = scores.means_in(_uncovered(pred)[None], windows)[:, 0]
    share = mean / dense.mean().clamp_min(1e-12) * windows.volume() / math.prod(pred.shape)
    return objects * share, worth * share


def _uncovered(pred: FramePrediction) -> Float[Tensor, "rows cols"]:
    """The dense map, 0 where a kept box lies."""
    field = pred.dense_map().clone()
    for box in pred.pixels().boxes():
        field[slices(box)] = 0
    return field


def _cores(pred: FramePrediction) -> Regions:
    """Kept boxes without their outer quarters, at least the pixel of the centre; as they are and in whole pixels."""
    low, high = pred.found.corners[:, :2], pred.found.corners[:, 2:]
    start = torch.minimum((low + EDGE * (high - low)).floor(), torch.tensor(pred.shape, device=low.device) - 1).long()
    stop = torch.maximum((high - EDGE * (high - low)).ceil().long(), start + 1)
    asked = pred.pixels()  # a box thinner than a pixel may be rounded to the one beside it
    edge = (EDGE * (asked.stop - asked.start)).long()
    return Regions(torch.minimum(start, asked.start + edge), torch.maximum(stop, asked.stop - edge))
