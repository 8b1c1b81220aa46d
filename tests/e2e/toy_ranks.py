"""Runs of the toy task, one after the other, that several processes share. A program of its own: see `test_shards.py`.

    python -m tests.processes N tests.e2e.toy_ranks CASES FOUND

Both are json files. FOUND is written: what each run said, and how many rows of offers the first process was sent.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console

from dal_dense import rounds
from dal_dense.acquire.shortlist import Candidates
from dal_dense.build import follow, open_run
from dal_dense.cli import load_config
from dal_dense.console import Screen
from dal_dense.errors import DalDenseError
from dal_dense.offers import Offers
from dal_dense.ranks import Ranks, joined
from dal_dense.run import Run
from dal_dense.tasks.base import Measurement
from tests.e2e.command import build_toy

SMALL = {
    "dal_dense.offer_store.MANY": 40,  # rows of a shard go to files
    "dal_dense.acquire.shortlist.COUNT": 6,  # a query takes several questions
    "dal_dense.acquire.shortlist.LEAST": 1,
    "dal_dense.acquire.hybrid.SAMPLE": 8,
    "dal_dense.rounds.AT_ONCE": 5,
    "dal_dense.rounds.draw_gallery": lambda *given: None,
    "dal_dense.build.build_task": build_toy,
}


@contextmanager
def small() -> Iterator[None]:
    """The toy task, and pools that are large for it."""
    with ExitStack() as stack:
        for name, value in SMALL.items():
            stack.enter_context(mock.patch(name, value))
        yield


def rows_in(value: object) -> int:
    """Rows of offers in what a process sent."""
    if isinstance(value, Candidates):
        return len(value.rows.offers)
    if isinstance(value, list):
        return sum(map(rows_in, value))
    return len(value) if isinstance(value, Offers) else 0


def two_queries(run: Run, broken: list[str]) -> None:
    """The start set, and a query of the model that learnt from it; meanwhile some files break."""
    rounds.ask(run, 0)
    rounds.answer(run, 0)
    run.ledger.record_fit(0, rounds.fit(run, 0))
    run.ledger.record_measurement(0, Measurement("dice", 0.0, {}))
    for file in broken:
        path = run.config.data_root / file
        path.write_bytes(path.read_bytes()[:60])
    rounds.ask(run, 1)


def one_run(ranks: Ranks, argv: list[str], broken: list[str]) -> dict[str, Any]:
    """What the first process said, how it ended and what it got from the others; the others run its jobs."""
    config, out, got = load_config(argv, description=""), io.StringIO(), 0
    screen = Screen(Console(file=out, width=500))
    if not ranks.first:
        follow(config, screen, ranks)
        return {}
    whole = Ranks.gather

    def gather(ranks: Ranks, value: object, **how: bool) -> list[object]:
        nonlocal got
        everyone = whole(ranks, value, **how)
        got += rows_in(everyone[1:])
        return everyone

    problem = ""
    with mock.patch.object(Ranks, "gather", gather):
        try:
            with open_run(config, screen, ranks) as run:
                two_queries(run, broken)
        except DalDenseError as met:
            problem = f"{type(met).__name__}: {met}"
        if ranks.size > 1:
            ranks.send(None)
    return {"said": out.getvalue(), "problem": problem, "got": got, "left": (config.run_dir / "offers").exists()}


def all_runs(ranks: Ranks, cases: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each case: a command line, and files that break after the start set."""
    with small():
        return {name: one_run(ranks, argv, broken) for name, (argv, broken) in cases.items()}


def main(argv: list[str]) -> int:
    """See above."""
    cases = json.loads(Path(argv[0]).read_text())
    with joined("cpu") as ranks:
        found = all_runs(ranks, cases)
        if not ranks.first:
            ranks.receive()  # the end, which `follow` has not seen after the last run
            return 0
    Path(argv[1]).write_text(json.dumps(found))
    return 0
