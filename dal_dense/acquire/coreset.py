"""Core-set: k-centre greedy on embeddings (Sener & Savarese 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dal_dense.acquire.base import Round
from dal_dense.acquire.basket import Basket
from dal_dense.acquire.distance import nearest
from dal_dense.config import StrategyConfig
from dal_dense.errors import ConfigError
from dal_dense.offers import Offers


def coreset(offers: Offers, basket: Basket, options: StrategyConfig, when: Round, quota_classes: Sequence[int]) -> None:
    """The row farthest from all labelled and chosen ones, again and again while the budget lasts.

    With nothing labelled the first is the row farthest from the mean. At most twice the radius
    of the best cover with as many centres (Gonzalez 1985), where all rows cost the same and may be taken.

    Raises:
        ConfigError: if the offers carry no embedding.
    """
    rows = offers.embedding
    if rows.shape[1] == 0:
        raise ConfigError(
            "strategy.name coreset measures distances between embeddings, and this task offers none (0 columns); "
            "choose another strategy.name, such as clasp, or a task with embeddings"
        )
    far = nearest(rows, rows[offers.labelled])
    if not offers.labelled.any():
        far = nearest(rows, rows.mean(0, keepdim=True))
        row = basket.best(far)
        if row is None:
            return
        basket.take(row, far[row])
        far = nearest(rows, rows[row : row + 1])
    while (row := basket.best(far)) is not None:
        basket.take(row, far[row])
        far = torch.minimum(far, nearest(rows, rows[row : row + 1]))
