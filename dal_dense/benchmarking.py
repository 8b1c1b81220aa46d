"""Several runs side by side: strategies against each other, seeds within a strategy.

Runs spend different amounts, so every comparison is made on one axis of charged seconds, over the
range that all of them cover. Strategies are compared within a seed (same start set), which takes
the luck of the start set out of the difference.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dal_dense.errors import DataError
from dal_dense.report.figures import STYLE, metric_name
from dal_dense.report.palette import INK, SERIES
from dal_dense.results import Results, area_under_curve

POINTS = 101
"""Points of the common axis of charged seconds."""

Runs = Mapping[str, Mapping[int, Results]]
"""Strategy name to seed to that run's results."""


@dataclass(frozen=True)
class Curves:
    """Learning curves on one axis.

    Attributes:
        seconds: charged seconds, `(points,)`, the range that every run covers.
        values: strategy to metric, `(seeds, points)`, seeds in the order of `seeds`.
        seeds: strategy to its seeds.
    """

    seconds: Float[np.ndarray, " points"]
    values: dict[str, Float[np.ndarray, "seeds points"]]
    seeds: dict[str, tuple[int, ...]]

    def areas(self, strategy: str) -> Float[np.ndarray, " seeds"]:
        """Area under each seed's curve over the common range, scaled to [0, 1]."""
        seconds = self.seconds.tolist()
        return np.array([area_under_curve(seconds, row) or 0.0 for row in self.values[strategy].tolist()])


@dataclass(frozen=True)
class Row:
    """One strategy of the table; means and standard deviations (n - 1) over seeds."""

    strategy: str
    seeds: int
    hours: float
    start: tuple[float, float]
    last: tuple[float, float]
    area: tuple[float, float]
    difference: tuple[float, float] | None
    """Area minus the baseline's, paired by seed; None for the baseline or without a shared seed."""


def common_curves(runs: Runs) -> Curves:
    """Every run's curve, linear between its measurements, on the range of seconds that all cover.

    Raises:
        DataError: if a run has fewer than two measurements, or the runs share no range.
    """
    spans = []
    for strategy, by_seed in runs.items():
        for seed, results in by_seed.items():
            seconds, _ = results.curve
            if len(seconds) < 2:
                raise DataError(
                    f"run of {strategy}, seed {seed}: {len(seconds)} measurements, two are needed for a curve; "
                    "let it finish (run the same command again)"
                )
            spans.append((seconds[0], seconds[-1]))
    low, high = max(a for a, _ in spans), min(b for _, b in spans)
    if high <= low:
        raise DataError(
            f"the runs share no range of charged seconds: one begins at {low:.0f} s, one ends at {high:.0f} s; "
            "compare runs of one config"
        )
    axis = np.linspace(low, high, POINTS)
    seeds = {name: tuple(sorted(by_seed)) for name, by_seed in runs.items()}
    values = {name: np.stack([np.interp(axis, *runs[name][seed].curve) for seed in seeds[name]]) for name in runs}
    return Curves(axis, values, seeds)


