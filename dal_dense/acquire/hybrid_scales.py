"""The formula of hybrid: what its utility is made of, and how far it can rise while the scales change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dal_dense import noise
from dal_dense.acquire.base import Round
from dal_dense.acquire.values import log_of, scheduled_beta
from dal_dense.config import StrategyConfig
from dal_dense.offers import Offers

CLOSEST = 0.05
"""Least factor of diversity: a copy of labelled ground is worth a twentieth, not nothing."""


@dataclass(frozen=True)
class Columns:
    """What the utility of rows is made of, apart from their price.

    Attributes:
        fixed: logarithm of volume and noise.
        score: mean score.
        by_class: the same by quota class.
        far: distance to the nearest labelled or chosen row, or more where that is not known yet.
    """

    fixed: Float64[Tensor, " n"]
    score: Float64[Tensor, " n"]
    by_class: Float64[Tensor, "n Q"]
    far: Float[Tensor, " n"]

    @classmethod
    def of(cls, offers: Offers, options: StrategyConfig, when: Round, quota_classes: Sequence[int]) -> Columns:
        """Those of some rows, of which nothing is known to be near."""
        draw = noise.gumbel(offers.key, when.seed_for("hybrid"), "hybrid") / scheduled_beta(options, when)
        return cls(
            fixed=draw + log_of(offers.extent),
            score=offers.score.double(),
            by_class=offers.class_score[:, list(quota_classes)].double(),
            far=torch.full_like(offers.score, torch.inf),
        )


@dataclass(frozen=True)
class Scales:
    """What all rows are measured by after some picks; it travels to the shards.

    Attributes:
        options: of the strategy.
        score, classes: weights of the score and of the classes' scores in U, (Q,).
        middle: median distance; infinite while there is nothing to be far from.
        labelled: features of all labelled ground, told when a choice begins; None after that.
    """

    options: StrategyConfig
    score: float
    classes: Float64[Tensor, " Q"]
    middle: float
    labelled: Float[Tensor, "M E"] | None = None

    def utility(self, columns: Columns, price: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """Its logarithm, float64; at most, where `far` is more than the distance."""
        value = self.score * columns.score + (columns.by_class * self.classes.to(price.device)).sum(1)
        found = columns.fixed + log_of(value) - self.options.cost_power * log_of(price)
        if self.middle == math.inf:
            return found
        return found + self.options.diversity * torch.log((columns.far.double() / self.middle).clamp(CLOSEST, 1.0))

    def rise_since(self, before: Scales) -> float:
        """By how much the utility of a row may have risen, at most: its distance can only have fallen."""
        ratios = torch.nan_to_num(self.classes / before.classes, nan=0.0, posinf=math.inf)  # 0 / 0: no such class
        ratio = max([1.0, *ratios.tolist()])
        # without a middle every row had the greatest diversity that there is
        nearer = 1.0 if before.middle == math.inf else before.middle / self.middle
        return math.log(ratio) + self.options.diversity * math.log(min(max(nearer, 1.0), 1 / CLOSEST))


def mass_of(offers: Offers, quota_classes: Sequence[int], *, objects: bool) -> Float64[Tensor, "n Q"]:
    """What rows hold of each quota class: ground, or `objects`."""
    amount = offers.objects.double() if objects else offers.extent
    return offers.shares[:, list(quota_classes)].double() * amount[:, None]
