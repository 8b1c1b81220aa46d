"""Cases of size: budgeted selection, offers on disk, shards that are merged."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from dal_dense.acquire import Basket, Budget, Round, Selection, acquire
from dal_dense.acquire.per_second import better_of_two, per_second
from dal_dense.acquire.ranking import worth_of
from dal_dense.acquire.shards import LocalShard
from dal_dense.acquire.shortlist import Candidates, InTurn, Picks, rank_of
from dal_dense.acquire.values import summed_score
from dal_dense.config import StrategyConfig
from dal_dense.offer_store import OfferStore
from dal_dense.offers import Offers, concat
from dal_dense.regions import Regions
from engine_bench.case import Case, Way

PER_IMAGE = 36
"""Regions of a frame: 24 small ones, and 12 of four times the size that overlap them."""
PER_DRIVE = 200
"""Frames of a drive."""
CHUNK = 1 << 18
BUDGET = Budget(4 * 3600.0, max_per_image=4, max_per_group=20)
RULE = StrategyConfig(name="per_second")
WHEN = Round(1, 5, 0)


def driving_pool(rows: int, seed: int, *, first: int = 0, classes: int = 0, embedding: int = 0) -> Offers:
    """Regions of driving frames, from a seed; columns that no ranking reads take no memory.

    Args:
        rows: how many; a multiple of `PER_IMAGE` keeps frames whole.
        seed: of scores and seconds.
        first: number of the first row in the whole pool.
        classes: width of the class columns.
        embedding: width of the embedding.
    """
    gen = torch.Generator().manual_seed(seed)
    number = torch.arange(first, first + rows)
    image, place = number // PER_IMAGE, number % PER_IMAGE
    small = place < 24
    side = torch.where(small, 200, 400)[:, None]
    in_row = torch.where(small, 6, 4)
    place = torch.where(small, place, place - 24)
    start = torch.stack([place // in_row, place % in_row], 1) * side * torch.where(small, 1.0, 0.8)[:, None]
    hard = torch.rand(1, generator=gen)  # some cars drive where it is hard, and some frames are
    frame = hard * torch.rand(rows // PER_IMAGE + 2, generator=gen)[image - image[0]]
    draw = torch.rand(rows, generator=gen)
    zero = torch.zeros(1).expand(rows)
    return Offers(
        image=image,
        group=image // PER_DRIVE,
        regions=Regions(start.long(), start.long() + side),
        kind=torch.zeros(1, dtype=torch.uint8).expand(rows),
        key=(number * 0x9E3779B97F4A7C15) & ((1 << 63) - 1),
        score=frame * draw**3,
        class_score=zero[:, None].expand(-1, classes),
        shares=zero[:, None].expand(-1, classes),
        boundary=zero,
        objects=zero,
        area=zero,
        seconds=3 + 40 * torch.rand(rows, generator=gen) * side[:, 0] / 400,
        image_seconds=torch.full((1,), 10.0).expand(rows),
        embedding=zero[:, None].expand(-1, embedding),
        labelled=torch.rand(rows, generator=gen) < 1e-4,
    )


def bought(offers: Offers, chosen: Selection) -> dict[str, float]:
    """What a selection is worth."""
    worth = float(summed_score(offers[chosen.rows]).sum())
    return {"worth": worth, "regions": float(len(chosen)), "seconds": chosen.total}


# --- budgeted selection ---------------------------------------------------------------------


def ours(offers: Offers) -> Selection:
    """`acquire`."""
    return acquire(offers, BUDGET, RULE, WHEN, quota_classes=())


def every_row(offers: Offers) -> Selection:
    """The same rule as it is written: all rows are looked at for each pick."""
    order = offers.key.argsort()
    offers = offers[order]
    worth = summed_score(offers)

    def filled(basket: Basket) -> Basket:
        while (row := basket.best(rank := rank_of(worth, basket.price, True))) is not None:
            basket.take(row, rank[row])
        return basket

    alone, basket = Basket(offers, BUDGET), filled(Basket(offers, BUDGET))
    single = alone.best(worth)
    if single is not None and float(worth[single]) > float(worth[basket.rows].sum()):
        alone.take(single, worth[single])
        basket = filled(alone)
    return Selection(order[basket.rows], torch.tensor(basket.seconds, dtype=torch.float64), torch.tensor(basket.values))


def sort_once(offers: Offers) -> Selection:
    """NumPy and a Python loop: sort by worth over seconds with the opening, go down the list once."""
    o = offers.to("cpu")
    seconds, opening = o.seconds.double().numpy(), o.image_seconds.double().numpy()
    order = np.argsort(-summed_score(o).numpy() / (seconds + opening), kind="stable")
    taken: dict[int, list[int]] = {}
    per_group: dict[int, int] = {}
    rows: list[int] = []
    left, paid = BUDGET.seconds, []
    image, group, labelled = o.image.numpy(), o.group.numpy(), o.labelled.numpy()
    start, stop = o.regions.start.numpy(), o.regions.stop.numpy()
    for row in labelled.nonzero()[0]:
        taken.setdefault(int(image[row]), []).append(int(row))
    opened: dict[int, int] = {}
    for row in order:
        i, g = image[row], group[row]
        price = seconds[row] + (0.0 if i in opened else opening[row])
        if price > left or opened.get(i, 0) == BUDGET.max_per_image or per_group.get(g, 0) == BUDGET.max_per_group:
            continue
        if any((start[row] < stop[t]).all() and (start[t] < stop[row]).all() for t in taken.get(i, ())):
            continue
        left -= price
        rows.append(int(row))
        paid.append(price)
        taken.setdefault(i, []).append(row)
        opened[i], per_group[g] = opened.get(i, 0) + 1, per_group.get(g, 0) + 1
    return Selection(torch.tensor(rows), torch.tensor(paid, dtype=torch.float64), torch.zeros(len(rows)))


def budgeted(rows: int, goal: str, plain: str, way: Way) -> Case:
    """One size of budgeted selection."""
    return Case(
        name=f"budgeted 10^{len(str(rows)) - 1}",
        work=f"value per second from {rows:,} regions: 4 h, 4 a frame, 20 a drive of {PER_DRIVE:,} frames",
        goal=goal,
        make=lambda device: driving_pool(rows, 0).to(device),
        ways={"ours": Way(ours, cuda=True), plain: way},
        judge=bought,
    )


# --- offers on disk -------------------------------------------------------------------------


@dataclass
class Stored:
    """What a pool that is written and read back comes to.

    Attributes:
        chosen: the selection's figures.
        private: peak of memory that is no view of a file, bytes over what was held before.
        written: bytes on disk.
    """

    chosen: dict[str, float]
    private: float
    written: float = 0.0


@dataclass
class _Peak:
    first: float
    most: float = field(default=0.0)


@contextmanager
def private_memory() -> Iterator[_Peak]:
    """Watch the process's private memory (Linux), ten times a second and at the end."""

    def now() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

    peak, done = _Peak(now()), threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            peak.most = max(peak.most, now() - peak.first)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        peak.most = max(peak.most, now() - peak.first)


