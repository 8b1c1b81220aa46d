"""Facility location: rows that stand for all others (Mirchandani & Francis 1990; for data, Wei, Iyer & Bilmes 2015).

    f(S) = sum over rows i of  max(0, max over j in S of cosine(x_i, x_j))

Greedy reaches at least 63 % of the best value (Nemhauser, Wolsey & Fisher 1978). All gains are kept exact without the
N x N matrix: a pick changes gains only through the rows that it serves better than before, and soon these are few and
close to it. Lazy greedy (Minoux 1978) looks at more: the first picks lower every gain, so every old one is in doubt.
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
AHEAD = 8
"""Rows whose cosines with all are worked out at once: memory is read once for all of them."""
SHORT = 1e-12
"""A row shorter than this has no direction of its own."""
MARGIN = 1e-2
"""Rounding of three angles, radians: the arc cosine of a float32 cosine next to 1 is off by 0.001."""


class FacilityLocation:
    """Greedy by exact gains. Memory O(N E), time O(N^2 E) for the first gains and a few times that for all picks."""

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
        self._ahead: dict[int, Tensor] = {}

    def next(self, allowed: Bool[Tensor, " N"]) -> tuple[int, float]:
        """The allowed row that adds most to the objective, and how much; of equals the smaller row."""
        gain = torch.where(allowed, self._gain, -torch.inf)
        top = gain.max()
        row = int((gain >= top - TIE[0] * top.abs() - TIE[1]).int().argmax())
        return row, float(gain[row])

    def add(self, row: int) -> None:
        """Let a row serve those that are like it."""
        with one_thread():
            alike = self._alike(row)
            self._serve(alike, (alike > self._bar).nonzero()[:, 0])

    def _alike(self, row: int) -> Float[Tensor, " N"]:
        """Cosines of all rows with a pick, and in the same pass with the rows that may be the next picks."""
        if row not in self._ahead:
            likely = self._gain.topk(min(AHEAD, len(self._gain))).indices.tolist()
            rows = [row, *(other for other in likely if other != row)]
            self._ahead = dict(zip(rows, (self._unit @ self._unit[rows].T).T.contiguous(), strict=True))
        return self._ahead.pop(row)

    def _serve(self, alike: Float[Tensor, " N"], served: Int[Tensor, " m"]) -> None:
        """Take from the gains what a pick, as much alike to each row, adds to the rows it serves better."""
        if not len(served):
            return
        low = self._bar[served]
        top = self._bar[served] = alike[served] + ALIKE
        # By the triangle inequality only rows within angle(i, pick) + arccos(bar_i) of the pick exceed the bar of i.
        angle = alike.clamp(-1, 1).acos()
        reach = angle[served] + low.clamp_max(1).acos() + MARGIN
        sample = angle[::NEAR]
        limit = torch.minimum(sample.kthvalue(len(sample) // NEAR + 1).values, reach.max())
        close = reach <= limit
        near = (angle <= limit).nonzero()[:, 0]
        self._gain[near] -= _of(self._team, self._unit[near], self._unit[served[close]], low[close], top[close])
        self._serve_far(served[~close], low[~close], top[~close])

    def _serve_far(self, served: Int[Tensor, " m"], low: Float[Tensor, " m"], top: Float[Tensor, " m"]) -> None:
        """The same for served rows that rows far from the pick may serve too."""
        theirs = self._unit[served]
        if MANY * len(served) < len(self._unit):
            self._gain -= _of(self._team, self._unit, theirs, low, top)
            return
        self._gain[served] -= _among(self._team, theirs, low, top)
        others = torch.ones_like(self._gain, dtype=torch.bool).index_fill_(0, served, False).nonzero()[:, 0]
        for part in blocks(len(others), theirs.shape[1], served.device):
            self._gain[others[part]] -= _of(self._team, self._unit[others[part]], theirs, low, top)


def _directions(rows: Float[Tensor, "n E"]) -> Float[Tensor, "n E"]:
    """Rows of length 1, as `torch.nn.functional.normalize` makes them; it makes 0 of those whose length overflows."""
    length: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    check_lengths(square(length))
    return rows / length.clamp_min(SHORT)


def _of(
    team: Team,
    unit: Float[Tensor, "n E"],
    served: Float[Tensor, "m E"],
    low: Float[Tensor, " m"],
    top: Float[Tensor, " m"],
) -> Float64[Tensor, " n"]:
    """What rows add by serving others better than `low`, each up to `top`."""

    def work(part: slice) -> Float64[Tensor, " rows"]:
        found = unit.new_zeros(part.stop - part.start, dtype=torch.float64)
        for few in sides(len(served), unit.device):
            found += sums((unit[part] @ served[few].T).clamp_(low[few], top[few]), 1)
        return found

    parts = [*strips(len(unit), len(served), unit.device)]
    found = [low[:0].double(), *team.each(work, parts, len(unit) * len(served))]
    return torch.cat(found).sub_(low.sum(dtype=torch.float64))


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
