"""The steps of a round: ask, answer, fit, measure. `tools/train_al.py` puts them in order.

Every step ends with one record in the ledger and does nothing if that record is there already, so
the loop may be cut anywhere and called again.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.table import Table

from dal_dense import jobs
from dal_dense.acquire import Budget
from dal_dense.annotators import Outcome, Proposed, nothing_proposed
from dal_dense.choosing import Plan, chosen
from dal_dense.costs import CostModel, CostPrior, refit
from dal_dense.errors import BudgetError, DataError, LedgerError, PoolExhausted
from dal_dense.images import read_header
from dal_dense.labels import classes_in, ground, labelled_images
from dal_dense.noise import text_key, uniform
from dal_dense.offer_maps import geometry_offers
from dal_dense.offers import Offers
from dal_dense.pool import ImageRecord
from dal_dense.query import Query
from dal_dense.query_sizes import offer_spec
from dal_dense.regions import Regions
from dal_dense.report.gallery import tiles_for_query
from dal_dense.report.page import write_report
from dal_dense.report.words import duration, figure
from dal_dense.results import collect
from dal_dense.run import Run, renew, try_tests, unreadable, without_bad
from dal_dense.shapes import remember_shapes
from dal_dense.tasks.base import FitReport, LabelledImage, Measurement, Proposal

MODEL_FREE = ("random", "uniform")
"""Strategies that look at no prediction, so that the pool need not be run through the network."""
AT_ONCE = 4096
"""Images whose offers are in memory before they go to files, where a pool is large."""
SHORT = 0.75
"""Share of a round's budget below which the person is told why no more is asked."""
HEADERS_AT_MOST = 2000
"""Images considered by strategies that need no model; more would only cost time to read headers."""


def without_model(run: Run, number: int, strategy: str) -> bool:
    """Does this round look at no prediction? Single boxes are predictions, so they always need a model."""
    return strategy in MODEL_FREE and (number == 0 or run.config.query.kind != "box")


def ask(run: Run, number: int) -> Query | None:
    """Choose and record the regions of one round; None if the whole budget is spent or nothing is left to ask.

    Round 0 is the start set: no model, no truth. A chosen image that cannot be read is quarantined
    and the choice is made again, so that nobody is sent to a broken file.

    Raises:
        BudgetError: if the round's budget buys nothing, or there is nothing for a start set.
    """
    if (known := run.ledger.query(number)) is not None:
        return known
    config, began = run.config, time.monotonic()
    wanted = config.budget.seconds_per_round if number else config.budget.start_seconds
    total = config.budget.total_seconds
    seconds = wanted if total is None else min(wanted, total - run.ledger.spent())
    strategy = config.strategy.name if number else config.strategy.start
    renew(run)
    query = Query(round=number, strategy=strategy, seed=run.ledger.seed_for("ask", number), regions=())
    if number and seconds <= 0:
        run.screen.say("the budget is spent")
        return None
    try:
        query = _chosen(run, query, seconds) if seconds > 0 else query
    except BudgetError as problem:  # after the start set this is how a run ends well
        exhausted = isinstance(problem, PoolExhausted)
        if number == 0 or not (exhausted or seconds < wanted):
            raise
        run.screen.say(str(problem) if exhausted else "the budget is spent: what is left buys no region")
        return None
    _tell_if_short(run, query, seconds)
    remember_shapes(run.ledger, run.pool, query)
    run.ledger.record_query(query, seconds_to_choose=time.monotonic() - began)
    return query


def _tell_if_short(run: Run, query: Query, seconds: float) -> None:
    """A batch far below its budget looks like a mistake unless somebody says why."""
    planned = sum(r.seconds for r in query.regions)
    if planned < SHORT * seconds:
        bounds = ("sizes", "per_image", "scan_images", "max_per_image", "max_per_group", "min_gap")
        named = (f"query.{bound}" for bound in bounds if getattr(run.config.query, bound) is not None)
        run.screen.say(
            f"{duration(planned)} of {duration(seconds)} can be spent: no other region on offer fits beside those "
            f"chosen and the labelled ground ({', '.join(named)})"
        )


def _chosen(run: Run, query: Query, seconds: float) -> Query:
    """The query with the regions that these seconds buy."""
    blind = without_model(run, query.round, query.strategy)
    limits = run.config.query
    plan = Plan(
        query=query,
        views=views_of_pool(run, query.round, query.strategy),
        eye=_model_free(run, query.round) if blind else weights_of(run, query.round - 1),
        budget=Budget(seconds, limits.max_per_image, limits.max_per_group, limits.min_gap),
        correction=(run.costs if blind else _taught(run)).correction,
        at_once=AT_ONCE,
    )
    return chosen(run, plan)


