#!/usr/bin/env python
"""How much do two fits on the same labels differ? Fits a finished run's last labels again, with other seeds.

    python tools/refit.py --repeats 2 --config configs/camvid.yaml [--any.key value, as the run had them]

A difference between strategies that is not well above this deviation may be luck. The run stays as it is;
tools/benchmark.py --refits does the same and reports it.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from dal_dense.cli import command, load_config
from dal_dense.console import Screen


@command
def main(argv: list[str]) -> int:
    """Refit, measure, tell."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--repeats", type=int, default=2)
    given, rest = parser.parse_known_args(argv)
    config = load_config(rest, description=__doc__)
    from dal_dense.build import follow, open_run
    from dal_dense.errors import ConfigError
    from dal_dense.ledger import Ledger
    from dal_dense.ranks import joined
    from dal_dense.refits import refit
    from dal_dense.report.words import count

    with joined(config.device) as ranks, Screen(quiet=not ranks.first).running() as screen:
        if not ranks.first:
            return follow(config, screen, ranks)
        if not Ledger.begun(config.run_dir):  # open_run would begin one there
            raise ConfigError(
                f"run_dir: {config.run_dir} holds no run; give the folder of a finished one (--run_dir PATH)"
            )
        with open_run(config, screen, ranks) as run:
            found = refit(run, given.repeats)
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        shown = ", ".join(f"{value:.3f}" for value in found)
        screen.say(
            f"{config.task.metric} of the fit and of {count(len(found) - 1, 'other')}: {shown}; deviation {spread:.3f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
