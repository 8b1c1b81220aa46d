"""The basket: budget, opened images, non-overlap and caps, kept exact while a strategy fills it.

Opening an image is charged once, so the price of a region depends on what was taken before it.
A row that is skipped because it is too dear never becomes affordable later: the purchase that
would waive its opening has paid that opening itself.
"""

from __future__ import annotations

import copy

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dal_dense.acquire.base import Budget
from dal_dense.offers import KINDS, Offers

SAME_OBJECT = 0.5
"""IoU from which two single boxes are taken to mean one object; share of a single box from which ground holds it."""


class Basket:
    """Rows taken so far and what each row would cost now.

    Memory is O(N); a purchase touches the rows of its image, and those of its group at the cap.

    Attributes:
        price: seconds a row would cost now, its image's opening included unless paid, float64 (N,);
            infinite where the row may not be taken (labelled, overlapping, capped, taken).
        spent: seconds of all rows taken.
        rows, seconds, values: the rows taken, their seconds and what they were chosen by.
    """

    price: Float[Tensor, " N"]

    def __init__(self, offers: Offers, budget: Budget) -> None:
        self.offers, self.budget = offers, budget
        self.spent = 0.0
        self.rows: list[int] = []
        self.seconds: list[float] = []
        self.values: list[float] = []
        self._per_image: dict[int, int] = {}
        self._per_group: dict[int, int] = {}
        self._single = offers.kind == KINDS.index("box")
        images, index, count = torch.unique(offers.image, return_inverse=True, return_counts=True)
        self._by_image: Tensor = index.argsort(stable=True)
        ends = count.cumsum(0).tolist()
        self._block = {i: slice(a, b) for i, a, b in zip(images.tolist(), [0, *ends], ends, strict=False)}
        opening = torch.zeros_like(images, dtype=torch.float32)
        opening = opening.scatter_reduce(0, index, offers.image_seconds, "amax")[index]
        # rounded to float32 first: these are the very numbers that the selection reports
        self.price = (offers.seconds + opening).double()
        for row in offers.labelled.nonzero()[:, 0].tolist():
            self._forbid_overlaps(row)
        for row in self._labelled_images():
            self._forbid_near_times(row)

    def affordable(self) -> Bool[Tensor, " N"]:
        """Rows that may be taken now."""
        return self.spent + self.price <= self.budget.seconds

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
        if not self.spent + paid <= self.budget.seconds:
            raise ValueError(f"row {row} costs {paid:g} s and may not be taken; take only rows of affordable()")
        image, group = int(self.offers.image[row]), int(self.offers.group[row])
        self.spent += paid
        self.rows.append(row)
        self.seconds.append(paid)
        self.values.append(float(value))
        block = self._rows_of(image)
        if image not in self._per_image:
            price = self.price[block]
            self.price[block] = torch.where(price.isinf(), price, self.offers.seconds[block].double())
        self._forbid_overlaps(row)
        self._forbid_near_times(row)
        self._per_image[image] = self._per_image.get(image, 0) + 1
        if self._per_image[image] == self.budget.max_per_image:
            self.price[block] = torch.inf
        self._per_group[group] = self._per_group.get(group, 0) + 1
        if self._per_group[group] == self.budget.max_per_group:
            self.price.masked_fill_(self.offers.group == group, torch.inf)
        return paid

    def copy(self, budget: Budget | None = None) -> Basket:
        """An independent basket with the same content, to try a plan, also with another budget."""
        other = copy.copy(self)
        other.budget = budget or self.budget
        other.price = self.price.clone()
        other.rows, other.seconds, other.values = self.rows[:], self.seconds[:], self.values[:]
        other._per_image, other._per_group = dict(self._per_image), dict(self._per_group)
        return other

    def _rows_of(self, image: int) -> Int[Tensor, " n"]:
        rows: Tensor = self._by_image[self._block[image]]
        return rows

    def _forbid_overlaps(self, row: int) -> None:
        """No row that shares a voxel with this one, itself included, may be taken any more.

        Single boxes may touch: none that means the same object as another (IoU 0.5) may be taken, and none of
        which half lies on a region that is whole ground.
        """
        block, regions = self._rows_of(int(self.offers.image[row])), self.offers.regions
        low = torch.maximum(regions.start[block], regions.start[row])
        high = torch.minimum(regions.stop[block], regions.stop[row])
        clash = (high > low).all(1)
        single, alone = self._single[block], self._single[row]
        if alone or single.any():
            shared = (high - low).clamp_min(0).prod(1).double()
            mine, theirs = regions[row : row + 1].volume(), regions[block].volume()
            either = mine + theirs - shared
            of = torch.where(single, torch.where(alone, either, theirs), torch.where(alone, mine, 0))
            clash &= shared >= SAME_OBJECT * of
        self.price[block[clash]] = torch.inf

    def _labelled_images(self) -> list[int]:
        """One labelled row of each image that has any."""
        labelled = self.offers.labelled.nonzero()[:, 0].tolist() if self.budget.min_gap is not None else []
        images = self.offers.image[labelled].tolist()
        return list(dict(zip(images, labelled, strict=True)).values())

    def _forbid_near_times(self, row: int) -> None:
        """No other image of the group that was taken less than `min_gap` before or after."""
        gap, time = self.budget.min_gap, self.offers.extra.get("time")
        if gap is None or time is None:
            return
        o = self.offers
        near = (o.group == o.group[row]) & (o.image != o.image[row]) & ((time - time[row]).abs() < gap)
        self.price[near] = torch.inf  # NaN, a time that nobody knows, is near to nothing
