"""The highest score first: plain uncertainty sampling (Lewis & Gale 1994) over regions."""

from __future__ import annotations

from collections.abc import Sequence

from dal_dense.acquire.base import Round
from dal_dense.acquire.basket import Basket
from dal_dense.config import StrategyConfig
from dal_dense.offers import Offers


def greedy(offers: Offers, basket: Basket, options: StrategyConfig, when: Round, quota_classes: Sequence[int]) -> None:
    """By mean score, as the literature does; cost decides only what is still affordable."""
    while (row := basket.best(offers.score)) is not None:
        basket.take(row, offers.score[row])
