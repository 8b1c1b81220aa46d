"""A made-up run in a real ledger: plausible figures, no training. For the tests of results and report."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np

from dal_dense.ledger import Ledger
from dal_dense.query import Query, QueryRegion
from dal_dense.tasks.base import FitReport, Measurement

CLASSES = ("background", "liver", "spleen", "left_kidney", "lesion")
CONFIG = {
    "seed": 3,
    "strategy": {"name": "hybrid"},
    "uncertainty": {"score": "predictive_entropy"},
    "task": {"background": True},
    "data": {"format": "msd"},
}


BINS = {"bin_08_confidence": 0.58, "bin_08_accuracy": 0.5, "bin_14_confidence": 0.97, "bin_14_accuracy": 0.9}


def fake_run(
    run_dir: Path,
    *,
    rounds: int = 5,
    unfinished: bool = False,
    seed: int = 3,
    gain: float = 0.06,
    size: int = 32,
    regions: int = 14,
    strategy: str = "hybrid",
    detection: bool = False,
) -> None:
    """Fill a ledger with `rounds` finished rounds (0 is the start set) and, if unfinished, one half answered.

    The last region of round 1 comes back one round late.
    """
    rng = np.random.default_rng(seed)
    ticks = itertools.count(1_700_000_000.0, 60.0)
    config, versions = CONFIG | {"strategy": {"name": strategy}}, {"python": "3.11", "torch": "2.15"}
    with Ledger.open(run_dir, config=config, versions=versions, seed=seed, clock=lambda: next(ticks)) as ledger:
        ledger.record_event("quarantine", {"image": "ct_19", "reason": "images/ct_19.nii.gz: truncated; copy it again"})
        for number in range(rounds + int(unfinished)):
            query = fake_query(number, rng, size, regions)
            ledger.record_query(query, seconds_to_choose=3.2 + number)
            done = number < rounds
            late = int(number == 1) if done else regions - 3
            for region in (*ledger.open_regions(number - 1), *query.regions[: regions - late]):
                charged, label = region.seconds * float(rng.lognormal(0.08, 0.25)), np.zeros(region.shape, np.uint8)
                ledger.record_answer(region.id, label, seconds=charged - 4, image_seconds=4.0, source="oracle")
            if not done:
                continue
            ledger.close_round(number)
            ledger.record_fit(number, fake_fit(run_dir, number))
            measured = fake_measurement(number, rng, gain)
            ledger.record_measurement(number, as_detection(measured) if detection else measured)


def fake_query(number: int, rng: np.random.Generator, size: int, count: int) -> Query:
    """Boxes in some images; the start set has no model and so no shares."""
    regions = []
    for n in range(count):
        start = tuple(int(v) for v in rng.integers(0, 40, 3))
        share = rng.dirichlet([6, 2, 1, 1, 0.5]) if number else []
        regions.append(QueryRegion(
            id=f"r{number:02d}-{n:03d}", image_id=f"ct_{n // 3:02d}", kind="crop",
            start=start, stop=tuple(a + size for a in start),
            score=float(rng.random()), seconds=float(rng.uniform(15, 90)),
            shares=dict(zip(CLASSES, map(float, share), strict=False)),
        ))  # fmt: skip
    return Query(round=number, strategy="hybrid" if number else "uniform", seed=number, regions=tuple(regions))


def fake_fit(run_dir: Path, number: int) -> FitReport:
    """A fit without weights."""
    figures = {"loss": 0.4 / (number + 1), "temperature": 1.6 - 0.1 * number, "ece_before": 0.09 - 0.012 * number,
               "ece_after": 0.03 - 0.004 * number, "train_seconds": 41.0 + number, "iterations": 400.0}  # fmt: skip
    return FitReport(weights=run_dir / "models" / f"round_{number:03d}", sha256=f"{number:064x}", figures=figures)


def fake_measurement(number: int, rng: np.random.Generator, gain: float) -> Measurement:
    """Dice that grows with the round; one class occurs in no test image."""
    base = {"liver": 0.72, "spleen": 0.55, "left_kidney": 0.48, "lesion": 0.12}
    per_class = {k: min(v + gain * number + float(rng.normal(0, 0.008)), 0.97) for k, v in base.items()}
    value = float(np.mean(list(per_class.values())))
    groups = {f"patient_{n}": float(np.clip(value + rng.normal(0, 0.06), 0, 1)) for n in range(12)}
    return Measurement("dice", value, per_class | {"gallbladder": float("nan")}, groups, {"ece": 0.04, **BINS})


def as_detection(measured: Measurement) -> Measurement:
    """The same as AP50 of boxes: 5/6 of it among small objects, none that is large, an interval of its own."""
    value = measured.value
    sizes = {"": value, "_small": value / 1.2, "_medium": value, "_large": float("nan")}
    extra = {f"{name}{size}": v / by for name, by in (("ap50", 1), ("ap", 2)) for size, v in sizes.items()}
    ends = {"interval_low": value - 0.07, "interval_high": value + 0.02}
    return Measurement("ap50", value, measured.per_class, measured.per_group, extra | ends)


def legend(run_dir: Path, number: int, classes: dict[str, str]) -> None:
    """What the gallery's writer leaves for a round."""
    (run_dir / "gallery").mkdir(parents=True, exist_ok=True)
    path = run_dir / "gallery" / f"legend-{number}.json"
    path.write_text(json.dumps({"classes": classes, "uncertainty_max": 1.1}))
