"""One image as a Detectron2 network sees it, and the way back to the image's own pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as nnf


@dataclass(frozen=True)
class View:
    """An image after padding, mirrored or not.

    Attributes:
        size: height and width before padding.
        padded: width after it; mirrored columns are counted from there.
        flip: it was mirrored, padding included, so that cells of all levels fall on cells.
    """

    size: tuple[int, int]
    padded: int
    flip: bool

    def turn(self, boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4"]:
        """To the mirrored image or back; as they are if it is not mirrored."""
        if not self.flip:
            return boxes
        x0, y0, x1, y1 = boxes.unbind(1)
        return torch.stack([self.padded - x1, y0, self.padded - x0, y1], 1)

    def evenly(self, grid: Float[Tensor, "c h w"], stride: int, cell: int) -> Float[Tensor, "c r2 c2"]:
        """A padded map of this stride, read off at the centres of cells that divide the image evenly.

        Args:
            grid: its cell (i, j) stands for rows i*stride to (i+1)*stride.
            stride: of the map.
            cell: about the size of a cell of the result, pixels.
        """
        height, width = self.size
        rows, cols = -(-height // cell), -(-width // cell)
        y = (torch.arange(rows, device=grid.device) + 0.5) * height / rows
        x = (torch.arange(cols, device=grid.device) + 0.5) * width / cols
        x = self.padded - x if self.flip else x
        y, x = 2 * y / (stride * grid.shape[1]) - 1, 2 * x / (stride * grid.shape[2]) - 1
        place = torch.stack([x.expand(rows, cols), y[:, None].expand(rows, cols)], -1)
        return nnf.grid_sample(grid[None].float(), place[None], padding_mode="border", align_corners=False)[0]


def bernoulli_entropy(logits: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Entropy of a sigmoid, nats: softplus(x) - x sigmoid(x)."""
    return (nnf.softplus(logits) - logits * logits.sigmoid()).clamp_min(0)


def dense_map(
    view: View, logits: Sequence[Float[Tensor, "anchors _ _"]], strides: Sequence[int]
) -> Float[Tensor, "r c"]:
    """The largest entropy over anchors and levels, on the finest level's grid."""
    spread = [
        view.evenly(bernoulli_entropy(each.float()).amax(0, keepdim=True), stride, strides[0])
        for each, stride in zip(logits, strides, strict=True)
    ]
    return torch.cat(spread).amax(0)


def coarse_features(
    view: View, levels: Sequence[Float[Tensor, "1 E _ _"]], strides: Sequence[int]
) -> Float[Tensor, "E r2 c2"]:
    """Features of the third level, or of the last one."""
    level = min(2, len(levels) - 1)
    return view.evenly(levels[level][0], strides[level], strides[level])


@contextmanager
def heard(module: nn.Module, take: Callable[[Any], None]) -> Iterator[None]:
    """Listen to a module's outputs while it works inside Detectron2's own forward."""
    handle = module.register_forward_hook(lambda module, inputs, output: take(output))
    try:
        yield
    finally:
        handle.remove()
