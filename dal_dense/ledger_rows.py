"""What the ledger hands out, and how values become columns and come back unchanged."""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dal_dense.boxes import checked_table
from dal_dense.errors import LabelError, LedgerError
from dal_dense.query import Query, QueryRegion
from dal_dense.tasks.base import IGNORE, Measurement

Source = Literal["oracle", "people", "initial"]
"""Who gave an answer."""


@dataclass(frozen=True)
class Answer:
    """One region with its label.

    Attributes:
        region: what was asked.
        round: the round whose query asked it.
        arrived: the round that could first learn from it; later than `round` for late answers.
        label: uint8 class numbers or `IGNORE`, of the region's shape; or a table of boxes (`boxes`), float64 (n, 6).
        seconds: charged for the region, without opening its image.
        image_seconds: charged for opening its image.
        boundary: true contour length, mm or pixels; None if nobody measured it.
        objects: true number of objects; None if nobody counted.
        area: ground that was searched, mm^2 or pixels; None if not recorded.
        source: who answered.
        note: free text.
        time: when it was recorded, seconds since 1970.
    """

    region: QueryRegion
    round: int
    arrived: int
    label: np.ndarray
    seconds: float
    image_seconds: float
    boundary: float | None
    objects: float | None
    area: float | None
    source: str
    note: str
    time: float


@dataclass(frozen=True)
class Conflict:
    """A second, different label for a region that was answered already; kept, but not used."""

    region_id: str
    label: np.ndarray
    source: str
    seconds: float
    note: str
    time: float


@dataclass(frozen=True)
class Rejection:
    """A region that was asked and cannot be labelled; its ground stays blocked."""

    region: QueryRegion
    round: int
    arrived: int
    reason: str
    seconds: float


@dataclass(frozen=True)
class CostEntry:
    """Predicted against true cost of one answered region. Seconds include opening the image."""

    region_id: str
    image_id: str
    kind: str
    round: int
    arrived: int
    source: str
    predicted_seconds: float
    charged_seconds: float
    image_seconds: float
    predicted_boundary: float
    boundary: float | None
    predicted_objects: float
    objects: float | None
    area: float | None


@dataclass(frozen=True)
class FitRow:
    """One finished fit. `folder` is relative to run_dir; `weights` is the same as an absolute path."""

    round: int
    folder: str
    weights: Path
    sha256: str
    figures: dict[str, float]
    time: float


@dataclass(frozen=True)
class Initial:
    """A whole-image mask known from the start: a reference, not a copy."""

    image_id: str
    path: str
    sha256: str


@dataclass(frozen=True)
class Event:
    """Something that happened to the run: settings, versions, quarantine, growth, stop, resume."""

    kind: str
    payload: dict[str, Any]
    time: float


def number(value: float | None) -> float | None:
    """For a REAL column. SQLite has no NaN and would store NULL; we say so ourselves."""
    return None if value is None or math.isnan(value) else float(value)


def to_json(value: object) -> str:
    """Strict JSON, sorted keys, floats exact; NaN becomes null, infinity the text "inf"."""
    return json.dumps(_plain(value), sort_keys=True, allow_nan=False)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def figures(text: str) -> dict[str, float]:
    """Back from `to_json`: names to numbers, null as NaN."""
    return {k: math.nan if v is None else float(v) for k, v in json.loads(text).items()}


def query_row(query: Query) -> tuple[object, ...]:
    """Columns round, strategy, seed, extra."""
    rest = query.model_dump(mode="json", exclude={"round", "strategy", "seed", "regions"})
    return query.round, query.strategy, query.seed, to_json(rest)


_REGION_COLUMNS = {"id", "image_id", "kind", "start", "stop", "score", "seconds", "boundary", "objects"}


def region_row(region: QueryRegion) -> tuple[object, ...]:
    """Columns id, image_id, kind, start, stop, score, seconds, boundary, objects, extra."""
    return (
        region.id, region.image_id, region.kind, to_json(region.start), to_json(region.stop),
        number(region.score), region.seconds, region.boundary, region.objects,
        to_json(region.model_dump(exclude=_REGION_COLUMNS)),
    )  # fmt: skip


def region_of(row: sqlite3.Row) -> QueryRegion:
    """A region from a row of table regions (columns as stored there, prefix `q_` for its figures)."""
    return QueryRegion(
        id=row["id"],
        image_id=row["image_id"],
        kind=row["kind"],
        start=tuple(json.loads(row["start"])),
        stop=tuple(json.loads(row["stop"])),
        score=math.nan if row["q_score"] is None else row["q_score"],
        seconds=row["q_seconds"],
        boundary=row["q_boundary"],
        objects=row["q_objects"],
        **json.loads(row["q_extra"]),
    )