def views_of_pool(run: Run, number: int, strategy: str) -> list[jobs.View]:
    """The images that are looked at in this round, and those that are labelled, for their labelled rows only.

    By group, then time where it is known, then id: `Offers.image` is the place in this list, whatever the pool's order.
    """
    labelled, blocked, judged = ground(run.ledger, run.pool)
    records = looked_at(run, number, strategy)
    groups = {g: i for i, g in enumerate(sorted({r.group for r in run.pool.train}))}
    seen = {r.id for r in records}
    answered = {i for i, single in judged.items() if len(single.answered)}
    records += [run.pool[i] for i in {*labelled, *answered} - seen]
    records.sort(key=lambda r: (r.group, math.inf if r.time is None else r.time, r.id))
    return [
        jobs.View(
            record=record,
            labelled=tuple(labelled.get(record.id, ())),
            blocked=tuple(blocked.get(record.id, ())) if record.id in seen else None,
            image=i,
            group=groups[record.group],
            judged=judged.get(record.id),
        )
        for i, record in enumerate(records)
    ]


def _model_free(run: Run, number: int) -> Callable[..., Offers]:
    seed = run.ledger.seed_for("boxes", number)
    prior = CostPrior.of(run.config.costs, run.ledger.cost_log() if run.config.costs.refit else ())

    def offer(record: ImageRecord, labelled: Regions, blocked: Regions, *, image: int, group: int) -> Offers:
        header = read_header(record)
        return geometry_offers(
            record.id,
            header.shape,
            offer_spec(run.config.query, header, run.costs),
            prior,
            seed=seed,
            image=image,
            group=group,
            labelled=labelled,
            blocked=blocked,
            classes=len(run.pool.classes),
        )

    return offer


def looked_at(run: Run, number: int, strategy: str) -> list[ImageRecord]:
    """The pool images of this round: all, or a sample drawn by seed that is the same in any order."""
    limit = run.config.query.scan_images
    if without_model(run, number, strategy):
        limit = min(limit or HEADERS_AT_MOST, HEADERS_AT_MOST)
    records = [r for r in run.pool.members if r.mask is not None or run.config.annotator.name == "people"]
    if limit is not None and len(records) > limit:  # drawn with the bad ones, so that finding one moves no other
        keys = torch.tensor([text_key(r.id) for r in records])
        drawn = uniform(keys, run.ledger.seed_for("look", number), "images").argsort()[:limit]
        records = [records[i] for i in drawn.sort().values.tolist()]
    return [r for r in records if r.id not in run.pool.quarantined]


def _taught(run: Run) -> CostModel:
    """Costs with what the run's own log of charges has taught of the prices that models gave.

    Where no model looks, the answers have updated the prior already.
    """
    if not run.config.costs.refit:
        return run.costs
    by_model = {q.round for q in run.ledger.queries() if not without_model(run, q.round, q.strategy)}
    return refit(run.costs, [entry for entry in run.ledger.cost_log() if entry.round in by_model])


def weights_of(run: Run, number: int) -> Path:
    """The folder of the model that round `number` fitted."""
    fitted = run.ledger.fit(number)
    if fitted is None:
        raise LedgerError(
            f"round {number} has no fit in the ledger of {run.folder}; start the run anew in another run_dir"
        )
    return fitted.weights


def answer(run: Run, number: int) -> Outcome:
    """Let the annotator answer; draw the gallery of what is asked. Closes the round once enough is back."""
    query = run.ledger.query(number)
    if query is None:
        raise LedgerError(f"round {number} has asked nothing in {run.folder}")
    propose = functools.cache(lambda: proposals(run, query))  # the gallery and the batch show the same

    def waiting() -> set[str]:
        return {r.image_id for r in run.ledger.open_regions(number)}

    drawn = run.folder / "gallery" / f"legend-{number}.json"
    if drawn.exists():  # asked in an earlier call: nobody need wait for an image that went bad since
        unreadable(run, waiting())

    def annotate() -> Outcome:
        if query.regions and not drawn.exists():
            draw_gallery(run, query, propose())
        return run.annotator.annotate(query, pool=run.pool, ledger=run.ledger, propose=propose)

    outcome = without_bad(run, waiting, annotate)
    for problem in outcome.problems:
        run.screen.warn(problem)
    if outcome.enough(run.config.annotator.proceed_at):
        run.ledger.close_round(number)
    return outcome