def mean_sd(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Mean and standard deviation with n - 1; the latter is NaN for a single value."""
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def table(runs: Runs, baseline: str | None) -> list[Row]:
    """A row a strategy, in the order given."""
    curves = common_curves(runs)
    rows = []
    for name, by_seed in runs.items():
        order = curves.seeds[name]
        rows.append(Row(
            strategy=name,
            seeds=len(order),
            hours=float(np.mean([r.seconds_charged for r in by_seed.values()])) / 3600,
            start=mean_sd(np.array([by_seed[s].measured[0].metric for s in order], np.float64)),
            last=mean_sd(np.array([by_seed[s].measured[-1].metric for s in order], np.float64)),
            area=mean_sd(curves.areas(name)),
            difference=None if baseline is None or name == baseline else paired(curves, name, baseline),
        ))  # fmt: skip
    return rows


def paired(curves: Curves, strategy: str, baseline: str) -> tuple[float, float] | None:
    """Mean and deviation of the difference in area within seeds; None if no seed is shared."""
    if baseline not in curves.seeds:
        return None
    mine = dict(zip(curves.seeds[strategy], curves.areas(strategy), strict=True))
    theirs = dict(zip(curves.seeds[baseline], curves.areas(baseline), strict=True))
    shared = [seed for seed in mine if seed in theirs]
    return mean_sd(np.array([mine[s] - theirs[s] for s in shared])) if shared else None


def draw(runs: Runs, title: str) -> Figure:
    """Mean curve a strategy with its range over seeds, single runs as thin lines; for white paper."""
    curves = common_curves(runs)
    metric = next((r.metric for by_seed in runs.values() for r in by_seed.values() if r.metric), None)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.4), layout="constrained", facecolor="white")
        axes: Axes = figure.subplots()
        for n, (name, by_seed) in enumerate(runs.items()):
            colour = SERIES[n % len(SERIES)]
            for results in by_seed.values():
                seconds, values = results.curve
                hours = np.array(seconds) / 3600
                axes.plot(hours, values, color=colour, linewidth=0.9, alpha=0.45, marker="o", markersize=2.5)
            rows, hours = curves.values[name], curves.seconds / 3600
            axes.fill_between(hours, rows.min(0), rows.max(0), color=colour, alpha=0.12, linewidth=0)
            axes.plot(hours, rows.mean(0), color=colour, linewidth=2.4, label=f"{name} (n = {len(rows)})")
        axes.set_xlabel("expert time charged (hours)")
        axes.set_ylabel(f"{metric_name(metric)} on the test images")
        axes.set_title(title, loc="left", fontsize=11, color=INK["text"])
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.legend(loc="lower right")
    return figure


def markdown(
    runs: Runs, *, title: str, figure: str, facts: Mapping[str, str], baseline: str | None, noise: float | None = None
) -> str:
    """The page of `docs/benchmarks/`: facts of the machine, table, curve, and how to read them."""
    rows = table(runs, baseline)
    metric = metric_name(next((r.metric for by_seed in runs.values() for r in by_seed.values() if r.metric), None))
    versus = f"area minus {baseline}" if baseline in runs else "difference"
    lines = [f"# {title}", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    lines += [f"| strategy | seeds | expert hours | {metric} at the start | {metric} at the end | area | {versus} |"]
    lines += ["|---|--:|--:|--:|--:|--:|--:|"]
    for r in rows:
        gap = "–" if r.difference is None else plus_minus(r.difference, sign=True)
        lines.append(
            f"| {r.strategy} | {r.seeds} | {r.hours:.2f} | {plus_minus(r.start)} | {plus_minus(r.last)} "
            f"| {plus_minus(r.area)} | {gap} |"
        )
    axis = common_curves(runs).seconds / 3600
    lines += ["", f"![{metric} over hours of expert time, a line a strategy]({figure})", ""]
    lines.append(
        f"Mean ± standard deviation over seeds. Area: mean {metric} over the hours that every run covers "
        f"({axis[0]:.2f} to {axis[-1]:.2f} h charged). Differences are taken within a seed, which shares its start set."
    )
    if noise is not None:
        lines.append(f"Fits on the same labels with other seeds have a standard deviation of {noise:.3f}.")
    if max(r.seeds for r in rows) < 5:
        lines.append("Fewer than five seeds show a direction; they prove nothing.")
    return "\n".join(lines) + "\n"


def plus_minus(pair: tuple[float, float], *, sign: bool = False) -> str:
    """`0.712 ± 0.013`; without the second half for a single seed."""
    mean = f"{pair[0]:+.3f}" if sign else f"{pair[0]:.3f}"
    return mean if np.isnan(pair[1]) else f"{mean} ± {pair[1]:.3f}"


def write(
    runs: Runs, out: Path, *, title: str, facts: Mapping[str, str], baseline: str | None, noise: float | None = None
) -> list[Path]:
    """`OUT.md` and `OUT.svg`; returns their paths. `noise`: standard deviation between fits on the same labels."""
    out.parent.mkdir(parents=True, exist_ok=True)
    page, picture = out.with_name(out.name + ".md"), out.with_name(out.name + ".svg")
    drawn = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.fonttype": "path", "svg.hashsalt": out.name}):
        draw(runs, title).savefig(drawn, format="svg", metadata={"Date": None})
    text = "\n".join(line.rstrip() for line in drawn.getvalue().splitlines()) + "\n"
    picture.write_text(text, encoding="utf-8")
    content = markdown(runs, title=title, figure=picture.name, facts=facts, baseline=baseline, noise=noise)
    page.write_text(content, encoding="utf-8")
    return [page, picture]
