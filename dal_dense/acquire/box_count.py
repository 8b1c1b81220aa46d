"""Most expected objects first: a control that tells crowded from informative.

It tops many published comparisons by frames and is among the worst by boxes (Lyu et al. 2023, BoxCnt).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from dal_dense.acquire.base import Round
from dal_dense.config import StrategyConfig
from dal_dense.offers import Offers


def box_count(offers: Offers, options: StrategyConfig, when: Round) -> Float[Tensor, " N"]:
    """The expected number of objects in the region; cost decides only what is still affordable."""
    return offers.objects
