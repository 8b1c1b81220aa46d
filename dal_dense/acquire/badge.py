"""BADGE: k-means++ on gradient embeddings (Ash et al. 2020), for regions."""

from __future__ import annotations

from collections.abc import Sequence

from dal_dense.acquire.base import Round
from dal_dense.acquire.basket import Basket
from dal_dense.acquire.fill import embedding_of, fill
from dal_dense.config import StrategyConfig
from dal_dense.offers import Offers
from dal_dense.select import badge as gradients


def badge(offers: Offers, basket: Basket, options: StrategyConfig, when: Round, quota_classes: Sequence[int]) -> None:
    """The row of the longest gradient, then rows drawn in proportion to the squared distance to those chosen.

    In a picture the gradient of the last layer is the residual, class by class, times the features. A region has
    many voxels, each with a residual of its own; the region's class-wise uncertainty (`class_score`) stands for
    them, and its embedding for the features. What is labelled plays no part, as published.

    Raises:
        ConfigError: if the offers carry no embedding.
    """
    rows = embedding_of(offers, "badge")
    fill(basket, gradients(offers.class_score, rows, offers.key, when.seed_for("badge")))