def chunks(rows: int) -> Iterator[Offers]:
    """A pool as it comes from the network, with classes and embeddings."""
    step = CHUNK // PER_IMAGE * PER_IMAGE
    for number, first in enumerate(range(0, rows, step)):
        yield driving_pool(min(step, rows - first), number, first=first, classes=8, embedding=32)


def ranked(offers: Offers) -> Selection:
    """`acquire` from columns that have been checked."""
    return acquire(offers, BUDGET, RULE, WHEN, quota_classes=(), checked=True)


def over_disk(
    rows: int,
    made: Callable[[int], Iterator[Offers]] = chunks,
    choose: Callable[[Offers], Selection] = ranked,
) -> Stored:
    """Append each chunk, map the files, choose."""
    with tempfile.TemporaryDirectory() as folder, private_memory() as peak:
        store = OfferStore(Path(folder))
        for part in made(rows):
            store.append(part)
        written = sum(f.stat().st_size for f in Path(folder).iterdir())
        offers = store.read()
        figures = bought(offers, choose(offers))
    return Stored(figures, peak.most, written)


def in_memory(rows: int) -> Stored:
    """One list of chunks, joined."""
    with private_memory() as peak:
        offers = concat(list(chunks(rows)))
        figures = bought(offers, ranked(offers))
    return Stored(figures, peak.most)


