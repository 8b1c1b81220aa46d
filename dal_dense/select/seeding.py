"""k-means++ seeding (Arthur & Vassilvitskii 2007): the next row is drawn in proportion to D^2.

D is the distance to the nearest row taken. A row may be the outer product of several factors, as BADGE's gradients are:
inner products of outer products are products of inner products, so the long vectors are never built.

The draws are one race of exponential clocks. Every row has one exponential variate, keyed, and arrives once its rate
D^2, added up over time, has reached it: whoever comes next does so with chance D^2 over the sum, for exponential
variates have no memory. D only falls, so an arrival worked out with fewer rows taken is never too late: only a group
of the first to come is kept up to date, and all rows meet the rows taken when the group's first may no longer be the
first of all.

No draw depends on what other rows are worked on with it: features are rounded to fixed point, and then inner products
are exact in float64, however they are summed (the first slice of Ozaki et al. 2012). All else is elementwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from dal_dense import noise
from dal_dense.select.blocks import GROUP, blocks, of_smallest_key, one_thread, sized, square
from dal_dense.select.checks import check_lengths

TINY = 1e-30
"""Squared distance that stands for zero: where all are copies, the draw is even."""
BLOCK = 16
"""Rows taken that all rows meet at once."""
_EARLY = 1 - 1e-9
"""An arrival times this is never too late: rounding takes less, one or two last bits a row taken."""
_BITS = 53
"""Of a float64."""


class Seeding:
    """k-means++ over rows that are products of factors. Memory O(N), time O(N) times the factors' widths a pick."""

    @one_thread()
    def __init__(
        self, factors: Sequence[Float[Tensor, "N _"]], key: Int[Tensor, " N"], seed: int, *, longest_first: bool
    ) -> None:
        """Nothing is taken yet.

        Args:
            factors: of any float type; row i stands for the outer product of their rows i.
            key: keys of the rows, for their draws; of equals the row of the smaller key comes first.
            seed: of this use.
            longest_first: begin with the longest vector; else with an even draw.

        Raises:
            ValueError: if a number is not finite.
        """
        self._factors, self._key = factors, key
        self._left = -noise.uniform(key, seed, "race").log()
        self._far = torch.full_like(self._left, torch.finfo(torch.float64).max)
        self._length = torch.empty_like(self._left)
        for part in self._parts():
            self._length[part] = _product([square(fixed_point(f[part])) for f in factors])
        check_lengths(self._length, most=torch.inf)
        self._first = self._length if longest_first else noise.uniform(key, seed, "first")
        self._time = self._now = 0.0  # up to which all rows are up to date; of the last row taken
        self._taken: list[_Taken] = []  # between the two
        self._group: _Runners | None = None
        self._rows, self._outside = key[:0], 0.0  # of the group; no other row that was allowed arrives before
        self._named = -1, 0.0

    def next(self, allowed: Bool[Tensor, " N"]) -> tuple[int, float]:
        """An allowed row and its D^2 (before any row is taken its squared length, or its draw)."""
        row, far, arrival = self.soonest(allowed)
        self._named = row, arrival
        return row, far

    def add(self, row: int) -> None:
        """Take a row; where `next` named it, time goes on to its arrival. Others must be chosen without that name."""
        named, arrival = self._named
        self.include([f[row : row + 1] for f in self._factors], arrival if row == named else 0.0)

    def soonest(self, allowed: Bool[Tensor, " N"]) -> tuple[int, float, float]:
        """As `next`, and when the row arrives; before any row is taken, minus the number beside it."""
        if not self._taken and self._group is None:
            best = float(torch.where(allowed, self._first, -torch.inf).max())
            return int(of_smallest_key(allowed & (self._first == best), self._key)), best, -best
        found = self._soonest(allowed)
        if found is None:
            self._gather(allowed)
            found = self._soonest(allowed)
            assert found is not None
        return found

    @one_thread()
    def include(self, factors: Sequence[Float[Tensor, "1 _"]], arrival: float) -> None:
        """Take what these factors stand for, a row's or any others, when it arrives; the first is taken at time 0."""
        self._now = max(self._now, arrival)
        taken = _Taken([fixed_point(f) for f in factors], [self._now])
        self._taken.append(taken)
        if self._group is not None:
            self._group.meet(taken)

    def _parts(self) -> Iterator[slice]:
        return blocks(len(self._key), BLOCK + sum(f.shape[1] for f in self._factors), self._key.device)

    @one_thread()
    def _soonest(self, allowed: Bool[Tensor, " N"]) -> tuple[int, float, float] | None:
        """The first of the group to arrive; None if a row outside may come before."""
        group = self._group
        if group is None:
            return None
        arrival = torch.where(allowed[self._rows], group.arrival, torch.inf)
        first = arrival.min()
        place = of_smallest_key(arrival == first, self._key[self._rows])
        row, far, time = torch.stack([self._rows[place].double(), group.far[place], first]).tolist()
        return (int(row), far if far > TINY else 0.0, time) if time < self._outside else None

    @one_thread()
    def _gather(self, allowed: Bool[Tensor, " N"]) -> None:
        """Let every row meet the rows taken, and gather those that arrive first."""
        taken = [_Taken.of(self._taken[i : i + BLOCK]) for i in range(0, len(self._taken), BLOCK)]
        arrival = torch.empty_like(self._left)
        for part in self._parts():
            rows = self._runners(part)
            for some in taken:
                rows.meet(some)
            arrival[part] = rows.arrival
        self._time, self._taken = self._now, []
        arrival.masked_fill_(~allowed, torch.inf)
        last = arrival.kthvalue(min(len(arrival), sized(GROUP, arrival.device))).values
        inside = (arrival <= last / _EARLY**2) & allowed  # more where many are equal
        self._outside = _EARLY * float(arrival.masked_fill_(inside, torch.inf).min())
        self._rows = inside.nonzero()[:, 0]
        self._group = self._runners(self._rows)

    def _runners(self, rows: Int[Tensor, " n"] | slice) -> _Runners:
        """Rows as they are here; of a slice, which is a view, what they meet changes them here too."""
        fixed = [fixed_point(f[rows]) for f in self._factors]
        return _Runners(fixed, self._length[rows], self._far[rows], self._left[rows], self._time)


