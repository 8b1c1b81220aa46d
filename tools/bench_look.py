#!/usr/bin/env python
"""What a second thread saves of a look at the pool: one image at a time and two, in turn.

    python tools/bench_look.py --config configs/openkbp_hn5.yaml [--images 10] [--out FILE] [--any.key value]

Runs the start set and one round in a temporary folder (shorten that with --task.train.iterations); then looks at
some images three times each way.
"""

from __future__ import annotations

import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from dal_dense.benchmark_page import facts, page, parser_of, publish
from dal_dense.cli import command, load_config

REPEATS = 3


@command
def main(argv: list[str]) -> int:
    """Run, look, print and write the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--config", type=Path, required=True, help="YAML file of settings")
    parser.add_argument("--images", type=int, default=10, help="images that are looked at")
    parser.add_argument("--out", type=Path, default=None, help="file for the table")
    given, rest = parser.parse_known_args(argv)

    from train_al import main as train_al

    from dal_dense import rounds
    from dal_dense.build import open_run
    from dal_dense.console import Screen
    from dal_dense.ranks import joined
    from dal_dense.tasks import base

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        settings = ["--config", str(given.config), *rest, "--budget.rounds", "1", "--run_dir", folder]
        if status := train_al(settings):
            return status
        config = load_config(settings, description=__doc__)
        with joined(config.device) as ranks, Screen().running() as screen, open_run(config, screen, ranks) as run:
            views = rounds.views_of_pool(run, 2, config.strategy.name)[: given.images]
            offer = partial(run.task.offers, run.task.load(rounds.weights_of(run, 1)))
            for _ in range(REPEATS):
                for together in (1, 2):
                    base.AT_ONCE = together
                    wall, cpu = time.perf_counter(), time.process_time()
                    list(screen.hooks().share("looking at the pool", lambda view: view.offers(offer), views))
                    rows.append((together, time.perf_counter() - wall, time.process_time() - cpu))
    mean = {n: [sum(row[k] for row in rows if row[0] == n) / REPEATS for k in (1, 2)] for n in (1, 2)}
    lines = [
        "| images at a time | seconds | CPU seconds |",
        "|--:|--:|--:|",
        *(f"| {n} | {wall:.2f} | {cpu:.2f} |" for n, wall, cpu in rows),
        "",
        f"Two at a time take {mean[2][0] / mean[1][0]:.2f} of the time of one at a time, and "
        f"{mean[2][1] / mean[1][1]:.2f} of its CPU time (means).",
    ]
    title = f"A look at {len(views)} images, one and two at a time: {given.config.stem}"
    publish(page(title, facts("bench_look.py", argv), lines), given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
