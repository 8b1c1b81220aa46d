"""Facility location on embeddings: regions that stand for the whole pool (Wei, Iyer & Bilmes 2015)."""

from __future__ import annotations

from collections.abc import Sequence

from dal_dense.acquire.base import Round
from dal_dense.acquire.basket import Basket
from dal_dense.acquire.fill import embedding_of, fill
from dal_dense.config import StrategyConfig
from dal_dense.offers import Offers
from dal_dense.select import FacilityLocation


def facility_location(
    offers: Offers, basket: Basket, options: StrategyConfig, when: Round, quota_classes: Sequence[int]
) -> None:
    """The row that adds most to how well every row is served by its most similar labelled or chosen one.

    Similarity is the cosine of embeddings, 0 where it is negative. Time grows with the square of the rows.

    Raises:
        ConfigError: if the offers carry no embedding.
    """
    rows = embedding_of(offers, "facility_location")
    fill(basket, FacilityLocation(rows, rows[offers.labelled]))
