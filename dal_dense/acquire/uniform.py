"""Spread evenly over groups, images, time and space, without a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from dal_dense import noise
from dal_dense.acquire.base import Aim
from dal_dense.acquire.one_by_one import one_by_one
from dal_dense.acquire.rows_by_image import RowsByImage, in_parts
from dal_dense.acquire.shards import PART, BasketShard
from dal_dense.acquire.shortlist import Candidates, Picks, Rows, Shards, joined
from dal_dense.offers import Offers

LEVELS = ("in_group", "in_image", "near_in_time", "near_in_space", "minus_draw")
"""What is kept small, the first before the second; a column each of what shards hand over."""
_CLOSED, _LARGEST = -1, torch.iinfo(torch.int64).max
_BETWEEN = 1 << 32
"""From one group to the next where images of all groups lie on one line; `Offers.image` is less than half of it."""


class UniformShard(BasketShard):
    """Rows of some images, and the best row of each image by what is labelled and taken.

    16 bytes a row beside the columns, and 80 an image.
    """

    def __init__(self, offers: Offers, aim: Aim, number: int = 0, known: Offers | None = None) -> None:
        """As `acquire.shard_of`."""
        super().__init__(offers, aim.budget, number, known)
        self._seed = aim.when.seed_for("uniform")
        blocks = self.basket.blocks
        group = blocks.of_images(offers.group)
        order = group.argsort(stable=True)  # images group by group, and ascending in each
        self._images = blocks.images[order].to(offers.device)
        self._of_group = RowsByImage(group[order].to(offers.device))  # groups in place of images, images of rows
        self._group = self._of_group.places(group[order])
        self._line = self._group * _BETWEEN + self._images
        self._counted = 0  # picks that the levels know of

    def __call__(self, picks: Picks, count: int, ask: Offers | bool | None) -> Candidates:
        """Its best row that is affordable after these picks; `worth` is its draw, the rest are columns by name.

        Args:
            picks: of all shards.
            count: is one (of labelled rows there are as many as there are).
            ask: the labelled rows of all shards, where a choice begins; None: only hand over those of this one,
                which are none if all are `known` to all.
        """
        if ask is None:
            labelled = self.offers.labelled.nonzero()[:, 0][: None if self.known is None else 0]
            return self.handed(labelled, torch.zeros_like(labelled).double())
        self.note(picks)
        if isinstance(ask, Offers):
            self._begin(ask if self.known is None else self.known)
        if picks.rows is not None:
            self._find(self._count(picks.rows.offers[torch.arange(self._counted, len(picks))]))
        self._counted = len(picks)
        self._find((~self.basket.buys(self._price) & (self._row != _CLOSED)).nonzero()[:, 0])
        places = self.basket.buys(self._price).nonzero()[:, 0]
        best = _smallest(places, (*self._levels(), self._key.__getitem__))[:1]
        row = self._row[best]
        extra = {name: level(best).double() for name, level in zip(LEVELS, self._levels(), strict=True)}
        return self.handed(row, -self._minus_draw[best], extra={**extra, "price": self.basket.price[row]})

    def _levels(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        """What `LEVELS` names, of the best rows of images."""
        columns = (self._in_image, self._in_time, self._space, self._minus_draw)
        return (lambda places: self._in_group[self._group[places]]), *(column.__getitem__ for column in columns)

    def _begin(self, labelled: Offers) -> None:
        """Count what is labelled, and find the best row of every image."""
        zero, far = torch.zeros_like(self._images), torch.full_like(self._images, -torch.inf, dtype=torch.float64)
        self._in_group, self._in_image = zero[: len(self._of_group.images)].clone(), zero.clone()
        self._in_time, self._space, self._minus_draw, self._key = far, far.clone(), far.clone(), zero.clone()
        self._nearness = torch.full_like(self.offers.key, -torch.inf, dtype=torch.float64)
        self._row, self._price = torch.full_like(zero, _CLOSED), -far
        self._counted = 0
        self._count(labelled)
        self._find(torch.arange(len(zero), device=zero.device))

    def _count(self, asked: Offers) -> Int[Tensor, " n"]:
        """Reckon with more regions, all at once; which images here they lie in, each once."""
        asked = asked[self._of_group.counts_of(asked.group) > 0].to(self._line.device)
        if not len(asked):
            return self._row[:0]
        group = self._of_group.places(asked.group)
        self._in_group.index_add_(0, group, torch.ones_like(group))
        line = group * _BETWEEN + asked.image
        mates, _ = self._of_group.rows_of(torch.unique(asked.group))
        self._in_time[mates] = torch.maximum(self._in_time[mates], -_steps(self._line[mates], torch.unique(line)))
        # what is bought closes rows of its group only
        row = self._row[mates]
        self._price[mates] = torch.where(row == _CLOSED, torch.inf, self.basket.price[row])
        place = torch.searchsorted(self._line, line).clamp_max(len(self._line) - 1)
        place = place[self._line[place] == line]
        self._in_image.index_add_(0, place, torch.ones_like(place))
        self._measure(asked)
        found: Tensor = torch.unique(place)
        return found

    def _measure(self, asked: Offers) -> None:
        """Minus the distance of rows to the nearest of these in their image: of centres, in box sides, so no unit."""
        blocks, mine, theirs = self.basket.blocks, self.offers.regions, asked.regions
        parts = in_parts(blocks.counts_of(asked.image), PART)
        for some in torch.split(torch.arange(len(asked), device=asked.device), parts):
            rows, owner = blocks.rows_of(asked.image[some])
            start, stop = theirs.start[some].double(), theirs.stop[some].double()
            centre, side = ((start + stop) / 2)[owner], (stop - start)[owner]
            apart = (((mine.start[rows] + mine.stop[rows]).double() / 2 - centre) / side).square()
            first, *rest = apart.unbind(1)  # axis by axis: the same sum for any number of rows
            self._nearness.scatter_reduce_(0, rows, -sum(rest, first).sqrt(), "amax")

    def _find(self, places: Int[Tensor, " n"]) -> None:
        """The best affordable row of each of these images: farthest from what is asked, then by the draw."""
        if not len(places):
            return
        for some in torch.split(places, in_parts(self.basket.blocks.counts_of(self._images[places]), PART)):
            rows, owner = self.basket.blocks.rows_of(self._images[some])
            price = self.basket.price[rows]
            kept = self.basket.buys(price)
            key = self.offers.key[rows]
            draw = noise.uniform(key, self._seed, "order")
            for column, level in ((self._space, self._nearness[rows]), (self._minus_draw, -draw), (self._key, key)):
                least = torch.full_like(column[some], torch.inf if column.is_floating_point() else _LARGEST)
                column[some] = least.scatter_reduce_(0, owner[kept], level[kept], "amin")
                kept &= level == column[some][owner]
            self._row[some], self._price[some] = _CLOSED, torch.inf
            self._row[some[owner[kept]]], self._price[some[owner[kept]]] = rows[kept], price[kept]


class Uniform:
    """Farthest first, by one criterion after another.

    Fewest regions in the group, then fewest in the image, then farthest from any asked image of the group by
    `Offers.image` (frames of a drive follow each other in the round's listing, by time or id), then farthest
    from any asked box of the image, in box sides, then a keyed draw. Labelled rows count as asked.
    """

    shard = UniformShard

    def choose(self, shards: Shards, aim: Aim) -> Picks:
        """See `ranking.Sharded`."""
        labelled = joined(shards(Picks(), 1, None))[0].offers

        def best(rows: Rows) -> tuple[int, float]:
            levels = [rows.offers.extra[name].__getitem__ for name in LEVELS]
            row = int(_smallest(torch.arange(len(rows.worth)), levels)[0])
            return row, float(rows.worth[row])

        return one_by_one(shards, labelled, best)


def _steps(line: Int[Tensor, " n"], asked: Int[Tensor, " m"]) -> Float64[Tensor, " n"]:
    """How far each place on a line lies from the nearest of those asked, which ascend."""
    after = torch.searchsorted(asked, line)
    before, after = asked[(after - 1).clamp_min(0)], asked[after.clamp_max(len(asked) - 1)]
    return torch.minimum((line - before).abs(), (line - after).abs()).double()


def _smallest(places: Int[Tensor, " n"], levels: Sequence[Callable[[Tensor], Tensor]]) -> Int[Tensor, " m"]:
    """Those of these places, in order, that are smallest at the first level, among them at the second, and so on."""
    for level in levels if len(places) else ():
        here = level(places)
        places = places[here == here.min()]
    return places
