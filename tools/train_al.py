#!/usr/bin/env python
"""Spend an expert's hours where they teach the model most.

    python tools/train_al.py --config configs/demo_ct.yaml [--any.key value]
    torchrun --nproc-per-node 4 tools/train_al.py ...    four processes share the work

Stops on Ctrl-C at a safe point and goes on where it was when called again.
"""

from __future__ import annotations

import sys

from dal_dense.cli import command, load_config
from dal_dense.console import Screen


@command
def main(argv: list[str]) -> int:
    """The whole loop."""
    config = load_config(argv, description=__doc__)  # every setting is checked before anything heavy loads
    from dal_dense import rounds
    from dal_dense.build import follow, open_run
    from dal_dense.ranks import joined

    with joined(config.device) as ranks, Screen(quiet=not ranks.first).running() as screen:
        if not ranks.first:  # the first process holds the ledger and leads; the others work for it
            return follow(config, screen, ranks)
        with open_run(config, screen, ranks) as run:
            ledger = run.ledger
            while (number := ledger.round) <= config.budget.rounds:
                if number:
                    rounds.report(run)
                if rounds.ask(run, number) is None:  # the budget is spent, or nothing is left to ask
                    break
                if not ledger.closed(number):
                    outcome = rounds.answer(run, number)
                    if not ledger.closed(number):  # people are still drawing
                        screen.say(outcome.message)
                        break
                if ledger.fit(number) is None:
                    ledger.record_fit(number, rounds.fit(run, number))
                ledger.record_measurement(number, rounds.measure(run, number))
                screen.say(rounds.table(run))
            else:
                screen.say("all rounds are done")
            rounds.take_late(run)
            screen.say(f"report: {rounds.report(run)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
