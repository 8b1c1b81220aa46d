"""The report's charts with their titles, alternative texts and notes, as plain values for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from dal_dense.calibration import reliability_bins
from dal_dense.report import figures
from dal_dense.report.words import duration, figure, round_name
from dal_dense.results import Results, RoundResult


def learning(results: Results) -> dict[str, Any] | None:
    """The learning curve; None before the first measurement."""
    if not results.measured or results.metric is None:
        return None
    name, (hours, values) = figures.metric_name(results.metric), results.curve
    steps = "; ".join(f"{x / 3600:.2f} h {y:.3f}" for x, y in zip(hours, values, strict=True))
    return {
        "title": f"{name} on the test images over expert time",
        "svg": Markup(figures.learning_curve(results.measured, results.metric)),
        "alt": f"Learning curve, {name} at hours charged: {steps}",
        "note": "Mean over classes." + _bars(results),
    }


def _bars(results: Results) -> str:
    """What the bars of the learning curve are; nothing if it has none."""
    if not any(r.interval for r in results.measured):
        return ""
    if results.metric in ("ap", "ap50"):
        return " Bars: 95% bootstrap over groups (drives), AP worked out anew for each drawing."
    return " Bars: 95% bootstrap spread of the mean over groups (patients or drives), centred on the curve."


def gains(results: Results, classes: Sequence[str], colours: Mapping[str, str]) -> list[dict[str, Any]]:
    """First and last figure of each class, for a table."""
    if len(results.measured) < 2:
        return []
    rows = []
    for name in classes:
        first, last = results.measured[0].per_class.get(name), results.measured[-1].per_class.get(name)
        rows.append(_change(name, first, last, colours.get(name)))
    return rows


def by_size(results: Results) -> list[dict[str, Any]]:
    """First and last AP of objects of each size, for a table; nothing where the task finds no boxes."""
    if not results.measured or results.metric not in ("ap", "ap50"):
        return []
    last = results.measured[-1].extra
    first = results.measured[0].extra if len(results.measured) > 1 else {}
    return [
        _change(f"{label}, {size}", first.get(key + end), last.get(key + end))
        for key, label in (("ap50", "AP50"), ("ap", "AP"))
        for size, end in (("all", ""), ("small", "_small"), ("medium", "_medium"), ("large", "_large"))
    ]


def _change(name: str, first: float | None, last: float | None, colour: str | None = None) -> dict[str, Any]:
    change = "–" if first is None or last is None else f"{last - first:+.3f}"
    return {"name": name, "colour": colour, "first": figure(first), "last": figure(last), "change": change}


def class_charts(results: Results, classes: Sequence[str], colours: Mapping[str, str]) -> list[dict[str, Any]]:
    """A small curve of each class, all on the same axes."""
    measured = results.measured
    limits = figures.class_limits(measured)
    hours = max((r.seconds_charged_total for r in measured), default=0.0) / 3600
    charts = []
    for name in classes:
        values = [r.per_class.get(name) for r in measured]
        charts.append({
            "name": name,
            "colour": colours.get(name),
            "last": figure(values[-1]),
            "svg": Markup(figures.class_curve(measured, name, limits, hours)),
            "alt": f"{name} by measurement: " + ", ".join(figure(v) for v in values),
        })  # fmt: skip
    return charts


def cost_note(results: Results) -> str:
    """Predicted against charged in one sentence; empty before the first answer."""
    if not results.costs:
        return ""
    predicted, charged = sum(c.predicted for c in results.costs), sum(c.charged for c in results.costs)
    share = f", {charged / predicted:.2f} times as much" if predicted > 0 else ""
    return f"Answered regions were predicted to take {duration(predicted)} and were charged {duration(charged)}{share}."


def cost_charts(results: Results) -> list[dict[str, Any]]:
    """Predicted against charged, by region and by round."""
    if not results.costs:
        return []
    answered = [r for r in results.rounds if r.answered]
    totals = "; ".join(
        f"{round_name(r.round)} {r.seconds_predicted_answered / 60:.1f} predicted, {r.seconds_charged / 60:.1f} charged"
        for r in answered
    )
    return [
        {
            "title": "Region by region",
            "svg": Markup(figures.cost_scatter(results.costs)),
            "alt": f"Scatter of charged against predicted seconds of {len(results.costs)} regions",
            "note": "On the dashed line the prediction was right; above it the region took longer.",
        },
        {
            "title": "Round by round",
            "svg": Markup(figures.cost_by_round(answered)),
            "alt": f"Minutes by round: {totals}",
            "note": "Only answered regions count, on both sides.",
        },
    ]


def calibration_charts(results: Results) -> list[dict[str, Any]]:
    """Calibration error and temperature by round, as far as the fits recorded them."""

    def has(key: str) -> list[RoundResult]:
        return [r for r in results.rounds if r.fit.get(key) is not None]

    charts = []
    if rows := [r for r in results.rounds if r in has("ece_before") or r in has("ece_after")]:
        pairs = [(r.round, figure(r.fit.get("ece_before")), figure(r.fit.get("ece_after"))) for r in rows]
        told = "; ".join(f"{round_name(n)} {before} to {after}" for n, before, after in pairs)
        charts.append({
            "title": "Calibration error, before and after temperature scaling",
            "svg": Markup(figures.calibration(rows)),
            "alt": f"ECE before and after scaling: {told}",
            "note": "On labelled regions that were held out from training. Smaller is better.",
        })  # fmt: skip
    if rows := has("temperature"):
        told = "; ".join(f"{round_name(r.round)} {figure(r.fit['temperature'], 2)}" for r in rows)
        charts.append({
            "title": "Temperature",
            "svg": Markup(figures.temperature(rows)),
            "alt": f"Fitted temperature: {told}",
            "note": "Above 1 the network was too sure of itself, below 1 not sure enough.",
        })  # fmt: skip
    last = next((r for r in reversed(results.rounds) if reliability_bins(r.extra)), None)
    if last is not None:
        bins = reliability_bins(last.extra)
        told = "; ".join(f"{confidence:.2f} sure, {accuracy:.2f} right" for confidence, accuracy in bins)
        charts.append({
            "title": f"Sure and right, {round_name(last.round)}",
            "svg": Markup(figures.reliability(bins)),
            "alt": f"Accuracy by confidence: {told}",
            "note": "On the test images. Below the dashed line the model was too sure of itself.",
        })  # fmt: skip
    return charts
