"""The ledger: every query, answer, cost, fit, measurement and event of a run, in one SQLite file.

It is the run's only state. Each record is one short transaction, keyed so that recording the same
again changes nothing and recording something else under the same key is refused. A round runs
query, answers, close, fit, measure; the loop asks the ledger which of these is there and does the
next one. Nothing is ever updated or deleted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

from dal_dense import ledger_reads as reads
from dal_dense import ledger_rows as rows
from dal_dense.errors import LabelError, LedgerError
from dal_dense.ledger_answers import asked, keep_answer, keep_rejection, keep_time
from dal_dense.ledger_rows import Answer, Conflict, CostEntry, Event, FitRow, Initial, Rejection, Source
from dal_dense.ledger_settings import begin, harmless_changes, identity
from dal_dense.ledger_store import FILE, Store, connect, single_writer
from dal_dense.noise import derive_seed
from dal_dense.query import Query, QueryRegion
from dal_dense.tasks.base import FitReport, Measurement

__all__ = ["Answer", "Conflict", "CostEntry", "Event", "FitRow", "Initial", "Ledger", "Rejection", "Source"]


class Ledger:
    """A run's records. `open` to write (one process at a time), `read` to look on meanwhile.

    Attributes:
        run_dir: folder of the run.
        path: the SQLite file in it.
        run_id: names the run in exported batches.
        seed: where everything random comes from.
    """

    def __init__(self, run_dir: Path, store: Store, held: ExitStack) -> None:
        self.run_dir = run_dir
        self.path = store.path
        self.run_id, self.seed = identity(store) or ("", -1)
        self._store = store
        self._held = held

    @classmethod
    def open(
        cls,
        run_dir: Path,
        *,
        config: Mapping[str, Any],
        versions: Mapping[str, str],
        seed: int,
        clock: Callable[[], float],
    ) -> Ledger:
        """Begin a run or go on with it; holds the run until `close` or the end of a `with` block.

        Args:
            run_dir: made if it is not there.
            config: all settings as plain data. They must agree with those of earlier calls, apart from
                `ledger_settings.HARMLESS`, and but for the data only once something was asked; a change is
                recorded as an event.
            versions: software that the results depend on; a change is recorded as an event.
            seed: from 0 to 2^63 - 1.
            clock: seconds since 1970.

        Raises:
            LedgerError: if another process holds the run, settings differ, the file is damaged or newer,
                or the disk is full.
        """
        if not 0 <= seed < 2**63:
            raise LedgerError(f"seed {seed} does not fit the ledger; use one from 0 to {2**63 - 1}")
        with ExitStack() as held:
            held.enter_context(single_writer(run_dir, clock))
            db = held.enter_context(closing(connect(run_dir / FILE, write=True)))
            store = Store(run_dir / FILE, db, clock)
            if identity(store) is None:
                begin(store, config, seed)
            ledger = cls(run_dir, store, held)
            ledger._go_on(json.loads(rows.to_json(config)), dict(versions), seed)
            ledger._held = held.pop_all()
        return ledger

    @classmethod
    def read(cls, run_dir: Path) -> Ledger:
        """Look into a run without holding it, also while another process writes. Refuses to record.

        Raises:
            LedgerError: if there is no ledger, it is empty, damaged or newer.
        """
        with ExitStack() as held:
            db = held.enter_context(closing(connect(run_dir / FILE, write=False)))
            store = Store(run_dir / FILE, db, None)
            store.expect(identity(store) is not None, "the run has not begun; start it first")
            ledger = cls(run_dir, store, held)
            ledger._held = held.pop_all()
        return ledger

    @classmethod
    def begun(cls, run_dir: Path) -> bool:
        """Does this folder hold a run? False also if the first call was cut before it recorded anything."""
        if not (run_dir / FILE).exists():
            return False
        with closing(connect(run_dir / FILE, write=False)) as db:
            return identity(Store(run_dir / FILE, db, None)) is not None

    def close(self) -> None:
        """Let go of the file and of the run; safe to call twice."""
        self._held.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def config(self) -> dict[str, Any]:
        """The settings in force: those given at creation with the harmless changes since."""
        changes = self.events("settings")
        if changes:
            return dict(changes[-1]["config"])
        return dict(json.loads(self._store.select("SELECT config FROM run")[0]["config"]))

    def seed_for(self, *path: str | int) -> int:
        """A child seed for one use, such as `seed_for("fit", round)`."""
        return derive_seed(self.seed, *path)

    @property
    def round(self) -> int:
        """The round under way: the smallest that lacks a measurement; 0 is the start set."""
        return self._first_without("measurements")

    @property
    def arriving(self) -> int:
        """The round that an answer recorded now counts for: the smallest that is not closed."""
        return self._first_without("closes")

    def record_query(self, query: Query, *, seconds_to_choose: float | None = None) -> bool:
        """Freeze what a round asks, before anybody is asked. False if it was there already.

        Raises:
            LedgerError: if the round asked something else, is not under way, or an id is taken.
        """
        if (known := self.query(query.round)) is not None:
            same = rows.query_row(known) == rows.query_row(query)
            if same and [*map(rows.region_row, known.regions)] == [*map(rows.region_row, query.regions)]:
                return False
            raise LedgerError(f"{self.path}: round {query.round} has asked something else already; its query is frozen")
        under_way = self.round
        self._store.expect(query.round == under_way, f"round {query.round} cannot ask: round {under_way} is under way")
        self._check_ids(query)
        columns = [(r[0], query.round, i, *r[1:]) for i, r in enumerate(map(rows.region_row, query.regions))]
        with self._store.recording() as now:
            self._store.insert("queries", (*rows.query_row(query), seconds_to_choose, now))
            self._store.insert("regions", *columns)
        return True

    def _check_ids(self, query: Query) -> None:
        whole = {i.image_id for i in self.initial()}
        taken = {row["id"] for row in self._store.select("SELECT id FROM regions")}
        for region in query.regions:
            self._store.expect(region.id not in taken, f"region id {region.id} is taken; ids are unique in a run")
            known = region.image_id in whole
            self._store.expect(not known, f"region {region.id}: the whole mask of {region.image_id} is known already")
            taken.add(region.id)

    def query(self, round: int) -> Query | None:
        """What a round asked, exactly as recorded; None if it has not asked yet."""
        return reads.query(self._store.select, round)

    def queries(self) -> list[Query]:
        """All queries, in order of rounds."""
        found = [self.query(row["round"]) for row in self._store.select("SELECT round FROM queries ORDER BY round")]
        return [q for q in found if q is not None]

    def seconds_to_choose(self, round: int) -> float | None:
        """How long the machine took to choose a round's query."""
        found = self._store.select("SELECT seconds_to_choose AS s FROM queries WHERE round = ?", round)
        return found[0]["s"] if found else None

    def open_regions(self, round: int | None = None) -> list[QueryRegion]:
        """Asked, and neither answered nor rejected: of one round's query or of all, in the order asked."""
        return reads.open_regions(self._store.select, round)

    def record_answer(
        self,
        region_id: str,
        label: np.ndarray,
        *,
        seconds: float,
        image_seconds: float = 0.0,
        source: Source,
        boundary: float | None = None,
        objects: float | None = None,
        area: float | None = None,
        note: str = "",
        n_classes: int | None = None,
    ) -> bool:
        """Keep a label. False if this very label was there already; the first charge then stands.

        Args:
            region_id: a region that was asked, in this round or an earlier one.
            label: class numbers or `IGNORE`, of the region's shape.
            seconds: charged for the region, without opening its image.
            image_seconds: charged on top for opening its image.
            source: who answered.
            boundary: true contour length, mm or pixels.
            objects: true number of objects.
            area: ground that was searched, mm^2 or pixels.
            note: free text.
            n_classes: values from here up (but `IGNORE`) are refused; None checks for 0..255 only.

        Raises:
            LabelError: if the region was not asked, the label does not fit it, or another label is there
                already. The first one stays; the other is kept as a `Conflict`.
        """
        region = asked(self._store, region_id)
        rows.check_seconds(region, seconds, image_seconds)
        return keep_answer(
            self._store,
            region,
            rows.checked_label(region, label, n_classes),
            arrived=self.arriving,
            source=source,
            seconds=seconds,
            image_seconds=image_seconds,
            figures=(boundary, objects, area),
            note=note,
        )

    def record_time(self, region_id: str, seconds: float, note: str) -> bool:
        """Charge a time that was logged after its label came. False if a logged time stands already, or no answer."""
        region = asked(self._store, region_id)
        rows.check_seconds(region, seconds)
        return keep_time(self._store, region, seconds, note)

    def record_rejected(self, region_id: str, reason: str, *, seconds: float = 0.0) -> bool:
        """This region cannot be labelled; its ground stays blocked. False if that was recorded already.

        Raises:
            LabelError: if the region was not asked, or is answered.
        """
        region = asked(self._store, region_id)
        rows.check_seconds(region, seconds)
        return keep_rejection(self._store, region, reason, arrived=self.arriving, seconds=seconds)

    def answered(self, round: int | None = None, *, upto: int | None = None, kind: str | None = None) -> list[Answer]:
        """Answers with their labels, in the order asked.

        Args:
            round: only regions of this round's query.
            upto: only answers that had arrived when this round was closed: what its fit may learn from.
            kind: only regions of this kind; labels of others are not read.
        """
        return reads.answered(self._store.select, self.path, round, upto, kind)

    def answered_regions(self) -> list[QueryRegion]:
        """The regions of `answered`, without reading their labels."""
        return reads.answered_regions(self._store.select)

    def rejected(self) -> list[Rejection]:
        """Regions that cannot be labelled and were not answered since, in the order asked."""
        return reads.rejected(self._store.select)

    def conflicts(self) -> list[Conflict]:
        """Second, different labels that were returned for answered regions."""
        return reads.conflicts(self._store.select, self.path)

    def close_round(self, round: int) -> bool:
        """No more waiting for answers; open regions stay open and may come in late. False if closed already."""
        if self.closed(round):
            return False
        self._store.expect(self.query(round) is not None, f"round {round} cannot be closed: it has asked nothing")
        left = len(self.open_regions())
        with self._store.recording() as now:
            self._store.insert("closes", (round, left, now))
        return True

    def closed(self, round: int) -> bool:
        """Has the round stopped waiting for answers?"""
        return bool(self._store.select("SELECT 1 FROM closes WHERE round = ?", round))

    def record_fit(self, round: int, report: FitReport) -> bool:
        """A finished fit, told by the sha256 of its weights. False if it was there already."""
        if (known := self.fit(round)) is not None:
            same = known.sha256 == report.sha256
            self._store.expect(same, f"round {round} has other weights already ({known.weights})")
            return False
        self._store.expect(self.closed(round), f"round {round} cannot be fitted: it is not closed")
        try:
            folder = report.weights.resolve().relative_to(self.run_dir.resolve()).as_posix()
        except ValueError:
            raise LedgerError(f"{report.weights}: weights must lie inside run_dir {self.run_dir}") from None
        with self._store.recording() as now:
            self._store.insert("fits", (round, folder, report.sha256, rows.to_json(report.figures), now))
        return True

    def fit(self, round: int) -> FitRow | None:
        """A round's finished fit."""
        return next((f for f in self.fits() if f.round == round), None)

    def fits(self) -> list[FitRow]:
        """All finished fits, in order of rounds."""
        return reads.fits(self._store.select, self.run_dir)

    def record_measurement(self, round: int, measured: Measurement) -> bool:
        """How good the round's model is; ends the round. False if it was there already."""
        values = rows.measurement_row(measured)
        if (known := self.measurement(round)) is not None:
            same = rows.measurement_row(known) == values
            self._store.expect(same, f"round {round} is measured already, with other figures")
            return False
        self._store.expect(self.fit(round) is not None, f"round {round} cannot be measured: it has no fit")
        with self._store.recording() as now:
            self._store.insert("measurements", (round, *values, now))
        return True

    def measurement(self, round: int) -> Measurement | None:
        """A round's measurement; None while the round is under way."""
        return self.measurements().get(round)

    def measurements(self) -> dict[int, Measurement]:
        """Round to measurement, in order."""
        return reads.measurements(self._store.select)

    def record_initial(self, image_id: str, path: Path | str, sha256: str) -> bool:
        """A whole-image mask known from the start. False if it was there already.

        Raises:
            LabelError: if the mask's file changed since, or regions of the image were asked.
        """
        if known := self._store.select("SELECT * FROM initial WHERE image_id = ?", image_id):
            if known[0]["sha256"] != sha256:
                raise LabelError(f"{path}: the initial mask of {image_id} changed since the run began; restore it")
            return False
        if self._store.select("SELECT 1 FROM regions WHERE image_id = ?", image_id):
            raise LabelError(f"{path}: regions of {image_id} were asked already; its mask cannot be an initial one")
        with self._store.recording() as now:
            self._store.insert("initial", (image_id, str(path), sha256, now))
        return True

    def initial(self) -> list[Initial]:
        """Whole-image masks known from the start, by image id."""
        found = self._store.select("SELECT image_id, path, sha256 FROM initial ORDER BY image_id")
        return [Initial(**dict(row)) for row in found]

    def record_event(self, kind: str, payload: Mapping[str, Any], *, once: bool = False) -> bool:
        """Something that happened. With `once`, nothing (False) if the same was recorded before."""
        text = rows.to_json(payload)
        if once and self._store.select("SELECT 1 FROM events WHERE kind = ? AND payload = ?", kind, text):
            return False
        with self._store.recording() as now:
            self._store.insert("events", (None, kind, text, now))
        return True

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Payloads of all events of a kind, oldest first."""
        return [e.payload for e in self.history() if e.kind == kind]

    def history(self) -> list[Event]:
        """All events, oldest first."""
        return reads.history(self._store.select)

    def spent(self, upto: int | None = None) -> float:
        """Seconds of expert time charged so far, or until a round was closed; rejected regions included."""
        return math.fsum(s for r, s in self.spent_by_round().items() if upto is None or r <= upto)

    def spent_by_round(self) -> dict[int, float]:
        """Round to seconds charged for what arrived in it, in order; a round that asked is there even at 0."""
        return reads.spent_by_round(self._store.select)

    def cost_log(self) -> list[CostEntry]:
        """Predicted against charged cost of every answered region, in the order asked."""
        return reads.cost_log(self._store.select)

    def _go_on(self, config: dict[str, Any], versions: dict[str, str], seed: int) -> None:
        """Compare what was given now with what is recorded."""
        asked = bool(self.queries() or self.initial())
        changed = harmless_changes(self.path, self.config, config, asked=asked)
        self._store.expect(seed == self.seed, f"the run was begun with seed {self.seed}, not {seed}; use a new run_dir")
        if changed:
            self.record_event("settings", {"changed": changed, "config": config})
        if [versions] != self.events("versions")[-1:]:
            self.record_event("versions", versions)

    def _first_without(self, table: str) -> int:
        """Rounds are recorded in order, so the first gap is one past the last."""
        found: int = self._store.select(f"SELECT coalesce(max(round) + 1, 0) AS n FROM {table}")[0]["n"]
        return found
