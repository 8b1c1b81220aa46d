"""Spread evenly over groups, images, time and space, without a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dal_dense import noise
from dal_dense.acquire.base import Round
from dal_dense.acquire.basket import Basket
from dal_dense.config import StrategyConfig
from dal_dense.offers import Offers


class _Spread:
    """How crowded each row's surroundings are, given what is labelled and taken. All (N,)."""

    def __init__(self, offers: Offers) -> None:
        self.offers = offers
        zero = torch.zeros_like(offers.image)
        self.in_group: Int[Tensor, " N"] = zero
        self.in_image: Int[Tensor, " N"] = zero.clone()
        self.near_in_time: Float[Tensor, " N"] = torch.full_like(zero, -torch.inf, dtype=torch.float64)
        self.near_in_space: Float[Tensor, " N"] = self.near_in_time.clone()

    def add(self, row: int) -> None:
        """Count one more region; nearness is minus the distance to the nearest counted one."""
        o = self.offers
        same_group, same_image = o.group == o.group[row], o.image == o.image[row]
        self.in_group = self.in_group + same_group
        self.in_image = self.in_image + same_image
        steps = -(o.image - o.image[row]).abs().double()
        self.near_in_time = torch.where(same_group, torch.maximum(self.near_in_time, steps), self.near_in_time)
        centre = (o.regions.start + o.regions.stop).double() / 2
        side = (o.regions.stop[row] - o.regions.start[row]).double()  # box sides: no unit, no spacing
        apart = -((centre - centre[row]) / side).norm(dim=1)
        self.near_in_space = torch.where(same_image, torch.maximum(self.near_in_space, apart), self.near_in_space)


def uniform(offers: Offers, basket: Basket, options: StrategyConfig, when: Round, quota_classes: Sequence[int]) -> None:
    """Farthest first, by one criterion after another.

    Fewest regions in the group, then fewest in the image, then farthest from any asked image of the group by
    `Offers.image` (frames of a drive follow each other in the round's listing, by time or id), then farthest
    from any asked box of the image, in box sides, then a keyed draw. Labelled rows count as asked.
    """
    draw = noise.uniform(offers.key, when.seed_for("uniform"), "order")
    spread = _Spread(offers)
    for row in offers.labelled.nonzero()[:, 0].tolist():
        spread.add(row)
    while (ok := basket.affordable()).any():
        for level in (spread.in_group, spread.in_image, spread.near_in_time, spread.near_in_space):
            ok &= level == level[ok].min()
        row = int(torch.where(ok, draw, -1.0).argmax())
        basket.take(row, draw[row])
        spread.add(row)