@dataclass(frozen=True)
class _Taken:
    """Rows taken one after the other: their factors, in fixed point, and when each was taken."""

    factors: Sequence[Float64[Tensor, "m _"]]
    times: Sequence[float]

    @classmethod
    def of(cls, parts: Sequence[_Taken]) -> _Taken:
        """All of these, in order."""
        factors = [torch.cat(f) for f in zip(*(p.factors for p in parts), strict=True)]
        return cls(factors, [time for p in parts for time in p.times])


@dataclass
class _Runners:
    """Rows in the race.

    Attributes:
        factors: theirs, in fixed point; length: squared length of their product.
        far: squared distance to the nearest row taken.
        left: of their variates.
        time: of the last row taken that they have met.
    """

    factors: Sequence[Float64[Tensor, "n _"]]
    length: Float64[Tensor, " n"]
    far: Float64[Tensor, " n"]
    left: Float64[Tensor, " n"]
    time: float

    @property
    def arrival(self) -> Float64[Tensor, " n"]:
        """When they arrive, unless more is taken before."""
        return self.time + self.left.clamp_min(0) / self.far

    def meet(self, taken: _Taken) -> None:
        """Reckon with what was taken: time has passed, and distances may have shrunk."""
        inner = _product([t @ f.T for t, f in zip(taken.factors, self.factors, strict=True)])
        length = _product([square(t) for t in taken.factors])
        apart = (length[:, None] + self.length - 2 * inner).clamp_min_(TINY)
        for squared, time in zip(apart, taken.times, strict=True):
            self.left -= self.far * (time - self.time)
            torch.minimum(self.far, squared, out=self.far)
            self.time = time


def fixed_point(x: Float[Tensor, "n E"]) -> Float64[Tensor, "n E"]:
    """Rows rounded to so many bits that an inner product of any two of them is exact in float64.

    The last bit is the same all over a row: of E = 256 features the 22nd of the largest, of 16 the 24th.
    """
    if not x.shape[1]:
        return x.double()
    bits = (_BITS - (x.shape[1] - 1).bit_length()) // 2
    top = x.abs().amax(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    scale = top.double() / torch.frexp(top).mantissa  # the power of two above
    shift = scale * (1.5 * 2.0 ** (_BITS - 1 - bits))  # float64 of this size are multiples of that last bit
    return (x.double() + shift).sub_(shift)


def _product(factors: Sequence[Tensor]) -> Tensor:
    return math.prod(factors[1:], start=factors[0])
