"""What every algorithm asks of features, said where it begins: NaN has no order to choose by."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

LARGEST = torch.finfo(torch.float32).max / 8
"""Squared length of a row. Two such rows may be a squared distance of four times it apart; to that a length is added,
or twice what it may be wrong by, which is below three times the length for any width under 800,000."""


def check_types(**tables: Float[Tensor, "_ _"]) -> None:
    """Refuse other types than float32: float16 and bfloat16 overflow, and round by more than the algorithms allow for.

    Args:
        tables: by the name of each.

    Raises:
        ValueError: naming a table that is of another type.
    """
    for name, table in tables.items():
        if table.dtype != torch.float32:
            raise ValueError(f"{name} must be float32; got {str(table.dtype).removeprefix('torch.')}; call .float()")


def check_lengths(*squared: Float[Tensor, " _"], most: float = LARGEST) -> None:
    """Refuse features that are not finite or too large, by what is at hand: no feature is read again.

    Args:
        squared: squared lengths of rows; NaN or infinite if a feature is.
        most: which all of them must be below.

    Raises:
        ValueError: if a feature is not finite, or squared distances of features exceed float32.
    """
    for lengths in squared:
        if len(lengths) and not float(lengths.max()) < most:  # NaN is not
            raise ValueError(
                "a feature is not finite, or squared distances of the features exceed float32 (largest squared length "
                f"{float(lengths.max()):.3g}); look for NaN and infinite numbers, or scale the features down"
            )
