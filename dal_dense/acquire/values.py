"""Small formulas that several strategies share."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from dal_dense.acquire.base import Round
from dal_dense.config import StrategyConfig
from dal_dense.offers import Offers

_TINY = 1e-30


def summed_score(offers: Offers) -> Float[Tensor, " N"]:
    """Score times volume, float64: what labelling the whole box is worth.

    `score` is a mean over the box; where boxes of several sizes compete for seconds, the sum counts.
    """
    return offers.score.double() * offers.extent


def log_of(score: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Logarithm in float64, finite at zero."""
    return torch.log(score.double().clamp_min(_TINY))


def scheduled_beta(options: StrategyConfig, when: Round) -> float:
    """Inverse noise of this round: from `beta` in the first to `beta_end` in the last, log-linear (ClaSP PE)."""
    return float(options.beta * (options.beta_end / options.beta) ** when.progress)
