"""ProbCover: rows whose balls cover the most (Yehuda et al. 2022), for very small budgets.

Max coverage by greedy: the row whose ball holds the most rows that no ball of a labelled or taken row holds yet. The
published code stores the graph of all pairs within the radius; here counts are kept exact without it: a pick lowers
them only through the rows that it newly covers, and a row is newly covered once.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dal_dense.select.blocks import (
    Team,
    blocks,
    middle_of,
    nearest_product,
    one_thread,
    sides,
    smallest,
    square,
    strips,
)
from dal_dense.select.checks import check_lengths, check_types

PURITY = 0.95
"""Share of balls that must hold rows of one cluster only, as published."""
SAMPLE = 2000
"""Balls by which the radius is found."""
BELOW = 0.999
"""Of a distance: below it by more than float32's rounding."""
EQUAL = 1 - 1e-5
"""Of a distance: from here up to it the difference may be rounding."""


class ProbCover:
    """Greedy max coverage. Memory O(N E), time at most O(N^2 E) for the first counts and again for all picks."""

    def __init__(self, rows: Float[Tensor, "N E"], radius: float, centres: Float[Tensor, "M E"]) -> None:
        """Begin with what the centres cover.

        Args:
            rows: features, float32. A distance that equals the radius to float32's rounding may count or not.
            radius: of the balls.
            centres: features of what is labelled; M may be 0.

        Raises:
            ValueError: if a feature is not float32 or not finite, or squared distances of features exceed float32.
        """
        check_types(rows=rows, centres=centres)
        middle = middle_of(rows)
        self._x, self._radius = rows - middle, radius
        self._norm, self._team = square(self._x), Team(rows.device)
        self._covered = torch.zeros_like(self._norm, dtype=torch.bool)
        labelled = centres - middle
        half = square(labelled) / 2
        check_lengths(self._norm, 2 * half)

        def work(part: slice) -> None:
            apart, _ = nearest_product(self._x[part], self._norm[part], labelled, half)
            self._covered[part] = apart < radius**2

        if len(centres):
            parts = [*blocks(len(rows), max(centres.shape), rows.device)]
            self._team.all(work, parts, len(rows) * len(centres))
        self._count = self._within((~self._covered).nonzero()[:, 0])

    def next(self, allowed: Bool[Tensor, " N"]) -> tuple[int, float]:
        """The allowed row that would cover the most rows newly, and how many; of equals the smaller row."""
        row = int(torch.where(allowed, self._count, torch.iinfo(torch.int64).min).argmax())
        return row, float(self._count[row])

    def add(self, row: int) -> None:
        """Cover the rows around a row."""
        with one_thread():
            apart = self._norm + self._norm[row] - 2 * (self._x @ self._x[row])
        apart[row] = 0
        new = ((apart < self._radius**2) & ~self._covered).nonzero()[:, 0]
        self._covered[new] = True
        self._count -= self._within(new)

    def _within(self, rows: Int[Tensor, " n"]) -> Int[Tensor, " N"]:
        """How many of these rows each row has within the radius."""
        count = torch.zeros_like(self._norm, dtype=torch.int64)
        half = self._norm[rows] / 2

        def work(part: slice) -> None:
            least = (self._norm[part, None] - self._radius**2) / 2
            for few in sides(len(rows), rows.device):
                theirs = self._x[rows[few]].T
                count[part] += torch.addmm(-half[few], self._x[part], theirs).gt_(least).sum(1).long()  # exact: few

        self._team.all(work, [*strips(len(count), len(rows), rows.device)], len(count) * len(rows))
        return count


def pure_radius(rows: Float[Tensor, "N E"], label: Int[Tensor, " N"], sample: Int[Tensor, " n"]) -> float:
    """The radius at which `PURITY` of the balls around sampled rows hold no row of another cluster.

    A ball is pure as long as its radius is below the distance to the nearest row of another cluster, so the radius lies
    between a quantile of these distances and the next below; infinite if there is one cluster only. If so many rows
    have a copy in another cluster that no radius is pure enough, it lies below the smallest distance but 0: then only
    balls with copies are impure.

    Args:
        rows: features, float32.
        label: cluster of each row, as k-means with a cluster for each class gives it.
        sample: rows whose balls are looked at; without any the radius is infinite.

    Raises:
        ValueError: if a feature is not float32 or not finite, or squared distances of features exceed float32.
    """
    check_types(rows=rows)
    if not len(sample):
        return math.inf
    x = rows - middle_of(rows)
    norm = square(x)
    check_lengths(norm)
    distance = norm.new_empty(len(sample))

    def work(part: slice) -> None:
        these = sample[part]
        best, which = torch.full_like(norm[these], torch.inf), these
        for other in sides(len(rows), rows.device):
            apart = norm[these, None] + torch.addmm(norm[other], x[these], x[other].T, alpha=-2)
            apart.masked_fill_(label[these, None] == label[other], torch.inf)
            near, column = smallest(apart)
            which = torch.where(near < best, other.start + column, which)
            best = torch.minimum(best, near)
        exact = square(x[these] - x[which]).sqrt()  # products do not see that two rows are copies
        distance[part] = torch.where(best.isinf(), best, exact)

    Team(rows.device).all(work, [*strips(len(sample), len(rows), rows.device)], len(sample) * len(rows))
    enemies = distance.sort().values
    place = int((1 - PURITY) * len(enemies))
    if place and float(enemies[place]) > 0:
        # between two that differ, so that none equals the radius; two nearest enemies of each other have the same
        below = enemies[enemies < EQUAL * enemies[place]]
        return float((below[-1] + enemies[place]) / 2) if len(below) else BELOW * float(enemies[place])
    apart = enemies[enemies > 0]
    return BELOW * float(apart[0]) if len(apart) else 0.0
