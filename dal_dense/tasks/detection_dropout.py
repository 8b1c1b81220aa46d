"""MC-dropout before the last layer of a detector, on what a look has cached: what both frameworks share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as nnf

AT_ONCE = 1 << 24
"""Numbers that are worked on together, 64 MiB: small networks take all draws in one go, large ones a few."""


def masks(shape: tuple[int, ...], rate: float, seeds: Sequence[int], device: torch.device) -> Float[Tensor, "T *shape"]:
    """Inverted dropout, each draw by its own seed and whatever it is drawn beside.

    Of features that many rows share, one mask serves all, so that a draw is one function of the image
    (consistent dropout; Kirsch, van Amersfoort & Gal 2019).
    """
    drawn = [torch.rand(shape, generator=torch.Generator(device).manual_seed(s), device=device) for s in seeds]
    return (torch.stack(drawn) >= rate).float().div_(1 - rate)


def together(seeds: Sequence[int], numbers: int) -> Iterator[Sequence[int]]:
    """As many draws at a time as `AT_ONCE` allows, at least one.

    Args:
        seeds: one a draw.
        numbers: that a draw takes.
    """
    most = max(1, AT_ONCE // max(1, numbers))
    return (seeds[first : first + most] for first in range(0, len(seeds), most))


def around(
    grid: Float[Tensor, "channels h w"], row: Int[Tensor, " n"], column: Int[Tensor, " n"]
) -> Float[Tensor, "n channels 9"]:
    """The 3 x 3 neighbourhoods of some places, zero beyond the border."""
    padded = nnf.pad(grid.permute(1, 2, 0), (0, 0, 1, 1, 1, 1))  # channels last: whole runs of memory are copied
    width, steps = padded.shape[1], torch.arange(3, device=grid.device)
    cells = (row * width + column)[:, None] + (steps[:, None] * width + steps).flatten()
    return padded.flatten(0, 1)[cells].transpose(1, 2)


@dataclass(frozen=True)
class LastLayer:
    """The convolution that names the classes of RetinaNet's anchors and FCOS's points, at R of them.

    Attributes:
        patches: what it sees of each, float32; level by level.
        per_level: how many of them are of each level.
        kind: which of its place's anchors each is.
        weight: by kind of anchor and class.
        bias: likewise.
    """

    patches: Float[Tensor, "R channels 9"]
    per_level: tuple[int, ...]
    kind: Int[Tensor, " R"]
    weight: Float[Tensor, "A K channels 9"]
    bias: Float[Tensor, "A K"]

    @torch.no_grad()
    def logits(self, rate: float, seeds: Sequence[int]) -> Float[Tensor, "T R K"]:
        """Draws of dropout, in float32: whole channels of a level are dropped, as in training.

        What each channel adds to a row's logits is found once for all of them; a draw only weighs and sums these.
        """
        channels, classes = self.patches.shape[1], self.weight.shape[1]
        drawn = masks((len(self.per_level), channels), rate, seeds, self.patches.device)
        most, found = max(1, AT_ONCE // (classes * channels)), []
        levels = (torch.split(column, list(self.per_level)) for column in (self.patches, self.kind))
        with torch.autocast(self.patches.device.type, enabled=False):
            for mask, *level in zip(drawn.unbind(1), *levels, strict=True):
                for patches, kind in zip(*(torch.split(column, most) for column in level), strict=True):
                    weighed = mask @ self._shares(patches, kind).flatten(0, 1).T
                    found.append(weighed.reshape(len(seeds), -1, classes) + self.bias[kind])
        return torch.cat(found, 1)

    def _shares(self, patches: Float[Tensor, "r channels 9"], kind: Int[Tensor, " r"]) -> Float[Tensor, "r K channels"]:
        """What each channel adds to the logits of some rows."""
        if len(self.weight) == 1:
            return torch.einsum("rcp,kcp->rkc", patches, self.weight[0])
        order = kind.argsort()
        alike = torch.split(patches[order], torch.bincount(kind, minlength=len(self.weight)).tolist())
        shares = [torch.einsum("rcp,kcp->rkc", *each) for each in zip(alike, self.weight, strict=True)]
        return torch.cat(shares)[order.argsort()]
