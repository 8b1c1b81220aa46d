"""The pool in shards: each process keeps what it found in its images, and hands over candidates only.

The first process names a method of `PoolShard` and its arguments; every process calls it on its own shard, and
the answers go to the first. A process by itself holds the whole pool as one shard and asks only itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from dal_dense.acquire import Budget, Picks, Round, choose, shard_of
from dal_dense.acquire.shards import BasketShard, Stock, labelled_of
from dal_dense.acquire.shortlist import Candidates
from dal_dense.config import StrategyConfig
from dal_dense.errors import DataError
from dal_dense.jobs import View
from dal_dense.offer_store import Gathered, without_images
from dal_dense.offers import Offers, concat
from dal_dense.ranks import Ranks
from dal_dense.tasks.base import Hooks, Task

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Terms:
    """What a choice goes by; the same in all processes.

    Attributes:
        strategy, budget, when, quota_classes: as for `acquire`.
        correction: what predicted seconds are multiplied by.
        strict: the first bad image ends it.
        folder: where offers lie that are too many for memory, a folder a shard.
    """

    strategy: StrategyConfig
    budget: Budget
    when: Round
    quota_classes: tuple[int, ...]
    correction: float
    strict: bool
    folder: Path


class PoolShard:
    """What one process found in its images, on the CPU. All processes call each of these methods together."""

    def __init__(self, hooks: Hooks, offer: Callable[..., Offers], terms: Terms) -> None:
        """`offer`: as `Task.offers` without the model."""
        self._hooks, self._offer, self._terms = hooks, offer, terms
        self._folder = terms.folder / str(hooks.ranks.rank)
        self._gathered = Gathered(self._folder)
        self._offers: Offers | None = None
        self._local: BasketShard | None = None
        self._picks = Picks()

    def look(self, views: Sequence[View]) -> list[DataError | None]:
        """Look at its share of these images and keep what they offer; what is wrong with each, for the first process.

        Raises:
            DataError: of the first bad image, if strict; if a column holds numbers that nobody can reckon with.
            Stopped: the person asked to stop.
        """
        held: dict[int, Offers] = {}

        def seen(view: View) -> DataError | None:
            try:
                held[view.image] = view.offers(self._offer).to("cpu")  # wherever a shard lies, its numbers are the same
            except DataError as problem:
                if self._terms.strict:
                    raise
                return problem
            return None

        found = list(self._hooks.share("looking at the pool", seen, views, only_first=True))
        apart = self._terms.budget.min_gap is not None
        for view in views:  # in order, so that the rows of each image lie together
            if (offers := held.pop(view.image, None)) is not None:
                told = view.timed(offers) if apart else offers
                self._gathered.add(corrected(told, self._terms.correction), view.record.id)
        return found

    def labelled(self) -> Offers | None:
        """The labelled rows, on the CPU; None if it has no image."""
        offers = self._all()
        return None if offers is None else labelled_of(offers)

    def open(self, known: Offers | None) -> Stock | None:
        """Begin a choice; what is on offer here, None if it has no image. `known`: labelled rows of all shards."""
        offers, terms = self._all(), self._terms
        self._local, self._picks = None, Picks()  # before the next is made: two would take as much again
        if offers is None:
            return None
        self._local = shard_of(
            offers,
            terms.budget,
            terms.strategy,
            terms.when,
            quota_classes=terms.quota_classes,
            checked=True,
            number=self._hooks.ranks.rank,
            known=known,
        )
        return Stock.of(self._local.basket)

    def best(self, more: Picks, anew: bool, count: int, ask: Any) -> Candidates | None:
        """As `acquire.shortlist.Shard` says; `more`: picks since the last call, or with `anew` all of another plan."""
        self._picks = more if anew else self._picks.and_then(more)
        return None if self._local is None else self._local(self._picks, count, ask)

    def rows(self, shard: Int[Tensor, " K"], row: Int[Tensor, " K"]) -> Offers | None:
        """Those of these rows that lie here, in order and with all columns, on the CPU."""
        offers = self._all()
        mine = row[shard == self._hooks.ranks.rank]
        return None if offers is None else replace(offers, parts=None)[mine.to(offers.device)].to("cpu")

    def drop(self, images: Sequence[int]) -> None:
        """Offer nothing of these images any more."""
        offers = self._all()
        if offers is None:
            return
        bad = torch.tensor(images)
        if not torch.isin(bad, offers.image).any():
            return
        gone = torch.isin(torch.arange(int(offers.image.max()) + 1), bad)
        self._offers = self._local = None
        self._offers = without_images(offers, gone.to(offers.device), self._folder)

    def _all(self) -> Offers | None:
        """All that is on offer here, once the look is over."""
        if not self._gathered.nothing:
            self._offers = self._gathered.all()
            self._gathered = Gathered(self._folder)
        return self._offers


def corrected(offers: Offers, correction: float) -> Offers:
    """Offers whose predicted seconds are multiplied by a number."""
    return replace(offers, seconds=offers.seconds * correction, image_seconds=offers.image_seconds * correction)


class PoolShards:
    """All shards, as the first process sees them; what `acquire` asks."""

    def __init__(self, ranks: Ranks, mine: PoolShard, terms: Terms) -> None:
        """`mine`: the first process's own."""
        self._ranks, self._mine, self._terms = ranks, mine, terms
        self._told = Picks()

    def look(self, views: Sequence[View]) -> list[DataError | None]:
        """Look at these images; what is wrong with each."""
        return self._ask(PoolShard.look, views)[0]

    def choose(self) -> Picks:
        """The rows that the budget buys, in order.

        Raises:
            BudgetError: as `acquire`.
            ConfigError: as `acquire`.
        """
        known = None
        if len(self) > 1 and self._terms.budget.min_gap is not None:
            known = concat([o for o in self._ask(PoolShard.labelled) if o is not None])
        stocks = [s for s in self._ask(PoolShard.open, known) if s is not None]
        self._told = Picks()
        terms = self._terms
        return choose(self, stocks, terms.budget, terms.strategy, terms.when, terms.quota_classes, self._ranks.device)

    def rows(self, picks: Picks) -> Offers:
        """The chosen rows with their columns, in the order chosen, on the CPU."""
        shard = picks.taken.shard
        found = [o for o in self._ask(PoolShard.rows, shard, picks.taken.row) if o is not None]
        return concat(found)[shard.argsort(stable=True).argsort()]

    def drop(self, images: Sequence[int]) -> None:
        """Choose nothing of these images any more."""
        self._ask(PoolShard.drop, images)

    def __len__(self) -> int:
        return self._ranks.size

    def __call__(self, picks: Picks, count: int, ask: Any) -> list[Candidates]:
        """See `acquire.shortlist.Shards`; each shard is told only the picks that it does not know yet."""
        anew = not picks.begin_with(self._told)
        more = picks if anew else picks.since(self._told)
        self._told = picks
        return [c for c in self._ask(PoolShard.best, more, anew, count, ask) if c is not None]

    def _ask(self, method: Callable[Concatenate[PoolShard, P], T], *given: P.args, **named: P.kwargs) -> list[T]:
        self._ranks.told(lambda: (method, given, named))
        return self._ranks.gather(method(self._mine, *given, **named), only_first=True)


