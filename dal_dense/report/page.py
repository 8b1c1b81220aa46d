"""`report.html`: one file, no network, no scripts; and `results.json` with the same numbers."""

from __future__ import annotations

import base64
import functools
import json
import struct
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from jinja2 import Environment, StrictUndefined, Template
from matplotlib.colors import to_hex

from dal_dense.query import Query, QueryRegion
from dal_dense.report import charts
from dal_dense.report.figures import metric_name
from dal_dense.report.palette import UNCERTAINTY_MAP
from dal_dense.report.words import count, duration, figure, round_name
from dal_dense.results import Results, RoundResult, collect

if TYPE_CHECKING:
    from dal_dense.ledger import Ledger

TILES = 24
"""Pictures at most; the rest of a large query is named in one line."""


def write_report(ledger: Ledger, run_dir: Path) -> Path:
    """Write `results.json` and `report.html` of a run in any state; returns the page's path."""
    results = collect(ledger)
    queries = ledger.queries()
    page = render(results, queries[-1] if queries else None, run_dir)
    replace_text(run_dir / "results.json", results.model_dump_json(indent=1))
    replace_text(run_dir / "report.html", page)
    return run_dir / "report.html"


def render(results: Results, query: Query | None, run_dir: Path) -> str:
    """The page as text; pictures are read from `run_dir/gallery`."""
    legend = read_legend(run_dir, query)
    colours: dict[str, str] = legend["classes"]
    known = {c: None for r in results.measured for c in r.per_class}
    classes = [c for c in colours if c in known] + [c for c in known if c not in colours]
    return _template().render(
        title=run_dir.resolve().name,
        subtitle=_subtitle(results),
        run=results.run,
        metric=metric_name(results.metric),
        heat=[to_hex(matplotlib.colormaps[UNCERTAINTY_MAP](n / 8)) for n in range(9)],
        headline=_headline(results, query),
        learning=charts.learning(results),
        gains=charts.gains(results, classes, colours),
        by_size=charts.by_size(results),
        class_charts=charts.class_charts(results, classes, colours),
        query=_query(results, query, legend, run_dir),
        cost_note=charts.cost_note(results),
        cost_charts=charts.cost_charts(results),
        calibration_charts=charts.calibration_charts(results),
        table=[_row(r) for r in results.rounds],
        quarantined=results.quarantined,
        config=json.dumps(results.config, indent=2, ensure_ascii=False),
        versions=results.versions,
    )


