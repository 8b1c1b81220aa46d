"""What the processes of a run do together: `Ranks.lead` runs these in each of them with the same arguments.

Each process has its own task and hooks; everything else is sent, so it is plain, or lies on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from dal_dense.errors import DataError
from dal_dense.images import read_header
from dal_dense.labels import whole
from dal_dense.offers import Offers, concat
from dal_dense.records import ImageRecord
from dal_dense.regions import Box, Regions
from dal_dense.tasks.base import FitReport, Hooks, Judged, LabelledImage, Measurement, Task


@dataclass(frozen=True)
class View:
    """One image of the pool, as a round looks at it.

    Attributes:
        record: the image.
        labelled: boxes whose labels are known.
        blocked: boxes that may not be asked; None: the whole image.
        image: its row in the round's listing.
        group: number of its group.
        judged: boxes that were asked one by one; None: there were none.
    """

    record: ImageRecord
    labelled: tuple[Box, ...]
    blocked: tuple[Box, ...] | None
    image: int
    group: int
    judged: Judged | None

    def offers(self, offer: Callable[..., Offers]) -> Offers:
        """What an adapter, or one of its kind, offers of this image.

        Raises:
            DataError: if the image cannot be used.
        """
        blocked = [whole(read_header(self.record).shape)] if self.blocked is None else self.blocked
        known, closed = (Regions.of(boxes, self.record.ndim) for boxes in (self.labelled, blocked))
        # only where there are any: adapters that know nothing of boxes need not know the word
        single = {} if self.judged is None else {"judged": self.judged}
        return offer(self.record, known, closed, image=self.image, group=self.group, **single)

    def timed(self, offers: Offers) -> Offers:
        """Its offers with the image's time, NaN where nobody says."""
        when = math.nan if self.record.time is None else self.record.time
        return replace(offers, extra={**offers.extra, "time": torch.full_like(offers.seconds, when).double()})


def look(hooks: Hooks, offer: Callable[..., Offers], views: Sequence[View], strict: bool) -> list[Offers | DataError]:
    """Offers of each image, in order, or what is wrong with it; in the first process only.

    An image is reduced to its few rows where it was looked at; these are all that is sent.

    Args:
        hooks: progress, the wish to stop, other processes.
        offer: as `Task.offers` without the model.
        views: the images.
        strict: the first bad image ends it.

    Raises:
        DataError: of the first bad image, if strict.
        Stopped: the person asked to stop.
    """
    ranks = hooks.ranks

    def seen(view: View) -> Offers | DataError:
        try:
            found = view.offers(offer)
        except DataError as problem:
            if strict:
                raise
            return problem
        return found if ranks.size == 1 else concat([found]).to("cpu")  # concat: rows without what they were cut from

    kept = list(hooks.share("looking at the pool", seen, views, only_first=True))
    if ranks.size == 1:
        return kept
    return [found if isinstance(found, DataError) else found.to(ranks.device) for found in kept]


def score(task: Task, hooks: Hooks, weights: Path, views: Sequence[View], strict: bool) -> list[Offers | DataError]:
    """`look` with the model of a finished fit."""
    return look(hooks, partial(task.offers, task.load(weights)), views, strict)


def fit(
    task: Task, hooks: Hooks, labelled: Sequence[LabelledImage], seed: int, out: Path, previous: Path | None
) -> FitReport:
    """`Task.fit`."""
    return task.fit(labelled, seed=seed, out=out, previous=previous, hooks=hooks)


def measure(task: Task, hooks: Hooks, weights: Path, records: Sequence[ImageRecord]) -> Measurement:
    """`Task.evaluate`."""
    return task.evaluate(task.load(weights), records, hooks=hooks)
