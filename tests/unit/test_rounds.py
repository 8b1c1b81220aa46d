"""What a round asks is the same whatever the order of the pool, and however many images are looked at in turn."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from dal_dense import rounds
from dal_dense.build import open_run
from dal_dense.cli import load_config
from dal_dense.console import Screen
from dal_dense.query import Query
from dal_dense.ranks import joined
from dal_dense.run import Run
from dal_dense.tasks.base import Measurement
from tests.e2e.command import build_toy
from tests.world import frame_settings, write_frame

ORDER = [f"drive0_{i:02d}" for i in range(9)] + [f"drive1_{i}" for i in range(20, 26)]
TEST = ["drive2_40", "drive2_41"]
CASES = {
    "no model": {"strategy__name": "uniform"},
    "labelled images outside the sample": {"strategy__name": "uniform", "query__scan_images": "6"},
    "times": {"strategy__name": "uniform", "data__time_pattern": r"_(\d+)$", "query__min_gap": "2"},
    "a model": {"strategy__name": "hybrid"},
}


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("frames")
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for seed, name in enumerate([*ORDER, *TEST]):
        write_frame(root, name, seed)
    return root


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dal_dense.build.build_task", build_toy)
    monkeypatch.setattr(rounds, "draw_gallery", lambda *given: None)


@contextmanager
def opened(root: Path, run_dir: Path, order: list[str], **more: str) -> Iterator[Run]:
    """A new run whose pool is listed in this order."""
    split = run_dir.with_suffix(".json")
    split.write_text(json.dumps({"train": order, "test": TEST}))
    budget = {"budget__start_seconds": "60", "budget__seconds_per_round": "80"}
    given = {"data__split_file": str(split), "data__test_fraction": "0", **budget, **more}
    config = load_config(frame_settings(root, run_dir, **given), description="")
    with joined("cpu") as ranks, open_run(config, Screen(quiet=True), ranks) as run:
        assert [r.id for r in run.pool.members] == order
        yield run


def queries(root: Path, run_dir: Path, order: list[str], **more: str) -> list[Query]:
    """The start set, and what is asked once it is answered and learnt from."""
    with opened(root, run_dir, order, **more) as run:
        rounds.ask(run, 0)
        rounds.answer(run, 0)
        run.ledger.record_fit(0, rounds.fit(run, 0))
        run.ledger.record_measurement(0, Measurement("dice", 0.0, {}))
        rounds.ask(run, 1)
        return run.ledger.queries()


@pytest.mark.parametrize("case", CASES)
def test_the_order_of_the_pool_does_not_matter(frames: Path, tmp_path: Path, case: str) -> None:
    mixed = random.Random(0).sample(ORDER, len(ORDER))
    one, other = (queries(frames, tmp_path / f"run {i}", o, **CASES[case]) for i, o in enumerate((ORDER, mixed)))
    assert len(one) == 2 and all(len(query.regions) > 3 for query in one)
    assert other == one


def test_how_many_images_are_looked_at_in_turn_does_not_matter(
    frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the start set no model knows, of the round after it one does."""
    found = []
    for count in (1, 2, 4096):
        monkeypatch.setattr(rounds, "AT_ONCE", count)
        found.append(queries(frames, tmp_path / f"{count}", ORDER, **CASES["a model"]))
    assert found[0] == found[1] == found[2] and all(len(query.regions) > 3 for query in found[0])


def test_images_are_numbered_by_group_then_time_then_id(frames: Path, tmp_path: Path) -> None:
    with opened(frames, tmp_path / "run", ORDER[::-1]) as run:
        backwards = [replace(r, time=None if r.id < "drive0_03" else -float(r.id[-2:])) for r in run.pool.members]
        run.pool = replace(run.pool, members=tuple(backwards))
        views = rounds.views_of_pool(run, 0, "uniform")
    assert [v.record.id for v in views] == [*ORDER[8:2:-1], *ORDER[:3], *ORDER[:8:-1]]
    assert [v.image for v in views] == list(range(len(ORDER))) and [v.group for v in views] == [0] * 9 + [1] * 6
