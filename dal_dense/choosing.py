"""From what a round looks at to its query: the pool is looked at, bad images are set aside, regions are chosen.

Every process keeps what it found, and hands over what the first one asks for (`pool_shards`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from dal_dense import jobs, pool_shards
from dal_dense.acquire import Budget, Round, Selection
from dal_dense.errors import PoolExhausted
from dal_dense.offers import KINDS, Offers
from dal_dense.pool_shards import PoolShards, Terms
from dal_dense.query import Query, QueryRegion
from dal_dense.run import Run, quarantine, refuse_if_most_fail, unreadable


@dataclass(frozen=True)
class Plan:
    """What a round looks at, and what it may spend.

    Attributes:
        query: without regions yet.
        views: the images.
        eye: folder of the model that looks at them, in all processes; or what offers without one, in this process.
        budget: seconds and caps.
        correction: what predicted seconds are multiplied by.
        at_once: images whose offers are in memory before they go to files, where a pool is large.
    """

    query: Query
    views: Sequence[jobs.View]
    eye: Path | Callable[..., Offers]
    budget: Budget
    correction: float
    at_once: int

    def names(self, offers: Offers) -> list[str]:
        """Id of each row's image."""
        return [self.views[i].record.id for i in offers.image.tolist()]


def chosen(run: Run, plan: Plan) -> Query:
    """The query with the regions that the budget buys.

    Raises:
        BudgetError: if it buys nothing; `PoolExhausted` if nothing is on offer.
    """
    when = Round(plan.query.round, run.config.budget.rounds, plan.query.seed)
    shutil.rmtree(stored_offers(run), ignore_errors=True)  # of a round that was cut off
    try:
        return _chosen(run, plan, when)
    finally:
        shutil.rmtree(stored_offers(run), ignore_errors=True)


def stored_offers(run: Run) -> Path:
    """Where the offers of a large pool lie while a query is chosen."""
    return run.folder / "offers"


def _chosen(run: Run, plan: Plan, when: Round) -> Query:
    terms = Terms(
        strategy=run.config.strategy,
        budget=plan.budget,
        when=when,
        quota_classes=run.quota_classes,
        correction=plan.correction,
        strict=run.config.data.strict,
        folder=stored_offers(run),
    )

    def steps(shards: PoolShards) -> Query:
        _look(run, plan, shards)
        while True:
            _refuse_if_none_is_left(run, plan)
            picks = shards.choose()
            picked = shards.rows(picks)
            bad = _bad(run, plan, picked)
            if not bad:
                bought = picks.selection(torch.arange(len(picks)))
                return query_of(plan.query, picked, bought, plan.names(picked), run.pool.classes)
            shards.drop(bad)

    if isinstance(plan.eye, Path):
        return run.together(partial(pool_shards.lead, steps=steps), plan.eye, terms, others=pool_shards.serve)
    return pool_shards.conduct(run.screen.hooks(), plan.eye, terms, steps)


def _look(run: Run, plan: Plan, shards: PoolShards) -> None:
    """Look at the pool; images that cannot be used are set aside.

    Raises:
        DataError: if most cannot.
    """
    for begin in range(0, len(plan.views), plan.at_once):
        some = plan.views[begin : begin + plan.at_once]
        found = shards.look(some)
        refuse_if_most_fail(found)
        for view, problem in zip(some, found, strict=True):
            if problem is not None:
                quarantine(run, view.record.id, problem)


def _refuse_if_none_is_left(run: Run, plan: Plan) -> None:
    """Where every image is set aside, smaller regions or a larger budget would not help.

    Raises:
        PoolExhausted: if none can be used.
    """
    if all(view.record.id in run.pool.quarantined for view in plan.views):
        raise PoolExhausted(
            "nothing is left to ask: no image can be used; mend what is said of each above (or data.classes) and begin "
            "in another run_dir, for what is set aside stays aside, or add images to the pool"
        )


def _bad(run: Run, plan: Plan, picked: Offers) -> list[int]:
    """Rows in the round's listing of the chosen images that cannot be read; they are set aside."""
    bad = unreadable(run, {*plan.names(picked)}, looked=isinstance(plan.eye, Path))
    return [i for i, view in enumerate(plan.views) if view.record.id in bad]


def query_of(empty: Query, picked: Offers, chosen: Selection, names: Sequence[str], classes: tuple[str, ...]) -> Query:
    """The chosen rows as plain, frozen values for the ledger.

    Args:
        empty: the query without regions.
        picked: the rows in the order chosen, on the CPU.
        chosen: their seconds and values.
        names: id of the image of each.
        classes: names by class number.
    """
    boxes = list(picked.regions.boxes())
    rows = zip(chosen.seconds.tolist(), chosen.value.tolist(), strict=True)
    regions = [
        QueryRegion(
            id=f"r{empty.round:02d}-{i:03d}",
            image_id=names[i],
            kind=KINDS[int(picked.kind[i])],
            start=boxes[i][0],
            stop=boxes[i][1],
            score=value,
            seconds=seconds,
            boundary=float(picked.boundary[i]),
            objects=float(picked.objects[i]),
            shares={c: round(s, 4) for c, s in zip(classes, picked.shares[i].tolist(), strict=True)},
        )
        for i, (seconds, value) in enumerate(rows)
    ]
    return empty.model_copy(update={"regions": tuple(regions)})
