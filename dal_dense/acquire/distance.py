"""Distance of every row to the nearest of some centres, in embedding space."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_PAIRS = 1 << 20


def nearest(rows: Float[Tensor, "N E"], centres: Float[Tensor, "M E"]) -> Float[Tensor, " N"]:
    """Euclidean distance to the nearest centre; infinite if there are none. Memory O(N + M).

    Differences are squared and summed pair by pair, without the matrix product that loses
    digits between close points: equal embeddings are at distance zero, whatever their row.
    """
    if len(centres) == 0:
        return torch.full_like(rows[:, 0], torch.inf)
    parts = [
        torch.cdist(part, centres, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
        for part in torch.split(rows, max(1, _PAIRS // len(centres)))
    ]
    return torch.cat(parts)
