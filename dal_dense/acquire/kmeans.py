"""k-means: one region from each cluster of the unlabelled ones (Zhdanov 2019, without its weights)."""

from __future__ import annotations

from collections.abc import Sequence

from dal_dense.acquire.base import Round
from dal_dense.acquire.basket import Basket
from dal_dense.acquire.fill import embedding_of, fill, purchases
from dal_dense.config import StrategyConfig
from dal_dense.offers import Offers
from dal_dense.select import k_means_picker


def kmeans(offers: Offers, basket: Basket, options: StrategyConfig, when: Round, quota_classes: Sequence[int]) -> None:
    """As many clusters as the budget buys rows, the largest first: of each the row nearest its centre.

    If money is left, the clusters are served a second time.

    Raises:
        ConfigError: if the offers carry no embedding.
    """
    rows, seed = embedding_of(offers, "kmeans"), when.seed_for("kmeans")
    fill(basket, k_means_picker(rows, ~offers.labelled, purchases(basket, seed), offers.key, seed))
