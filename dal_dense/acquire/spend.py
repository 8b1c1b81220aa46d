"""A selection algorithm spends the budget: its next best row among those that are affordable, again and again."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from dal_dense import noise
from dal_dense.acquire.basket import Basket
from dal_dense.acquire.shards import LocalShard
from dal_dense.acquire.shortlist import ByWorth, InTurn, fill
from dal_dense.config import StrategyName
from dal_dense.errors import ConfigError
from dal_dense.offers import Offers
from dal_dense.select import Picker


def spend(basket: Basket, picker: Picker) -> None:
    """Take what the picker names until nothing is affordable."""
    while (allowed := basket.affordable()).any():
        row, value = picker.next(allowed)
        basket.take(row, value)
        picker.add(row)


def embedding_of(offers: Offers, name: StrategyName) -> Float[Tensor, "N E"]:
    """The rows' embeddings.

    Raises:
        ConfigError: if the offers carry none.
    """
    if offers.embedding.shape[1] == 0:
        raise ConfigError(
            f"strategy.name {name} measures distances between embeddings, and this task offers none (0 columns); "
            "choose another strategy.name, such as clasp, or a task with embeddings"
        )
    return offers.embedding


def purchases(basket: Basket, seed: int) -> int:
    """About how many rows the money buys: as many as of a random order. At least 1."""
    draw = noise.uniform(basket.offers.key, seed, "purchases")
    shards = InTurn([LocalShard(basket.offers, basket.budget, draw)])
    return max(1, len(fill(shards, basket.budget, ByWorth())))
