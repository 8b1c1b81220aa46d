"""Power sampling: greedy on a noisy logarithm, a batch without near-duplicates of the top.

Kirsch et al. 2021 (stochastic batch acquisition); as PowerPE in nnActive (Lüth et al. 2025).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from dal_dense import noise
from dal_dense.acquire.base import Round
from dal_dense.acquire.values import log_of
from dal_dense.config import StrategyConfig
from dal_dense.offers import Offers


def power(offers: Offers, options: StrategyConfig, when: Round) -> Float[Tensor, " N"]:
    """log(score) + Gumbel / beta: draws without replacement, with chance proportional to score^beta."""
    return log_of(offers.score) + noise.gumbel(offers.key, when.seed_for("power"), "power") / options.beta
