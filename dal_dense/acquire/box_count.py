"""Most expected objects first: a control that tells crowded from informative.

It tops many published comparisons by frames and is among the worst by boxes (Lyu et al. 2023, BoxCnt).
"""

from __future__ import annotations

from collections.abc import Sequence

from dal_dense.acquire.base import Round
from dal_dense.acquire.basket import Basket
from dal_dense.config import StrategyConfig
from dal_dense.offers import Offers


def box_count(
    offers: Offers, basket: Basket, options: StrategyConfig, when: Round, quota_classes: Sequence[int]
) -> None:
    """By the expected number of objects in the region; cost decides only what is still affordable."""
    while (row := basket.best(offers.objects)) is not None:
        basket.take(row, offers.objects[row])
