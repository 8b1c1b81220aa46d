"""Arrays of an image's size, and work along a long axis piece by piece, so that it stays in the cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

ON_CPU = 32_000
"""Voxels a piece: a few rows of them fit a core's cache, and torch starts no threads for so few."""

ON_GPU = 1 << 22
"""Voxels a piece: enough to fill a GPU, and still small beside a volume's classes."""

TURNS = 4
"""Runs of pieces a thread, so that none waits long for a slower one; with fewer pieces a thread is not started."""


def in_pieces(length: int, step: int, device: torch.device, work: Callable[[Sequence[slice]], None]) -> None:
    """Have every piece of an axis worked on; on the CPU by as many threads as torch uses.

    The threads are our own: torch's meet after every operation and wait for each other actively, which
    on a shared machine takes several times the work where operations are this short.

    Args:
        length: of the axis.
        step: length of a piece; the last may be shorter.
        device: where the work is done.
        work: takes some pieces and does them one after the other, in memory of its own; on the CPU several
            threads call it at once, so it must write to its own pieces only.
    """
    pieces = [slice(a, min(a + step, length)) for a in range(0, length, step)]
    threads = min(torch.get_num_threads(), len(pieces) // TURNS) if _on_cpu(device) else 1
    if threads <= 1:
        work(pieces)
        return
    run = -(-len(pieces) // (TURNS * threads))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, [pieces[a : a + run] for a in range(0, len(pieces), run)]))


def in_groups(maps: Float[Tensor, "maps *grid"]) -> tuple[Float[Tensor, "few *grid"], ...]:
    """As many maps of one image at a time as make a piece, at least one: few calls on a GPU, and small products."""
    return torch.split(maps, max(1, voxels_a_piece(maps.device) // max(1, math.prod(maps.shape[1:]))))


def empty(shape: Sequence[int], device: torch.device) -> Float32[Tensor, "..."]:
    """A tensor with anything in it.

    On the CPU NumPy allocates: it asks Linux for huge pages, which torch does not, and the first touch of
    an array then takes a quarter of the time.
    """
    return (
        torch.from_numpy(np.empty(tuple(shape), np.float32)) if _on_cpu(device) else torch.empty(shape, device=device)
    )


def zeros(shape: Sequence[int], device: torch.device) -> Float32[Tensor, "..."]:
    """A tensor of zeros, allocated like `empty`."""
    return (
        torch.from_numpy(np.zeros(tuple(shape), np.float32)) if _on_cpu(device) else torch.zeros(shape, device=device)
    )


def divide(sums: Float32[Tensor, "*any"], by: int, out: Float32[Tensor, "*any"]) -> None:
    """The quotients; on the CPU by NumPy, which starts no threads of its own."""
    if out.is_cpu:
        np.divide(sums.numpy(), np.float32(by), out=out.numpy())
    else:
        torch.div(sums, torch.full((), by, dtype=sums.dtype, device=sums.device), out=out)  # by a number: times 1 / by


def subtract(
    one: Float32[Tensor, "*any"] | float, other: Float32[Tensor, "*any"], out: Float32[Tensor, "*any"]
) -> None:
    """The difference; on the CPU by NumPy, as below."""
    if out.is_cpu:
        np.subtract(one.numpy() if isinstance(one, Tensor) else np.float32(one), other.numpy(), out=out.numpy())
    elif isinstance(one, Tensor):
        torch.sub(one, other, out=out)
    else:
        torch.neg(other, out=out).add_(one)


def larger(values: Float32[Tensor, "*any"], least: float, out: Float32[Tensor, "*any"]) -> None:
    """The values, or `least` where they are below it."""
    if out.is_cpu:
        np.maximum(values.numpy(), np.float32(least), out=out.numpy())
    else:
        torch.clamp_min(values, least, out=out)


def _on_cpu(device: torch.device) -> bool:
    return device.type == "cpu"


def voxels_a_piece(device: torch.device) -> int:
    """Length of a piece for work voxel by voxel."""
    return ON_CPU if _on_cpu(device) else ON_GPU
