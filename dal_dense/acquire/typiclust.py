"""TypiClust: typical regions of clusters that have no label yet (Hacohen, Dekel & Weinshall 2022)."""

from __future__ import annotations

from dal_dense.acquire.base import Aim
from dal_dense.acquire.basket import Basket
from dal_dense.acquire.spend import embedding_of, purchases, spend
from dal_dense.select import typiclust as typical


def typiclust(basket: Basket, aim: Aim) -> None:
    """As many clusters as there are labelled rows and rows to buy; those with the fewest labels first.

    Of each cluster the row whose nearest neighbours are closest.

    Raises:
        ConfigError: if the offers carry no embedding.
    """
    offers = basket.offers
    rows, seed = embedding_of(offers, "typiclust"), aim.when.seed_for("typiclust")
    spend(basket, typical(rows, offers.labelled, purchases(basket, seed), offers.key, seed))
