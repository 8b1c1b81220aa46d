"""The highest score first: plain uncertainty sampling (Lewis & Gale 1994) over regions."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from dal_dense.acquire.base import Round
from dal_dense.config import StrategyConfig
from dal_dense.offers import Offers


def greedy(offers: Offers, options: StrategyConfig, when: Round) -> Float[Tensor, " N"]:
    """The mean score, as in the literature; cost decides only what is still affordable."""
    return offers.score
