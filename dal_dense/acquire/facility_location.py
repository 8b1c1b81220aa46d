"""Facility location on embeddings: regions that stand for the whole pool (Wei, Iyer & Bilmes 2015)."""

from __future__ import annotations

from dal_dense.acquire.base import Aim
from dal_dense.acquire.basket import Basket
from dal_dense.acquire.spend import embedding_of, spend
from dal_dense.select import FacilityLocation


def facility_location(basket: Basket, aim: Aim) -> None:
    """The row that adds most to how well every row is served by its most similar labelled or chosen one.

    Similarity is the cosine of embeddings, 0 where it is negative. Time grows with the square of the rows.

    Raises:
        ConfigError: if the offers carry no embedding.
    """
    rows = embedding_of(basket.offers, "facility_location")
    spend(basket, FacilityLocation(rows, rows[basket.offers.labelled]))
