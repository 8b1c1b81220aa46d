"""MC-dropout before the last layer of a detector, on what a look has cached: what both frameworks share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as nnf


def dropped(values: Tensor, rate: float, seed: int | None) -> Tensor:
    """One draw of inverted dropout by its own seed; None: as they are.

    Of features that many rows share, one mask serves all, so that a draw is one function of the image
    (consistent dropout; Kirsch, van Amersfoort & Gal 2019).
    """
    if seed is None or rate == 0:
        return values
    generator = torch.Generator(values.device).manual_seed(seed)
    kept = torch.rand(values.shape, generator=generator, device=values.device).add_(1 - rate).floor_()
    return values * kept.div_(1 - rate)


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

    def logits(self, rate: float, seed: int) -> Float[Tensor, "R K"]:
        """One draw of dropout, in float32: whole channels of a level are dropped, as in training."""
        shape = len(self.per_level), self.patches.shape[1]
        masks = dropped(torch.ones(shape, device=self.patches.device), rate, seed)
        with torch.autocast(self.patches.device.type, enabled=False):
            return torch.cat(self._at_points(masks) if len(self.weight) == 1 else self._at_anchors(masks))

    def _at_points(self, masks: Float[Tensor, "levels channels"]) -> list[Float[Tensor, "_ K"]]:
        """One weight for all rows: it is masked, and a draw costs a product a level."""
        levels = torch.split(self.patches.flatten(1), list(self.per_level))
        weights = (self.weight * masks[:, None, :, None]).flatten(2)
        return [torch.addmm(self.bias[0], level, weight.T) for level, weight in zip(levels, weights, strict=True)]

    def _at_anchors(self, masks: Float[Tensor, "levels channels"]) -> list[Float[Tensor, "_ K"]]:
        levels, biases = (torch.split(each, list(self.per_level)) for each in (self._by_channel, self._bias))
        return [bias + level @ mask for level, bias, mask in zip(levels, biases, masks, strict=True)]

    @cached_property
    def _bias(self) -> Float[Tensor, "R K"]:
        return self.bias[self.kind]

    @cached_property
    def _by_channel(self) -> Float[Tensor, "R K channels"]:
        """What each channel adds to each row's logits: a draw weighs and sums these."""
        result = self.patches.new_zeros(len(self.patches), *self.weight.shape[1:3])
        for number, own in enumerate(self.weight):
            mine = self.kind == number
            result[mine] = torch.einsum("rcp,kcp->rkc", self.patches[mine], own)
        return result
