"""Random regions: the baseline that every other strategy must beat."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from dal_dense import noise
from dal_dense.acquire.base import Round
from dal_dense.config import StrategyConfig
from dal_dense.offers import Offers


def random_(offers: Offers, options: StrategyConfig, when: Round) -> Float[Tensor, " N"]:
    """A keyed draw: rows are taken in a random order as long as they are affordable.

    Fair only if the rows on offer are: feed it boxes drawn at random, not peaks of a score.
    """
    return noise.uniform(offers.key, when.seed_for("random"), "order")
