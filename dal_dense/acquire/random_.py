"""Random regions: the baseline that every other strategy must beat."""

from __future__ import annotations

from collections.abc import Sequence

from dal_dense import noise
from dal_dense.acquire.base import Round
from dal_dense.acquire.basket import Basket
from dal_dense.config import StrategyConfig
from dal_dense.offers import Offers


def random_(offers: Offers, basket: Basket, options: StrategyConfig, when: Round, quota_classes: Sequence[int]) -> None:
    """All rows in one keyed random order, taken as long as they are affordable.

    Fair only if the rows on offer are: feed it boxes drawn at random, not peaks of a score.
    """
    draw = noise.uniform(offers.key, when.seed_for("random"), "order")
    while (row := basket.best(draw)) is not None:
        basket.take(row, draw[row])
