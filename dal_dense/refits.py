"""How much two fits on the same labels differ: the noise that any comparison of strategies lies in.

The last round's labels are fitted again with other seeds and measured. Nothing of the run itself
changes; each figure is one event in its ledger.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from dal_dense import jobs
from dal_dense.errors import DataError
from dal_dense.labels import labelled_images
from dal_dense.ledger import Ledger
from dal_dense.run import Run

EVENT = "refit"


def refit(run: Run, count: int) -> list[float]:
    """Fit the last measured round `count` times again; the metric of each, and of the run's own fit first.

    A fit that was measured before is not repeated, one that was cut goes on.

    Raises:
        DataError: if no round is measured yet.
    """
    ledger = run.ledger
    rounds = ledger.measurements()
    if not rounds:
        raise DataError(f"{run.folder} holds no measured round; let the run finish, then call this again")
    number = max(rounds)
    before = ledger.fit(number - 1) if number else None
    labelled = labelled_images(ledger, run.pool, upto=number)
    done = {e["repeat"] for e in ledger.events(EVENT) if e["round"] == number}
    for repeat in sorted(set(range(count)) - done):
        run.screen.say(f"round {number} is fitted again, {repeat + 1} of {count}")
        seed, out = ledger.seed_for("refit", number, repeat), f"round_{number:03d}_again_{repeat:02d}"
        previous = before.weights if before else None
        fitted = run.together(jobs.fit, labelled, seed, run.folder / "models" / out, previous)
        measured = run.together(jobs.measure, fitted.weights, run.pool.test)
        ledger.record_event(EVENT, {"round": number, "repeat": repeat, "value": measured.value})
    return figures(ledger)


def figures(ledger: Ledger) -> list[float]:
    """The last round's metric, and that of its other fits; one figure only where there are none."""
    measured = ledger.measurements()
    number = max(measured)
    return [measured[number].value, *(e["value"] for e in ledger.events(EVENT) if e["round"] == number)]


def fit_noise(run_dirs: Sequence[Path]) -> float | None:
    """Standard deviation between fits on the same labels, pooled over runs; None if none was fitted again."""
    deviations = []
    for folder in run_dirs:
        with Ledger.read(folder) as ledger:
            found = figures(ledger)
        if len(found) > 1:
            deviations.append(statistics.variance(found))
    return statistics.mean(deviations) ** 0.5 if deviations else None
