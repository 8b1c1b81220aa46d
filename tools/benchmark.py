#!/usr/bin/env python
"""Compare strategies over seeds: run them all, then write a table and the learning curves.

    python tools/benchmark.py --config configs/camvid.yaml --strategies hybrid,random --seeds 0,1 \
        --out docs/benchmarks/camvid [--jobs 2 --refits 2] [--any.key value]

Each run is one call of tools/train_al.py with a folder of its own below --runs. A run that is
finished is not repeated, one that was cut goes on: call the same command again. --refits tells how much two
fits on the same labels differ.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from dal_dense.benchmark_page import facts, parser_of
from dal_dense.cli import command


@command
def main(argv: list[str]) -> int:
    """Run, collect, write."""
    given, passed_on = parse(argv)
    from dal_dense import benchmark_runs, benchmarking
    from dal_dense.errors import ConfigError
    from dal_dense.refits import fit_noise

    console = Console()
    jobs = benchmark_runs.planned(given.config, given.strategies, given.seeds, given.runs, passed_on)
    benchmark_runs.check(jobs)
    if given.baseline not in given.strategies:
        raise ConfigError(f"--baseline {given.baseline}: not among --strategies; add it there or name another")
    benchmark_runs.run_all(
        jobs, at_once=given.jobs, say=lambda text: console.print(text, highlight=False), refits=given.refits
    )
    title = f"{given.config.stem}: {', '.join(given.strategies)}"
    runs, noise = benchmark_runs.gather(jobs), fit_noise([job.run_dir for job in jobs])
    known = facts("benchmark.py", argv)
    for path in benchmarking.write(runs, given.out, title=title, facts=known, baseline=given.baseline, noise=noise):
        console.print(f"written: {path}", highlight=False)
    return 0


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our own arguments, and those that every run gets."""
    parser = parser_of(__doc__)
    parser.add_argument("--config", type=Path, required=True, action="append", help="one YAML file of settings")
    parser.add_argument("--strategies", type=names, default=["hybrid", "random"], help="comma between (hybrid,random)")
    parser.add_argument("--seeds", type=numbers, default=[0, 1], help="numbers, comma between (0,1)")
    parser.add_argument("--out", type=Path, required=True, help="where OUT.md and OUT.svg go, without a suffix")
    parser.add_argument("--baseline", default="random", help="the one that the others are compared with (random)")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks"), help="their folder (runs/benchmarks)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once (1)")
    parser.add_argument("--refits", type=int, default=0, help="fit each run's last labels so often again (0)")
    given, passed_on = parser.parse_known_args(argv)
    if len(given.config) > 1:
        parser.error("--config: one file here; put what the second one changes behind it, as --any.key value")
    given.config = given.config[0]
    return given, passed_on


def names(text: str) -> list[str]:
    """`hybrid,random` as a list."""
    return text.split(",")


def numbers(text: str) -> list[int]:
    """`0,1` as a list."""
    return [int(n) for n in text.split(",")]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
