"""k-means (Lloyd 1982) from k-means++ seeds, and the row nearest each centre, as Zhdanov (2019) picks a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dal_dense.select.base import pick
from dal_dense.select.blocks import Team, blocks, middle_of, nearest_product, square
from dal_dense.select.by_cluster import ByCluster
from dal_dense.select.checks import check_lengths, check_types
from dal_dense.select.seeding import Seeding

ROUNDS = 50
"""Iterations at most."""


@dataclass(frozen=True)
class Clusters:
    """N rows in K clusters, of which some may be empty.

    Attributes:
        centres: float32 (K, E).
        label: cluster of each row, int64 (N,).
        squared: squared distance of each row from its centre, float32 (N,).
    """

    centres: Float[Tensor, "K E"]
    label: Int[Tensor, " N"]
    squared: Float[Tensor, " N"]


def k_means(rows: Float[Tensor, "N E"], count: int, key: Int[Tensor, " N"], seed: int) -> Clusters:
    """Clusters of small squared distance, the same again for the same keys and seed.

    Memory O(N E), time O(N K E) a round.

    Args:
        rows: features, float32; at least one.
        count: clusters; no more than rows are made.
        key: keys of the rows; seed: of this use.

    Raises:
        ValueError: if a feature is not float32 or not finite, or squared distances of features exceed float32.
    """
    check_types(rows=rows)
    middle = middle_of(rows)
    x = rows - middle
    norm = square(x)
    check_lengths(norm)
    seeds = Seeding((x,), key, seed, longest_first=False)
    centres = x[pick(seeds, torch.ones_like(norm, dtype=torch.bool), count)]
    team = Team(rows.device)
    label, squared = _assigned(team, x, norm, centres)
    for _ in range(ROUNDS):
        centres = _means(x, label, centres)
        before = label
        label, squared = _assigned(team, x, norm, centres)
        if torch.equal(label, before):
            break
    return Clusters(centres + middle, label, squared)


def k_means_picker(
    rows: Float[Tensor, "N E"], among: Bool[Tensor, " N"], count: int, key: Int[Tensor, " N"], seed: int
) -> ByCluster:
    """As many clusters as rows are wanted, the largest first, of each the row nearest its centre; then by turns again.

    Args:
        rows: features, float32.
        among: rows to be clustered (what is not labelled); the others can't be picked.
        count: how many will be picked, as well as is known.
        key: keys of the rows; seed: of this use.

    Raises:
        ValueError: as `k_means`; features of the other rows are not read.
    """
    label, worth = torch.full_like(key, -1), rows.new_full((len(rows),), -torch.inf)
    if among.any():
        clusters = k_means(rows[among], count, key[among], seed)
        label[among], worth[among] = clusters.label, -clusters.squared.sqrt()
    return ByCluster(label, worth.__getitem__)


def _assigned(
    team: Team, x: Float[Tensor, "N E"], norm: Float[Tensor, " N"], centres: Float[Tensor, "K E"]
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"]]:
    """The nearest centre of each row and the squared distance from it."""
    half = square(centres) / 2
    label, squared = torch.empty_like(norm, dtype=torch.int64), torch.empty_like(norm)

    def work(part: slice) -> None:
        squared[part], label[part] = nearest_product(x[part], norm[part], centres, half)

    team.all(work, [*blocks(len(x), max(centres.shape), x.device)], len(x) * len(centres))
    return label, squared


def _means(x: Float[Tensor, "N E"], label: Int[Tensor, " N"], centres: Float[Tensor, "K E"]) -> Float[Tensor, "K E"]:
    """Mean of each cluster; an empty one stays where it is."""
    # float64: atomic additions on a GPU come in any order, which float32 means hardly ever show
    total = torch.zeros_like(centres, dtype=torch.float64)
    for part in blocks(len(x), x.shape[1], x.device):
        total.index_add_(0, label[part], x[part].double())
    count = torch.bincount(label, minlength=len(centres))[:, None]
    return torch.where(count > 0, (total / count.clamp_min(1)).to(x.dtype), centres)
