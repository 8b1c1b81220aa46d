"""Facility location: rows that stand for all others (Mirchandani & Francis 1990; for data, Wei, Iyer & Bilmes 2015).

    f(S) = sum over rows i of  max(0, max over j in S of cosine(x_i, x_j))

Greedy reaches at least 63 % of the best value (Nemhauser, Wolsey & Fisher 1978). Gains are kept exact without the
N x N matrix: a pick changes them only through the rows that it serves better than before, and soon these are few and
close to it. Rows around a pick add little and are left alone meanwhile, for a gain never grows (Minoux 1978): when
their turn comes, picks serve most others so well that few compare. Lazy greedy for all would look at more: the first
picks lower every gain, so every old one is in doubt.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from dal_dense.select.blocks import Team, blocks, one_thread, sides, square, strips, sums
from dal_dense.select.checks import check_lengths, check_types

ALIKE = 2e-6
"""Cosines that differ by less are equal, for they are float32: a copy of a chosen row gains nothing."""
TIE = 1e-6, 1e-5
"""Gains closer than this, as a share of the gain plus an amount, are equal."""
NEAR = 16
"""At most about one in so many rows counts as close to a pick."""
MANY = 4
"""Where one in so many rows or more is served from afar, their cosines with each other are worked out once for both."""
SMALL, SERVED = 1 / 3, 0.7
"""Gains below this share of a pick's wait until they could be the largest, if what is labelled or picked has so large a
cosine with the row (45 degrees)."""
FEW = 100
"""Where less than one in so many rows is served from afar no gain waits, nor where picks serve less than half of all
rows best: to work it out later would cost more, for rows that what is labelled serves are compared with all."""
AHEAD = 8
"""Rows whose cosines with all are worked out at once: memory is read once for all of them."""
SHORT = 1e-12
"""A row shorter than this has no direction of its own."""
MARGIN = 1e-2
"""Rounding of three angles, radians: the arc cosine of a float32 cosine next to 1 is off by 0.001, by `ALIKE` 0.002."""


class FacilityLocation:
    """Greedy by gains, exact where large. Memory O(N E), time O(N^2 E) for the first gains, a few times that in all."""

    def __init__(self, rows: Float[Tensor, "N E"], centres: Float[Tensor, "M E"]) -> None:
        """Begin with what the centres serve.

        Args:
            rows: features, float32; only their directions count.
            centres: features of what is labelled; M may be 0.

        Raises:
            ValueError: if a feature is not float32 or not finite, or squared lengths of rows exceed float32.
        """
        check_types(rows=rows, centres=centres)
        unit, labelled = _directions(rows), _directions(centres)
        self._bar = rows.new_zeros(len(rows))  # what a cosine must exceed to serve a row better
        self._unit, self._team = unit, Team(unit.device)

        def work(part: slice) -> None:
            best = (unit[part] @ labelled.T).amax(1)
            self._bar[part] = torch.where(best > 0, best + ALIKE, 0)

        if len(centres):
            parts = [*blocks(len(rows), max(centres.shape), rows.device)]
            self._team.all(work, parts, len(rows) * len(centres))
        self._gain = _among(self._team, unit, self._bar, torch.full_like(self._bar, torch.inf))
        self._pick = torch.full_like(self._bar, -1, dtype=torch.int64)  # that serves a row best; -1: none
        self._late = torch.zeros_like(self._bar, dtype=torch.bool)  # whose gain is an upper bound
        self._ahead: dict[int, Tensor] = {}

    def next(self, allowed: Bool[Tensor, " N"]) -> tuple[int, float]:
        """The allowed row that adds most to the objective, and how much; of equals the smaller row."""
        while True:
            gain = torch.where(allowed, self._gain, -torch.inf)
            top = gain.max()
            best = gain >= top - TIE[0] * top.abs() - TIE[1]
            if not (best & self._late).any():
                row = int(best.int().argmax())
                return row, float(gain[row])
            with one_thread():
                self._renew(self._late & (best | (gain >= SMALL * top)))

    def add(self, row: int) -> None:
        """Let a row serve those that are like it."""
        with one_thread():
            alike = self._alike(row)
            served = (alike > self._bar).nonzero()[:, 0]
            if len(served):
                self._pick[served] = row
                self._serve(alike, served, SMALL * self._gain[row])

    def _alike(self, row: int) -> Float[Tensor, " N"]:
        """Cosines of all rows with a pick, and in the same pass with the rows that may be the next picks."""
        if row not in self._ahead:
            likely = self._gain.topk(min(AHEAD, len(self._gain))).indices.tolist()
            rows = [row, *(other for other in likely if other != row)]
            self._ahead = dict(zip(rows, (self._unit @ self._unit[rows].T).T.contiguous(), strict=True))
        return self._ahead.pop(row)

    def _serve(self, alike: Float[Tensor, " N"], served: Int[Tensor, " m"], small: Float64[Tensor, ""]) -> None:
        """Take from the gains what a pick, as much alike to each row, adds to the rows it serves better."""
        low = self._bar[served]
        top = self._bar[served] = alike[served] + ALIKE
        angle = alike.clamp(-1, 1).acos()
        reach = _reach(angle[served], low)
        sample = angle[::NEAR]
        limit = torch.minimum(sample.kthvalue(len(sample) // NEAR + 1).values, reach.max())
        close = reach <= limit
        near = (angle <= limit).nonzero()[:, 0]
        self._gain[near] -= self._of(near, served[close], low[close], top[close])
        if not close.all():
            self._serve_far(served[~close], low[~close], top[~close], small)

    def _serve_far(
        self,
        served: Int[Tensor, " m"],
        low: Float[Tensor, " m"],
        top: Float[Tensor, " m"],
        small: Float64[Tensor, ""],
    ) -> None:
        """The same for served rows that rows far from the pick may serve too; `small` gains wait."""
        exact, unpicked = torch.ones_like(self._late), int((self._pick < 0).sum())
        if FEW * len(served) >= len(self._unit) > 2 * unpicked:
            exact = (self._gain >= small) | (self._bar < SERVED)
            self._late |= ~exact
        if MANY * len(served) >= len(self._unit):
            self._gain[served] -= _among(self._team, self._unit[served], low, top)
            exact[served] = False  # are done
        rows = exact.nonzero()[:, 0]
        self._gain[rows] -= self._of(rows, served, low, top)

    def _renew(self, those: Bool[Tensor, " N"]) -> None:
        """Work out gains that waited, from the rows that each pick serves best."""
        late = those.nonzero()[:, 0]
        self._gain[late], self._late[late] = 0, False
        own, picks, far = self._unit[late], torch.unique(self._pick), []
        for part in blocks(len(picks), len(late), picks.device):
            angles = (own @ self._unit[picks[part]].T).clamp_(-1, 1).acos_()  # of -1 any: they reach all
            for pick, angle in zip(picks[part].tolist(), angles.T, strict=True):
                served = (self._pick == pick).nonzero()[:, 0]
                low = self._bar[served]
                reach = _reach(low.clamp_max(1).acos(), low).max() if pick >= 0 else torch.inf
                near = late[angle <= reach]
                if 2 * len(near) > len(late):
                    far.append(served)
                else:
                    self._gain[near] += self._of(near, served, low, torch.full_like(low, torch.inf))
        if far:
            low = self._bar[torch.cat(far)]
            self._gain[late] += self._of(late, torch.cat(far), low, torch.full_like(low, torch.inf))

    def _of(
        self, rows: Int[Tensor, " n"], served: Int[Tensor, " m"], low: Float[Tensor, " m"], top: Float[Tensor, " m"]
    ) -> Float64[Tensor, " n"]:
        """What rows, in ascending order, add by serving others better than `low`, each up to `top`."""
        theirs = self._unit[served]

        def work(part: slice) -> Float64[Tensor, " rows"]:
            few = self._unit[part] if len(rows) == len(self._unit) else self._unit.index_select(0, rows[part])
            found = few.new_zeros(len(few), dtype=torch.float64)
            for side in sides(len(theirs), few.device):
                found += sums((few @ theirs[side].T).clamp_(low[side], top[side]), 1)
            return found

        parts = [*strips(len(rows), len(served), rows.device)]
        found = [self._gain[:0], *self._team.each(work, parts, len(rows) * len(served))]
        return torch.cat(found).sub_(low.sum(dtype=torch.float64))


def _directions(rows: Float[Tensor, "n E"]) -> Float[Tensor, "n E"]:
    """Rows of length 1, as `torch.nn.functional.normalize` makes them; it makes 0 of those whose length overflows."""
    length: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    check_lengths(square(length))
    return rows / length.clamp_min(SHORT)


def _reach(angle: Float[Tensor, " m"], low: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """How far from a pick rows may be and still exceed `low` of a row at an angle to it, by the triangle inequality."""
    return angle + low.clamp_max(1).acos() + MARGIN


def _among(
    team: Team, unit: Float[Tensor, "m E"], low: Float[Tensor, " m"], top: Float[Tensor, " m"]
) -> Float64[Tensor, " m"]:
    """The same for rows that serve each other: the similarity of two is worked out once for both."""

    def work(a: slice) -> Float64[Tensor, " rows"]:
        found = torch.zeros_like(low[: a.stop], dtype=torch.float64)  # whole: one a block would lie between blocks
        for b in [*sides(a.start, unit.device), a]:
            alike = unit[a] @ unit[b].T
            found[a] += sums(alike.clamp(low[b], top[b]), 1)
            if a != b:
                torch.minimum(alike, top[a, None], out=alike)  # in place, and faster than to clamp by columns
                torch.maximum(alike, low[a, None], out=alike)
                found[b] = sums(alike, 0)
        return found

    found = torch.zeros_like(low, dtype=torch.float64)
    longest_first = [*strips(len(unit), len(unit), unit.device)][::-1]
    for some in team.each(work, longest_first, len(unit) ** 2):
        found[: len(some)] += some
    return found.sub_(low.sum(dtype=found.dtype))
