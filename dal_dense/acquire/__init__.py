"""Which regions to ask for: Offers and a budget in, chosen rows out.

Knows nothing of CT, frames or networks. A strategy is a function that fills a `Basket`; its
name stands in one literal table. See `docs/concepts/acquisition.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from dal_dense.acquire.badge import badge
from dal_dense.acquire.base import Budget, Round, Selection
from dal_dense.acquire.basket import Basket
from dal_dense.acquire.box_count import box_count
from dal_dense.acquire.clasp import clasp
from dal_dense.acquire.coreset import coreset
from dal_dense.acquire.facility_location import facility_location
from dal_dense.acquire.foreground import foreground_random
from dal_dense.acquire.greedy import greedy
from dal_dense.acquire.hybrid import hybrid
from dal_dense.acquire.kmeans import kmeans
from dal_dense.acquire.per_second import per_second
from dal_dense.acquire.power import power
from dal_dense.acquire.ppal import ppal
from dal_dense.acquire.probcover import probcover
from dal_dense.acquire.random_ import random_
from dal_dense.acquire.typiclust import typiclust
from dal_dense.acquire.uniform import uniform
from dal_dense.config import StrategyConfig, StrategyName
from dal_dense.errors import BudgetError, ConfigError, DataError, PoolExhausted
from dal_dense.offers import Offers

__all__ = ["STRATEGIES", "Basket", "Budget", "Round", "Selection", "Strategy", "acquire"]

Strategy = Callable[[Offers, Basket, StrategyConfig, Round, Sequence[int]], None]
"""`strategy(offers, basket, options, when, quota_classes)` calls `basket.take` until nothing is affordable.

Rows come sorted by key, so "the first of equals" is the same in any order of the pool.
"""

STRATEGIES: dict[StrategyName, Strategy] = {
    "random": random_,
    "uniform": uniform,
    "foreground_random": foreground_random,
    "greedy": greedy,
    "per_second": per_second,
    "power": power,
    "clasp": clasp,
    "coreset": coreset,
    "facility_location": facility_location,
    "badge": badge,
    "kmeans": kmeans,
    "typiclust": typiclust,
    "probcover": probcover,
    "hybrid": hybrid,
    "box_count": box_count,
    "ppal": ppal,
}


def acquire(
    offers: Offers, budget: Budget, strategy: StrategyConfig, when: Round, *, quota_classes: Sequence[int]
) -> Selection:
    """Spend one round's budget.

    The same rows in any order give the same choice, in the same order: rows are sorted by
    key first, so ties go to the smaller key. Needs O(N) memory beyond one sorted copy of the offers.

    Args:
        offers: regions on offer and labelled ground, on any device with float64; selection runs there.
        budget: seconds and caps.
        strategy: its name (its `start` in round 0) and options.
        when: round and seed.
        quota_classes: classes that quotas and balance look after (foreground).

    Raises:
        BudgetError: if the cheapest region is dearer than the budget; `PoolExhausted` if nothing is on offer.
        ConfigError: if a quota class does not exist, or the strategy needs what the task lacks.
        DataError: if a column holds NaN, infinite or negative numbers.
    """
    _check(offers, quota_classes)
    order = offers.key.argsort(stable=True)
    basket = Basket(offers[order], budget)
    _check_budget(basket, when)
    name = strategy.start if when.number == 0 else strategy.name
    STRATEGIES[name](basket.offers, basket, strategy, when, tuple(quota_classes))
    return Selection(
        rows=order[torch.tensor(basket.rows, dtype=torch.int64, device=order.device)],
        seconds=torch.tensor(basket.seconds, dtype=torch.float32, device=order.device),
        value=torch.tensor(basket.values, dtype=torch.float32, device=order.device),
    )


def _check(offers: Offers, quota_classes: Sequence[int]) -> None:
    for name in ("score", "class_score", "shares", "objects", "seconds", "image_seconds", "embedding"):
        column = getattr(offers, name)
        bad = ~column.isfinite() if name == "embedding" else ~(column.isfinite() & (column >= 0))
        if bad.any():
            row = int(bad.reshape(len(offers), -1).any(1).nonzero()[0, 0])
            raise DataError(
                f"Offers.{name} must be finite{'' if name == 'embedding' else ' and >= 0'}; row {row} (image row "
                f"{int(offers.image[row])}) holds {column[row].tolist()}; look at that image and the task's outputs"
            )
    count = offers.class_score.shape[1]
    wrong = [c for c in quota_classes if not 0 <= c < count]
    if wrong:
        raise ConfigError(f"quota classes must lie in 0..{count - 1}; got {wrong}; check the task's classes")


def _check_budget(basket: Basket, when: Round) -> None:
    price = basket.price[basket.price.isfinite()]
    if len(price) == 0:
        raise PoolExhausted(
            f"nothing left to ask: of {len(basket.price)} regions on offer none is free of labelled ground"
            f"{' and far enough from it in time' if basket.budget.min_gap else ''}; "
            "add images to the pool, choose smaller query.sizes, or stop here"
        )
    low = float(price.min())
    if low > basket.budget.seconds:
        setting = "budget.start_seconds" if when.number == 0 else "budget.seconds_per_round"
        poor = "" if when.number == 0 else "; a model that has learnt little also overrates what there is to draw"
        raise BudgetError(
            f"budget {basket.budget.seconds:g} s buys nothing: the cheapest of {len(price)} regions costs {low:g} s "
            f"(its image's opening included); raise {setting} or shrink query.sizes{poor}"
        )
