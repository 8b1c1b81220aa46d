"""Who answers a query: held-back masks (a simulation) or people (export, wait, import).

An annotator writes answers to the ledger and nowhere else; called again, it goes on where it was.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from dal_dense.box_answers import BoxRules, Known, box_work, true_answers
from dal_dense.boxes import Boxes
from dal_dense.costs import CostModel, area_of, contour_length, object_count
from dal_dense.errors import DataError, LabelError
from dal_dense.exchange.asked import RETURNED, Returned, load_sidecar
from dal_dense.exchange.batch import batch_folder, check_batch, write_batch
from dal_dense.exchange.inbox import check_apart, claim
from dal_dense.exchange.returns import read_returns
from dal_dense.images import Header, axial_axis, read_header, sha256_of
from dal_dense.ledger import Ledger
from dal_dense.ledger_answers import LOGGED
from dal_dense.ledger_rows import Source
from dal_dense.pool import Pool
from dal_dense.query import Query, QueryRegion
from dal_dense.regions import Regions, slices
from dal_dense.remarks import Remarks, wait_for
from dal_dense.report.words import count
from dal_dense.tasks.base import Proposal


@dataclass(frozen=True)
class Proposed:
    """What the model thinks of a query's regions; empty before the first fit."""

    labels: Mapping[str, Proposal]
    model_sha256: str | None


def nothing_proposed() -> Proposed:
    """For the start set: there is no model yet."""
    return Proposed({}, None)


@dataclass(frozen=True)
class Outcome:
    """How far a query is answered.

    Attributes:
        answered: regions of this query that need no more work (answered or rejected).
        open: regions of this query that are still waited for.
        problems: what came back and could not be taken, a line each.
        message: for the person: what was done, where things lie, what to do next.
    """

    answered: int
    open: int
    problems: list[str]
    message: str

    def enough(self, share: float) -> bool:
        """Is this share of the query answered? An empty query always is."""
        return self.answered >= share * (self.answered + self.open)


@runtime_checkable
class Annotator(Protocol):
    """Answers queries. The conformance suite checks: same call again changes nothing; a charge is never
    negative; every label has its region's shape; nothing that was not asked is recorded.
    """

    def annotate(
        self, query: Query, *, pool: Pool, ledger: Ledger, propose: Callable[[], Proposed] = nothing_proposed
    ) -> Outcome:
        """Record what can be answered now.

        Args:
            query: the round's query, already in the ledger.
            pool: as it is now; it grows between rounds.
            ledger: takes the answers.
            propose: computes the model's proposals; called only if they are needed.
        """
        ...


@dataclass(frozen=True)
class Oracle:
    """Answers at once from held-back masks, charged with the cost model applied to that truth.

    Attributes:
        costs: the uncorrected cost model.
        background: class that nobody draws; None if every class is drawn.
        boxes: how boxes are judged, where boxes are asked and not masks.
    """

    costs: CostModel
    background: int | None = 0
    boxes: BoxRules | None = None

    def annotate(
        self, query: Query, *, pool: Pool, ledger: Ledger, propose: Callable[[], Proposed] = nothing_proposed
    ) -> Outcome:
        """Answer every open region of the query; those of images that are set aside are rejected.

        Raises:
            DataError: if an image of the query has no mask, or it cannot be used.
        """
        problems = reject_lost(pool, ledger)
        waiting = {r.id for r in ledger.open_regions(query.round)}
        earlier = _known_before(query, ledger)
        done = 0
        for image_id, regions in _by_image(query):
            if waiting.isdisjoint(r.id for r in regions):
                continue
            header = read_header(pool[image_id])
            labels = self._labels(_truth(pool, image_id), regions, pool, earlier.get(image_id, ()))
            for region, label in zip(regions, labels, strict=True):
                if region.id in waiting:
                    opening = self.costs.image_seconds if region is regions[0] else 0.0
                    charge = _charge(region, label, header, self.costs, self.background, pool.classes)
                    charge = replace(charge, image_seconds=opening)
                    done += charge.record(ledger, region, label, "oracle", len(pool.classes))
        answered, left = _counts(query, ledger)
        return Outcome(answered, left, problems, f"the oracle answered {done} regions of round {query.round}")

    def _labels(
        self, truth: np.ndarray, regions: Sequence[QueryRegion], pool: Pool, earlier: Sequence[Known]
    ) -> list[np.ndarray]:
        if self.boxes is None:
            return [truth[slices(region.box)].copy() for region in regions]
        return true_answers(Boxes.from_table(truth), regions, self.boxes, pool.classes, earlier)