def conduct(hooks: Hooks, offer: Callable[..., Offers], terms: Terms, steps: Callable[[PoolShards], T]) -> T:
    """Take some steps that ask all shards, and let the other processes go.

    Args:
        hooks: of the first process; the others `serve` meanwhile.
        offer: as `Task.offers` without the model.
        terms: what the choice goes by.
        steps: what to do with the shards.
    """
    shards = PoolShards(hooks.ranks, PoolShard(hooks, offer, terms), terms)
    done = steps(shards)
    hooks.ranks.told(_no_more)
    return done


def lead(task: Task, hooks: Hooks, weights: Path, terms: Terms, *, steps: Callable[[PoolShards], T]) -> T:
    """`conduct` with the model of a finished fit: what the first process does while the others `serve`."""
    return conduct(hooks, partial(task.offers, task.load(weights)), terms, steps)


def serve(task: Task, hooks: Hooks, weights: Path, terms: Terms) -> None:
    """Look at the pool with the model of a finished fit, and answer until the first process asks no more."""
    shard = PoolShard(hooks, partial(task.offers, task.load(weights)), terms)
    while (asked := hooks.ranks.told(_no_more)) is not None:
        method, given, named = asked
        hooks.ranks.gather(method(shard, *given, **named), only_first=True)


def _no_more() -> Any:
    """What is asked last."""
    return None
