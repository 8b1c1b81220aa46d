"""Who answers a query: held-back masks (a simulation) or people (export, wait, import).

An annotator writes answers to the ledger and nowhere else; called again, it goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from dal_dense.costs import CostModel, area_of, contour_length, object_count
from dal_dense.errors import DataError, LabelError
from dal_dense.exchange.asked import Returned, load_sidecar
from dal_dense.exchange.batch import RETURNED, batch_folder, write_batch
from dal_dense.exchange.returns import read_returns
from dal_dense.images import Header, axial_axis, read_header
from dal_dense.ledger import Ledger
from dal_dense.ledger_rows import Source
from dal_dense.pool import Pool
from dal_dense.query import Query, QueryRegion
from dal_dense.regions import Regions, slices
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
    """

    costs: CostModel
    background: int | None = 0

    def annotate(
        self, query: Query, *, pool: Pool, ledger: Ledger, propose: Callable[[], Proposed] = nothing_proposed
    ) -> Outcome:
        """Answer every open region of the query.

        Raises:
            DataError: if an image of the query has no mask, or it cannot be used.
        """
        waiting = {r.id for r in ledger.open_regions(query.round)}
        done = 0
        for image_id, regions in _by_image(query):
            if waiting.isdisjoint(r.id for r in regions):
                continue
            truth, header = _truth(pool, image_id), read_header(pool[image_id])
            for region in regions:
                if region.id in waiting:
                    label = truth[slices(region.box)].copy()
                    opening = self.costs.image_seconds if region is regions[0] else 0.0
                    charge = _charge(region, label, header, self.costs, self.background)
                    charge = replace(charge, image_seconds=opening)
                    done += charge.record(ledger, region, label, "oracle", len(pool.classes))
        answered, left = _counts(query, ledger)
        return Outcome(answered, left, [], f"the oracle answered {done} regions of round {query.round}")


def _truth(pool: Pool, image_id: str) -> UInt8[np.ndarray, "..."]:
    truth: UInt8[np.ndarray, "..."] | None = pool.mask(pool[image_id])
    if truth is None:
        raise DataError(
            f"{pool[image_id].paths[0]}: the oracle was asked about {image_id}, which has no mask; "
            "give it one, take it out of the pool, or set annotator.name to people"
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
    """

    costs: CostModel
    run_dir: Path
    returns: Path | None = None
    background: int | None = 0

    def annotate(
        self, query: Query, *, pool: Pool, ledger: Ledger, propose: Callable[[], Proposed] = nothing_proposed
    ) -> Outcome:
        """Export if that has not happened, then record what has come back.

        Raises:
            DataError: if the batch cannot be written or its sidecar is damaged.
        """
        batch = batch_folder(self.run_dir, query.round)
        if not batch.exists() and query.regions:
            proposed = propose()
            write_batch(
                batch, query, pool, proposed.labels,
                run_id=ledger.run_id, classes=pool.classes, model_sha256=proposed.model_sha256,
                background=self.background,
            )  # fmt: skip
        problems: list[str] = []
        new = self._take(list(self._returned(query, ledger, problems)), pool, ledger, problems)
        answered, left = _counts(query, ledger)
        return Outcome(answered, left, problems, self._message(query, ledger, new, left))

    def _returned(self, query: Query, ledger: Ledger, problems: list[str]) -> Iterator[Returned]:
        """Labels for this round's batch, and for earlier ones that are still waited for."""
        asked = [q for q in ledger.queries() if q.round <= query.round]
        every = {q.round: batch_folder(self.run_dir, q.round) for q in asked}
        batches = {number: folder for number, folder in every.items() if folder.exists()}
        for folder in batches.values():  # region ids repeat from run to run, so a batch must be this run's own
            if load_sidecar(folder).run != ledger.run_id:
                raise DataError(f"{folder}: this batch is of another run; move the folder away and call again")
        if self.returns is not None:
            together = [(list(batches.values()), self.returns)] if batches else []
        else:
            waiting = {q.round for q in asked if ledger.open_regions(q.round)} | {query.round}
            together = [([folder], folder / RETURNED) for number, folder in batches.items() if number in waiting]
        for folders, place in together:
            found, bad = read_returns(folders[-1], place, earlier=folders[:-1])
            problems += bad
            yield from found

    def _take(self, found: list[Returned], pool: Pool, ledger: Ledger, problems: list[str]) -> int:
        """Record labels, one by one; how many were new."""
        asked = {r.id: (q.round, r) for q in ledger.queries() for r in q.regions}
        waiting = {r.id for r in ledger.open_regions()}
        opened = {(a.round, a.region.image_id) for a in ledger.answered() if a.source == "people"}
        new = 0
        for item in found:
            number, region = asked[item.region_id]
            opening = 0.0 if (number, region.image_id) in opened else self.costs.image_seconds
            try:
                charge = self._charge(item, region, pool, opening) if region.id in waiting else _Charge(0.0)
                new += charge.record(ledger, region, item.label, "people", len(pool.classes))
            except (LabelError, DataError) as error:
                problems.append(f"{item.source}: {error}")
                continue
            opened.add((number, region.image_id))
        return new

    def _charge(self, item: Returned, region: QueryRegion, pool: Pool, opening: float) -> _Charge:
        """Logged time if there is any, which holds the opening; else the cost model on the label."""
        charge = _charge(region, item.label, read_header(pool[region.image_id]), self.costs, self.background)
        if item.seconds is not None:
            return replace(charge, seconds=item.seconds, note=f"{item.source}; time as logged")
        return replace(charge, image_seconds=opening, note=f"{item.source}; no time logged, charged by the cost model")

    def _message(self, query: Query, ledger: Ledger, new: int, left: int) -> str:
        batch = batch_folder(self.run_dir, query.round)
        late = len(ledger.open_regions()) - left
        lines = [f"round {query.round}: {new} new labels taken, {left} of {len(query.regions)} regions still open"]
        if late > 0:
            lines.append(f"{late} regions of earlier rounds are open too; their labels are still welcome")
        if left:
            lines += [
                f"the batch lies in {batch}; its README.txt says how to label it",
                f"put the labels into {self.returns or batch / RETURNED} and call the same command again",
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

    def record(
        self, ledger: Ledger, region: QueryRegion, label: UInt8[np.ndarray, "..."], source: Source, n_classes: int
    ) -> bool:
        return ledger.record_answer(
            region.id, label, seconds=self.seconds, image_seconds=self.image_seconds, source=source,
            boundary=self.boundary, objects=self.objects, area=self.area, note=self.note, n_classes=n_classes,
        )  # fmt: skip


def _charge(
    region: QueryRegion, label: UInt8[np.ndarray, "..."], header: Header, costs: CostModel, background: int | None
) -> _Charge:
    """The cost model on a finished label; an empty region costs its search."""
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


def _counts(query: Query, ledger: Ledger) -> tuple[int, int]:
    """Regions of the query that are settled, and those still open."""
    left = len(ledger.open_regions(query.round))
    return len(query.regions) - left, left
