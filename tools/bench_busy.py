#!/usr/bin/env python
"""What it saves beside other programs that threads which wait for each other sleep soon.

    python tools/bench_busy.py --config configs/openkbp_hn5.yaml [--out FILE] [--any.key value]

Runs tools/train_al.py in a temporary folder, in turn as it is and with threads that wait as torch's do by default;
first alone, then beside programs that only count. Shorten it with --budget.rounds 1 --task.train.iterations 20
--data.max_pool 12.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from dal_dense.benchmark_page import facts, page, parser_of, publish
from dal_dense.cli import SPINS, command, load_config
from dal_dense.errors import DataError

TRAIN_AL = Path(__file__).resolve().parent / "train_al.py"

BESIDE, TURNS = 2, 2
"""Programs that count meanwhile; runs of each way."""

WAYS = {"sleep soon": SPINS, "by default": "300000"}
"""How threads wait: turns before one sleeps. The second is libgomp's own number where none is set."""


@command
def main(argv: list[str]) -> int:
    """Run, print and write the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--config", type=Path, required=True, help="YAML file of settings")
    parser.add_argument("--out", type=Path, default=None, help="file for the table")
    given, rest = parser.parse_known_args(argv)

    settings = ["--config", str(given.config), *rest]
    load_config([*settings, "--run_dir", "unused"])
    lines = [
        "| programs beside | threads that wait | seconds | CPU seconds | times the time |",
        "|--:|---|--:|--:|--:|",
    ]
    for beside in (0, BESIDE):
        took: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        with counting(beside):
            for _ in range(TURNS):
                for way, spins in WAYS.items():
                    took[way].append(run(settings, {"GOMP_SPINCOUNT": spins}))
        first = statistics.mean(wall for wall, _ in took["sleep soon"])
        for way, runs in took.items():
            walls, cpus = zip(*runs, strict=True)
            cells = [", ".join(f"{seconds:.1f}" for seconds in some) for some in (walls, cpus)]
            lines.append(f"| {beside} | {way} | {' | '.join(cells)} | {statistics.mean(walls) / first:.2f} |")
    title = f"A run beside other programs: {given.config.stem}"
    publish(page(title, facts("bench_busy.py", argv), lines), given.out)
    return 0


@contextmanager
def counting(programs: int) -> Iterator[None]:
    """Programs that keep cores busy meanwhile."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(programs)]
    try:
        yield
    finally:
        for one in running:
            one.kill()
            one.wait()


def run(settings: Sequence[str], waits: Mapping[str, str]) -> tuple[float, float]:
    """Seconds and CPU seconds of a run from nothing.

    Raises:
        DataError: it failed; what it says is on the screen.
    """
    with tempfile.TemporaryDirectory() as folder:
        began, before = time.perf_counter(), os.times()
        done = subprocess.run(
            [sys.executable, str(TRAIN_AL), *settings, "--run_dir", folder],
            env={**os.environ, **waits},
            stdout=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode:
            raise DataError(f"tools/train_al.py ended with status {done.returncode}; mend what it says above")
        after = os.times()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        return time.perf_counter() - began, cpu


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
