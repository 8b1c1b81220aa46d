"""What can be asked of the ledger's tables: one function a question, rows turned into frozen values."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

from dal_dense import ledger_rows as rows
from dal_dense.ledger_rows import Answer, Conflict, CostEntry, Event, FitRow, Rejection
from dal_dense.query import Query, QueryRegion
from dal_dense.tasks.base import Measurement

Select = Callable[..., list[sqlite3.Row]]
"""Runs one SELECT: (sql, *parameters) to rows."""

_NOT_ANSWERED = "NOT EXISTS (SELECT 1 FROM answers a WHERE a.region_id = r.id)"


def query(select: Select, round: int) -> Query | None:
    """What a round asked, exactly as recorded."""
    head = select("SELECT * FROM queries WHERE round = ?", round)
    if not head:
        return None
    asked = select(f"SELECT {rows.REGION_FIELDS} FROM regions r WHERE round = ? ORDER BY position", round)
    regions = tuple(map(rows.region_of, asked))
    extra = json.loads(head[0]["extra"])
    return Query(round=round, strategy=head[0]["strategy"], seed=head[0]["seed"], regions=regions, **extra)


def open_regions(select: Select, round: int | None) -> list[QueryRegion]:
    """Asked, and neither answered nor rejected."""
    found = select(
        f"SELECT {rows.REGION_FIELDS} FROM regions r WHERE r.round = IFNULL(?, r.round) AND {_NOT_ANSWERED} "
        "AND NOT EXISTS (SELECT 1 FROM rejections j WHERE j.region_id = r.id) ORDER BY r.round, r.position",
        round,
    )
    return [*map(rows.region_of, found)]


def answered(select: Select, path: Path, round: int | None, upto: int | None, kind: str | None = None) -> list[Answer]:
    """Answers to a round's query (or all), arrived by the close of `upto` (or ever), of one kind (or any)."""
    found = select(
        f"SELECT {rows.REGION_FIELDS}, a.* FROM answers a JOIN regions r ON r.id = a.region_id "
        "WHERE r.round = IFNULL(?, r.round) AND a.arrived <= IFNULL(?, a.arrived) AND r.kind = IFNULL(?, r.kind) "
        "ORDER BY r.round, r.position",
        round,
        upto,
        kind,
    )
    names = ("round", "arrived", "seconds", "image_seconds", "boundary", "objects", "area", "source", "note", "time")
    return [
        Answer(
            region=rows.region_of(row),
            label=rows.unpack(row, f"{path}: the label of region {row['id']}"),
            **{name: row[name] for name in names},
        )
        for row in found
    ]


def answered_regions(select: Select) -> list[QueryRegion]:
    """Regions with an answer, their labels left where they are."""
    found = select(f"SELECT {rows.REGION_FIELDS} FROM regions r WHERE NOT {_NOT_ANSWERED} ORDER BY r.round, r.position")
    return [*map(rows.region_of, found)]


def rejected(select: Select) -> list[Rejection]:
    """Rejections that no answer has overruled."""
    found = select(
        f"SELECT {rows.REGION_FIELDS}, j.* FROM rejections j JOIN regions r ON r.id = j.region_id "
        f"WHERE {_NOT_ANSWERED} ORDER BY r.round, r.position"
    )
    names = ("round", "arrived", "reason", "seconds")
    return [Rejection(region=rows.region_of(row), **{n: row[n] for n in names}) for row in found]


def conflicts(select: Select, path: Path) -> list[Conflict]:
    """Second, different labels, oldest first."""
    names = ("region_id", "source", "seconds", "note", "time")
    return [
        Conflict(label=rows.unpack(row, f"{path}: a conflicting label"), **{n: row[n] for n in names})
        for row in select("SELECT * FROM conflicts ORDER BY rowid")
    ]


def fits(select: Select, run_dir: Path) -> list[FitRow]:
    """All fits, in order of rounds."""
    return [
        FitRow(
            round=row["round"],
            folder=row["folder"],
            weights=(run_dir / row["folder"]).resolve(),
            sha256=row["sha256"],
            figures=rows.figures(row["figures"]),
            time=row["time"],
        )
        for row in select("SELECT * FROM fits ORDER BY round")
    ]


def measurements(select: Select) -> dict[int, Measurement]:
    """Round to measurement, in order."""
    return {row["round"]: rows.measurement_of(row) for row in select("SELECT * FROM measurements ORDER BY round")}


def history(select: Select) -> list[Event]:
    """All events, oldest first."""
    found = select("SELECT kind, payload, time FROM events ORDER BY id")
    return [Event(row["kind"], json.loads(row["payload"]), row["time"]) for row in found]


def spent_by_round(select: Select) -> dict[int, float]:
    """Seconds charged for what arrived in each round."""
    found = select(
        "SELECT round, total(seconds) AS seconds FROM (SELECT arrived AS round, seconds + image_seconds AS seconds "
        "FROM answers UNION ALL SELECT arrived, seconds FROM rejections UNION ALL SELECT round, 0.0 FROM queries) "
        "GROUP BY round ORDER BY round"
    )
    return {row["round"]: row["seconds"] for row in found}


def cost_log(select: Select) -> list[CostEntry]:
    """Predicted against charged cost of every answered region."""
    found = select(
        "SELECT r.id AS region_id, r.image_id, r.kind, r.round, a.arrived, a.source, "
        "r.seconds AS predicted_seconds, a.seconds + a.image_seconds AS charged_seconds, a.image_seconds, "
        "r.boundary AS predicted_boundary, a.boundary, r.objects AS predicted_objects, a.objects, a.area "
        "FROM answers a JOIN regions r ON r.id = a.region_id ORDER BY r.round, r.position"
    )
    return [CostEntry(**dict(row)) for row in found]
