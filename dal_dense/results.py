"""The numbers of a run, read from its ledger: what was asked, spent and gained, round by round.

`collect` is the one source of both `results.json` and the report. Budgets are seconds of an
expert's time; the learning curve lies over *charged* seconds, never over rounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dal_dense.errors import DataError
from dal_dense.noise import derive_seed

if TYPE_CHECKING:
    from dal_dense.ledger import Ledger
    from dal_dense.query import Query
    from dal_dense.tasks.base import Measurement

RESAMPLES = 2000
"""Bootstrap draws; the limits of a 95% interval then move by well under a tenth of its width."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(_Frozen):
    """Percentile bootstrap over groups (Efron 1979): patients or drives are drawn, never frames."""

    mean: float = Field(description="over groups, which need not equal the headline metric; of AP the metric itself")
    low: float
    high: float
    groups: int = Field(description="groups drawn from; below about ten the interval is too narrow")


class RoundResult(_Frozen):
    """One round; round 0 is the start set. `None` stands for what has not happened yet."""

    round: int
    strategy: str
    asked: int = Field(description="regions")
    answered: int
    rejected: int = Field(description="regions that cannot be labelled")
    open: int
    images: int = Field(description="images that the regions lie in")
    seconds_predicted: float = Field(description="of all regions asked")
    seconds_predicted_answered: float = Field(description="of the regions answered; compare this with seconds_charged")
    seconds_charged: float = Field(description="for the answers to this round's query, whenever they came")
    seconds_charged_total: float = Field(description="for all that had come when the round was closed")
    selection_seconds: float | None = Field(default=None, description="machine time to choose the regions")
    fit: dict[str, float | None] = Field(default_factory=dict, description="figures of the fit: temperature, ...")
    metric: float | None = Field(default=None, description="mean over classes on the test images")
    per_class: dict[str, float | None] = Field(default_factory=dict, description="null where the class does not occur")
    per_group: dict[str, float | None] = Field(default_factory=dict)
    interval: Interval | None = None
    extra: dict[str, float | None] = Field(default_factory=dict, description="further figures of the measurement")


class CostPair(_Frozen):
    """Predicted and charged seconds of one answered region."""

    region: str
    round: int
    predicted: float
    charged: float


class Results(_Frozen):
    """`results.json`."""

    format: Literal["dal_dense.results"] = "dal_dense.results"
    version: Literal[1] = 1
    run: str
    seed: int
    strategy: str
    metric: str | None = None
    rounds: tuple[RoundResult, ...] = ()
    seconds_charged: float = 0.0
    area: float | None = Field(default=None, description="under the curve over charged seconds scaled to 0..1")
    costs: tuple[CostPair, ...] = ()
    quarantined: dict[str, str] = Field(default_factory=dict, description="image id to reason")
    config: dict[str, object] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)

    @property
    def measured(self) -> tuple[RoundResult, ...]:
        """Rounds with a measurement, in order."""
        return tuple(r for r in self.rounds if r.metric is not None)

    @property
    def curve(self) -> tuple[list[float], list[float]]:
        """Charged seconds and metric at each measurement."""
        return [r.seconds_charged_total for r in self.measured], [float(r.metric or 0.0) for r in self.measured]


def collect(ledger: Ledger) -> Results:
    """All numbers of a run in any state, also while another process writes it."""
    measurements = ledger.measurements()
    costs = tuple(
        CostPair(region=c.region_id, round=c.round, predicted=c.predicted_seconds, charged=c.charged_seconds)
        for c in ledger.cost_log()
    )
    rejected = [r.region.id for r in ledger.rejected()]
    rounds = tuple(_round(ledger, q, costs, rejected, measurements.get(q.round)) for q in ledger.queries())
    curve = [(r.seconds_charged_total, r.metric) for r in rounds if r.metric is not None]
    strategy = ledger.config.get("strategy")
    return Results(
        run=ledger.run_id,
        seed=ledger.seed,
        strategy=str(strategy["name"]) if isinstance(strategy, dict) else (rounds[-1].strategy if rounds else "none"),
        metric=next((m.metric for m in measurements.values()), None),
        rounds=rounds,
        seconds_charged=ledger.spent(),
        area=area_under_curve([s for s, _ in curve], [v for _, v in curve]),
        costs=costs,
        quarantined={str(e["image"]): str(e["reason"]) for k in ("absent", "quarantine") for e in ledger.events(k)},
        config=ledger.config,
        versions=(ledger.events("versions") or [{}])[-1],
    )


