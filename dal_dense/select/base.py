"""What every selection algorithm offers: the next best row, and taking one."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@runtime_checkable
class Picker(Protocol):
    """A choice in progress over N rows."""

    def next(self, allowed: Bool[Tensor, " N"]) -> tuple[int, float]:
        """The best row and what it is chosen by; of equals the smaller row, or key.

        Args:
            allowed: rows that may be taken, at least one; between two calls it may only shrink.
        """
        ...

    def add(self, row: int) -> None:
        """Take a row, whether `next` named it or not."""
        ...


def pick(picker: Picker, allowed: Bool[Tensor, " N"], count: int) -> Int[Tensor, " K"]:
    """The best `count` rows one after another, or as many as are allowed."""
    allowed = allowed.clone()
    rows: list[int] = []
    for _ in range(min(count, int(allowed.sum()))):
        row, _ = picker.next(allowed)
        picker.add(row)
        allowed[row] = False
        rows.append(row)
    return torch.tensor(rows, dtype=torch.int64, device=allowed.device)
