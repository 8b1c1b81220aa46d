#!/usr/bin/env python
"""Write a run's report again from its ledger, also while the run goes on.

python tools/report.py runs/demo_ct [more runs ...]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from dal_dense.cli import command


@command
def main(argv: list[str]) -> int:
    """One `report.html` and `results.json` a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, nargs="+", help="folder of a run (the one that holds ledger.sqlite)")
    given = parser.parse_args(argv)
    from dal_dense.ledger import Ledger
    from dal_dense.report.page import write_report

    for run_dir in given.run_dir:
        with Ledger.read(run_dir) as ledger:
            Console().print(f"report: {write_report(ledger, run_dir)}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
