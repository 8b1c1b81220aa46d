"""The choice from what several processes keep is the choice from one place. Threads stand for the processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dal_dense.acquire import STRATEGIES, Budget, Round, Selection, acquire
from dal_dense.config import StrategyConfig
from dal_dense.errors import BudgetError, DataError
from dal_dense.jobs import View
from dal_dense.offers import Offers
from dal_dense.pool_shards import PoolShards, Terms, corrected, lead, serve
from dal_dense.ranks import _FAILED, Ranks, _portable, _Told
from dal_dense.records import ImageRecord
from dal_dense.tasks.base import Hooks, Task
from tests.conformance.test_strategies import Case, cases, random_offers
from tests.unit.test_shortlist import QUOTA, few_at_once, two_plans

Table = Callable[[int, object], list[object]]


def table(size: int) -> Table:
    """Where so many threads lay down something, and see what lies there once all have come."""
    laid: list[object] = [None] * size
    all_here = threading.Barrier(size, timeout=60)

    def exchange(rank: int, value: object) -> list[object]:
        laid[rank] = value
        all_here.wait()
        seen = [*laid]
        all_here.wait()
        return seen

    return exchange


@dataclass(frozen=True)
class Seated(Ranks):
    """A thread among several that meet at a table."""

    table: Table = field(default=table(1))

    def _meet(self, state: int, problem: Exception | None = None) -> int:
        largest = max(self.table(self.rank, state))  # type: ignore[type-var]
        if largest == _FAILED:
            failures = self.table(self.rank, None if problem is None else _portable(problem, self.rank))
            if problem is None:
                raise _Told(next(f for f in failures if isinstance(f, Exception)))
        return largest  # type: ignore[return-value]

    def _exchanged(self, value: object, only_first: bool = False) -> list[object]:  # type: ignore[override]
        seen = self.table(self.rank, value)
        return [] if only_first and not self.first else seen

    def _broadcast(self, packed: bytes) -> bytes:
        return self.table(self.rank, packed)[0]  # type: ignore[return-value]


def task_with(found: dict[str, Offers]) -> Task:
    """A task that has looked already."""
    task = mock.Mock(spec=Task)
    task.offers = lambda model, record, *ground, **where: found[record.id]
    return task


def in_processes(size: int, found: dict[str, Offers], terms: Terms, steps: Callable[[PoolShards], object]) -> None:
    """The first of so many processes takes the steps."""
    meeting = table(size)
    own = [(task_with(found), Hooks(ranks=Seated(rank, size, table=meeting))) for rank in range(size)]
    with ThreadPoolExecutor(size) as threads:
        others = [threads.submit(hooks.ranks.follow, task, hooks) for task, hooks in own[1:]]
        first = own[0][1].ranks
        try:
            first.lead(partial(lead, steps=steps), own[0], (Path("model"), terms), serve)
        finally:
            if size > 1:
                first.send(None)
    for other in others:
        other.result()


def views_of(offers: Offers) -> list[View]:
    """A view of each image that has rows, and of one that has none."""
    views = []
    for image in range(int(offers.image.max()) + 2):
        rows = (offers.image == image).nonzero()[:1, 0]
        time = [float(t) for t in offers.extra["time"][rows] if not t.isnan()]
        record = ImageRecord(
            str(image), (), Path(), "", None, offers.regions.start.shape[1], time=time[0] if time else None
        )
        views.append(View(record, (), (), image, image // 2, None))
    return views


def seen(offers: Offers, chosen: Selection) -> tuple[list[int], list[float], list[float]]:
    return offers.key[chosen.rows].tolist(), chosen.seconds.tolist(), chosen.value.tolist()


Said = list[tuple[list[int], list[float], list[float]] | str]


def twice(choose: Callable[[], tuple[Offers, Selection]], drop: Callable[[list[int]], object]) -> Said:
    """A choice, and another without two of the images that were chosen; or what is said instead."""
    said: Said = []
    for _ in range(2):
        try:
            picked, chosen = choose()
        except BudgetError as problem:
            return [*said, f"{type(problem).__name__}: {problem}"]
        said.append(seen(picked, chosen))
        drop(picked.image[chosen.rows].unique()[:2].tolist())
    return said


def from_one_place(name: str, offers: Offers, budget: Budget, when: Round) -> Said:
    left = [offers]

    def choose() -> tuple[Offers, Selection]:
        return left[-1], acquire(left[-1], budget, StrategyConfig(name=name), when, quota_classes=QUOTA)

    return twice(choose, lambda gone: left.append(left[-1][~torch.isin(left[-1].image, torch.tensor(gone))]))


def from_processes(size: int, found: dict[str, Offers], views: Sequence[View], terms: Terms) -> Said:
    said: Said = []

    def steps(shards: PoolShards) -> None:
        assert shards.look(views[:3]) + shards.look(views[3:]) == [None] * len(views)

        def choose() -> tuple[Offers, Selection]:
            picks = shards.choose()
            return shards.rows(picks), picks.selection(torch.arange(len(picks)))

        said.extend(twice(choose, shards.drop))

    in_processes(size, found, terms, steps)
    return said


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(sorted(STRATEGIES)),
    case=cases(),
    size=st.integers(1, 4),
    count=st.integers(1, 12),
    many=st.sampled_from([5, 10**6]),
)
def test_processes_choose_as_from_one_place(name: str, case: Case, size: int, count: int, many: int) -> None:
    recipe, budget, when = case
    offers = random_offers(*recipe)
    views = views_of(offers)
    found = {view.record.id: offers[offers.image == view.image] for view in views}
    with few_at_once(count, 7), mock.patch("dal_dense.offer_store.MANY", many), TemporaryDirectory() as folder:
        terms = Terms(StrategyConfig(name=name), budget, when, QUOTA, 1.25, False, Path(folder))
        said = from_processes(size, found, views, terms)
        assert said == from_one_place(name, corrected(offers, 1.25), budget, when)


def test_another_plan_forgets_the_picks_of_the_one_before(tmp_path: Path) -> None:
    """Worth a second fills the budget from images 0 and 1; the best single, of image 2, comes instead and then 0."""
    offers = two_plans()
    views = views_of(offers)
    found = {view.record.id: offers[offers.image == view.image] for view in views}
    terms = Terms(StrategyConfig(name="per_second"), Budget(100.0), Round(1, 2, 0), QUOTA, 1.0, False, tmp_path)

    def steps(shards: PoolShards) -> None:
        shards.look(views)
        assert shards.rows(shards.choose()).key.tolist() == [9, 0]

    with few_at_once(4, 100):
        in_processes(2, found, terms, steps)


@pytest.mark.parametrize("image", [0, 1])
def test_numbers_that_nobody_can_reckon_with_end_it_whoever_meets_them(image: int, tmp_path: Path) -> None:
    offers = random_offers(1, 2, 5)
    offers = replace(offers, score=torch.where(offers.image == image, torch.nan, offers.score))
    views = views_of(offers)
    found = {view.record.id: offers[offers.image == view.image] for view in views}
    terms = Terms(StrategyConfig(name="greedy"), Budget(9.0), Round(1, 1, 0), QUOTA, 1.0, False, tmp_path)
    with pytest.raises(DataError, match=rf"Offers.score must be finite .* \({views[image].record.id}\) holds nan"):
        in_processes(2, found, terms, lambda shards: shards.look(views))


def test_each_process_keeps_files_of_its_own_and_is_told_each_pick_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dal_dense.offer_store.MANY", 10)
    offers = random_offers(1, 9, 12)
    views = views_of(offers)
    found = {view.record.id: offers[offers.image == view.image] for view in views}
    terms = Terms(StrategyConfig(name="greedy"), Budget(300.0), Round(1, 1, 0), QUOTA, 1.0, False, tmp_path)
    told: list[int] = []
    whole = PoolShards._ask

    def ask(shards: PoolShards, method: Callable[..., object], *given: object) -> list[object]:
        told.extend([len(given[0])] if method.__name__ == "best" else [])  # type: ignore[arg-type]
        return whole(shards, method, *given)

    def steps(shards: PoolShards) -> None:
        shards.look(views)
        assert len(shards.choose()) == sum(told) + 1

    monkeypatch.setattr(PoolShards, "_ask", ask)
    with few_at_once(12, 100):
        in_processes(3, found, terms, steps)
    assert len(told) > 2 and sorted(folder.name for folder in tmp_path.iterdir()) == ["0", "1", "2"]
