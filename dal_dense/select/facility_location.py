"""Facility location: rows that stand for all others (Mirchandani & Francis 1990; for data, Wei, Iyer & Bilmes 2015).

    f(S) = sum over rows i of  max(0, max over j in S of cosine(x_i, x_j))

Greedy reaches at least 63 % of the best value (Nemhauser, Wolsey & Fisher 1978). All gains are kept exact without the
N x N matrix: a pick changes gains only through the rows that it serves better than before, and soon these are few and
close to it. Lazy greedy (Minoux 1978) looks at more: the first picks lower every gain, so every old one is in doubt.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dal_dense.select.blocks import blocks, sides

ALIKE = 2e-6
"""Cosines that differ by less are equal, for they are float32: a copy of a chosen row gains nothing."""
TIE = 1e-6, 1e-5
"""Gains closer than this, as a share of the gain plus an amount, are equal."""
NEAR = 16
"""One in so many rows counts as close to a pick."""
MARGIN = 1e-2
"""Rounding of three angles, radians: the arc cosine of a float32 cosine next to 1 is off by 0.001."""


class FacilityLocation:
    """Greedy by exact gains. Memory O(N E), time O(N^2 E) for the first gains and a few times that for all picks."""

    def __init__(self, rows: Float[Tensor, "N E"], centres: Float[Tensor, "M E"]) -> None:
        """Begin with what the centres serve.

        Args:
            rows: features, float32; only their directions count.
            centres: features of what is labelled; M may be 0.
        """
        self._unit = torch.nn.functional.normalize(rows, dim=1)
        labelled = torch.nn.functional.normalize(centres, dim=1)
        self._bar = torch.zeros_like(rows[:, 0])  # what a cosine must exceed to serve a row better
        for part in blocks(len(rows), max(centres.shape), rows.device) if len(centres) else ():
            best = (self._unit[part] @ labelled.T).amax(1)
            self._bar[part] = torch.where(best > 0, best + ALIKE, 0)
        every = torch.arange(len(rows), device=rows.device)
        self._gain = self._of_all(every, torch.full_like(self._bar, 2.0))

    def next(self, allowed: Bool[Tensor, " N"]) -> tuple[int, float]:
        """The allowed row that adds most to the objective, and how much; of equals the smaller row."""
        gain = torch.where(allowed, self._gain, -torch.inf)
        top = gain.max()
        row = int((gain >= top - TIE[0] * top.abs() - TIE[1]).int().argmax())
        return row, float(gain[row])

    def add(self, row: int) -> None:
        """Let a row serve those that are like it."""
        alike = self._unit @ self._unit[row]
        better = (alike > self._bar).nonzero()[:, 0]
        room = alike + ALIKE - self._bar
        # By the triangle inequality only rows within angle(i, pick) + arccos(bar_i) of the pick exceed the bar of i.
        angle = alike.clamp(-1, 1).acos()
        limit = angle.kthvalue(len(angle) // NEAR + 1).values
        closed = angle[better] + self._bar[better].clamp_max(1).acos() + MARGIN < limit
        near = (angle <= limit).nonzero()[:, 0]
        self._gain[near] -= self._of(near, better[closed], room[better[closed]])
        self._gain -= self._of_all(better[~closed], room[better[~closed]])
        self._bar[better] += room[better]

    def _of(self, rows: Int[Tensor, " n"], served: Int[Tensor, " m"], room: Float[Tensor, " m"]) -> Float[Tensor, " n"]:
        """What rows add by serving others better, each by so much at most, float64."""
        found = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        for few in sides(len(served), rows.device):
            bar, unit, none = self._bar[served[few]], self._unit[served[few]].T, torch.zeros_like(room[few])
            for part in sides(len(rows), rows.device):
                more = torch.addmm(-bar, self._unit[rows[part]], unit)
                found[part] += more.clamp_(none, room[few]).sum(1)
        return found

    def _of_all(self, served: Int[Tensor, " m"], room: Float[Tensor, " m"]) -> Float[Tensor, " N"]:
        """The same of all rows; the similarity of two of the served is worked out once for both."""
        other = torch.ones_like(self._bar, dtype=torch.bool)
        other[served] = False
        rest = other.nonzero()[:, 0]
        found = torch.zeros_like(self._bar, dtype=torch.float64)
        found[rest] = self._of(rest, served, room)
        bar, none, inner = self._bar[served], torch.zeros_like(room), torch.zeros_like(room, dtype=torch.float64)
        for a in sides(len(served), served.device):
            unit = self._unit[served[a]]
            for b in sides(a.stop, served.device):
                alike = unit @ self._unit[served[b]].T
                inner[a] += (alike - bar[b]).clamp_(none[b], room[b]).sum(1)
                if a != b:
                    inner[b] += alike.sub_(bar[a, None]).clamp_(none[a, None], room[a, None]).sum(0)
        found[served] = inner
        return found