def _known_before(query: Query, ledger: Ledger) -> dict[str, list[Known]]:
    """Answers of earlier rounds, by image; read only if single boxes are asked."""
    found: dict[str, list[Known]] = {}
    if any(region.kind == "box" for region in query.regions):
        for answer in ledger.answered():
            if answer.round < query.round:
                found.setdefault(answer.region.image_id, []).append((answer.region, answer.label))
    return found


def _truth(pool: Pool, image_id: str) -> np.ndarray:
    truth: np.ndarray | None = pool.truth(pool[image_id])
    if truth is None:
        raise DataError(
            f"{pool[image_id].paths[0]}: the oracle was asked about {image_id}, which has no labels; "
            "give it some, take it out of the pool, or set annotator.name to people"
        )
    return truth


@dataclass(frozen=True)
class People:
    """Exports a query once, then records whatever has come back, of this round and of earlier ones.

    Attributes:
        costs: charged on the returned label where no time was logged.
        run_dir: batches lie in its `queries/`.
        returns: one folder for the labels of all rounds; None: each batch's own `returned/`.
        background: class that nobody draws; None if every class is drawn.
        boxes: how boxes are judged, where boxes are asked and not masks.
    """

    costs: CostModel
    run_dir: Path
    returns: Path | None = None
    background: int | None = 0
    boxes: BoxRules | None = None

    def annotate(
        self, query: Query, *, pool: Pool, ledger: Ledger, propose: Callable[[], Proposed] = nothing_proposed
    ) -> Outcome:
        """Export if that has not happened, record what has come back, reject what can no longer be labelled.

        Raises:
            DataError: if the batch cannot be written, a batch or the folder of returns is not this run's own,
                or a sidecar is damaged.
        """
        problems = self._own_returns(query, pool, ledger)
        if not batch_folder(self.run_dir, query.round).exists():
            problems += reject_lost(pool, ledger, query.round)
            self._export(query, pool, ledger, propose)
        remarks = Remarks(ledger)
        new = self._take(query, pool, ledger, remarks)
        problems += remarks.lines()
        problems += reject_lost(pool, ledger)  # after the labels: what a person has drawn comes first
        answered, left = _counts(query, ledger)
        return Outcome(answered, left, problems, self._message(query, ledger, new, left))

    def _export(self, query: Query, pool: Pool, ledger: Ledger, propose: Callable[[], Proposed]) -> None:
        waiting = {r.id for r in ledger.open_regions(query.round)}
        if waiting:
            proposed = propose()
            left = query.model_copy(update={"regions": tuple(r for r in query.regions if r.id in waiting)})
            write_batch(
                batch_folder(self.run_dir, query.round), left, pool, proposed.labels,
                run_id=ledger.run_id, classes=pool.classes, model_sha256=proposed.model_sha256,
                background=self.background, boxes=self.boxes is not None,
            )  # fmt: skip

    def _own_returns(self, query: Query, pool: Pool, ledger: Ledger) -> list[str]:
        """Is the one folder of all rounds ours, and does it hold returns alone? What to tell about it."""
        if self.returns is None:
            return []
        check_apart(self.returns, [batch_folder(self.run_dir, query.round), *_images(query, pool)])
        refused = claim(self.returns, ledger.run_id)
        return [refused] if refused else []

    def _returned(
        self, query: Query, pool: Pool, ledger: Ledger, answered: Collection[str], remarks: Remarks
    ) -> Iterator[tuple[Path, Returned]]:
        """Whatever lies in the folders of returns, of finished rounds too: a changed label must not go unseen."""
        batches = self._batches(query, pool, ledger)
        if self.returns is not None:
            together = [(batches, self.returns)] if batches else []
        else:
            together = [([folder], folder / RETURNED) for folder in batches]
        for folders, place in together:
            rules = self.boxes or BoxRules()
            found, bad = read_returns(
                folders[-1], place, earlier=folders[:-1], answered=answered, min_visible=rules.min_visible
            )
            number = query.round if self.returns is not None else load_sidecar(folders[-1]).round
            for line in bad:
                remarks.problem(number, place, line)
            yield from ((place, item) for item in found)

    def _place(self, query: Query) -> Path:
        """Where people are told to put this round's labels."""
        return self.returns or batch_folder(self.run_dir, query.round) / RETURNED

    def _batches(self, query: Query, pool: Pool, ledger: Ledger) -> list[Path]:
        """The batches that are there, oldest first, each proven to be that of its query."""
        unsent = {j.region.id for j in ledger.rejected()}
        found = []
        for asked in ledger.queries():
            folder = batch_folder(self.run_dir, asked.round)
            if asked.round <= query.round and folder.exists():
                check_batch(folder, asked, run_id=ledger.run_id, classes=pool.classes, unsent=unsent)
                found.append(folder)
        return found

    def _take(self, query: Query, pool: Pool, ledger: Ledger, remarks: Remarks) -> int:
        """Record labels, one by one; how many were new."""
        asked = {r.id: (q.round, r) for q in ledger.queries() for r in q.regions}
        answered = {r.id for r in ledger.answered_regions()}
        refused = {j.region.id: j.reason for j in ledger.rejected()}
        log = [e for e in ledger.cost_log() if e.source == "people"]
        opened, charged = {(e.round, e.image_id) for e in log}, {e.region_id: e.charged_seconds for e in log}
        check = functools.cache(lambda number, image_id: self._check_source(number, image_id, pool))
        new = 0
        for place, item in self._returned(query, pool, ledger, answered, remarks):
            number, region = asked[item.region_id]
            opening = 0.0 if (number, region.image_id) in opened else self.costs.image_seconds
            try:
                if region.id in answered:  # the same again, or a conflict: nothing is charged
                    charge = _Charge(0.0, note=item.source)
                else:
                    check(number, region.image_id)
                    charge = self._charge(item, region, pool, opening)
                if charge.record(ledger, region, item.label, "people", len(pool.classes)):
                    new += 1
                    remarks.took(place, item)
                elif region.id in charged:
                    remarks.time(number, place, item, charged[region.id])
            except (LabelError, DataError) as error:
                wait = wait_for(region, place / item.source, refused)
                remarks.problem(number, place, f"{item.source}: {error}{wait}")
                continue
            answered.add(region.id)
            opened.add((number, region.image_id))
        return new

    def _check_source(self, number: int, image_id: str, pool: Pool) -> None:
        """Is the image still the very file that was sent? Else the label may lie beside what it shows."""
        sidecar = load_sidecar(batch_folder(self.run_dir, number))
        sent = next(e.source for e in sidecar.regions if e.region.image_id == image_id)
        path = pool[image_id].paths[0]
        if sha256_of(path) != sent.sha256:
            raise DataError(
                f"{path}: changed since round {number} was sent out, so its labels may not fit it any more; "
                "restore the file as it was"
            )

    def _charge(self, item: Returned, region: QueryRegion, pool: Pool, opening: float) -> _Charge:
        """Logged time if there is any, which holds the opening; else the cost model on the label."""
        header = read_header(pool[region.image_id])
        charge = _charge(region, item.label, header, self.costs, self.background, pool.classes)
        if item.seconds is not None:
            return replace(charge, seconds=item.seconds, note=f"{item.source}; {LOGGED}")
        return replace(charge, image_seconds=opening, note=f"{item.source}; no time logged, charged by the cost model")

    def _message(self, query: Query, ledger: Ledger, new: int, left: int) -> str:
        batch = batch_folder(self.run_dir, query.round)
        late = len(ledger.open_regions()) - left
        lines = [f"round {query.round}: {new} new labels taken, {left} of {len(query.regions)} regions still open"]
        if late > 0:
            lines.append(f"{count(late, 'region')} of earlier rounds still open; labels for them are welcome")
        if left:
            lines += [
                f"the batch lies in {batch}; its README.txt says how to label it",
                f"put the labels into {self._place(query)} and call the same command again",
            ]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Charge:
    """What one answer costs, as the ledger keeps it."""

    seconds: float
    image_seconds: float = 0.0
    boundary: float | None = None
    objects: float | None = None
    area: float | None = None
    note: str = ""

    def record(self, ledger: Ledger, region: QueryRegion, label: np.ndarray, source: Source, n_classes: int) -> bool:
        return ledger.record_answer(
            region.id, label, seconds=self.seconds, image_seconds=self.image_seconds, source=source,
            boundary=self.boundary, objects=self.objects, area=self.area, note=self.note, n_classes=n_classes,
        )  # fmt: skip


