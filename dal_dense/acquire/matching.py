"""How alike two frames are, object by object: PPAL's class-conditional matching, as it was meant.

Each object of one frame is matched with the most similar object of its own class in the other; the
distances are averaged by how sure the objects are, and both directions are averaged (Yang et al.
2024, "Plug and Play Active Learning for Object Detection"). The published code counts objects of
equal rank as identical and samples features at transposed places; neither happens here.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from dal_dense.offers import Parts

ALONE = 2.0
"""Distance of an object that has no other of its class to match: that of opposite features."""
BLOCK = 1 << 22
"""Similarities held at once."""


def matching_distance(parts: Parts, rows: int) -> Float[Tensor, "rows rows"]:
    """Distances between rows, 0 to 2, symmetric, 0 on the diagonal.

    A row without objects is at distance 2 from every other one that has some, and at 0 from its like.

    Args:
        parts: objects and the rows they belong to.
        rows: how many rows there are.
    """
    order = parts.row.argsort(stable=True)
    row, classes, weight = parts.row[order], parts.classes[order], parts.weight[order].float()
    unit = torch.nn.functional.normalize(parts.embedding[order].float(), dim=1)
    device = parts.row.device
    # float64: atomic additions on a GPU come in any order, and the result must not show it
    total = torch.zeros(rows, dtype=torch.float64, device=device).index_add_(0, row, weight.double())
    one_way = torch.zeros(rows, rows, dtype=torch.float64, device=device)
    for c in torch.unique(classes).tolist():
        here = (classes == c).nonzero()[:, 0]
        owner, features = row[here], unit[here]
        for part in torch.split(torch.arange(len(here), device=device), max(1, BLOCK // max(len(here), rows))):
            best = torch.full((len(part), rows), -torch.inf, device=device)
            alike = features[part] @ features.T
            best.scatter_reduce_(1, owner.expand(len(part), -1), alike, "amax")
            apart = torch.where(best.isinf(), ALONE, (1 - best).clamp_min(0))
            one_way.index_add_(0, owner[part], (apart * weight[here][part, None]).double())
    empty = total <= 0
    one_way = one_way / total.clamp_min(1e-12)[:, None]
    one_way[empty] = torch.where(empty, 0.0, ALONE).double()
    return ((one_way + one_way.T) / 2).float().fill_diagonal_(0)
