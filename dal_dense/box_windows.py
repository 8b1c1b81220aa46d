"""What every window of a frame is worth, from the boxes inside: where crops are sought.

The score of each predicted box stands as one point at its centre, so that a window's sum is exactly that of
the boxes inside, plus a little of the dense map, summed as in volumes, which speaks where no box was kept.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Float64, Int
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
    shares: Float[Tensor, "M C"],
    size: tuple[int, ...],
    stride: int,
) -> list[Float[Tensor, "r c"]]:
    """What a window is worth in all, then to each object class, at every position of `scores.starts`; up to scale.

    Means and largest scores are often equal; of equal windows the one with the larger sum is a little ahead.

    Args:
        pred: the frame's detections.
        combine: how boxes' scores become a window's; dense: the mean of the dense map, to a class the sum.
        values: score of each box.
        dense: the dense map on the frame's own pixels.
        shares: each class's part of a box; column 0 is of no meaning.
        size: of the windows, not larger than the frame.
        stride: step between positions, pixels.
    """
    hum = scores.box_means(dense, size, stride)
    parts = torch.cat([values[:, None], values[:, None] * shares[:, 1:]], 1)
    total, *by_class = boxes_in(pred, parts, size, stride)
    sums = [field + hum * quiet(dense, values) for field in (total, *by_class)]
    if combine == "sum":
        return sums
    if combine == "dense":
        return [hum, *sums[1:]]
    if combine == "mean":
        whole = total / boxes_in(pred, torch.ones_like(values)[:, None], size, stride)[0].clamp_min(TINY)
    else:
        whole = _largest(pred, values, size, stride)
    combined = [whole, *(whole * field / total.clamp_min(TINY) for field in by_class)]
    ahead = EQUAL * whole.amax().clamp_min(1e-6)
    return [field + ahead * near / near.amax().clamp_min(TINY) for field, near in zip(combined, sums, strict=True)]


def boxes_in(
    pred: FramePrediction, values: Float[Tensor, "M K"], size: tuple[int, ...], stride: int
) -> Float[Tensor, "K r c"]:
    """Sums over the boxes whose centres lie in a window, at every position; float64 in between, so that equals tie."""
    rows, cols = (
        _holds(torch.tensor(column, device=values.device), side, middle)
        for column, side, middle in zip(
            scores.starts(pred.shape, size, stride), size, _middles(pred).unbind(1), strict=True
        )
    )
    return (values.double().T[:, None] * rows @ cols.T).float()


def _holds(first: Int[Tensor, " p"], side: int, middle: Int[Tensor, " M"]) -> Float64[Tensor, "p M"]:
    """1 where first..first + side holds the middle."""
    return ((middle >= first[:, None]) & (middle < first[:, None] + side)).double()


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


def _middles(pred: FramePrediction) -> Int[Tensor, "M 2"]:
    """The pixel of each box's centre."""
    middle = ((pred.found.corners[:, :2] + pred.found.corners[:, 2:]) / 2).long()
    return torch.minimum(middle.clamp_min(0), torch.tensor(pred.shape, device=middle.device) - 1)


def quiet(dense: Float[Tensor, "r c"], values: Float[Tensor, " M"]) -> Float[Tensor, ""]:
    """What a window's mean of the dense map is multiplied by: a twentieth of a box where the map is highest."""
    box = values.mean() if len(values) else dense.new_ones(())
    return QUIET * box.clamp_min(1e-6) / dense.amax().clamp_min(1e-12)
