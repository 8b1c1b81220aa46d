"""Work on N rows in blocks that fit the cache of a CPU or fill a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

S = TypeVar("S")
T = TypeVar("T")

CELLS = {"cpu": 1 << 18, "gpu": 1 << 22}
"""Numbers in a block of rows."""
SIDE = {"cpu": 640, "gpu": 1 << 11}
"""Rows, and columns, of a block of N x N; on a CPU no power of two, whose rows share lines of the cache."""
STRIP = {"cpu": 320, "gpu": 1 << 11}
"""Rows of such a block where each thread has one of its own; more where it has fewer columns."""
GROUP = {"cpu": 1 << 11, "gpu": 1 << 14}
"""Rows that a greedy choice keeps up to date: what a cache holds, and what keeps a GPU busy."""
TURNS = 4
"""Runs of tasks a thread, so that none waits long for a slower one."""


def sized(sizes: Mapping[str, int], device: torch.device) -> int:
    """The one for this device."""
    return sizes["cpu" if device.type == "cpu" else "gpu"]


def blocks(count: int, width: int, device: torch.device) -> Iterator[slice]:
    """Slices of `count` rows that hold a block's worth of `width` numbers a row, or one row."""
    return _slices(count, sized(CELLS, device) // max(width, 1))


def sides(count: int, device: torch.device) -> Iterator[slice]:
    """Slices of `count` rows for one side of a block of N x N."""
    return _slices(count, sized(SIDE, device))


def strips(count: int, width: int, device: torch.device) -> Iterator[slice]:
    """Slices of `count` rows for the first side of a `Team`'s blocks, whose second are the `sides` of `width`."""
    side = sized(SIDE, device)
    return _slices(count, sized(STRIP, device) * side // min(max(width, 1), side))


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


class Team:
    """Threads of our own, as many as torch has, each of which computes by itself.

    Those of torch meet after every operation and wait for each other actively: beside another program, several times
    the work where operations are this short.
    """

    def __init__(self, device: torch.device) -> None:
        """`device`: where they compute; for a GPU there is one."""
        self._threads = torch.get_num_threads() if device.type == "cpu" else 1
        self._pool = ThreadPoolExecutor(self._threads)
        self._least = sized(CELLS, device)

    def all(self, work: Callable[[S], None], tasks: Sequence[S], cells: int) -> None:
        """As `each`, where every task writes to a place of its own."""
        for _ in self.each(work, tasks, cells):
            pass

    def each(self, work: Callable[[S], T], tasks: Sequence[S], cells: int) -> Iterator[T]:
        """Results in the order of the tasks, which make blocks of so many `cells` in all; of few, by this thread."""
        with one_thread():
            if self._threads == 1 or cells <= self._least:
                yield from map(work, tasks)
                return
            run = min(-(-len(tasks) // (TURNS * self._threads)), 1 + self._least * len(tasks) // cells)
            runs = [tasks[first : first + run] for first in range(0, len(tasks), run)]
            for found in self._pool.map(lambda some: _on_one_core(work, some), runs):
                yield from found


def _on_one_core(work: Callable[[S], T], tasks: Sequence[S]) -> list[T]:
    torch.get_num_threads()  # sets a new thread up as the one that asks is: its products would take two cores
    return [*map(work, tasks)]


def sums(block: Float[Tensor, "n m"], dim: int) -> Float64[Tensor, " k"]:
    """Sums of a block along a dimension in float64; on a CPU by what does that fastest on one thread."""
    if not block.is_cpu:
        return block.sum(dim, dtype=torch.float64)
    values = block.numpy()
    if dim == 0:
        return torch.from_numpy(np.add.reduce(values, 0, np.float64))
    return torch.from_numpy(cv2.reduce(values, 1, cv2.REDUCE_SUM, dtype=cv2.CV_64F)[:, 0])


def smallest(block: Float[Tensor, "n m"]) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """The smallest number of each row, and where it stands first; on a CPU by what finds it fastest on one thread."""
    which = torch.from_numpy(block.numpy().argmin(1)) if block.is_cpu else block.argmin(1)
    return block.gather(1, which[:, None])[:, 0], which


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
    nearest, which = smallest(torch.addmm(half, x, centres.T, alpha=-1))
    return (norm + 2 * nearest).clamp_min(0), which
