"""TypiClust: the most typical row of each cluster without a label (Hacohen, Dekel & Weinshall 2022)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dal_dense.select.blocks import Team, blocks, middle_of, square
from dal_dense.select.by_cluster import ByCluster
from dal_dense.select.k_means import k_means

CLUSTERS = 500
"""Clusters at most, as published."""
NEIGHBOURS = 20
"""Nearest rows that make a row typical, as published."""


def typiclust(
    rows: Float[Tensor, "N E"], labelled: Bool[Tensor, " N"], count: int, key: Int[Tensor, " N"], seed: int
) -> ByCluster:
    """As many clusters as rows are labelled and wanted; those with the fewest labels first, then the largest.

    Memory O(N E); time that of k-means, and the square of a cluster's rows when its turn comes.

    Args:
        rows: features, float32.
        labelled: rows that are labelled; no part of what makes a row typical, as published.
        count: how many will be picked, as well as is known.
        key: keys of the rows; seed: of this use.

    Raises:
        ValueError: as `k_means`.
    """
    wanted = min(int(labelled.sum()) + max(count, 1), CLUSTERS)
    label = k_means(rows, wanted, key, seed).label
    had = torch.bincount(label[labelled], minlength=wanted)

    def worth(members: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        open_rows = ~labelled[members]
        value = rows.new_full((len(members),), -torch.inf)
        value[open_rows] = typicality(rows[members[open_rows]])
        return value

    return ByCluster(label, worth, had)


def typicality(rows: Float[Tensor, "n E"]) -> Float[Tensor, " n"]:
    """Minus the mean distance to the nearest other rows; 0 for a row that is alone.

    The paper takes the inverse of that distance, which ranks alike and has no value for copies.
    """
    near = min(NEIGHBOURS, len(rows) - 1)
    x = rows - middle_of(rows)
    norm, value = square(x), rows.new_zeros(len(rows))

    def work(part: slice) -> None:
        apart = norm[part, None] + torch.addmm(norm, x[part], x.T, alpha=-2)
        itself = torch.arange(part.start, part.stop, device=rows.device)
        apart[itself - part.start, itself] = torch.inf
        value[part] = -apart.topk(near, dim=1, largest=False).values.clamp_min(0).sqrt().mean(1)

    if near > 0:
        Team(rows.device).all(work, [*blocks(len(rows), max(rows.shape), rows.device)], len(rows) ** 2)
    return value
