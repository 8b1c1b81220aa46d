"""Which anchors, proposals and points may count as background where only part of a window is labelled.

One that is no positive may be background only if, after it was cut to the image, at least half of
it lies on known ground, or if it overlaps a rejected prediction by IoU 0.5 and less than half of it lies on
ground to ignore. All others are ignored: no gradient comes from them. Cutting first matters: half of a border
anchor may lie outside.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchvision.ops import box_iou

KNOWN = 0.5
"""Share of a box on known ground from which it may be background."""

REJECTED = 0.5
"""IoU with a rejected prediction from which a box is background."""

HIDDEN = 0.5
"""Share of a box on ground to ignore from which it is never background, whatever was rejected there."""

CHUNK = 1 << 22
"""Entries of a matrix of overlaps that are held at once."""


def area_table(known: Bool[Tensor, "h w"]) -> Float[Tensor, "h+1 w+1"]:
    """Summed-area table: entry (r, c) counts the known pixels above row r and left of column c."""
    table = torch.zeros(known.shape[0] + 1, known.shape[1] + 1, device=known.device)
    table[1:, 1:] = known.float().cumsum(0).cumsum(1)
    return table


def cut_to_image(boxes: Float[Tensor, "n 4"], height: int, width: int) -> Float[Tensor, "n 4"]:
    """Boxes x0 y0 x1 y1 cut at the image's border; one outside is empty."""
    x, y = boxes.reshape(len(boxes), 2, 2).unbind(2)
    return torch.stack([x.clamp(0, width), y.clamp(0, height)], 2).flatten(1)


def known_share(boxes: Float[Tensor, "n 4"], known: Float[Tensor, "rows cols"]) -> Float[Tensor, " n"]:
    """Share of each box, cut to the image, that lies on known ground; 0 for an empty box.

    Args:
        boxes: x0 y0 x1 y1.
        known: the summed-area table of any ground, one row and column more than the image.
    """
    cut = cut_to_image(boxes.float(), known.shape[0] - 1, known.shape[1] - 1)
    x0, y0, x1, y1 = cut.T.contiguous()
    area = (x1 - x0) * (y1 - y0)
    far, left, top, near = _at(known, torch.stack([y1, y1, y0, y0]), torch.stack([x1, x0, x1, x0]))
    inside = far - left - top + near
    return torch.where(area > 0, inside / area.clamp_min(1e-6), torch.zeros_like(area))


def _at(table: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """The table between its entries; bilinear is exact, since ground is constant within a pixel."""
    row, col = y.long().clamp(0, table.shape[0] - 2), x.long().clamp(0, table.shape[1] - 2)
    down, right = y - row, x - col
    flat, first = table.flatten(), row * table.shape[1] + col
    above = torch.lerp(flat.take(first), flat.take(first + 1), right)
    first += table.shape[1]
    below = torch.lerp(flat.take(first), flat.take(first + 1), right)
    return torch.lerp(above, below, down)


def may_be_background(
    boxes: Float[Tensor, "n 4"],
    known: Float[Tensor, "rows cols"],
    absent: Float[Tensor, "k 4"],
    ignored: Float[Tensor, "rows cols"],
) -> Bool[Tensor, " n"]:
    """May each of these boxes, none of them a positive, be taught as background?"""
    allowed = known_share(boxes, known) >= KNOWN
    if len(absent):
        cut = cut_to_image(boxes.float(), known.shape[0] - 1, known.shape[1] - 1)
        allowed |= overlaps(cut, absent, REJECTED) & (known_share(cut, ignored) < HIDDEN)
    return allowed


def overlaps(boxes: Float[Tensor, "n 4"], others: Float[Tensor, "k 4"], least: float) -> Bool[Tensor, " n"]:
    """Does each box overlap any of the others by this IoU?"""
    hit = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    if len(others) and len(boxes):
        step = max(1, CHUNK // len(others))
        hit = torch.cat([(box_iou(part, others) >= least).any(1) for part in torch.split(boxes, step)])
    return hit


def points_known(points: Float[Tensor, "n 2"], known: Float[Tensor, "rows cols"]) -> Bool[Tensor, " n"]:
    """Does the pixel under each point (x, y) lie on known ground, or any other of such a table? False outside."""
    height, width = known.shape[0] - 1, known.shape[1] - 1
    col, row = points.floor().long().unbind(1)
    inside = (col >= 0) & (row >= 0) & (col < width) & (row < height)
    col, row = col.clamp(0, width - 1), row.clamp(0, height - 1)
    pixel = known[row + 1, col + 1] - known[row, col + 1] - known[row + 1, col] + known[row, col]
    return inside & (pixel > 0.5)
