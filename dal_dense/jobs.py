"""What the processes of a run do together: `Ranks.lead` runs these in each of them with the same arguments.

Each process has its own task and hooks; everything else is sent, so it is plain, or lies on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dal_dense.images import read_header
from dal_dense.labels import whole
from dal_dense.offers import Offers
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


def fit(
    task: Task, hooks: Hooks, labelled: Sequence[LabelledImage], seed: int, out: Path, previous: Path | None
) -> FitReport:
    """`Task.fit`."""
    return task.fit(labelled, seed=seed, out=out, previous=previous, hooks=hooks)


def measure(task: Task, hooks: Hooks, weights: Path, records: Sequence[ImageRecord]) -> Measurement:
    """`Task.evaluate`."""
    return task.evaluate(task.load(weights), records, hooks=hooks)