def take_late(run: Run) -> None:
    """Record labels and times that came back after their round had gone on; labels count in a run with more rounds."""
    asked = run.ledger.queries()
    if asked and run.config.annotator.name == "people" and run.ledger.closed(asked[-1].round):
        outcome = run.annotator.annotate(asked[-1], pool=run.pool, ledger=run.ledger)
        for problem in outcome.problems:
            run.screen.warn(problem)


def proposals(run: Run, query: Query) -> Proposed:
    """What the last model thinks of the query's regions; nothing before there is one."""
    if query.round == 0:
        return nothing_proposed()
    model = run.task.load(weights_of(run, query.round - 1))
    labels: dict[str, Proposal] = {}
    for name in dict.fromkeys(r.image_id for r in query.regions if r.image_id not in run.pool.quarantined):
        asked = [r for r in query.regions if r.image_id == name]
        boxes = Regions.of((r.box for r in asked), run.pool.ndim)
        found = run.task.propose(model, run.pool[name], boxes)
        labels.update(zip((r.id for r in asked), found, strict=True))
    return Proposed(labels, run.task.parameters_sha256(model))


def draw_gallery(run: Run, query: Query, proposed: Proposed) -> None:
    """Pictures of the query for the report."""
    shown = run.config.task.intensity
    tiles_for_query(
        query,
        run.pool,
        proposed.labels,
        run.pool.classes,
        run.folder / "gallery",
        (shown.low, shown.high) if shown.kind == "window" else None,
        background=run.config.task.background,
    )


def fit(run: Run, number: int) -> FitReport:
    """Train on everything that is labelled by now; an image that went bad meanwhile is quarantined."""
    last = run.ledger.fit(number - 1) if number else None

    def train() -> FitReport:
        labelled = labelled_images(run.ledger, run.pool, upto=number)
        warn_of_absent_classes(run, labelled)
        seed, out = run.ledger.seed_for("fit", number), run.folder / "models" / f"round_{number:03d}"
        given = (labelled, seed, out, last.weights if last else None)
        alone = run.config.task.train.parts == 1  # nothing to share out
        return jobs.fit(run.task, run.screen.hooks(), *given) if alone else run.together(jobs.fit, *given)

    def used() -> set[str]:
        return {r.image_id for r in run.ledger.answered_regions()} | {i.image_id for i in run.ledger.initial()}

    return without_bad(run, used, train)


def warn_of_absent_classes(run: Run, labelled: Sequence[LabelledImage]) -> None:
    """Say which classes nobody has labelled yet: the model cannot know them."""
    if not labelled:
        raise DataError(
            "nothing is labelled, so there is nothing to learn from; give annotator.initial_masks "
            "or a start set (budget.start_seconds)"
        )
    seen = {number for image in labelled for label in image.labels for number in classes_in(label)}
    absent = [name for i, name in enumerate(run.pool.classes) if i not in seen]
    if absent:
        run.screen.warn(
            f"nothing of {', '.join(absent)} is labelled yet, so the model cannot know it; "
            "raise budget.start_seconds, or add an image with it to annotator.initial_masks"
        )


def measure(run: Run, number: int) -> Measurement:
    """The fitted model's figures on the held-out images."""
    try_tests(run)
    if not run.pool.test:  # nobody has masks to spare: the loop works, but cannot say how well
        return Measurement(run.config.task.metric, math.nan, {})
    return run.together(jobs.measure, weights_of(run, number), run.pool.test)


def table(run: Run) -> Table:
    """All rounds so far, a row each."""
    results = collect(run.ledger)
    shown = Table(title=f"{run.folder.name}: {results.strategy}")
    for name in ("round", "regions", "predicted", "charged", "in all", results.metric or "metric"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("by class")
    classes = run.pool.classes[1:] if run.config.task.background else run.pool.classes
    for r in results.rounds:
        known = [(name, r.per_class[name]) for name in classes if name in r.per_class]
        shown.add_row(
            str(r.round),
            f"{r.asked} in {r.images}",
            duration(r.seconds_predicted),
            duration(r.seconds_charged),
            duration(r.seconds_charged_total),
            figure(r.metric),
            "  ".join(f"{name}\u00a0{figure(value, 2)}" for name, value in known),
        )
    return shown


def report(run: Run) -> Path:
    """Write `report.html` and `results.json`; returns the page's path."""
    return write_report(run.ledger, run.folder)
