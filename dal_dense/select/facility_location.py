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
"""At most about one in so many rows counts as close to a pick."""
MANY = 4
"""Where one in so many rows or more is served from afar, their cosines with each other are worked out once for both."""
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
        self._gain = _among(unit, self._bar, torch.full_like(self._bar, torch.inf))
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
        served = (alike > self._bar).nonzero()[:, 0]
        with one_thread() if len(served) * len(alike) <= sized(CELLS, alike.device) else nullcontext():
            self._serve(alike, served)

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
        self._gain[near] -= _of(self._unit[near], self._unit[served[close]], low[close], top[close])
        self._serve_far(served[~close], low[~close], top[~close])

    def _serve_far(self, served: Int[Tensor, " m"], low: Float[Tensor, " m"], top: Float[Tensor, " m"]) -> None:
        """The same for served rows that rows far from the pick may serve too."""
        theirs = self._unit[served]
        if MANY * len(served) < len(self._unit):
            self._gain -= _of(self._unit, theirs, low, top)
            return
        self._gain[served] -= _among(theirs, low, top)
        others = torch.ones_like(self._gain, dtype=torch.bool).index_fill_(0, served, False).nonzero()[:, 0]
        for part in sides(len(others), served.device):
            self._gain[others[part]] -= _of(self._unit[others[part]], theirs, low, top)


def _of(
    unit: Float[Tensor, "n E"], served: Float[Tensor, "m E"], low: Float[Tensor, " m"], top: Float[Tensor, " m"]
) -> Float64[Tensor, " n"]:
    """What rows add by serving others better than `low`, each up to `top`."""
    found = torch.zeros_like(unit[:, 0], dtype=torch.float64)
    for few in sides(len(served), unit.device):
        for part in sides(len(unit), unit.device):
            alike = unit[part] @ served[few].T
            found[part] += alike.clamp_(low[few], top[few]).sub_(low[few]).sum(1, dtype=found.dtype)
    return found


def _among(unit: Float[Tensor, "m E"], low: Float[Tensor, " m"], top: Float[Tensor, " m"]) -> Float64[Tensor, " m"]:
    """The same for rows that serve each other: the similarity of two is worked out once for both."""
    found = torch.zeros_like(low, dtype=torch.float64)
    for a in sides(len(unit), unit.device):
        for b in sides(a.stop, unit.device):
            alike = unit[a] @ unit[b].T
            found[a] += alike.clamp(low[b], top[b]).sub_(low[b]).sum(1, dtype=found.dtype)
            if a != b:
                torch.minimum(alike, top[a, None], out=alike)  # in place, and faster than to clamp by columns
                found[b] += alike.sub_(low[a, None]).clamp_min_(0).sum(0, dtype=found.dtype)
    return found
