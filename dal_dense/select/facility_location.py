"""Facility location: rows that stand for all others (Mirchandani & Francis 1990; for data, Wei, Iyer & Bilmes 2015).

    f(S) = sum over rows i of  max(0, max over j in S of cosine(x_i, x_j))

Greedy reaches at least 63 % of the best value (Nemhauser, Wolsey & Fisher 1978). All gains are kept exact without the
N x N matrix: a pick changes gains only through the rows that it serves better than before, and soon these are few and
close to it. Lazy greedy (Minoux 1978) looks at more: the first picks lower every gain, so every old one is in doubt.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from dal_dense.select.blocks import CELLS, blocks, one_thread, sides, sized

ALIKE = 2e-6
"""Cosines that differ by less are equal, for they are float32: a copy of a chosen row gains nothing."""
TIE = 1e-6, 1e-5
"""Gains closer than this, as a share of the gain plus an amount, are equal."""
NEAR = 16
"""About one in so many rows counts as close to a pick."""
AHEAD = 8
"""Rows whose cosines with all are worked out at once: memory is read once for all of them."""
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
        unit = torch.nn.functional.normalize(rows, dim=1)
        labelled = torch.nn.functional.normalize(centres, dim=1)
        self._bar = torch.zeros_like(rows[:, 0])  # what a cosine must exceed to serve a row better
        for part in blocks(len(rows), max(centres.shape), rows.device) if len(centres) else ():
            best = (unit[part] @ labelled.T).amax(1)
            self._bar[part] = torch.where(best > 0, best + ALIKE, 0)
        self._unit = unit
        self._gain = self._anew()
        self._ahead: dict[int, Tensor] = {}

    def next(self, allowed: Bool[Tensor, " N"]) -> tuple[int, float]:
        """The allowed row that adds most to the objective, and how much; of equals the smaller row."""
        gain = torch.where(allowed, self._gain, -torch.inf)
        top = gain.max()
        row = int((gain >= top - TIE[0] * top.abs() - TIE[1]).int().argmax())
        return row, float(gain[row])

    def add(self, row: int) -> None:
        """Let a row serve those that are like it."""
        alike = self._alike(row)
        better = (alike > self._bar).nonzero()[:, 0]
        room = (alike + ALIKE - self._bar)[better]
        if 2 * len(better) > len(alike):
            self._bar[better] += room
            self._gain = self._anew()
            return
        with one_thread() if len(better) * len(alike) <= sized(CELLS, alike.device) else nullcontext():
            self._serve(alike, better, room)
        self._bar[better] += room

    def _alike(self, row: int) -> Float[Tensor, " N"]:
        """Cosines of all rows with a pick, and in the same pass with the rows that may be the next picks."""
        if row not in self._ahead:
            likely = self._gain.topk(min(AHEAD, len(self._gain))).indices.tolist()
            rows = [row, *(other for other in likely if other != row)]
            self._ahead = dict(zip(rows, (self._unit @ self._unit[rows].T).T.contiguous(), strict=True))
        return self._ahead.pop(row)

    def _serve(self, alike: Float[Tensor, " N"], better: Int[Tensor, " b"], room: Float[Tensor, " b"]) -> None:
        """Take from the gains what a pick, as much alike to each row, adds to the rows it serves better."""
        # By the triangle inequality only rows within angle(i, pick) + arccos(bar_i) of the pick exceed the bar of i.
        angle = alike.clamp(-1, 1).acos()
        sample = angle[::NEAR]
        limit = sample.kthvalue(len(sample) // NEAR + 1).values
        closed = angle[better] + self._bar[better].clamp_max(1).acos() + MARGIN < limit
        near = (angle <= limit).nonzero()[:, 0]
        self._gain[near] -= self._of(self._unit[near], better[closed], room[closed])
        self._gain -= self._of(self._unit, better[~closed], room[~closed])

    def _anew(self) -> Float64[Tensor, " N"]:
        """What each row adds now; the similarity of two rows is worked out once for both."""
        found, unit = torch.zeros_like(self._bar, dtype=torch.float64), self._unit
        for a in sides(len(unit), unit.device):
            for b in sides(a.stop, unit.device):
                alike = unit[a] @ unit[b].T
                found[a] += (alike - self._bar[b]).clamp_min_(0).sum(1)
                if a != b:
                    found[b] += alike.sub_(self._bar[a, None]).clamp_min_(0).sum(0)
        return found

    def _of(
        self, unit: Float[Tensor, "n E"], served: Int[Tensor, " m"], room: Float[Tensor, " m"]
    ) -> Float64[Tensor, " n"]:
        """What rows add by serving others better, each by so much at most."""
        found = torch.zeros_like(unit[:, 0], dtype=torch.float64)
        for few in sides(len(served), unit.device):
            theirs, bar = self._unit[served[few]], self._bar[served[few]]
            for part in sides(len(unit), unit.device):
                found[part] += (unit[part] @ theirs.T).clamp_(bar, bar + room[few]).sub_(bar).sum(1)
        return found
