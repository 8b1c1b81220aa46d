"""Which regions to ask for: Offers and a budget in, chosen rows out.

Knows nothing of CT, frames or networks. A strategy is `ranking.Sharded`: it chooses from a pool in parts; its
name stands in one literal table. See `docs/concepts/acquisition.md`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dal_dense.acquire.badge import Badge
from dal_dense.acquire.base import Aim, Budget, Round, Selection
from dal_dense.acquire.basket import Basket
from dal_dense.acquire.box_count import box_count
from dal_dense.acquire.clasp import clasp, clasp_turns
from dal_dense.acquire.coreset import Coreset
from dal_dense.acquire.facility_location import facility_location
from dal_dense.acquire.foreground import foreground_random, foreground_turns
from dal_dense.acquire.greedy import greedy
from dal_dense.acquire.hybrid import Hybrid
from dal_dense.acquire.kmeans import kmeans
from dal_dense.acquire.per_second import better_of_two, per_second
from dal_dense.acquire.power import power
from dal_dense.acquire.ppal import Ppal
from dal_dense.acquire.probcover import probcover
from dal_dense.acquire.random_ import random_
from dal_dense.acquire.ranking import Ranking, Sharded
from dal_dense.acquire.shards import BasketShard, Stock, labelled_of
from dal_dense.acquire.shortlist import InTurn, Picks, Shards
from dal_dense.acquire.turns import ByTurns
from dal_dense.acquire.typiclust import typiclust
from dal_dense.acquire.uniform import Uniform
from dal_dense.acquire.whole import SAMPLE, Strategy, Whole
from dal_dense.config import StrategyConfig, StrategyName
from dal_dense.errors import BudgetError, ConfigError, PoolExhausted
from dal_dense.offers import Offers, check, concat

__all__ = [
    "STRATEGIES", "Basket", "Budget", "Picks", "Ranking", "Round", "Selection", "Sharded", "Strategy", "Whole",
    "acquire", "acquire_shards", "choose", "shard_of",
]  # fmt: skip

STRATEGIES: dict[StrategyName, Sharded] = {
    "random": Ranking(random_),
    "uniform": Uniform(),
    "foreground_random": ByTurns(foreground_random, foreground_turns),
    "greedy": Ranking(greedy),
    "per_second": Ranking(per_second, better_of_two),
    "power": Ranking(power),
    "clasp": ByTurns(clasp, clasp_turns),
    "coreset": Coreset(),
    "facility_location": Whole(facility_location, ("embedding",), SAMPLE),
    "badge": Badge(),
    "kmeans": Whole(kmeans, ("embedding",), SAMPLE),
    "typiclust": Whole(typiclust, ("embedding",), SAMPLE),
    "probcover": Whole(probcover, ("class_score", "shares", "embedding"), SAMPLE),  # it counts the classes
    "hybrid": Hybrid(),
    "box_count": Ranking(box_count),
    "ppal": Ppal(),
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

    The same rows in any order give the same choice, in the same order: ties go to the smaller key. This
    needs 24 bytes a row (`coreset` 80, or twice that where most are alike, `badge` 60) beyond the offers, of which few
    columns are read; `Whole` strategies need O(n) memory beyond a copy of the columns that they read, of the n rows
    that they see.

    Args:
        offers: regions on offer and labelled ground, on any device with float64; there rows are ranked. On a GPU
            distances may have other last bits, so near ties may be decided otherwise.
        budget: seconds and caps.
        strategy: its name (its `start` in round 0) and options.
        when: round and seed.
        quota_classes: classes that quotas and balance look after (foreground).
        checked: the columns have been through `offers.check`, so need not be read once more.

    Raises:
        BudgetError: if the cheapest region is dearer than the budget; `PoolExhausted` if nothing is on offer.
        ConfigError: if a quota class does not exist, the strategy needs what the task lacks, or a gap the times.
        DataError: if a column is not float32, holds NaN, infinite or negative numbers.
    """
    return acquire_shards([offers], budget, strategy, when, quota_classes=quota_classes, checked=checked)


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
        BudgetError, ConfigError, DataError: as `acquire`.
    """
    for offers in shards:
        _check_times(offers, budget)
    shared = [labelled_of(o) for o in shards if len(o)] if len(shards) > 1 and budget.min_gap is not None else []
    known = concat(shared) if shared else None
    parts = [
        shard_of(o, budget, strategy, when, quota_classes=quota_classes, checked=checked, number=i, known=known)
        for i, o in enumerate(shards)
    ]
    stocks, device = [Stock.of(part.basket) for part in parts], shards[0].device if shards else torch.device("cpu")
    picks = choose(InTurn(parts), stocks, budget, strategy, when, quota_classes, device)
    first = torch.tensor([0, *map(len, shards)]).cumsum(0)
    return picks.selection((first[picks.taken.shard] + picks.taken.row).to(device))


def shard_of(
    offers: Offers,
    budget: Budget,
    strategy: StrategyConfig,
    when: Round,
    *,
    quota_classes: Sequence[int],
    checked: bool = False,
    number: int = 0,
    known: Offers | None = None,
) -> BasketShard:
    """One part of a pool, to be asked by `choose`.

    Args:
        offers: its rows; all rows of an image lie in one part.
        budget, strategy, when, quota_classes, checked: as for `acquire`.
        number: of this part.
        known: with `Budget.min_gap`, the labelled rows of all parts (`shards.labelled_of`).

    Raises:
        ConfigError, DataError: as `acquire`.
    """
    rule = STRATEGIES[_name(strategy, when)]
    _check(offers, budget, quota_classes, checked)
    return rule.shard(offers, Aim(budget, strategy, when, tuple(quota_classes), offers.device), number, known)


def choose(
    shards: Shards,
    stocks: Sequence[Stock],
    budget: Budget,
    strategy: StrategyConfig,
    when: Round,
    quota_classes: Sequence[int],
    device: torch.device,
) -> Picks:
    """The choice from all shards together, wherever they lie.

    Args:
        shards: see `shard_of`.
        stocks: what is on offer in each before anything is bought.
        budget, strategy, when, quota_classes: as for `acquire`.
        device: where rows of all shards are compared with each other.

    Raises:
        BudgetError, ConfigError, PoolExhausted: as `acquire`.
    """
    _check_budget(stocks, budget, when)
    return STRATEGIES[_name(strategy, when)].choose(shards, Aim(budget, strategy, when, tuple(quota_classes), device))


def _name(strategy: StrategyConfig, when: Round) -> StrategyName:
    return strategy.start if when.number == 0 else strategy.name


def _check(offers: Offers, budget: Budget, quota_classes: Sequence[int], checked: bool) -> None:
    if not checked:
        check(offers)
    _check_times(offers, budget)
    count = offers.class_score.shape[1]
    wrong = [c for c in quota_classes if not 0 <= c < count]
    if wrong:
        raise ConfigError(f"quota classes must lie in 0..{count - 1}; got {wrong}; check the task's classes")


def _check_times(offers: Offers, budget: Budget) -> None:
    if budget.min_gap is not None and "time" not in offers.extra and len(offers):
        raise ConfigError(
            'min_gap: these rows have no times; give them as Offers.extra["time"] (NaN: nobody knows), or set no gap'
        )


def _check_budget(stocks: Sequence[Stock], budget: Budget, when: Round) -> None:
    free = sum(stock.free for stock in stocks)
    if not free:
        count = sum(stock.rows for stock in stocks)
        fact = f"of {count} regions on offer none is free of labelled ground" if count else "no region is on offer"
        raise PoolExhausted(
            f"nothing is left to ask: {fact}{' and far enough from it in time' if count and budget.min_gap else ''}; "
            "add images to the pool, choose smaller query.sizes (in a new run_dir, if this one has asked), or stop here"
        )
    low = min(stock.cheapest for stock in stocks)
    if low > budget.seconds:
        setting = "budget.start_seconds" if when.number == 0 else "budget.seconds_per_round"
        poor = "" if when.number == 0 else "; a model that has learnt little also overrates what there is to draw"
        raise BudgetError(
            f"budget {budget.seconds:g} s buys nothing: the cheapest of {free} regions costs {low:g} s "
            f"(its image's opening included); raise {setting} or ask for less at once (query.kind, query.sizes){poor}"
        )