@functools.cache
def _template() -> Template:
    source = files("dal_dense.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source)


def replace_text(path: Path, text: str) -> None:
    """Write whole or not at all."""
    half = path.with_name(path.name + ".part")
    half.write_text(text, encoding="utf-8")
    half.replace(path)


def _subtitle(results: Results) -> str:
    state = "not begun"
    if results.rounds:
        last = results.rounds[-1]
        state = f"{round_name(last.round)} {'under way' if last.metric is None else 'done'}"
    return f"strategy {results.strategy} · seed {results.seed} · {state}"


def _headline(results: Results, query: Query | None) -> list[dict[str, Any]]:
    spent, answers = results.seconds_charged, len(results.costs)
    predicted = sum((c.predicted for c in results.costs), 0.0)
    told = ["no region answered yet"]
    if answers:
        told = [f"{duration(spent)} charged for {count(answers, 'region')}", f"{duration(predicted)} predicted"]
    cards = [_card("Expert time spent", f"{spent / 3600:.2f}", *told, unit="hours"), _metric_card(results)]
    if query is not None:
        cards.append(_asked_card(next(r for r in results.rounds if r.round == query.round)))
    told = [f"mean {metric_name(results.metric)} over the hours since the first measurement"]
    known = results.area is not None
    cards.append(_card("Area under the curve", figure(results.area), *(told if known else ["needs two measurements"])))
    return cards


def _card(label: str, value: str, *lines: str, unit: str = "") -> dict[str, Any]:
    return {"label": label, "value": value, "unit": unit, "lines": lines}


def _asked_card(last: RoundResult) -> dict[str, Any]:
    answers = f"{last.answered} answered, {last.open} open" + (f", {last.rejected} rejected" if last.rejected else "")
    return _card(
        f"Asked in the {round_name(0)}" if last.round == 0 else f"Asked in {round_name(last.round)}",
        str(last.asked),
        f"in {count(last.images, 'image')}, {duration(last.seconds_predicted)} predicted",
        answers,
        unit="region" if last.asked == 1 else "regions",
    )


def _metric_card(results: Results) -> dict[str, Any]:
    name = metric_name(results.metric)
    if not results.measured:
        return _card("Model", "–", "not measured yet")
    first, last = results.measured[0], results.measured[-1]
    lines = []
    if last is not first:
        lines.append(f"{(last.metric or 0) - (first.metric or 0):+.3f} since the {round_name(first.round)}")
    if last.interval is not None:
        i = last.interval
        told = f"{i.groups} groups" if i.mean == last.metric else f"mean over {i.groups} groups {i.mean:.3f}"
        lines.append(f"{told} (95%: {i.low:.3f}–{i.high:.3f})")
    label = f"{name} after the {round_name(0)}" if last.round == 0 else f"{name} after {round_name(last.round)}"
    return _card(label, figure(last.metric), *lines)


def _row(r: RoundResult) -> list[str]:
    fit, choose = r.fit.get("train_seconds"), r.selection_seconds
    return [
        "start" if r.round == 0 else str(r.round), r.strategy, str(r.asked), str(r.answered), str(r.open),
        figure(r.seconds_predicted / 60, 1), figure(r.seconds_charged / 60, 1) if r.answered else "–",
        figure(r.seconds_charged_total / 3600, 2), figure(r.metric), figure(fit, 0), figure(choose, 1),
    ]  # fmt: skip


def read_legend(run_dir: Path, query: Query | None) -> dict[str, Any]:
    """What the gallery's writer noted for this round: class colours and the heat map's upper end."""
    path = run_dir / "gallery" / f"legend-{query.round if query else 0}.json"
    if not path.is_file():
        return {"classes": {}, "uncertainty_max": 0.0}
    legend: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return legend


def _query(results: Results, query: Query | None, legend: Mapping[str, Any], run_dir: Path) -> dict[str, Any] | None:
    if query is None:
        return None
    settings = results.config.get("uncertainty")
    score = settings.get("score", "uncertainty") if isinstance(settings, dict) else "uncertainty"
    more = len(query.regions) - TILES
    note = "Nothing: labels were there from the start"
    if query.regions:
        note = "Each picture: the image with the region as a box"
    if legend["uncertainty_max"]:
        note += "; the model's proposal; its uncertainty"
    if any(len(r.start) == 3 for r in query.regions):
        note += ". Volumes: the box's least certain axial slice, seen from the feet, the patient's right on the left"
    return {
        "name": round_name(query.round) if query.round else "the start set",
        "note": note + ".",
        "classes": legend["classes"],
        "score": str(score).replace("_", " "),
        "heat_top": f"{legend['uncertainty_max']:.2f}" if legend["uncertainty_max"] else "",
        "tiles": [_tile(r, legend["classes"], run_dir) for r in query.regions[:TILES]],
        "left": f"{count(more, 'further region')} not shown; all are in the round's batch." if more > 0 else "",
    }


def _tile(region: QueryRegion, colours: Mapping[str, str], run_dir: Path) -> dict[str, Any]:
    path = run_dir / "gallery" / f"{region.id}.png"
    data = path.read_bytes() if path.is_file() else b""
    width, height = struct.unpack(">II", data[16:24]) if len(data) >= 24 else (0, 0)  # from the PNG header
    order = sorted(region.shares.items(), key=lambda item: -item[1])
    guessed = len({round(s, 3) for s in region.shares.values()}) > 1  # all alike: no model has looked
    top = [(n, s) for n, s in order if guessed and s >= 0.01 and (n in colours or not colours)][:3]
    named = ", ".join(f"{n} {s:.0%}" for n, s in top) or "no class above 1%"
    return {
        "id": region.id,
        "image": region.image_id,
        "seconds": f"{duration(region.seconds)} predicted",
        "box": " × ".join(f"{a}–{b - 1}" for a, b in zip(region.start, region.stop, strict=True)),
        "axes": "rows × columns" if len(region.start) == 2 else "voxels in the file's own axes i × j × k",
        "shares": [{"name": n, "percent": f"{s:.0%}", "colour": colours.get(n)} for n, s in top],
        "png": "data:image/png;base64," + base64.b64encode(data).decode() if data else "",
        "width": width,
        "height": height,
        "alt": f"Region {region.id} of {region.image_id}: image with box, proposal ({named}), uncertainty",
    }
