"""Random draws keyed by (seed, stream, region), not by order.

The same region gets the same draw for any order of the pool, any chunk size and any number of
processes, so a query can be repeated and a resumed run asks what the uninterrupted one would have.
Counter-based: a key is mixed by SplitMix64 (Steele, Lea & Flood 2014), on the tensor's own device.
"""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dal_dense.regions import Regions

_MASK63 = (1 << 63) - 1


def _signed(value: int) -> int:
    """The 64-bit pattern of an unsigned constant as torch's int64 sees it."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX1 = _signed(0xBF58476D1CE4E5B9)
_MIX2 = _signed(0x94D049BB133111EB)


def text_key(text: str) -> int:
    """A stable 63-bit number for an id, equal on every machine and Python."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") & _MASK63


def derive_seed(seed: int, *path: str | int) -> int:
    """A child seed for one use, such as `derive_seed(run_seed, "fit", round)`."""
    return text_key("/".join(map(str, (seed, *path))))


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # logical: int64 >> would copy the sign


def _mix(x: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    x = x + _GAMMA
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def region_keys(image_id: str, regions: Regions) -> Int[Tensor, " regions"]:
    """63-bit keys of boxes in one image, from the image's id and the box alone."""
    key = torch.full_like(regions.start[:, 0], text_key(image_id))
    for column in (*regions.start.unbind(1), *regions.stop.unbind(1)):
        key = _mix(key ^ column)
    return key & _MASK63


def uniform(keys: Int[Tensor, " n"], seed: int, stream: str) -> Float[Tensor, " n"]:
    """One number in (0, 1) a key, float64; streams are independent of each other."""
    bits = _mix(keys ^ _signed(derive_seed(seed, stream)))
    # of the largest number the half is rounded up, to 1
    return ((_shift(bits, 11).double() + 0.5) * 2.0**-53).clamp_max(1 - 2.0**-53)


def gumbel(keys: Int[Tensor, " n"], seed: int, stream: str) -> Float[Tensor, " n"]:
    """Standard Gumbel noise, one draw a key, float64 (for power sampling; Kirsch et al. 2021)."""
    return -torch.log(-torch.log(uniform(keys, seed, stream)))
