"""Work on N rows in blocks that fit the cache of a CPU or fill a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CELLS = {"cpu": 1 << 20, "gpu": 1 << 22}
"""Numbers in a block of rows."""
SIDE = {"cpu": 640, "gpu": 1 << 11}
"""Rows, and columns, of a block of N x N; on a CPU no power of two, whose rows share lines of the cache."""


def sized(sizes: Mapping[str, int], device: torch.device) -> int:
    """The one for this device."""
    return sizes["cpu" if device.type == "cpu" else "gpu"]


def blocks(count: int, width: int, device: torch.device) -> Iterator[slice]:
    """Slices of `count` rows that hold a block's worth of `width` numbers a row, or one row."""
    return _slices(count, sized(CELLS, device) // max(width, 1))


def sides(count: int, device: torch.device) -> Iterator[slice]:
    """Slices of `count` rows for one side of a block of N x N."""
    return _slices(count, sized(SIDE, device))


def _slices(count: int, step: int) -> Iterator[slice]:
    for first in range(0, count, max(step, 1)):
        yield slice(first, min(first + max(step, 1), count))


@contextmanager
def one_thread() -> Iterator[None]:
    """For work that fits one core's cache: more threads would only wait for each other, on a busy machine for long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def middle_of(rows: Float[Tensor, "N E"]) -> Float[Tensor, " E"]:
    """Mean, summed in float64: taken away, a common offset costs the products of features no digits."""
    total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
    for part in blocks(len(rows), rows.shape[1], rows.device):
        total += rows[part].double().sum(0)
    return (total / max(len(rows), 1)).to(rows.dtype)


def of_smallest_key(among: Bool[Tensor, " n"], key: Int[Tensor, " n"]) -> Int[Tensor, ""]:
    """Place of the smallest key among some rows, at least one: which of equals is taken."""
    return torch.where(among, key, torch.iinfo(torch.int64).max).argmin()


def square(x: Float[Tensor, "n E"]) -> Float[Tensor, " n"]:
    """Squared length of each row."""
    return (x * x).sum(1)


def nearest_product(
    x: Float[Tensor, "n E"], norm: Float[Tensor, " n"], centres: Float[Tensor, "m E"], half: Float[Tensor, " m"]
) -> tuple[Float[Tensor, " n"], Tensor]:
    """Squared distance to the nearest centre and its number (of equals the smaller), by products: float32 rounding.

    Args:
        x: features; norm: their squared lengths.
        centres: at least one; half: half their squared lengths.
    """
    nearest, which = torch.addmm(half, x, centres.T, alpha=-1).min(1)
    return (norm + 2 * nearest).clamp_min(0), which