def _charge(
    region: QueryRegion,
    label: np.ndarray,
    header: Header,
    costs: CostModel,
    background: int | None,
    classes: Sequence[str],
) -> _Charge:
    """The cost model on a finished label; an empty region costs its search."""
    if label.dtype == np.float64:  # a table of boxes
        work = box_work(region, label, costs, classes)
        return _Charge(work.seconds, objects=work.objects, boundary=None if work.area is None else 0.0, area=work.area)
    axial = None if header.affine is None else axial_axis(header)
    boundary = float(contour_length(label, header.spacing, axial))
    objects = float(object_count(label, axial, background))
    area = float(area_of(Regions.of([region.box], len(region.start)), header.spacing, axial)[0])
    return _Charge(costs.seconds(area, boundary, objects), boundary=boundary, objects=objects, area=area)


def _by_image(query: Query) -> Iterator[tuple[str, list[QueryRegion]]]:
    grouped: dict[str, list[QueryRegion]] = {}
    for region in query.regions:
        grouped.setdefault(region.image_id, []).append(region)
    yield from grouped.items()


def reject_lost(pool: Pool, ledger: Ledger, round: int | None = None) -> list[str]:
    """Reject open regions (of one round) whose image cannot be used any more, so that no round waits for them.

    Returns:
        A line an image. A label that comes back later is taken if the image is back by then.
    """
    lost: dict[str, list[str]] = {}
    for region in ledger.open_regions(round):
        if (reason := _unusable(pool, region.image_id)) is not None:
            ledger.record_rejected(region.id, reason)
            lost.setdefault(region.image_id, []).append(region.id)
    return [
        f"{image_id} cannot be used ({_unusable(pool, image_id)}), so nobody waits for {', '.join(names)} any more; "
        "their time is not charged"
        for image_id, names in lost.items()
    ]


def _unusable(pool: Pool, image_id: str) -> str | None:
    """Why nothing can be learnt from this image; None if it is in order."""
    if image_id in pool.quarantined:
        return pool.quarantined[image_id]
    try:
        pool[image_id]
    except DataError as error:
        return str(error)
    return None


def _images(query: Query, pool: Pool) -> Iterator[Path]:
    """Files of the query's images, as far as they are there."""
    for image_id, _ in _by_image(query):
        if _unusable(pool, image_id) is None:
            record = pool[image_id]
            yield from (record.paths if record.mask is None else (*record.paths, record.mask))


def _counts(query: Query, ledger: Ledger) -> tuple[int, int]:
    """Regions of the query that are settled, and those still open."""
    left = len(ledger.open_regions(query.round))
    return len(query.regions) - left, left
