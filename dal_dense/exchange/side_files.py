"""Small files that may come back beside the labels: reviewed.txt, times.csv, Label Studio's lead times."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path, PurePosixPath
from typing import Any

from dal_dense.exchange.asked import UPLOAD_PREFIX, Marks

REVIEWED, TIMES = "reviewed.txt", "times.csv"


def read_marks(path: Path, file: str) -> Marks:
    """`reviewed.txt`: one region or image id a line, `*` for all files beside and below; `#` begins a comment."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    lines = {line.split("#")[0].strip() for line in text.splitlines()} - {""}
    return Marks(frozenset(lines - {"*"}), frozenset([file.rpartition("/")[0]] if "*" in lines else []))


def read_times(path: Path, file: str) -> tuple[dict[str, float], list[str]]:
    """`times.csv` (region_id and seconds, `,` or `;` between): seconds by region, and the rows that are no times."""
    times: dict[str, float] = {}
    problems: list[str] = []
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
        first = stream.readline()
        stream.seek(0)
        rows = csv.DictReader(stream, delimiter=";" if ";" in first else ",")
        if not {"region_id", "seconds"} <= set(rows.fieldnames or ()):
            return {}, [f"{file}: columns {rows.fieldnames}; expected region_id,seconds in the first line"]
        for row in rows:
            seconds = _seconds(row["seconds"])
            if seconds is None:
                problems.append(f"{file}: line {rows.line_num}: {row['seconds']!r} is no time; give seconds, 0 or more")
            else:
                problems += take_time(times, (row["region_id"] or "").strip(), seconds, f"{file}: line {rows.line_num}")
    return times, problems


def take_time(times: dict[str, float], name: str, seconds: float, where: str) -> list[str]:
    """Add a time; of two different ones the first stays, and the other is told."""
    if (first := times.setdefault(name, seconds)) == seconds:
        return []
    return [f"{where}: {name} has {first:.12g} s already; {seconds:.12g} s is not used. Keep one of the two"]


def _seconds(value: object) -> float | None:
    try:
        seconds = float(str(value))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def lead_times(path: Path) -> list[tuple[str, float]] | None:
    """Image names and seconds of a Label Studio json export (a list of tasks); None if it is none.

    Its drawings are not read: export these as COCO or PNG.
    """
    try:
        tasks = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    if not isinstance(tasks, list) or not all(isinstance(t, dict) and "annotations" in t for t in tasks):
        return None
    named = [(_task_name(task), _lead_time(task)) for task in tasks]
    return [(name, seconds) for name, seconds in named if name and seconds is not None]


def _task_name(task: dict[str, Any]) -> str:
    data = task.get("data")
    value = task.get("file_upload") or (data.get("image") if isinstance(data, dict) else "")
    return UPLOAD_PREFIX.sub("", PurePosixPath(str(value)).stem)


def _lead_time(task: dict[str, Any]) -> float | None:
    annotations = task["annotations"] if isinstance(task["annotations"], list) else []
    given = [_seconds(a.get("lead_time")) for a in annotations if isinstance(a, dict) and "lead_time" in a]
    found = [s for s in given if s is not None]
    return sum(found) if found else None
