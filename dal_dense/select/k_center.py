"""k-centre greedy: the row farthest from all centres, again and again (Gonzalez 1985; core-set, Sener & Savarese 2018).

A row's distance to its nearest centre only falls as centres are added, so an old distance is an upper bound, as in
lazy greedy (Minoux 1978). Only a group of the farthest rows is kept up to date; another row is looked at again when the
group's best has fallen to its bound. Distances are products of centred features in float32, and what these may be
wrong by is known; rows that are closer together than that are compared by differences in float64. On a GPU, where
each question that Python waits for costs more than the work, the group's are float64 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from dal_dense.select.blocks import (
    GROUP,
    blocks,
    middle_of,
    nearest_product,
    of_smallest_key,
    one_thread,
    sized,
    smallest,
    square,
)
from dal_dense.select.checks import check_lengths, check_types

EAGER = ("cuda",)
"""Kinds of devices on which the group's distances are float64 throughout, unless many rows are alike."""
_UNIT = 2.0**-24
"""Relative rounding of float32."""


class KCenter:
    """Farthest-first traversal that picks what plain float64 would. Memory O(N + M E) beyond the rows, M centres."""

    def __init__(
        self,
        rows: Float[Tensor, "N E"],
        centres: Float[Tensor, "M E"],
        *,
        key: Int[Tensor, " N"] | None = None,
        origin: Float[Tensor, " E"] | None = None,
    ) -> None:
        """Begin with the centres that are there.

        Args:
            rows: features, float32.
            centres: features of what is labelled; M may be 0, then the first pick is the row farthest from `origin`.
            key: of rows equally far the one with the smallest is picked; None: the first row.
            origin: None: the mean of the rows.

        Raises:
            ValueError: if a feature is not float32 or not finite, or squared distances of features exceed float32.
        """
        check_types(rows=rows, centres=centres)
        self._rows, self._key, self._begun = rows, key, len(centres) > 0
        self._eager = rows.device.type in EAGER
        self._middle = middle_of(rows)
        self._norm = rows.new_empty(len(rows))  # before the loop: small arrays made between large ones pin their memory
        for part in self._parts(len(rows), 1):
            self._norm[part] = square(rows[part] - self._middle)
        # |computed - true| of a squared distance is at most this times |x|^2 + distance^2: a product and two norms
        # of E terms each, and |c| <= |x| + distance
        self._slack = (6 * rows.shape[1] + 32) * _UNIT
        start = centres if self._begun else (self._middle if origin is None else origin)[None]
        check_lengths(self._norm, square(start - self._middle))
        self._start(start)

    def next(self, allowed: Bool[Tensor, " N"]) -> tuple[int, float]:
        """The allowed row farthest from its nearest centre, and that distance; of equals the first, or by key."""
        row, apart = self.farthest(allowed)
        return row, math.sqrt(apart)

    def farthest(self, allowed: Bool[Tensor, " N"]) -> tuple[int, float]:
        """As `next`, with the square of the distance, float64; on a CPU it is the same among any other rows."""
        found = self._farthest(allowed)
        if found is None:
            self._regroup(allowed)
            found = self._farthest(allowed)
            assert found is not None
        return found

    def add(self, row: int) -> None:
        """Make a row a centre."""
        self.include(self._rows[row : row + 1])

    def include(self, centre: Float[Tensor, "1 E"]) -> None:
        """Make these features a centre, a row's or any others."""
        if not self._begun:
            self._begun = True
            self._start(centre)  # without the origin
            return
        with one_thread():
            self._centres.append(centre)
            group = self._group
            if group.wide is not None:
                torch.minimum(group.exact, square(group.wide - centre.double()), out=group.exact)
                return
            for part in self._parts(len(group.rows), 1):
                near = self._nearest(self._features(group, part), group.norm[part], len(self._centres) - 1)
                torch.minimum(group.near[part], near, out=group.near[part])
            known = (~group.exact.isnan()).nonzero()[:, 0]
            for part in self._parts(len(known), 1):
                some = known[part]
                apart = square(self._rows[group.rows[some]].double() - centre.double())
                group.exact[some] = torch.minimum(group.exact[some], apart)

    def _farthest(self, allowed: Bool[Tensor, " N"]) -> tuple[int, float] | None:
        """The farthest row of the group and its distance; None if a row outside may be farther."""
        group = self._group
        if not len(group.rows):
            return None
        if group.wide is not None:
            far = torch.where(allowed[group.rows], group.exact, -torch.inf)
            place = self._first(group.rows, far)
            value, row = torch.stack([far[place], group.rows[place].double()]).tolist()  # the one wait for the GPU
            return (int(row), value) if value > group.outside else None
        found = self._contenders(allowed)
        if not len(found):
            return None
        with one_thread():
            self._settle(group, found[group.exact[found].isnan()])
            best = found[self._first(group.rows[found], group.exact[found])]
            return int(group.rows[best]), float(group.exact[best])

    def _first(self, rows: Int[Tensor, " n"], far: Float64[Tensor, " n"]) -> Int[Tensor, ""]:
        """Place of the farthest of these rows, of equals that of the smallest key."""
        if self._key is None:
            return far.argmax()
        return of_smallest_key(far == far.max(), self._key[rows])

    def _start(self, centres: Float[Tensor, "M E"]) -> None:
        """Bounds of all rows from these centres alone."""
        self._centres = _Centres(centres, self._middle)
        self._bound = torch.full_like(self._norm, torch.inf)
        self._seen = torch.zeros_like(self._norm, dtype=torch.int32)
        for part in self._parts(len(self._rows), len(centres)):
            self._look(part)
        self._group = self._gather(self._seen < 0, -torch.inf)

    def _nearest(self, features: Float[Tensor, "n E"], norm: Float[Tensor, " n"], first: int) -> Float[Tensor, " n"]:
        """Squared distance to the nearest of the centres from `first` on, as products see it."""
        return nearest_product(features, norm, *self._centres.from_(first))[0]

    def _look(self, rows: Int[Tensor, " n"] | slice) -> None:
        """Bring bounds of rows up to date."""
        first = int(self._seen[rows].min())
        fresh = self._nearest(self._rows[rows] - self._middle, self._norm[rows], first)
        self._bound[rows] = torch.minimum(self._bound[rows], fresh)
        self._seen[rows] = len(self._centres)

    def _limits(self, near: Tensor, norm: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """Between which two numbers the true squared distances lie; -inf where a row is not allowed."""
        slack = self._slack * (near + norm)
        return torch.where(allowed, near - slack, -torch.inf), torch.where(allowed, near + slack, -torch.inf)

    def _contenders(self, allowed: Bool[Tensor, " N"]) -> Int[Tensor, " c"]:
        """Places in the group that may hold the farthest row; none if a row outside may be farther."""
        group = self._group
        lower, upper = self._limits(group.near, group.norm, allowed[group.rows])
        floor = lower.max() if len(lower) else lower.new_tensor(-torch.inf)
        return ((upper >= floor) & (floor > group.outside)).nonzero()[:, 0]

    def _regroup(self, allowed: Bool[Tensor, " N"]) -> None:
        """Gather the farthest rows anew, all of them up to date."""
        group = self._group
        self._bound[group.rows] = group.near if group.wide is None else group.exact.float()
        self._seen[group.rows] = len(self._centres)
        size = min(len(allowed), sized(GROUP, allowed.device))
        at_once = size
        while True:
            lower, upper = self._limits(self._bound, self._norm, allowed)
            fresh = self._seen == len(self._centres)
            least = torch.minimum(torch.where(fresh, lower, -torch.inf).max(), upper.topk(size).values[-1])
            inside = allowed & (upper >= least)  # more than `size` where many are alike
            stale = (inside & ~fresh).nonzero()[:, 0]
            if not len(stale):
                break
            if len(stale) > at_once:
                stale = stale[upper[stale].topk(at_once).indices]
            for some in torch.split(stale, size):
                self._look(some)
            at_once *= 2
        self._group = self._gather(inside, float(torch.where(inside, -torch.inf, upper).max()))

    def _gather(self, inside: Bool[Tensor, " N"], outside: float) -> _Group:
        rows = inside.nonzero()[:, 0]
        near = self._bound[rows]
        exact = torch.full_like(near, torch.nan, dtype=torch.float64)
        group = _Group(rows, None, self._norm[rows], near, exact, outside)
        if len(rows) <= 2 * sized(GROUP, rows.device):  # more are alike: copies would take too much
            group.features = self._rows[rows] - self._middle
            if self._eager:
                self._settle(group, torch.arange(len(rows), device=rows.device))
                group.wide = self._rows[rows].double()
        return group

    def _features(self, group: _Group, places: Int[Tensor, " n"] | slice) -> Float[Tensor, "n E"]:
        """Centred features of rows of the group."""
        if group.features is not None:
            return group.features[places]
        return self._rows[group.rows[places]] - self._middle

    def _parts(self, count: int, centres: int) -> Iterator[slice]:
        """Rows in blocks that hold neither too many features nor too many distances from so many centres."""
        return blocks(count, max(self._rows.shape[1], centres), self._rows.device)

    def _settle(self, group: _Group, places: Int[Tensor, " c"]) -> None:
        """Work out the exact distance of rows of the group."""
        for part in self._parts(len(places), len(self._centres)):
            group.exact[places[part]] = self._exact(group, places[part])

    def _exact(self, group: _Group, places: Int[Tensor, " c"]) -> Float[Tensor, " c"]:
        """Squared distance of rows of the group to the nearest centre, by differences in float64."""
        raw, (centred, half) = self._centres.raw, self._centres.from_(0)
        apart = group.norm[places, None] + 2 * torch.addmm(half, self._features(group, places), centred.T, alpha=-1)
        rows = self._rows[group.rows[places]].double()
        least, nearest = smallest(apart)
        best = square(rows - raw[nearest].double())
        slack = self._slack * (group.norm[places] + group.near[places])
        rival = (apart <= (least + 2 * slack)[:, None]) & (best > 0)[:, None]
        who, which = rival.nonzero(as_tuple=True)
        for part in self._parts(len(who), 1):
            best.scatter_reduce_(0, who[part], square(rows[who[part]] - raw[which[part]].double()), "amin")
        return best


@dataclass
class _Group:
    """The rows that are kept up to date.

    Attributes:
        rows: which, ascending.
        features: theirs, centred, unless there are many; norm: squared lengths of these.
        near: squared distance to the nearest centre, as products see it.
        exact: the same in float64; NaN where nobody asked yet.
        outside: least upper bound of all other rows that were allowed.
        wide: features as they are in float64, where all exact distances are kept up to date and `near` is not.
    """

    rows: Int[Tensor, " G"]
    features: Float[Tensor, "G E"] | None
    norm: Float[Tensor, " G"]
    near: Float[Tensor, " G"]
    exact: Float[Tensor, " G"]
    outside: float
    wide: Float64[Tensor, "G E"] | None = None


class _Centres:
    """Centres as they are and centred, in room that doubles."""

    def __init__(self, raw: Float[Tensor, "M E"], middle: Float[Tensor, " E"]) -> None:
        self._middle, self._count = middle, len(raw)
        self._raw, self._centred = raw, raw - middle
        self._half = square(self._centred) / 2

    def __len__(self) -> int:
        return self._count

    @property
    def raw(self) -> Float[Tensor, "M E"]:
        """As they were given."""
        return self._raw[: self._count]

    def from_(self, first: int) -> tuple[Float[Tensor, "m E"], Float[Tensor, " m"]]:
        """Centred features and half their squared lengths, from the `first` on."""
        return self._centred[first : self._count], self._half[first : self._count]

    def append(self, raw: Float[Tensor, "1 E"]) -> None:
        """One more."""
        if self._count == len(self._raw):
            more = max(64, self._count)
            self._raw, self._centred, self._half = (
                torch.cat([t, t.new_empty(more, *t.shape[1:])]) for t in (self._raw, self._centred, self._half)
            )
        centred = raw - self._middle
        place = slice(self._count, self._count + 1)
        self._raw[place], self._centred[place], self._half[place] = raw, centred, square(centred) / 2
        self._count += 1