def _round(
    ledger: Ledger, query: Query, costs: Sequence[CostPair], rejected: Sequence[str], measured: Measurement | None
) -> RoundResult:
    mine = [c for c in costs if c.round == query.round]
    refused = sum(r.id in rejected for r in query.regions)
    fitted = ledger.fit(query.round)
    known = RoundResult(
        round=query.round,
        strategy=query.strategy,
        asked=len(query.regions),
        answered=len(mine),
        rejected=refused,
        open=len(query.regions) - len(mine) - refused,
        images=len({r.image_id for r in query.regions}),
        seconds_predicted=query.seconds,
        seconds_predicted_answered=sum((c.predicted for c in mine), 0.0),
        seconds_charged=sum((c.charged for c in mine), 0.0),
        seconds_charged_total=ledger.spent(upto=query.round),
        selection_seconds=ledger.seconds_to_choose(query.round),
        fit=finite(fitted.figures) if fitted else {},
    )
    if measured is None:
        return known
    return known.model_copy(
        update={
            "metric": finite({"value": measured.value})["value"],
            "per_class": finite(measured.per_class),
            "per_group": finite(measured.per_group),
            "interval": _interval(measured, seed=derive_seed(ledger.seed, "bootstrap", query.round)),
            "extra": finite(measured.extra),
        }
    )


def _interval(measured: Measurement, *, seed: int) -> Interval | None:
    """The task's own interval if it gives one, else that of the mean over groups."""
    low, high = (measured.extra.get(end, math.nan) for end in ("interval_low", "interval_high"))
    if math.isfinite(low) and math.isfinite(high):
        return Interval(mean=measured.value, low=low, high=high, groups=len(measured.per_group))
    return bootstrap([v for _, v in sorted(measured.per_group.items()) if math.isfinite(v)], seed=seed)


def load(run_dir: Path) -> Results:
    """`results.json` of a finished or running run.

    Raises:
        DataError: if it is not there or not one of ours.
    """
    path = run_dir / "results.json"
    try:
        return Results.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: not there; make it with `python tools/report.py {run_dir}`") from None
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{path}: not a results file of this version ({where}: {first['msg']}); "
            f"make it again with `python tools/report.py {run_dir}`"
        ) from None


def area_under_curve(seconds: Sequence[float], values: Sequence[float]) -> float | None:
    """Trapezoid of the metric over the budget, budget scaled to [0, 1] (AUBC; nnActive, Lüth et al. 2025).

    None for fewer than two measurements, or if nothing was spent between them.
    """
    if len(seconds) < 2 or seconds[-1] <= seconds[0]:
        return None
    return float(np.trapezoid(values, seconds) / (seconds[-1] - seconds[0]))


def bootstrap(values: Sequence[float], *, seed: int, level: float = 0.95) -> Interval | None:
    """Interval of the mean over groups; None for fewer than two groups."""
    if len(values) < 2:
        return None
    known = np.asarray(values, np.float64)
    draws = np.random.default_rng(seed).integers(0, len(known), (RESAMPLES, len(known)))
    low, high = np.quantile(known[draws].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean=float(known.mean()), low=float(low), high=float(high), groups=len(known))


def finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    """The same figures with None for NaN and infinity, which JSON does not know."""
    return {k: float(v) if math.isfinite(v) else None for k, v in figures.items()}
