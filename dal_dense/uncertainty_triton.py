"""The sums of p and of H(p) on CUDA devices: one kernel, in which every number is read and written once.

Imported only where a draw lies on a CUDA device. Each voxel belongs to one thread, so there are no atomic
operations and the result is the same every time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float32
from torch import Tensor

BLOCK = 1024
"""Voxels a program; eight a thread, two wide loads."""

SMALLEST = tl.constexpr(1.1754943508222875e-38)
"""The smallest normal float32, instead of 0 inside the logarithm."""


def accumulate(
    probs: Float[Tensor, "classes voxels"],
    total: Float32[Tensor, "classes voxels"],
    entropies: Float32[Tensor, " voxels"],
) -> None:
    """Add p to `total` and H(p) to `entropies`, both contiguous, in place."""
    classes, voxels = probs.shape
    probs = probs if probs.stride(1) == 1 else probs.contiguous()  # a channels-last draw has its classes side by side
    with torch.cuda.device_of(probs):  # type: ignore[no-untyped-call]
        _accumulate[(triton.cdiv(voxels, BLOCK),)](
            probs, total, entropies, voxels, classes, probs.stride(0), total.stride(0), block=BLOCK
        )


def hindrance() -> str | None:
    """What keeps the kernel from running on this machine, found by running it once; None where it runs.

    Raises:
        torch.OutOfMemoryError: if memory is short, which says nothing of the kernel.
    """
    few = torch.zeros(2, 16, device="cuda")
    try:
        accumulate(few, few.clone(), few[0].clone())
    except torch.OutOfMemoryError:
        raise
    except Exception as problem:  # Triton's own, the C compiler's, the driver's: there is plain torch in any case
        return f"{type(problem).__name__}: {problem}"
    return None


@triton.jit  # type: ignore[untyped-decorator]
def _accumulate(probs, total, entropies, voxels, classes, probs_row, total_row, block: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = place < voxels
    probs += place
    total += place
    entropy = tl.zeros((block,), tl.float32)
    for _ in range(classes):
        p = tl.load(probs, mask=inside, other=1.0).to(tl.float32)
        tl.store(total, tl.load(total, mask=inside, other=0.0) + p, mask=inside)
        entropy -= p * tl.log(tl.maximum(p, SMALLEST))
        probs += probs_row  # steps, not products: classes x voxels may exceed 32 bits
        total += total_row
    tl.store(entropies + place, tl.load(entropies + place, mask=inside, other=0.0) + entropy, mask=inside)
