"""k-means: one region from each cluster of the unlabelled ones (Zhdanov 2019, without its weights)."""

from __future__ import annotations

from dal_dense.acquire.base import Aim
from dal_dense.acquire.basket import Basket
from dal_dense.acquire.spend import embedding_of, purchases, spend
from dal_dense.select import k_means_picker


def kmeans(basket: Basket, aim: Aim) -> None:
    """As many clusters as the budget buys rows, the largest first: of each the row nearest its centre.

    If money is left, the clusters are served a second time.

    Raises:
        ConfigError: if the offers carry no embedding.
    """
    offers = basket.offers
    rows, seed = embedding_of(offers, "kmeans"), aim.when.seed_for("kmeans")
    spend(basket, k_means_picker(rows, ~offers.labelled, purchases(basket, seed), offers.key, seed))
