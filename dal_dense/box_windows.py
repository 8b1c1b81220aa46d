"""What every window of a frame is worth, from the boxes inside: where crops are sought.

The same box sums as in volumes: the score of each predicted box stands as one point at its centre, so
that the sum over a window is exactly the sum over the boxes inside, plus a little of the dense map,
which speaks where no box was kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dal_dense import scores
from dal_dense.detections import FramePrediction

QUIET = 0.05
"""What the dense map adds to a window where it is at its highest, against a box of the mean score."""
EQUAL = 1e-5
"""Share of the best window's worth by which sums decide between windows of equal mean or largest score."""
TINY = 1e-30


Combine = Literal["sum", "mean", "max", "dense"]


def worth(
    pred: FramePrediction,
    combine: Combine,
    values: Float[Tensor, " M"],
    dense: Float[Tensor, "rows cols"],
    fields: Sequence[Float[Tensor, "rows cols"]],
    size: tuple[int, ...],
    stride: int,
) -> list[Float[Tensor, "r c"]]:
    """What a window is worth in all, then to each class, at every position of `scores.starts`; up to one scale.

    Means and largest scores are often equal; of equal windows the one with the larger sum is a little ahead.

    Args:
        pred: the frame's detections.
        combine: how boxes' scores become a window's; dense: the mean of the dense map, to a class the sum.
        values: score of each box.
        dense: the dense map on the frame's own pixels.
        fields: `points` of the scores, and of each class's part of them.
        size: of the windows, not larger than the frame.
        stride: step between positions, pixels.
    """
    hum = dense * (quiet(dense, values) / (size[0] * size[1]))
    sums = [scores.box_means(field + hum, size, stride) for field in fields]
    if combine == "sum":
        return sums
    if combine == "dense":
        return [scores.box_means(dense, size, stride), *sums[1:]]
    total, *by_class = (scores.box_means(field, size, stride) for field in fields)
    if combine == "mean":
        whole = total / scores.box_means(points(pred, torch.ones_like(values)), size, stride).clamp_min(TINY)
    else:
        whole = _largest(pred, values, size, stride)
    combined = [whole, *(whole * field / total.clamp_min(TINY) for field in by_class)]
    ahead = EQUAL * whole.amax().clamp_min(1e-6)
    return [field + ahead * near / near.amax().clamp_min(TINY) for field, near in zip(combined, sums, strict=True)]


def _largest(
    pred: FramePrediction, values: Float[Tensor, " M"], size: tuple[int, ...], stride: int
) -> Float[Tensor, "rows cols"]:
    """The largest value in every window; 0 where there is none."""
    columns = scores.starts(pred.shape, size, stride)
    best = torch.zeros([len(column) for column in columns], device=values.device)
    middle = _middles(pred).tolist()
    for n in values.argsort().tolist():  # larger values paint over smaller ones
        here = middle[n], [i + 1 for i in middle[n]]
        best[scores.touching(columns, size, *here)] = values[n]
    return best


def points(pred: FramePrediction, values: Float[Tensor, " M"]) -> Float[Tensor, "rows cols"]:
    """Each box's value on the pixel of its centre."""
    field = torch.zeros(pred.shape, device=values.device)
    return field.index_put_(_middles(pred).unbind(1), values, accumulate=True)


def _middles(pred: FramePrediction) -> Int[Tensor, "M 2"]:
    """The pixel of each box's centre."""
    middle = ((pred.found.corners[:, :2] + pred.found.corners[:, 2:]) / 2).long()
    return torch.minimum(middle.clamp_min(0), torch.tensor(pred.shape, device=middle.device) - 1)


def quiet(dense: Float[Tensor, "r c"], values: Float[Tensor, " M"]) -> Float[Tensor, ""]:
    """What a window's mean of the dense map is multiplied by: a twentieth of a box where the map is highest."""
    box = values.mean() if len(values) else dense.new_ones(())
    return QUIET * box.clamp_min(1e-6) / dense.amax().clamp_min(1e-12)
