"""What a task adapter must offer. A third party adds a task by writing one such class.

No behaviour is inherited: adapters share functions (`uncertainty`, `scores`, `costs`), and
`tests/conformance/test_tasks.py` checks any of them against the promises made here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch

from dal_dense.errors import Stopped
from dal_dense.offers import Offers
from dal_dense.pool import ImageRecord
from dal_dense.ranks import ALONE, Ranks
from dal_dense.records import IGNORE as IGNORE
from dal_dense.regions import Regions

AT_ONCE = 2
"""Images that a process looks at together; each of them may be a volume."""

TURN = 8
"""Images that each process looks at before all exchange what they found."""

T = TypeVar("T")
Seen = TypeVar("Seen")


@dataclass(frozen=True)
class LabelledImage:
    """An image with what is known of it.

    Attributes:
        record: the image.
        regions: labelled boxes, disjoint, in the file's array index space.
        labels: one array a region. Segmentation: uint8 of the region's shape, class numbers or `IGNORE`.
            Detection: float64 (boxes, 6), see `boxes`.
        kinds: kind of each region (`offers.KINDS`). Of a `box` only the box is known, not the ground
            around it; of the others everything inside is.
    """

    record: ImageRecord
    regions: Regions
    labels: tuple[np.ndarray, ...]
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judged:
    """Boxes of one frame that were asked one by one (`query.kind: box`); the ground around them is not known.

    Attributes:
        answered: the boxes that were asked and are answered, and the objects that the answers hold.
        open: the boxes that were asked and are not answered, or were rejected.
    """

    answered: Regions
    open: Regions


@dataclass(frozen=True)
class Hooks:
    """How a long job talks to the person, progress lines and the wish to stop, and to the run's other processes.

    Attributes:
        progress: called as (what, done, total).
        stopping: true once the person asked to stop; the job then saves and raises `Stopped`.
        ranks: the processes that run this very job side by side.
    """

    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    stopping: Callable[[], bool] = lambda: False
    ranks: Ranks = ALONE

    def share(
        self, what: str, look: Callable[[T], Seen], items: Sequence[T], *, only_first: bool = False
    ) -> Iterator[Seen]:
        """What `look` finds in each item, in order; each process looks at its share, and all get everything.

        Two threads look at two items, so that one is read, or reduced to what is kept of it, while the network is
        at the other.

        Args:
            what: for progress.
            look: called from two threads. What it returns is sent to the other processes: plain values, or tensors
                on the CPU.
            items: the same in every process.
            only_first: the first process gets everything, the others nothing.

        Raises:
            Stopped: the person asked to stop.
        """
        size = self.ranks.size
        turn = size * TURN if size > 1 else max(1, len(items))
        here = (torch.get_num_threads(), self.ranks)
        with ThreadPoolExecutor(AT_ONCE, initializer=_as_here, initargs=here) as threads:
            for begin in range(0, len(items), turn):
                end = min(begin + turn, len(items))
                mine: list[Future[Seen]] = []
                stop = False
                for i in range(begin + self.ranks.rank, end, size):
                    if len(mine) >= AT_ONCE:
                        mine[-AT_ONCE].result()
                    if stop := self.stopping():
                        break
                    self.progress(what, i, len(items))
                    mine.append(threads.submit(look, items[i]))
                found = [one.result() for one in mine]
                if self.ranks.agreed(stop):
                    raise Stopped
                everyone = self.ranks.gather(found, only_first=only_first)
                if everyone:
                    yield from (everyone[k % size][k // size] for k in range(end - begin))


def _as_here(threads: int, ranks: Ranks) -> None:
    """What a new thread does not take over: how many cores a product of matrices may use, and its device."""
    torch.set_num_threads(threads)
    if ranks.device.type == "cuda" and ranks.device.index is not None:
        torch.cuda.set_device(ranks.device)


@dataclass(frozen=True)
class Measurement:
    """How good a model is on held-out images.

    Attributes:
        metric: name of `value`, such as "dice" or "miou"; larger is better.
        value: mean over classes.
        per_class: class name to value; NaN where the class does not occur.
        per_group: group (patient, drive) to value, for bootstrap over groups; NaN where there is nothing to find.
        extra: further figures by name, such as {"ece": 0.03}. A metric that is no mean over groups (AP) comes
            with the ends of its own 95% interval over groups, "interval_low" and "interval_high".
    """

    metric: str
    value: float
    per_class: dict[str, float]
    per_group: dict[str, float] = field(default_factory=dict)
    extra: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FitReport:
    """What a fit left behind.

    Attributes:
        weights: folder with the members' safetensors files and `model.json`.
        sha256: over the weights and `model.json`; files that hold times are left out.
        figures: numbers for the ledger: final loss, temperature, ece_before, ece_after, seconds, iterations.
    """

    weights: Path
    sha256: str
    figures: dict[str, float]


@dataclass(frozen=True)
class Proposal:
    """The model's own answer for one region, to start the annotator's work and fill the report.

    Attributes:
        label: segmentation: uint8 class numbers, shape of the region; detection: the table of predicted
            boxes inside, float64 (boxes, 6), in the frame's coordinates.
        uncertainty: float32 score map, shape of the region.
        scores: detection: probability of each box, float64 (boxes,).
    """

    label: np.ndarray
    uncertainty: np.ndarray
    scores: np.ndarray | None = None


@runtime_checkable
class Task(Protocol):
    """One framework behind the engine. Class 0 of a segmentation is background where there is one.

    Promises that the conformance suite checks: `fit` with the same labels and seed gives the same
    weights; a fit that was stopped and called again ends with those very weights; ground outside
    the labelled regions has no influence on the weights; `offers` never overlap labelled ground,
    lie inside the image and are the same whatever the order in which images are asked for. `offers`
    is called from two threads with two images; the adapter guards its network (`Hooks.share`).
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; the position is the class number."""
        ...

    def fit(
        self,
        labelled: Sequence[LabelledImage],
        *,
        seed: int,
        out: Path,
        previous: Path | None,
        hooks: Hooks,
    ) -> FitReport:
        """Train on labelled regions only; `out` also keeps the half-done work of a stopped fit.

        Where `task.train.parts` is above 1, and only there, several processes may call this side by side with
        the same arguments (`hooks.ranks`): the first one alone writes, and all return the same.
        """
        ...

    def load(self, weights: Path) -> object:
        """The fitted model that the methods below take; weights only, never pickled objects."""
        ...

    def evaluate(self, model: object, records: Sequence[ImageRecord], *, hooks: Hooks) -> Measurement:
        """Metric on fully labelled held-out images; `hooks.share` shares them out where there are several processes."""
        ...

    def offers(
        self, model: object, record: ImageRecord, labelled: Regions, blocked: Regions, *, image: int, group: int
    ) -> Offers:
        """Regions of one image worth asking for: none overlaps `labelled` or `blocked` ground.

        Rows for the `labelled` boxes come last, flagged `Offers.labelled`, if the task has an embedding.

        Where `query.kind` is `box`, and only there, the call has one more keyword, `judged: Judged | None = None`:
        a task that offers single boxes offers none that means the same object as one of these (IoU 0.5), nor one
        of which half lies on `labelled` or `blocked` ground; crops beside them touch none of all this. Its labelled
        rows end with the answered boxes.
        """
        ...

    def propose(self, model: object, record: ImageRecord, regions: Regions) -> list[Proposal]:
        """The model's answer for each region."""
        ...

    def parameters_sha256(self, model: object) -> str:
        """Identity of the weights, for the sidecar."""
        ...
