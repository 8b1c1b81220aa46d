#!/usr/bin/env python
"""What the engine costs beside the plain way of doing the same, and beside other packages.

    python tools/bench_engine.py [--peers] [--device cuda] [--only NAME ...] [--json docs/benchmarks/engine_cpu.json]

Each way runs in a process of its own; with --device cuda those that cannot use a GPU run on the CPU beside it, unless
--alone leaves them out. Work that takes too long on a CPU is done on a GPU only.
Prints a table: seconds, CPU seconds, memory, and each divided by ours; --json FILE also writes the figures, and the
table beside it as FILE with the suffix .md. The other packages come with `pip install -e '.[peers]'`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parent))

from dal_dense.benchmark_page import facts, parser_of, publish
from dal_dense.cli import command
from dal_dense.errors import ConfigError


@command
def main(argv: list[str]) -> int:
    """Measure, print, write."""
    import torch
    from engine_bench import cases
    from engine_bench.case import Case, Measured, in_own_process
    from engine_bench.table import bandwidth, markdown

    given = parse(argv)
    every = cases()
    if given.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device; leave it out to measure on the CPU")
    if unknown := [name for name in given.only if name not in every]:
        raise ConfigError(f"--only {unknown[0]}: no such case; there are {' '.join(map(shlex.quote, every))}")
    console = Console(stderr=True)
    rows: list[tuple[Case, list[Measured]]] = []
    copied, device = bandwidth(given.device, given.threads)
    for name in given.only or every:
        case, found = every[name], []
        if not any(how.cpu if given.device == "cpu" else how.cuda for how in case.ways.values()):
            continue
        for way, how in case.ways.items():
            if (how.peer and not given.peers) or not (
                how.cpu if given.device == "cpu" else how.cuda or not given.alone
            ):
                continue
            if how.missing:
                found.append(Measured(name, way, error=f"{how.needs} is not installed"))
                continue
            console.print(f"{name}: {way} ...", highlight=False)
            found.append(in_own_process(name, way, given.device, given.threads, given.limit))
        rows.append((case, found))
    shown = {
        **facts("bench_engine.py", argv),
        "device": device,
        **(peers() if given.peers else {}),
        "threads": str(given.threads),
        "copy bandwidth": f"{copied / 1e9:.1f} GB/s (read and write, measured in this run)",
    }
    publish(markdown(rows, shown, copied), given.json and given.json.with_suffix(".md"))
    if given.json is not None:
        content = {"facts": shown, "measured": [asdict(m) for _, found in rows for m in found]}
        given.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


def peers() -> dict[str, str]:
    """Versions of the other packages that are installed."""
    found = {}
    for name in ("apricot-select", "baal", "lightly-mundig", "scikit-activeml", "submodlib-py"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments."""
    parser = parser_of(__doc__)
    parser.add_argument("--peers", action="store_true", help="other packages too")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where (cpu)")
    parser.add_argument("--alone", action="store_true", help="with --device cuda: nothing on the CPU beside it")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these cases only")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (2)")
    parser.add_argument("--limit", type=float, default=900, help="seconds a way may take, its inputs included (900)")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="file for the figures")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
