"""The report's charts as inline SVG: small, labelled with units, and following the page's theme.

Text stays text (readable by a screen reader, in the page's font); colours of `palette.INK` become
CSS variables. Nothing here depends on the clock, so the same ledger gives the same report.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from dal_dense.report.palette import INK
from dal_dense.results import CostPair, RoundResult

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 11.0,
    "text.color": INK["text"],
    "axes.labelcolor": INK["text"],
    "axes.labelsize": 11.0,
    "axes.edgecolor": INK["muted"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": INK["grid"],
    "grid.linewidth": 0.8,
    "xtick.color": INK["muted"],
    "ytick.color": INK["muted"],
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "xtick.major.pad": 6.0,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "lines.linewidth": 2.0,
    "svg.fonttype": "none",
}
"""matplotlib settings of every chart of the package."""


def learning_curve(rounds: Sequence[RoundResult], metric: str) -> str:
    """Headline metric over charged hours, with the spread over groups as bars."""

    def draw(axes: Axes) -> None:
        x, y = _points(rounds, [r.metric for r in rounds])
        for r in rounds:
            if r.metric is not None and r.interval is not None:
                shift = r.metric - r.interval.mean
                at, ends = r.seconds_charged_total / 3600, [r.interval.low + shift, r.interval.high + shift]
                axes.plot([at, at], ends, color=INK["band"], linewidth=6, solid_capstyle="butt")
        axes.plot(x, y, color=INK["accent"], marker="o", markersize=5.5)
        axes.annotate(f"{y[-1]:.3f}", (x[-1], y[-1]), (0, 9), textcoords="offset points", ha="center")
        axes.set_xlabel("expert time charged (hours)")
        axes.set_ylabel(metric_name(metric))
        axes.margins(x=0.1, y=0.18)
        _from_zero(axes, min(x), max(x))
        if len(x) > 1:  # below right of the first point, where a rising curve leaves room, unless the axis is there
            low, high = axes.get_ylim()
            place = (8, -12) if y[0] - low > 0.1 * (high - low) else (-4, 7)
            axes.annotate(f"{y[0]:.3f}", (x[0], y[0]), place, textcoords="offset points")

    return _svg(draw, (4.5, 3.0), "learning")


def class_curve(rounds: Sequence[RoundResult], name: str, limits: tuple[float, float], hours: float) -> str:
    """One class over charged hours, on the axes that all classes share."""

    def draw(axes: Axes) -> None:
        x, y = _points(rounds, [r.per_class.get(name) for r in rounds])
        axes.plot(x, y, color=INK["accent"], marker="o", markersize=3, linewidth=1.6)
        axes.set_ylim(*limits)
        axes.set_xlim(0, hours * 1.06 or 1)
        axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10], min_n_ticks=2))
        axes.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10], min_n_ticks=2))
        axes.tick_params(labelsize=9)
        axes.set_xlabel("hours", fontsize=9, color=INK["muted"])

    return _svg(draw, (2.1, 1.4), f"class-{name}", room=(0.42, 0.46, 0.1, 0.08))


def class_limits(rounds: Sequence[RoundResult]) -> tuple[float, float]:
    """The value range that all classes of all rounds share, within 0..1 and never a point."""
    values = [v for r in rounds for v in r.per_class.values() if v is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    pad = 0.08 * max(high - low, 0.1)
    return max(min(low - pad, 0.95), 0.0 if low >= 0 else low - pad), high + pad


def cost_scatter(costs: Sequence[CostPair]) -> str:
    """Charged against predicted seconds, a dot a region; the newest round stands out."""

    def draw(axes: Axes) -> None:
        last = max(c.round for c in costs)
        top = max(max(c.predicted, c.charged) for c in costs) * 1.08 or 1.0
        axes.plot([0, top], [0, top], color=INK["muted"], linewidth=1.2, linestyle=(0, (4, 3)))
        old, new = [c for c in costs if c.round < last], [c for c in costs if c.round == last]
        if old:
            axes.scatter([c.predicted for c in old], [c.charged for c in old], s=16, color=INK["accent"], alpha=0.6,
                         linewidths=0, label="earlier rounds")  # fmt: skip
        axes.scatter([c.predicted for c in new], [c.charged for c in new], s=24, color=INK["second"], marker="D",
                     linewidths=0, label=f"round {last}")  # fmt: skip
        axes.set_xlim(0, top)
        axes.set_ylim(0, top)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("predicted (seconds a region)")
        axes.set_ylabel("charged (seconds a region)")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, handletextpad=0.2)  # above: dots may lie anywhere

    return _svg(draw, (4.5, 3.4), "scatter", room=(0.8, 0.54, 0.1, 0.34))


def cost_by_round(rounds: Sequence[RoundResult]) -> str:
    """Totals of the answered regions: predicted beside charged minutes, a pair a round."""

    def draw(axes: Axes) -> None:
        at = range(len(rounds))
        predicted = [r.seconds_predicted_answered / 60 for r in rounds]
        charged = [r.seconds_charged / 60 for r in rounds]
        axes.bar([p - 0.19 for p in at], predicted, 0.36, color=INK["muted"], alpha=0.55, label="predicted")
        axes.bar([p + 0.19 for p in at], charged, 0.36, color=INK["accent"], label="charged")
        axes.set_xticks(list(at), ["start" if r.round == 0 else str(r.round) for r in rounds])
        axes.set_xlabel("round")
        axes.set_ylabel("expert time (minutes)")
        axes.grid(visible=False, axis="x")
        axes.margins(y=0.22)
        axes.legend(loc="upper left", ncols=2, columnspacing=1.2, borderaxespad=0.2)

    return _svg(draw, (4.5, 3.4), "totals")


def calibration(rounds: Sequence[RoundResult]) -> str:
    """Expected calibration error on held-out labelled regions, before and after temperature scaling."""

    def draw(axes: Axes) -> None:
        for key, label, colour, marker in (
            ("ece_before", "before scaling", INK["muted"], "s"),
            ("ece_after", "after scaling", INK["accent"], "o"),
        ):
            points = [(r.round, v) for r in rounds if (v := r.fit.get(key)) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=5, label=label)
        _by_round(axes, "calibration error (ECE)")
        axes.legend(loc="upper right", ncols=2, columnspacing=1.2, borderaxespad=0.2)

    return _svg(draw, (4.5, 2.8), "ece")


def temperature(rounds: Sequence[RoundResult]) -> str:
    """The fitted temperature of each round; the dashed line is 1, a network that needs no scaling."""

    def draw(axes: Axes) -> None:
        points = [(r.round, v) for r in rounds if (v := r.fit.get("temperature")) is not None]
        axes.axhline(1.0, color=INK["muted"], linewidth=1.2, linestyle=(0, (4, 3)))
        axes.plot(*zip(*points, strict=True), color=INK["accent"], marker="o", markersize=5)
        _by_round(axes, "temperature")

    return _svg(draw, (4.5, 2.8), "temperature")


def reliability(bins: Sequence[tuple[float, float]]) -> str:
    """Accuracy against confidence, a point a bin; the dashed line is perfect calibration."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=INK["muted"], linewidth=1.2, linestyle=(0, (4, 3)))
        axes.plot(*zip(*bins, strict=True), color=INK["accent"], marker="o", markersize=5)
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.02)

    return _svg(draw, (4.5, 3.0), "reliability")


