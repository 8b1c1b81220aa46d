"""What comes back from the annotator: answers, second answers that differ, and rejections."""

from __future__ import annotations

import numpy as np

from dal_dense import ledger_rows as rows
from dal_dense.errors import LabelError
from dal_dense.ledger_store import Store
from dal_dense.query import QueryRegion

LOGGED = "time as logged"
"""End of the note of an answer whose seconds a person measured."""


def asked(store: Store, region_id: str) -> QueryRegion:
    """The region of this id.

    Raises:
        LabelError: if the run never asked it.
    """
    found = store.select(f"SELECT {rows.REGION_FIELDS} FROM regions r WHERE id = ?", region_id)
    if not found:
        raise LabelError(
            f"region {region_id!r} was never asked in this run; return only labels for regions of its own query.json"
        )
    return rows.region_of(found[0])


def keep_answer(
    store: Store,
    region: QueryRegion,
    label: np.ndarray,
    *,
    arrived: int,
    source: str,
    seconds: float,
    image_seconds: float,
    figures: tuple[float | None, float | None, float | None],
    note: str,
) -> bool:
    """Record a checked uint8 label. False if it is there already.

    Args:
        store: the ledger's file.
        region: what was asked.
        label: its label, checked.
        arrived: the round it counts for.
        source: who answered.
        seconds: charged without opening the image.
        image_seconds: charged for opening it.
        figures: boundary, objects, area.
        note: free text.

    Raises:
        LabelError: if another label is there; that one stays and this one goes to table conflicts.
    """
    if known := store.select("SELECT * FROM answers WHERE region_id = ?", region.id):
        first = rows.unpack(known[0], f"{store.path}: the label of region {region.id}")
        if (words := rows.difference(region, first, label)) is None:
            return False
        _keep_conflict(store, region, label, source=source, seconds=seconds + image_seconds, note=note)
        raise LabelError(
            f"region {region.id} is answered already and {words}. The first answer stays; the other is kept in the "
            "ledger's table conflicts. Remove the return if it was sent by mistake; docs/howto/people.md says how to "
            'correct an answer ("A label that was wrong")'
        )
    charged = (seconds, image_seconds, *map(rows.number, figures))
    with store.recording() as now:
        store.insert("answers", (region.id, arrived, source, *charged, *rows.pack(label), note, now))
    return True


def keep_time(store: Store, region: QueryRegion, seconds: float, note: str) -> bool:
    """Charge logged seconds, opening included, in place of the cost model's, which an event `time` keeps.

    False if a logged time stands already.
    """
    known = store.select("SELECT note, seconds, image_seconds FROM answers WHERE region_id = ?", region.id)
    if not known or known[0]["note"].endswith(LOGGED):
        return False
    was = {"seconds": known[0]["seconds"], "image_seconds": known[0]["image_seconds"]}
    with store.recording() as now:
        store.insert("events", (None, "time", rows.to_json({"region": region.id, "was": was, "seconds": seconds}), now))
        store.db.execute(
            "UPDATE answers SET seconds = ?, image_seconds = 0, note = ? WHERE region_id = ?",
            (seconds, note, region.id),
        )
    return True


def _keep_conflict(
    store: Store, region: QueryRegion, label: np.ndarray, *, source: str, seconds: float, note: str
) -> None:
    identity = (region.id, rows.label_sha256(label))
    if not store.select("SELECT 1 FROM conflicts WHERE region_id = ? AND sha256 = ?", *identity):
        with store.recording() as now:
            store.insert("conflicts", (*identity, source, seconds, *rows.pack(label), note, now))


def keep_rejection(store: Store, region: QueryRegion, reason: str, *, arrived: int, seconds: float) -> bool:
    """Record that a region cannot be labelled. False if that was recorded already.

    Raises:
        LabelError: if the region is answered.
    """
    if store.select("SELECT 1 FROM rejections WHERE region_id = ?", region.id):
        return False
    if store.select("SELECT 1 FROM answers WHERE region_id = ?", region.id):
        raise LabelError(f"region {region.id} is answered already and cannot be rejected; its label stays")
    with store.recording() as now:
        store.insert("rejections", (region.id, arrived, reason, seconds, now))
    return True