REGION_FIELDS = (
    "r.id, r.round, r.image_id, r.kind, r.start, r.stop, r.score AS q_score, r.seconds AS q_seconds, "
    "r.boundary AS q_boundary, r.objects AS q_objects, r.extra AS q_extra"
)


def measurement_row(measured: Measurement) -> tuple[object, ...]:
    """Columns metric, value, per_class, per_group, extra."""
    return (
        measured.metric, number(measured.value), to_json(measured.per_class),
        to_json(measured.per_group), to_json(measured.extra),
    )  # fmt: skip


def measurement_of(row: sqlite3.Row) -> Measurement:
    """Back from table measurements."""
    return Measurement(
        metric=row["metric"],
        value=math.nan if row["value"] is None else row["value"],
        per_class=figures(row["per_class"]),
        per_group=figures(row["per_group"]),
        extra=figures(row["extra"]),
    )


def check_seconds(region: QueryRegion, *seconds: float) -> None:
    """Raise `LabelError` unless all are finite and not negative."""
    for value in seconds:
        if not (math.isfinite(value) and value >= 0):
            raise LabelError(f"region {region.id}: {value:g} s of work; give a number of seconds, 0 or more")


def checked_label(region: QueryRegion, label: np.ndarray, n_classes: int | None) -> np.ndarray:
    """The label as contiguous uint8, or as float64 where it is a table of boxes, proven to fit the region.

    Raises:
        LabelError: on another shape, a type that is not whole numbers, or a value that is no class.
    """
    if label.dtype == np.float64:
        table: np.ndarray = checked_table(
            f"region {region.id}", label, None if region.kind == "box" else region.box, n_classes
        )
        return table
    if label.shape != region.shape:
        raise LabelError(
            f"region {region.id}: the label has shape {label.shape}, the region {region.shape}; "
            "return the crop at its own size, unpadded and unresampled"
        )
    if label.dtype != np.bool_ and not np.issubdtype(label.dtype, np.integer):
        raise LabelError(f"region {region.id}: the label is of type {label.dtype}; whole class numbers are expected")
    top = 255 if n_classes is None else n_classes - 1
    wrong = (label != IGNORE) & ((label < 0) | (label > top))
    if wrong.any():
        values = np.unique(label[wrong])[:5].tolist()
        raise LabelError(
            f"region {region.id}: {int(wrong.sum())} voxels hold {values}, outside the classes 0..{top} "
            f"and {IGNORE} (not labelled); correct them and return the label again"
        )
    return np.ascontiguousarray(label, dtype=np.uint8)


def pack(label: np.ndarray) -> tuple[str, str, bytes]:
    """Columns shape, dtype, label: zlib over the array in C order, its checksum included."""
    return to_json(label.shape), str(label.dtype), zlib.compress(label.tobytes())


def unpack(row: sqlite3.Row, what: str) -> np.ndarray:
    """Back from `pack`; the array may be written to.

    Raises:
        LedgerError: if the stored bytes are damaged.
    """
    try:
        flat = np.frombuffer(bytearray(zlib.decompress(row["label"])), dtype=row["dtype"])
        return flat.reshape(json.loads(row["shape"]))
    except (zlib.error, ValueError, TypeError) as error:
        raise LedgerError(f"{what} is damaged ({error}); restore the ledger from a backup") from error


def difference(region: QueryRegion, first: np.ndarray, second: np.ndarray) -> str | None:
    """Where two labels of one region part, in words; None if they are equal."""
    if first.shape != second.shape or first.dtype != second.dtype:  # tables of boxes
        return f"{len(first)} boxes are recorded, {len(second)} are returned"
    differs = first != second
    if not differs.any():
        return None
    if first.dtype == np.float64:
        return f"{int(differs.any(1).sum())} of {len(first)} boxes differ"
    where = tuple(int(n[0]) for n in differs.nonzero())
    at = tuple(a + b for a, b in zip(where, region.start, strict=True))
    return (
        f"{int(differs.sum())} of {differs.size} voxels differ, first at {at} of image {region.image_id}: "
        f"recorded {first[where]}, returned {second[where]}"
    )


def label_sha256(label: np.ndarray) -> str:
    """Identity of a label: its shape and voxels, or its boxes."""
    return hashlib.sha256(to_json(label.shape).encode() + label.tobytes()).hexdigest()
