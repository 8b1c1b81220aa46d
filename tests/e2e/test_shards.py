"""Three processes against one, with a toy task: what is asked and said, and how much the first one is sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dal_dense.ledger import Ledger
from dal_dense.ranks import ALONE
from tests.e2e.command import story
from tests.e2e.toy_ranks import all_runs
from tests.processes import together
from tests.world import frame_settings, write_frame

FRAMES = [f"drive{i % 3}_{i:02d}" for i in range(12)]
WIDE = {
    "query__per_image": "20",
    "query__stride": "4",
    "budget__start_seconds": "60",
    "budget__seconds_per_round": "90",
}
TIMES = {"data__time_pattern": r"_(\d+)$", "query__min_gap": "4"}
CASES: dict[str, dict[str, str]] = {
    "all rows": {"strategy__name": "kmeans"},
    "farthest first": {"strategy__name": "coreset"},
    "quotas": {"strategy__name": "clasp", "query__max_per_group": "4"},
    "hybrid": {"strategy__name": "hybrid"},
    "per second": {"strategy__name": "per_second"},
    "times and caps": {"strategy__name": "power", **TIMES, "query__max_per_image": "2", "query__max_per_group": "5"},
    "broken files": {"strategy__name": "greedy", "query__max_per_image": "1"},
    "too poor": {"strategy__name": "per_second", "budget__seconds_per_round": "1"},
    "exhausted": {"strategy__name": "box_count", **TIMES, "query__min_gap": "99", "query__kind": "image"},
}
BROKEN = {"broken files": [f"images/{FRAMES[3]}.jpg", *(f"masks/{name}.png" for name in FRAMES[4:11])]}
Found = tuple[Path, list[dict[str, Any]]]


def command(folder: Path, case: str) -> tuple[list[str], list[str]]:
    """A run over data of its own, and the files that break."""
    data, run_dir = folder / case / "data", folder / case / "run"
    for part in ("images", "masks"):
        (data / part).mkdir(parents=True)
    for seed, name in enumerate(FRAMES):
        write_frame(data, name, seed, (32, 48))
    return frame_settings(data, run_dir, **{**WIDE, **CASES[case]}), BROKEN.get(case, [])


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What one process, and the first of three, told of each case."""
    folder = tmp_path_factory.mktemp("shards")
    one, three = ({case: command(folder / size, case) for case in CASES} for size in ("one", "three"))
    alone = all_runs(ALONE, one)
    (folder / "cases.json").write_text(json.dumps(three))
    done = together(3, "tests.e2e.toy_ranks", str(folder / "cases.json"), str(folder / "found.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, [alone, json.loads((folder / "found.json").read_text())]


def told(found: Found, size: str, case: str) -> tuple[str, list[str]]:
    """How a run ended, and what it said, without what only several processes say."""
    folder, seen = found
    mine = seen[size == "three"][case]
    said = [line for line in mine["said"].splitlines() if "processes share" not in line and "threads" not in line]
    data = str(folder / size)
    return mine["problem"].replace(data, ""), [line.replace(data, "") for line in said]


@pytest.mark.parametrize("case", CASES)
def test_the_query_and_all_that_is_said_is_that_of_one_process(found: Found, case: str) -> None:
    folder, seen = found
    assert story(folder / "three" / case / "run") == story(folder / "one" / case / "run")
    assert told(found, "three", case) == told(found, "one", case)
    assert not any(runs[case]["left"] for runs in seen)  # of the files of offers


@pytest.mark.parametrize(("case", "share"), [("per second", 0.75), ("hybrid", 0.75), ("times and caps", 0.2)])
def test_the_first_process_is_sent_few_of_the_rows_on_offer(found: Found, case: str, share: float) -> None:
    """In a pool of eight images; of a large one it is a handful."""
    _, three = found[1]
    assert 0 < three[case]["got"] < share * three["all rows"]["got"]


def test_a_chosen_image_without_labels_is_set_aside_and_another_chosen(found: Found) -> None:
    with Ledger.read(found[0] / "three" / "broken files" / "run") as ledger:
        bad = [event["image"] for event in ledger.events("quarantine")]
        asked = {region.image_id for region in ledger.queries()[1].regions}
    assert bad[0] == FRAMES[3] and len(bad) > 2 and asked and not asked & {*bad}


def test_how_the_runs_that_buy_nothing_end(found: Found) -> None:
    problem, _ = told(found, "three", "too poor")
    assert problem.startswith("BudgetError: budget 1 s buys nothing: the cheapest of ")
    problem, said = told(found, "three", "exhausted")
    assert not problem and said[-1].startswith("nothing is left to ask: of 8 regions on offer none is free of ")
