"""How alike two frames are, object by object: PPAL's class-conditional matching, as it was meant.

Each object of one frame is matched with the most similar object of its own class in the other; the
distances are averaged by how sure the objects are, and both directions are averaged (Yang et al.
2024, "Plug and Play Active Learning for Object Detection"). The published code counts objects of
equal rank as identical and samples features at transposed places; neither happens here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dal_dense.offers import Parts
from dal_dense.select.blocks import Team, sized

ALONE = 2.0
"""Distance of an object that has no other of its class to match: that of opposite features."""
BLOCK = {"cpu": 1 << 9, "gpu": 1 << 13}
"""Objects on one side of a product of features; this squared is how many similarities are held at once."""


@dataclass(frozen=True)
class _Block:
    """Some rows' objects of one class, as many a row as the richest of them has.

    A row with fewer repeats its first with weight 0, which changes neither a maximum nor a mean.

    Attributes:
        rows: which, int64 (n,).
        unit: features of length 1, float32 (P n, E): first one object of each row, then a second of each, ...
        weight: what each object counts in its row, float32 (P, n).
    """

    rows: Int[Tensor, " n"]
    unit: Float[Tensor, "Pn E"]
    weight: Float[Tensor, "P n"]


def matching_distance(parts: Parts, rows: int) -> Float[Tensor, "rows rows"]:
    """Distances between rows, 0 to 2, symmetric, 0 on the diagonal.

    A row without objects is at distance 2 from every other one that has some, and at 0 from its like. Each
    similarity is worked out once for both directions; memory O(rows^2 + M E).

    Args:
        parts: objects and the rows they belong to.
        rows: how many rows there are.
    """
    classes, number = torch.unique(parts.classes, return_inverse=True)
    mass = _mass(parts, number, rows, len(classes))
    total = mass.sum(1)
    # how much of a row's weight each object and each class has
    weight = (parts.weight.double() / total.clamp_min(1e-12)[parts.row]).float()
    share = (mass / total.clamp_min(1e-12)[:, None]).float()
    apart = torch.zeros(rows, rows, device=weight.device)
    lacks, team = torch.ones_like(share), Team(weight.device)
    for c in range(len(classes)):
        here = (number == c).nonzero()[:, 0]
        lacks[parts.row[here], c] = 0
        unit = torch.nn.functional.normalize(parts.embedding[here].float(), dim=1)
        made = list(_blocks(parts.row[here], unit, weight[here]))
        pairs = [(a, b) for n, a in enumerate(made) for b in made[: n + 1]]
        for (a, b), both in zip(pairs, team.each(_apart, pairs, len(unit) ** 2), strict=True):
            if a is not b:
                apart[b.rows[:, None], a.rows] += both.T
            apart[a.rows[:, None], b.rows] += both
    empty = (total <= 0).float()
    one_way = ALONE * (share @ lacks.T + empty[:, None] * (1 - empty))
    return (apart + (one_way + one_way.T) / 2).fill_diagonal_(0)


def _mass(parts: Parts, number: Int[Tensor, " M"], rows: int, classes: int) -> Float[Tensor, "rows classes"]:
    """Weight of each class in each row."""
    # float64: atomic additions on a GPU come in any order, and the result must not show it
    mass = torch.zeros(rows * classes, dtype=torch.float64, device=number.device)
    return mass.index_add_(0, parts.row * classes + number, parts.weight.double()).view(rows, classes)


def _blocks(row: Int[Tensor, " m"], unit: Float[Tensor, "m E"], weight: Float[Tensor, " m"]) -> Iterator[_Block]:
    """The objects of one class, the rows with the most first, so that few are repeated."""
    order = row.argsort(stable=True)
    found, counts = torch.unique(row, return_counts=True)
    firsts = counts.cumsum(0) - counts
    by_count = counts.argsort(descending=True, stable=True)
    start, side = 0, sized(BLOCK, row.device)
    while start < len(by_count):
        most = int(counts[by_count[start]])
        here = by_count[start : start + max(1, side // most)]
        start += len(here)
        place = torch.arange(most, device=row.device)[:, None]
        repeated = place >= counts[here]
        which = order[firsts[here] + torch.where(repeated, 0, place)]
        yield _Block(found[here], unit[which.flatten()], weight[which].masked_fill(repeated, 0))


def _apart(pair: tuple[_Block, _Block]) -> Float[Tensor, "n m"]:
    """What the objects of two blocks contribute to the distances of their rows."""
    a, b = pair
    mine, theirs = a.weight.shape, b.weight.shape
    alike = (a.unit @ b.unit.T).view(*mine, *theirs)
    there = (1 - alike.amax(2)).clamp_min_(0).mul_(a.weight[:, :, None]).sum(0)
    back = (1 - alike.amax(0)).clamp_min_(0).mul_(b.weight).sum(1)
    both = (there + back) / 2
    return (both + both.T) / 2 if a is b else both