# --- shards ---------------------------------------------------------------------------------

SHARDS, SHARD_ROWS = 100, 1_000_080 // PER_IMAGE * PER_IMAGE


@dataclass
class Simulated:
    """A shard that is made anew whenever it is asked, so that one at a time is in memory.

    Attributes:
        number: of the shard; its rows come from this seed.
        asked, handed: how often it was asked, and rows that it handed over.
    """

    number: int
    asked: int = 0
    handed: int = 0

    def offers(self) -> Offers:
        """Its rows."""
        return driving_pool(SHARD_ROWS, self.number, first=self.number * SHARD_ROWS)

    def __call__(self, picks: Picks, count: int, per_second_: bool) -> Candidates:
        """As `acquire.shortlist.Shard` says."""
        offers = self.offers()
        worth = worth_of(per_second, offers, RULE, WHEN)
        found = LocalShard(offers, BUDGET, worth, self.number)(picks, count, per_second_)
        self.asked, self.handed = self.asked + 1, self.handed + len(found.rows.row)
        return found


def merged(count: int) -> dict[str, float]:
    """One choice from all shards."""
    shards = [Simulated(i) for i in range(count)]
    picks = better_of_two(InTurn(shards), BUDGET)
    worth = 0.0 if picks.rows is None else float(picks.rows.worth.sum())
    return {
        "worth": worth,
        "regions": float(len(picks)),
        "seconds": picks.spent,
        "times asked": float(shards[0].asked),
        "rows handed over": float(sum(s.handed for s in shards)),
    }


def each_for_itself(count: int) -> dict[str, float]:
    """Every shard spends its share of the budget."""
    total = {"worth": 0.0, "regions": 0.0, "seconds": 0.0}
    for i in range(count):
        offers = Simulated(i).offers()
        chosen = acquire(offers, replace(BUDGET, seconds=BUDGET.seconds / count), RULE, WHEN, quota_classes=())
        total = {name: total[name] + value for name, value in bought(offers, chosen).items()}
    return total


def stored_figures(inputs: int, result: Stored) -> Mapping[str, float]:
    """For the table."""
    return {**result.chosen, "private MiB": result.private / 2**20, "MiB on disk": result.written / 2**20}


def fixed(number: int) -> Callable[[str], int]:
    """Inputs that are a number."""
    return lambda device: number


CASES: tuple[Case, ...] = (
    budgeted(10**6, "the same choice, many times faster", "every row for every pick", Way(every_row, cuda=True)),
    budgeted(10**7, "at most 30 s on 2 cores, 1 s on a GPU", "one sort, one Python loop", Way(sort_once)),
    Case(
        name="store 10^7",
        work="10,000,000 regions with 8 classes and 32 features, from chunks: kept, read back, chosen from",
        goal="private memory within 1 GiB",
        make=fixed(10**7),
        ways={"ours": Way(over_disk), "all in memory": Way(in_memory)},
        judge=stored_figures,
    ),
    Case(
        name="merge 10^8",
        work=f"{SHARDS} shards of {SHARD_ROWS:,} regions, made anew from seeds whenever they are asked",
        goal="one choice for all, in the memory of one shard",
        make=fixed(SHARDS),
        ways={"ours": Way(merged), "each shard its share of the budget": Way(each_for_itself)},
        judge=lambda inputs, result: result,
    ),
)
