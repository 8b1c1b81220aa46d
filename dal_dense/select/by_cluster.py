"""Rows by turns from clusters: the cluster that has had least, then the largest."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class ByCluster:
    """Serve the clusters by turns, and from each the row that is worth most. Memory O(N)."""

    def __init__(
        self,
        label: Int[Tensor, " N"],
        worth: Callable[[Int[Tensor, " n"]], Float[Tensor, " n"]],
        had: Int[Tensor, " K"] | None = None,
    ) -> None:
        """No row is taken yet.

        Args:
            label: cluster of each row; -1: of none.
            worth: rows of one cluster to what they are worth; asked once a cluster, when its turn comes.
            had: rows of each cluster that are labelled already; None: none.
        """
        self._label, self._worth = label, worth
        clusters, counts = torch.unique(label, return_counts=True)
        ends = counts.cumsum(0).tolist()
        order = label.argsort(stable=True)
        found = zip(clusters.tolist(), [0, *ends], ends, strict=False)
        self._members = {c: order[first:stop] for c, first, stop in found if c >= 0}
        self._value: dict[int, Tensor] = {}
        self._had = {c: int(had[c]) if had is not None else 0 for c in self._members}
        self._turns = [(self._had[c], -len(rows), c) for c, rows in self._members.items()]
        heapq.heapify(self._turns)

    def next(self, allowed: Bool[Tensor, " N"]) -> tuple[int, float]:
        """The best allowed row of the cluster whose turn it is, and its worth; of equals the smaller row."""
        while True:
            had, _, cluster = self._turns[0]
            rows = self._members[cluster]
            free = allowed[rows]
            if had == self._had[cluster] and free.any():
                break
            heapq.heappop(self._turns)  # what is not allowed now never will be
        if cluster not in self._value:
            self._value[cluster] = self._worth(rows)
        value = self._value[cluster]
        best = int(torch.where(free, value, -torch.inf).argmax())
        return int(rows[best]), float(value[best])

    def add(self, row: int) -> None:
        """Take a row; its cluster goes to the back."""
        cluster = int(self._label[row])
        if cluster >= 0:
            self._had[cluster] += 1
            heapq.heappush(self._turns, (self._had[cluster], -len(self._members[cluster]), cluster))
