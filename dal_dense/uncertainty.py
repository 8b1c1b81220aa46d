"""Uncertainty of every voxel or pixel, from probability draws. All entropies are in nats.

A draw is one softmax output for the whole image: a dropout pass, a flipped pass, an ensemble
member, a late checkpoint. `DrawSums` takes draws one at a time, each read once, and keeps the sums of
p and of H(p), which give every map here exactly. Memory is classes x grid whatever the number of
draws: temporaries are a piece of one grid, and the mean takes the place of the sum. The plain functions
on stacked draws say the same in one line each; tests hold the two against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache, cached_property
from warnings import warn

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from dal_dense import uncertainty_cpu
from dal_dense.pieces import ON_GPU, divide, empty, in_pieces, larger, subtract, voxels_a_piece, zeros


def entropy(probs: Float[Tensor, "classes *grid"]) -> Float[Tensor, "*grid"]:
    """Shannon entropy over the classes; temporaries are one grid at most, on the CPU a piece of it."""
    if probs.is_cpu:
        total = zeros(probs.shape[1:], probs.device)
        uncertainty_cpu.accumulate(_flat(probs), None, total.view(-1))
    else:
        total = entropy_plainly(probs)
    return total.clamp_min_(0)  # p may exceed 1 by rounding, where -p log p is below 0


def entropy_plainly(probs: Float[Tensor, "classes *grid"]) -> Float[Tensor, "*grid"]:
    """By torch alone, class by class."""
    total: Tensor = torch.special.entr(probs[0].float())
    for p in probs[1:]:
        total += torch.special.entr(p.float())
    return total


def likeliest(probs: Float[Tensor, "classes *grid"]) -> UInt8[Tensor, "*grid"]:
    """Number of the likeliest class; the lower one of a tie. Several times faster on a CPU than argmax."""
    flat = _flat(probs)
    label = torch.zeros(flat.shape[1], dtype=torch.uint8, device=probs.device)

    def work(pieces: Sequence[slice]) -> None:
        for piece in pieces:
            if not probs.is_cpu:
                label[piece] = flat[:, piece].argmax(0)
                continue
            best = flat[0, piece]
            for c, p in enumerate(flat[1:, piece], start=1):
                label[piece].masked_fill_(p > best, c)
                best = torch.maximum(best, p)

    in_pieces(len(label), voxels_a_piece(probs.device), probs.device, work)
    return label.view(probs.shape[1:])


def predictive_entropy(draws: Float[Tensor, "draws classes *grid"]) -> Float[Tensor, "*grid"]:
    """H of the mean draw: total uncertainty."""
    total: Tensor = torch.special.entr(draws.mean(0)).sum(0)
    return total


def expected_entropy(draws: Float[Tensor, "draws classes *grid"]) -> Float[Tensor, "*grid"]:
    """Mean of H over the draws: what more labels cannot remove."""
    total: Tensor = torch.special.entr(draws).sum(1).mean(0)
    return total


def mutual_information(draws: Float[Tensor, "draws classes *grid"]) -> Float[Tensor, "*grid"]:
    """Disagreement between draws: predictive minus expected entropy (BALD; Houlsby et al. 2011)."""
    return predictive_entropy(draws) - expected_entropy(draws)


def two_largest(
    probs: Float32[Tensor, "classes voxels"],
) -> tuple[Float32[Tensor, " voxels"], Float32[Tensor, " voxels"]]:
    """Probabilities of the two likeliest classes; by torch alone."""
    first, second = probs[0].clone(), torch.zeros_like(probs[0])
    for p in probs[1:]:
        torch.maximum(second, torch.minimum(first, p), out=second)
        torch.maximum(first, p, out=first)
    return first, second


def _flat(probs: Float[Tensor, "classes *grid"]) -> Float[Tensor, "classes voxels"]:
    """A view where the strides allow it; the voxels of a class need not lie one after the other."""
    return probs.reshape(len(probs), -1)


def accumulate(
    probs: Float[Tensor, "classes *grid"],
    total: Float32[Tensor, "classes *grid"],
    entropies: Float32[Tensor, "*grid"],
) -> None:
    """Add one draw's p and H(p) to running sums, in place; by which code depends on the device of the draw.

    Args:
        probs: probabilities, any float type.
        total: sum of p, contiguous.
        entropies: sum of H(p), contiguous.
    """
    if probs.is_cpu:
        uncertainty_cpu.accumulate(_flat(probs), _flat(total), entropies.view(-1))
    elif probs.is_cuda and (kernel := _kernel()) is not None:
        kernel(_flat(probs), _flat(total), entropies.view(-1))
    else:
        accumulate_plainly(probs, total, entropies)


def accumulate_plainly(
    probs: Float[Tensor, "classes *grid"],
    total: Float32[Tensor, "classes *grid"],
    entropies: Float32[Tensor, "*grid"],
) -> None:
    """`accumulate` by torch alone, on any device: the reference, and what is done where there is no kernel."""
    total += probs
    entropies += entropy_plainly(probs)


@cache
def _kernel() -> Callable[[Tensor, Tensor, Tensor], None] | None:
    """The fused kernel of CUDA devices; None where Triton, or the C compiler that it starts with, is missing."""
    try:
        from dal_dense import uncertainty_triton

        hindrance = uncertainty_triton.hindrance()
    except ImportError as problem:
        hindrance = str(problem)
    if hindrance is None:
        return uncertainty_triton.accumulate
    first = (hindrance.splitlines() or [""])[0]
    warn(f"draws are summed by plain torch, which is slower: the Triton kernel does not run ({first})", stacklevel=4)
    return None


class DrawSums:
    """Running sums of draws; float32, on the device of the draws. This is the one mutable thing here."""

    def __init__(self) -> None:
        self.count = 0
        self._probs: Tensor | None = None
        self._entropy: Tensor | None = None

    def add(self, probs: Float[Tensor, "classes *grid"]) -> None:
        """Take one draw in.

        Args:
            probs: probabilities, any float type; they sum to 1 over the first axis.

        Raises:
            ValueError: if there are fewer than two classes, or the shape differs from the first draw's.
        """
        if self._probs is None or self._entropy is None:
            if probs.ndim < 2 or probs.shape[0] < 2:
                raise ValueError(f"a draw must be (classes >= 2, *grid); got shape {tuple(probs.shape)}")
            self._probs = zeros(probs.shape, probs.device)
            self._entropy = zeros(probs.shape[1:], probs.device)
        elif probs.shape != self._probs.shape:
            raise ValueError(f"draw {self.count} is {tuple(probs.shape)}, the first {tuple(self._probs.shape)}")
        accumulate(probs, self._probs, self._entropy)
        self.count += 1

    def finish(
        self, names: Iterable[str] = ()
    ) -> tuple[Float[Tensor, "classes *grid"], dict[str, Float[Tensor, "*grid"]]]:
        """The mean draw, and the maps asked for, by name in `MAPS`.

        The sums become the mean where they lie, so there is never a second tensor of their size; what
        is left is empty, ready for the draws of another image.

        Raises:
            ValueError: if a name is unknown, or no draw was added.
        """
        wanted = tuple(dict.fromkeys(names))
        if unknown := [name for name in wanted if name not in MAPS]:
            raise ValueError(f"no uncertainty map is called {unknown[0]!r}; there are {', '.join(MAPS)}")
        if self._probs is None or self._entropy is None:
            raise ValueError("no draw was added; call add() at least once")
        mean, expected, count = self._probs, self._entropy, self.count
        self.count, self._probs, self._entropy = 0, None, None
        last = "expected_entropy" if "expected_entropy" in wanted else "mutual_information"  # needs the sum no more
        maps = {name: expected if name == last else empty(expected.shape, expected.device) for name in wanted}
        step = uncertainty_cpu.step(len(mean)) if mean.is_cpu else ON_GPU

        def work(pieces: Sequence[slice]) -> None:
            scratch = uncertainty_cpu.Scratch(step) if mean.is_cpu else None
            for piece in pieces:
                here = _Piece(_flat(mean)[:, piece], expected.view(-1)[piece], scratch)
                for sums in (here.mean, here.expected):
                    divide(sums, count, sums)
                for name in wanted:
                    MAPS[name](here, maps[name].view(-1)[piece])

        in_pieces(expected.numel(), step, mean.device, work)
        return mean, maps


class _Piece:
    """The mean draw and the mean H(p) in some voxels; what two maps are made of is worked out once."""

    def __init__(
        self,
        mean: Float[Tensor, "classes voxels"],
        expected: Float[Tensor, " voxels"],
        scratch: uncertainty_cpu.Scratch | None,
    ) -> None:
        self.mean, self.expected, self._scratch = mean, expected, scratch

    @cached_property
    def entropy(self) -> Float[Tensor, " voxels"]:
        """H of the mean; p may exceed 1 by rounding, where -p log p is below 0."""
        if self._scratch is None:
            return entropy_plainly(self.mean).clamp_min_(0)
        return self._scratch.entropy(self.mean)

    @cached_property
    def two_largest(self) -> tuple[Float[Tensor, " voxels"], Float[Tensor, " voxels"]]:
        """Probabilities of the two likeliest classes."""
        return two_largest(self.mean) if self._scratch is None else self._scratch.two_largest(self.mean)


def _predictive_entropy(here: _Piece, out: Float[Tensor, " voxels"]) -> None:
    larger(here.entropy, 0.0, out)


def _expected_entropy(here: _Piece, out: Float[Tensor, " voxels"]) -> None:
    larger(here.expected, 0.0, out)


def _mutual_information(here: _Piece, out: Float[Tensor, " voxels"]) -> None:
    """Below 0 only by rounding."""
    subtract(here.entropy, here.expected, out)
    larger(out, 0.0, out)


def _margin(here: _Piece, out: Float[Tensor, " voxels"]) -> None:
    """1 - (p1 - p2) of the two likeliest classes: larger is less certain (Scheffer et al. 2001)."""
    subtract(*here.two_largest, out)
    subtract(1.0, out, out)
    larger(out, 0.0, out)


def _least_confidence(here: _Piece, out: Float[Tensor, " voxels"]) -> None:
    """1 - p of the likeliest class (Lewis & Gale 1994)."""
    subtract(1.0, here.two_largest[0], out)
    larger(out, 0.0, out)


MAPS: dict[str, Callable[[_Piece, Tensor], None]] = {
    "predictive_entropy": _predictive_entropy,
    "expected_entropy": _expected_entropy,
    "mutual_information": _mutual_information,
    "margin": _margin,
    "least_confidence": _least_confidence,
}
"""What fills every map, by name."""
