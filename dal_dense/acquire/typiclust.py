"""TypiClust: typical regions of clusters that have no label yet (Hacohen, Dekel & Weinshall 2022)."""

from __future__ import annotations

from collections.abc import Sequence

from dal_dense.acquire.base import Round
from dal_dense.acquire.basket import Basket
from dal_dense.acquire.fill import embedding_of, fill, purchases
from dal_dense.config import StrategyConfig
from dal_dense.offers import Offers
from dal_dense.select import typiclust as typical


def typiclust(
    offers: Offers, basket: Basket, options: StrategyConfig, when: Round, quota_classes: Sequence[int]
) -> None:
    """As many clusters as there are labelled rows and rows to buy; those with the fewest labels first.

    Of each cluster the row whose nearest neighbours are closest.

    Raises:
        ConfigError: if the offers carry no embedding.
    """
    rows, seed = embedding_of(offers, "typiclust"), when.seed_for("typiclust")
    fill(basket, typical(rows, offers.labelled, purchases(basket, seed), offers.key, seed))
