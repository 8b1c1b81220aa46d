"""Core-set: k-centre greedy on embeddings (Sener & Savarese 2018)."""

from __future__ import annotations

from collections.abc import Sequence

from dal_dense.acquire.base import Round
from dal_dense.acquire.basket import Basket
from dal_dense.acquire.fill import embedding_of, fill
from dal_dense.config import StrategyConfig
from dal_dense.offers import Offers
from dal_dense.select import KCenter


def coreset(offers: Offers, basket: Basket, options: StrategyConfig, when: Round, quota_classes: Sequence[int]) -> None:
    """The row farthest from all labelled and chosen ones, again and again while the budget lasts.

    With nothing labelled the first is the row farthest from the mean. At most twice the radius
    of the best cover with as many centres (Gonzalez 1985), where all rows cost the same and may be taken.

    Raises:
        ConfigError: if the offers carry no embedding.
    """
    rows = embedding_of(offers, "coreset")
    fill(basket, KCenter(rows, rows[offers.labelled]))
