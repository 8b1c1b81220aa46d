"""BADGE: k-means++ on gradient embeddings (Ash et al. 2020): long where the model is unsure, apart where it differs.

The gradient of the last layer is the outer product of a residual (N, C) and the features (N, E). It is never built:
where the published code holds N C E numbers, this holds N, and a pick costs N (C + E) instead of N C E.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from dal_dense.select.checks import check_types
from dal_dense.select.seeding import Seeding


def badge(residual: Float[Tensor, "N C"], rows: Float[Tensor, "N E"], key: Int[Tensor, " N"], seed: int) -> Seeding:
    """The longest gradient first, then k-means++ draws, as published.

    Args:
        residual: probabilities less the predicted class's one-hot vector, or what takes their place, float32.
        rows: the features that the last layer sees, float32.
        key: keys of the rows; seed: of this use.

    Raises:
        ValueError: if a number is not float32 or not finite.
    """
    check_types(residual=residual, rows=rows)
    return Seeding((residual, rows), key, seed, longest_first=True)
