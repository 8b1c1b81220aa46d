"""Which regions to ask for: Offers and a budget in, chosen rows out.

Knows nothing of CT, frames or networks. A strategy is a function that fills a `Basket`, or one that ranks
rows; its name stands in one literal table. See `docs/concepts/acquisition.md`.
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
from dal_dense.acquire.per_second import better_of_two, per_second
from dal_dense.acquire.power import power
from dal_dense.acquire.ppal import ppal
from dal_dense.acquire.probcover import probcover
from dal_dense.acquire.random_ import random_
from dal_dense.acquire.ranking import Ranking, worth_of
from dal_dense.acquire.shards import LocalShard
from dal_dense.acquire.typiclust import typiclust
from dal_dense.acquire.uniform import uniform
from dal_dense.config import StrategyConfig, StrategyName
from dal_dense.errors import BudgetError, ConfigError, PoolExhausted
from dal_dense.offers import Offers, check, concat

__all__ = [
    "STRATEGIES", "Basket", "Budget", "Ranking", "Round", "Selection", "Strategy", "acquire", "acquire_shards",
]  # fmt: skip

Strategy = Callable[[Offers, Basket, StrategyConfig, Round, Sequence[int]], None]
"""`strategy(offers, basket, options, when, quota_classes)` calls `basket.take` until nothing is affordable.

Rows come sorted by key, so "the first of equals" is the same in any order of the pool.
"""

STRATEGIES: dict[StrategyName, Strategy | Ranking] = {
    "random": Ranking(random_),
    "uniform": uniform,
    "foreground_random": foreground_random,
    "greedy": Ranking(greedy),
    "per_second": Ranking(per_second, better_of_two),
    "power": Ranking(power),
    "clasp": clasp,
    "coreset": coreset,
    "facility_location": facility_location,
    "badge": badge,
    "kmeans": kmeans,
    "typiclust": typiclust,
    "probcover": probcover,
    "hybrid": hybrid,
    "box_count": Ranking(box_count),
    "ppal": ppal,
}


def acquire(
    offers: Offers,
    budget: Budget,
    strategy: StrategyConfig,
    when: Round,
    *,
    quota_classes: Sequence[int],
    checked: bool = False,
) -> Selection:
    """Spend one round's budget.

    The same rows in any order give the same choice, in the same order: ties go to the smaller key. A
    `Ranking` needs 24 bytes a row beyond the offers, of which it reads a few columns; other strategies need
    O(N) memory beyond a copy of the offers that is sorted by key.

    Args:
        offers: regions on offer and labelled ground, on any device with float64; selection runs there.
        budget: seconds and caps.
        strategy: its name (its `start` in round 0) and options.
        when: round and seed.
        quota_classes: classes that quotas and balance look after (foreground).
        checked: the columns have been through `offers.check`, so need not be read once more.

    Raises:
        BudgetError: if the cheapest region is dearer than the budget; `PoolExhausted` if nothing is on offer.
        ConfigError: if a quota class does not exist, or the strategy needs what the task lacks.
        DataError: if a column holds NaN, infinite or negative numbers.
    """
    rule = STRATEGIES[_name(strategy, when)]
    if isinstance(rule, Ranking):
        return acquire_shards([offers], budget, strategy, when, quota_classes=quota_classes, checked=checked)
    _check(offers, quota_classes, checked)
    order = offers.key.argsort(stable=True)
    basket = Basket(offers[order], budget)
    _check_budget([basket], when)
    rule(basket.offers, basket, strategy, when, tuple(quota_classes))
    return Selection(
        rows=order[torch.tensor(basket.rows, dtype=torch.int64, device=order.device)],
        seconds=torch.tensor(basket.seconds, dtype=torch.float32, device=order.device),
        value=torch.tensor(basket.values, dtype=torch.float32, device=order.device),
    )


def acquire_shards(
    shards: Sequence[Offers],
    budget: Budget,
    strategy: StrategyConfig,
    when: Round,
    *,
    quota_classes: Sequence[int],
    checked: bool = False,
) -> Selection:
    """As `acquire`, from a pool in parts: the choice is that from all of them together.

    Args:
        shards: the parts; all rows of an image lie in one. `Selection.rows` are numbered through.
        budget, strategy, when, quota_classes, checked: as for `acquire`.

    Raises:
        BudgetError, DataError: as `acquire`.
        ConfigError: also if the strategy is no `Ranking`.
    """
    name = _name(strategy, when)
    rule = STRATEGIES[name]
    if not isinstance(rule, Ranking):
        able = ", ".join(n for n, r in STRATEGIES.items() if isinstance(r, Ranking))
        raise ConfigError(f"strategy.name {name} needs the whole pool in one place; in shards there are: {able}")
    for offers in shards:
        _check(offers, quota_classes, checked)
    apart = len(shards) > 1 and budget.min_gap is not None
    known = concat([o[o.labelled.nonzero()[:, 0]] for o in shards]) if apart else None
    parts = [LocalShard(o, budget, worth_of(rule, o, strategy, when), i, known) for i, o in enumerate(shards)]
    _check_budget([part.basket for part in parts], when)
    picks = rule.choose(parts, budget)
    if picks.rows is None:
        raise ValueError("nothing was chosen, though something is affordable: a fault of the rule")
    first = torch.tensor([0, *map(len, shards)]).cumsum(0)
    device = shards[0].device
    return Selection(
        rows=(first[picks.rows.shard] + picks.rows.row).to(device),
        seconds=torch.tensor(picks.seconds, dtype=torch.float32, device=device),
        value=torch.tensor(picks.values, dtype=torch.float32, device=device),
    )


def _name(strategy: StrategyConfig, when: Round) -> StrategyName:
    return strategy.start if when.number == 0 else strategy.name


def _check(offers: Offers, quota_classes: Sequence[int], checked: bool) -> None:
    if not checked:
        check(offers)
    count = offers.class_score.shape[1]
    wrong = [c for c in quota_classes if not 0 <= c < count]
    if wrong:
        raise ConfigError(f"quota classes must lie in 0..{count - 1}; got {wrong}; check the task's classes")


def _check_budget(baskets: Sequence[Basket], when: Round) -> None:
    budget = baskets[0].budget
    free = [int((b.price < torch.inf).sum()) for b in baskets]
    if not sum(free):
        count = sum(len(b.price) for b in baskets)
        fact = f"of {count} regions on offer none is free of labelled ground" if count else "no region is on offer"
        raise PoolExhausted(
            f"nothing is left to ask: {fact}{' and far enough from it in time' if count and budget.min_gap else ''}; "
            "add images to the pool, choose smaller query.sizes (in a new run_dir, if this one has asked), or stop here"
        )
    low = min(float(b.price.min()) for b, count in zip(baskets, free, strict=True) if count)
    if low > budget.seconds:
        setting = "budget.start_seconds" if when.number == 0 else "budget.seconds_per_round"
        poor = "" if when.number == 0 else "; a model that has learnt little also overrates what there is to draw"
        raise BudgetError(
            f"budget {budget.seconds:g} s buys nothing: the cheapest of {sum(free)} regions costs {low:g} s "
            f"(its image's opening included); raise {setting} or ask for less at once (query.kind, query.sizes){poor}"
        )
