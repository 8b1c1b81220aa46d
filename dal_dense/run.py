"""A run's parts, and the care of its pool: bad images are set aside, new ones join, first masks are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from dal_dense.annotators import Annotator
from dal_dense.config import Config
from dal_dense.console import Screen
from dal_dense.costs import CostModel
from dal_dense.errors import DataError
from dal_dense.images import read_image
from dal_dense.labels import know_initial
from dal_dense.ledger import Ledger
from dal_dense.pool import Pool
from dal_dense.ranks import Ranks
from dal_dense.report.words import count
from dal_dense.tasks.base import Task

T = TypeVar("T")


@dataclass
class Run:
    """A run's parts, wired by `build.open_run`. Only the pool changes: it grows and quarantines."""

    config: Config
    pool: Pool
    channels: int
    task: Task
    annotator: Annotator
    costs: CostModel
    ledger: Ledger
    screen: Screen
    ranks: Ranks

    def together(self, job: Callable[..., T], *given: object, others: Callable[..., object] | None = None) -> T:
        """Run one of `jobs` in all processes of the run, or beside it another in the others; the first one's result.

        Raises:
            Exception: whatever the job raises in any process.
            RankError: if a process died.
        """
        hooks = replace(self.screen.hooks(), ranks=self.ranks)
        return self.ranks.lead(job, (self.task, hooks), given, others)

    @property
    def folder(self) -> Path:
        """Where everything of the run lies."""
        return self.config.run_dir

    @property
    def quota_classes(self) -> tuple[int, ...]:
        """Classes that quotas are for: all but the background, where there is one."""
        return tuple(range(1 if self.config.task.background else 0, len(self.pool.classes)))


def unreadable(run: Run, names: set[str], *, looked: bool = False) -> set[str]:
    """Those of these images that cannot be read, of those not set aside yet; each is quarantined and listed.

    Args:
        run: its pool loses them.
        names: ids of images.
        looked: their pixels have just been read, so only their labels can still be bad.
    """
    oracle = run.config.annotator.name == "oracle"
    initial = {i.image_id for i in run.ledger.initial()}
    asked = sorted(names - run.pool.quarantined.keys())
    return _set_aside(run, asked, lambda name: (not looked, oracle or name in initial))


def try_tests(run: Run) -> None:
    """A broken test image is set aside before the first figure, never later: figures stay comparable."""
    if not run.ledger.events("tested"):
        _set_aside(run, [r.id for r in run.pool.test], lambda name: (True, True), least=0)
        run.ledger.record_event("tested", {"images": [r.id for r in run.pool.test]})


def _set_aside(
    run: Run, names: Sequence[str], needed: Callable[[str], tuple[bool, bool]], *, least: int | None = None
) -> set[str]:
    """Ids of the images whose pixels, or labels, cannot be read, as far as they are needed.

    With `least`, none is set aside where most fail: see `refuse_if_most_fail`.
    """

    def problem_of(name: str) -> DataError | None:
        pixels, labels = needed(name)
        try:
            record = run.pool[name]
            if pixels:
                read_image(record, channels=run.channels)
            if labels:
                run.pool.truth(record)
        except DataError as problem:
            if run.config.data.strict:
                raise
            return problem
        return None

    problems = list(run.screen.hooks().share("reading images", problem_of, names))
    if least is not None:
        refuse_if_most_fail(problems, least)
    bad = {name: problem for name, problem in zip(names, problems, strict=True) if problem is not None}
    for name, problem in bad.items():
        quarantine(run, name, problem)
    return {*bad}


def without_bad(run: Run, names: Callable[[], set[str]], job: Callable[[], T]) -> T:
    """Run a job; where it meets an image that went bad meanwhile, the image is set aside and the job begins again.

    Args:
        run: its pool loses the image.
        names: ids of the images that the job needs.
        job: may run again after it has raised.

    Raises:
        DataError: the job's, if all images are sound.
    """
    while True:
        try:
            return job()
        except DataError:
            if not unreadable(run, names()):
                raise


def quarantine(run: Run, image_id: str, problem: DataError) -> None:
    """Set one bad image aside, in the ledger and on screen.

    Raises:
        DataError: the same problem, if the settings ask for strictness.
    """
    if run.config.data.strict:
        raise problem
    run.screen.warn(f"{image_id} is quarantined: {problem}")
    run.ledger.record_event("quarantine", {"image": image_id, "reason": str(problem)})
    run.pool = run.pool.quarantine(image_id, str(problem))


def refuse_if_most_fail(found: Sequence[object], least: int = 2) -> None:
    """Where most images fail it is a disk or the model that is broken, and an image set aside stays aside.

    Raises:
        DataError: if more than half, and more than `least`, cannot be used.
    """
    bad = [problem for problem in found if isinstance(problem, DataError)]
    if len(bad) > max(least, len(found) // 2):
        raise DataError(
            f"{len(bad)} of {len(found)} images cannot be used, so none is set aside; look whether their folder is "
            f"there, their listing fits them and the model's fit went well, mend it, and run again. The first: {bad[0]}"
        )


def renew(run: Run) -> None:
    """Before a query: new files join the pool, and the masks that are there from the start are known."""
    _grow(run)
    _know_initial_masks(run)


def _grow(run: Run) -> None:
    """Let files that appeared since join the pool."""
    fresh = run.pool.refresh()
    known = {i for e in run.ledger.events("pool") for i in e["train"]}  # not run.pool: it is opened with newcomers
    known |= {i for e in run.ledger.events("grown") for i in e["images"]}
    new = [r.id for r in fresh.train if r.id not in known]
    if new:
        run.screen.say(f"{len(new)} new images joined the pool")
        run.ledger.record_event("grown", {"images": new})
        run.pool = fresh


def _know_initial_masks(run: Run) -> None:
    """Record, once, the masks that are known before the first query."""
    wanted = run.config.annotator.initial_masks
    if wanted == "none":
        return
    named = [r for r in run.pool.train if r.mask is not None] if wanted == "all" else [run.pool[i] for i in wanted]
    new = know_initial(run.ledger, run.pool, named, lambda record, problem: quarantine(run, record.id, problem))
    if new:
        run.screen.say(f"masks from the start: {count(new, 'image')}")