def metric_name(metric: str | None) -> str:
    """As a reader writes it."""
    names: Mapping[str, str] = {"dice": "Dice", "miou": "mIoU", "ap": "AP", "ap50": "AP50"}
    return names.get(metric or "", metric or "metric")


def _points(rounds: Sequence[RoundResult], values: Sequence[float | None]) -> tuple[list[float], list[float]]:
    known = [(r.seconds_charged_total / 3600, v) for r, v in zip(rounds, values, strict=True) if v is not None]
    return [x for x, _ in known], [y for _, y in known]


def _from_zero(axes: Axes, first: float, last: float) -> None:
    """Start at nothing spent where that costs little room."""
    if first < 0.4 * last or first == last:
        axes.set_xlim(0, 1.1 * last or 1.0)
    if axes.get_ylim()[0] < 0:
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.2f}"))


def _by_round(axes: Axes, label: str) -> None:
    axes.set_xlabel("round")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.margins(x=0.08, y=0.3)
    if label != "temperature":
        axes.set_ylim(bottom=0)


def _svg(
    draw: Callable[[Axes], None],
    inches: tuple[float, float],
    name: str,
    room: tuple[float, float, float, float] = (0.8, 0.54, 0.1, 0.12),
) -> str:
    """Draw on fresh axes and return an `<svg>` element fit for inlining.

    The room left, below, right and above, in inches, is told: to find it, matplotlib draws everything twice.
    """
    (width, height), (left, below, right, above) = inches, room
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=inches, facecolor="none")
        figure.subplots_adjust(left / width, below / height, 1 - right / width, 1 - above / height)
        axes = figure.subplots()
        axes.set_facecolor("none")
        draw(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, facecolor="none")
    return inline(out.getvalue())


def inline(svg: str) -> str:
    """Strip what a page does not need, and hand colours and font over to its style sheet."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # matplotlib numbers them alike in every figure
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1 aria-hidden="true" focusable="false"', svg, count=1)
    for role, colour in INK.items():
        svg = svg.replace(colour, f"var(--{role})")
    return re.sub(r"'DejaVu Sans'(, *[^;\"]*)?", "var(--font)", svg)
