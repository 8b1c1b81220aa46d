"""The basket: budget, opened images, non-overlap and caps, kept exact while a strategy fills it.

Opening an image is charged once, so the price of a region depends on what was taken before it.
A row that is skipped because it is too dear never becomes affordable later: the purchase that
would waive its opening has paid that opening itself, and sums of seconds are exact.
"""

from __future__ import annotations

import copy

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from dal_dense.acquire.base import Budget
from dal_dense.acquire.rows_by_image import RowsByImage, in_parts
from dal_dense.acquire.times import Times
from dal_dense.offers import KINDS, Offers

SAME_OBJECT = 0.5
"""IoU from which two single boxes are taken to mean one object; share of a single box from which ground holds it."""
TICK = 2.0**-20
"""Seconds are counted in whole steps of about a microsecond: float64 holds their sums exactly, up to 270 years."""
_SINGLE = KINDS.index("box")
_PRICES = 1 << 16
"""Rows whose prices are worked out together."""
_PAIRS = 1 << 18
"""Pairs of a taken region and a row of its image that are looked at together."""


class Basket:
    """Rows taken so far and what each row would cost now.

    Eight bytes a row, and eight more where the rows of an image do not lie together. A purchase touches the
    rows of its image, those of its group at the cap, and those of frames near in time.

    Attributes:
        price: seconds a row would cost now, its image's opening included unless paid, float64 (N,);
            infinite where the row may not be taken (labelled, overlapping, capped, taken).
        spent: seconds of all rows taken.
        rows, seconds, values: the rows taken, their seconds and what they were chosen by.
    """

    price: Float64[Tensor, " N"]

    def __init__(self, offers: Offers, budget: Budget, known: Offers | None = None) -> None:
        """`known`: labelled rows of other shards; frames keep their `min_gap` from them too."""
        self.offers, self.budget = offers, budget
        self.spent = 0.0
        self.rows: list[int] = []
        self.seconds: list[float] = []
        self.values: list[float] = []
        self._per_image: dict[int, int] = {}
        self._per_group: dict[int, int] = {}
        self.blocks = RowsByImage(offers.image)
        apart = budget.max_per_group is not None or budget.min_gap is not None
        self._group_of = self.blocks.of_images(offers.group) if apart else None
        time = offers.extra.get("time") if budget.min_gap is not None else None
        self._times: Times | None = None
        if time is not None and self._group_of is not None:
            self._times = Times(self.blocks.images, self._group_of, self.blocks.of_images(time))
        self._opening = self.blocks.largest(offers.image_seconds)
        opening = self.blocks.spread(self._opening)
        self.price = torch.empty_like(opening, dtype=torch.float64)
        for start in range(0, len(opening), _PRICES):
            here = slice(start, start + _PRICES)
            self.price[here] = in_ticks(opening[here]) + in_ticks(offers.seconds[here])
        del opening
        labelled = offers.labelled.nonzero()[:, 0]
        for some in self._parts(offers, labelled):
            self._forbid_overlaps(offers, some)
        self._forbid_near_times(offers, labelled)
        if known is not None:
            self._forbid_near_times(known, torch.arange(len(known), device=known.device))

    def affordable(self) -> Bool[Tensor, " N"]:
        """Rows that may be taken now."""
        return self.buys(self.price)

    def buys(self, price: Float64[Tensor, "*n"]) -> Bool[Tensor, "*n"]:
        """Which of these prices the money left pays."""
        return self.spent + price <= self.budget.seconds

    def opened(self, rows: Int[Tensor, " K"]) -> Float64[Tensor, " K"]:
        """Seconds that rows cost once their image is open."""
        return in_ticks(self.offers.seconds[rows])

    def opening_of(self, rows: Int[Tensor, " K"]) -> Float[Tensor, " K"]:
        """Seconds to open the images of these rows, paid already or not."""
        return self._opening[self.blocks.places(self.offers.image[rows])]

    def best(self, value: Float[Tensor, " N"], among: Bool[Tensor, " N"] | None = None) -> int | None:
        """The affordable row of greatest value, of equals the first; None if there is none."""
        ok = self.affordable() if among is None else self.affordable() & among
        if not ok.any():
            return None
        return int(torch.where(ok, value.double(), -torch.inf).argmax())

    def take(self, row: int, value: Tensor | float) -> float:
        """Buy one row; returns its seconds.

        Raises:
            ValueError: if the row is not affordable: a fault of the strategy.
        """
        paid = float(self.price[row])
        if not self.buys(self.price[row]):
            raise ValueError(f"row {row} costs {paid:g} s and may not be taken; take only rows of affordable()")
        self.spent += paid
        self.rows.append(row)
        self.seconds.append(paid)
        self.values.append(float(value))
        self._close(self.offers, torch.tensor([row], device=self.offers.device))
        return paid

    def note(self, taken: Offers, spent: float) -> None:
        """Reckon with rows that were bought elsewhere, whether or not they are among the rows here.

        Args:
            taken: the rows, of columns that mean the same as here; their images may be unknown here.
            spent: seconds of all rows taken by now, here and elsewhere.
        """
        taken = taken.to(self.offers.device)
        for some in self._parts(taken, torch.arange(len(taken), device=self.offers.device)):
            self._close(taken, some)
        self.spent = spent

    def copy(self) -> Basket:
        """An independent basket with the same content, to try a plan."""
        other = copy.copy(self)
        other.price = self.price.clone()
        other.rows, other.seconds, other.values = self.rows[:], self.seconds[:], self.values[:]
        other._per_image, other._per_group = dict(self._per_image), dict(self._per_group)
        return other

    def _close(self, taken: Offers, rows: Int[Tensor, " K"]) -> None:
        """What a purchase of these rows of `taken` does to the prices here."""
        images, groups = taken.image[rows].tolist(), taken.group[rows].tolist()
        block = self._forbid_overlaps(taken, rows)
        price = self.price[block]  # the opening is paid: of the second region of an image this changes nothing
        self.price[block] = torch.where(price.isinf(), price, self.opened(block))
        self._forbid_near_times(taken, rows)
        full = _count(self._per_image, images, self.budget.max_per_image)
        if full:
            self.price[self.blocks.rows_of(full)[0]] = torch.inf
        full = _count(self._per_group, groups, self.budget.max_per_group)
        if full and self._group_of is not None:
            inside = torch.isin(self._group_of, torch.tensor(full))
            self.price[self.blocks.rows_of(self.blocks.images[inside])[0]] = torch.inf

    def _parts(self, taken: Offers, rows: Int[Tensor, " K"]) -> tuple[Tensor, ...]:
        """These rows of `taken` in parts, of which each has not too many rows here in its images."""
        return torch.split(rows, in_parts(self.blocks.counts_of(taken.image[rows]), _PAIRS))

    def _forbid_overlaps(self, taken: Offers, rows: Int[Tensor, " K"]) -> Int[Tensor, " R"]:
        """No row that shares a voxel with one of these rows of `taken`, itself included, may be taken any more.

        Single boxes may touch: none that means the same object as another (IoU 0.5) may be taken, and none of
        which half lies on a region that is whole ground. Returns all rows of the images concerned.
        """
        block, owner = self.blocks.rows_of(taken.image[rows])
        ground, regions = rows[owner], self.offers.regions
        start, stop = regions.start[block], regions.stop[block]
        low = torch.maximum(start, taken.regions.start[ground])
        high = torch.minimum(stop, taken.regions.stop[ground])
        clash = (high > low).all(1)
        single, alone = self.offers.kind[block] == _SINGLE, taken.kind[ground] == _SINGLE
        if (single | alone).any():
            shared = (high - low).clamp_min(0).prod(1).double()
            theirs = (stop - start).prod(1)
            mine = (taken.regions.stop[ground] - taken.regions.start[ground]).prod(1)
            either = mine + theirs - shared
            of = torch.where(single, torch.where(alone, either, theirs), torch.where(alone, mine, 0))
            clash &= shared >= SAME_OBJECT * of
        self.price[block[clash]] = torch.inf
        return block

    def _forbid_near_times(self, taken: Offers, rows: Int[Tensor, " K"]) -> None:
        """No other image of the group that was taken less than `min_gap` before or after."""
        if self._times is not None and self.budget.min_gap is not None:
            columns = (taken.image[rows].cpu(), taken.group[rows].cpu(), taken.extra["time"][rows].cpu())
            self.price[self.blocks.rows_of(self._times.near(*columns, self.budget.min_gap))[0]] = torch.inf


def in_ticks(seconds: Float[Tensor, " n"]) -> Float64[Tensor, " n"]:
    """Seconds as prices count them."""
    return (seconds.double() / TICK).floor() * TICK


def _count(counts: dict[int, int], found: list[int], cap: int | None) -> list[int]:
    """Add to the counts; which of the numbers found have reached the cap by now."""
    for number in found:
        counts[number] = counts.get(number, 0) + 1
    return [] if cap is None else [n for n in dict.fromkeys(found) if counts[n] >= cap]
