"""Hybrid, the default: uncertainty, class balance, diversity and cost in one product.

    utility = U * volume * D^diversity / seconds^cost_power * exp(Gumbel / beta_t)
    U = (1 - q) * score / <score> + q * C / <C>,        q = class_share
    C = sum over quota classes c of w_c * class_score_c,   w_c = rarity_c^balance
    D = distance to the nearest labelled or chosen embedding / its median, clipped to 0.05..1

Means <.> and the median are those of a sample of the rows on offer: of all where there are not many; a term whose
mean is 0 is left out. What it takes from where. Quotas and fading noise: ClaSP PE (nnActive; Lüth
et al. 2025). Weights from what is labelled so far instead of equal quotas, which ask for easy classes for ever.
Distance to labelled ground as core-set (Sener & Savarese 2018), capped at the median so that it punishes repetition
and does not reward outliers. Value per second: CEF (Leskovec et al. 2007). Every factor is a ratio, so units, the
choice of score and the width of the embedding cancel.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dal_dense.acquire.base import Aim, Round
from dal_dense.acquire.distance import nearest
from dal_dense.acquire.hybrid_scales import Columns, Scales
from dal_dense.acquire.hybrid_shard import HybridShard
from dal_dense.acquire.shortlist import Picks, Rows, Shards, fill
from dal_dense.acquire.survey import sample_of, surveyed
from dal_dense.config import StrategyConfig
from dal_dense.offers import Offers

SAMPLE = 4096
"""Rows on offer whose means and median stand for all."""
UNSEEN = 0.01
"""Share of the ground that a class is credited with before any of it is seen: bounds its weight."""
MOST = 1 << 16
"""Rows that all shards together hand over at most, unless none can be bought: they come with their features."""
_ROUNDING = 1e-12
"""By so much, relative to a utility, the same one may differ between a shard and here."""


class Hybrid:
    """The strategy, as `ranking.Sharded` says."""

    shard = HybridShard

    def choose(self, shards: Shards, aim: Aim) -> Picks:
        """Take the row of greatest utility; then update prices, class weights and distances.

        Without an embedding D is 1; without quota classes U is the score alone.
        """
        return fill(shards, aim.budget, _Rule(surveyed(shards, aim.when, SAMPLE), aim.options, aim.when))


class _Rule:
    """The utility of some rows as the basket fills, as `shortlist.Rule` says."""

    def __init__(self, surveyed: Offers, options: StrategyConfig, when: Round) -> None:
        """`surveyed`: as `survey.surveyed` finds it; of class columns there are those of the quota."""
        self._options, self._when = options, when
        labelled, sample = surveyed[surveyed.labelled], sample_of(surveyed, when, SAMPLE)
        self._ground = labelled.shares.sum(0)
        self._labelled: Tensor | None = labelled.embedding
        self._score, self._by_class = sample.score.double().mean(), sample.class_score.double().mean(0)
        self._sample = sample.embedding
        self._far = _distance(self._sample, labelled.embedding)
        self._asked = self._now = self._scales()

    def asks(self) -> Scales:
        """See `Rule`; labelled ground is told once."""
        self._asked, told = self._now, replace(self._now, labelled=self._labelled)
        self._labelled = None
        return told

    def begins(self, rows: Rows) -> None:
        """See `Rule`; `rows.worth` are distances."""
        quota = range(rows.offers.class_score.shape[1])
        self._columns = replace(Columns.of(rows.offers, self._options, self._when, quota), far=rows.worth.float())
        self._embedding, self._mass = rows.offers.embedding, rows.offers.shares

    def ranks(self, price: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """See `Rule`."""
        return self._now.utility(self._columns, price)

    def takes(self, row: int) -> None:
        """See `Rule`."""
        taken = self._embedding[row : row + 1]
        self._ground = self._ground + self._mass[row]
        self._far = torch.minimum(self._far, _distance(self._sample, taken))
        far = torch.minimum(self._columns.far, _distance(self._embedding, taken))
        self._columns = replace(self._columns, far=far)
        self._now = self._scales()

    def lifted(self, floor: float) -> float:
        """See `Rule`."""
        return floor + self._now.rise_since(self._asked) + _ROUNDING * (1 + abs(floor))

    @property
    def most(self) -> int:
        """See `Rule`."""
        return MOST

    def _scales(self) -> Scales:
        share = self._options.class_share if len(self._ground) else 0.0
        weight = _rarity(self._ground, self._options.balance)
        mean, score = (weight * self._by_class).sum(), float(self._score)
        reached = self._far.isfinite().all()
        return Scales(
            options=self._options,
            score=(1 - share) / score if score > 0 else 0.0,
            classes=share * weight / mean if mean > 0 else torch.zeros_like(weight),
            middle=max(float(self._far.median()), 1e-30) if reached else math.inf,
        )


def _rarity(ground: Float[Tensor, " Q"], balance: float) -> Float[Tensor, " Q"]:
    """Weight of each class: its share of labelled and chosen ground, inverted, to the power of balance; 1 at most."""
    ground = ground + UNSEEN * ground.sum().clamp_min(1e-30)
    return (ground.min() / ground) ** balance if len(ground) else ground


def _distance(rows: Float[Tensor, "n E"], centres: Float[Tensor, "m E"]) -> Float[Tensor, " n"]:
    """To the nearest; infinite where there is nothing to be far from."""
    return nearest(rows, centres) if rows.shape[1] else torch.full((len(rows),), torch.inf)
