"""Uncertainty of every voxel or pixel, from probability draws. All entropies are in nats.

A draw is one softmax output for the whole image: a dropout pass, a flipped pass, an ensemble
member, a late checkpoint. `DrawSums` takes draws one at a time and keeps the sums of p and of H(p),
which give every map here exactly; memory is classes x grid whatever the number of draws, and
temporaries are one grid. The plain functions on stacked draws say the same in one line each; tests
hold the two against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def entropy(probs: Float[Tensor, "classes *grid"]) -> Float[Tensor, "*grid"]:
    """Shannon entropy over the classes, class by class so that temporaries stay one grid."""
    total: Tensor = torch.special.entr(probs[0].float())
    for p in probs[1:]:
        total += torch.special.entr(p.float())
    return total.clamp_min_(0)  # p may exceed 1 by rounding, where entr is below 0


def margin(probs: Float[Tensor, "classes *grid"]) -> Float[Tensor, "*grid"]:
    """1 - (p1 - p2) of the two likeliest classes: larger is less certain (Scheffer et al. 2001)."""
    first, second = _two_largest(probs)
    return torch.clamp(1 - (first - second), 0, 1)


def least_confidence(probs: Float[Tensor, "classes *grid"]) -> Float[Tensor, "*grid"]:
    """1 - p of the likeliest class (Lewis & Gale 1994)."""
    return torch.clamp(1 - probs.amax(0).float(), 0, 1)


def likeliest(probs: Float[Tensor, "classes *grid"]) -> UInt8[Tensor, "*grid"]:
    """Number of the likeliest class; the lower one of a tie. Several times faster on a CPU than argmax."""
    best = probs[0]
    label = torch.zeros_like(best, dtype=torch.uint8)
    for c, p in enumerate(probs[1:], start=1):
        label.masked_fill_(p > best, c)
        best = torch.maximum(best, p)
    return label


def class_entropy(p: Float[Tensor, "*grid"], predictive_entropy: Float[Tensor, "*grid"]) -> Float[Tensor, "*grid"]:
    """p_c H(p), the share of one class in the predictive entropy; over all classes the shares add up to it.

    One class at a time, so that temporaries stay one grid; what class quotas rank regions by.
    """
    return p * predictive_entropy


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


def _two_largest(probs: Float[Tensor, "classes *grid"]) -> tuple[Float[Tensor, "*grid"], Float[Tensor, "*grid"]]:
    first = probs[0].float().clone()  # float() is the input itself where it is float32 already
    second = torch.zeros_like(first)
    for p in probs[1:]:
        torch.maximum(second, torch.minimum(first, p), out=second)
        torch.maximum(first, p.float(), out=first)
    return first, second


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
            self._probs = probs.to(torch.float32, copy=True)
            self._entropy = entropy(probs)
        else:
            if probs.shape != self._probs.shape:
                raise ValueError(f"draw {self.count} is {tuple(probs.shape)}, the first {tuple(self._probs.shape)}")
            self._probs += probs
            self._entropy += entropy(probs)
        self.count += 1

    def mean(self) -> Float[Tensor, "classes *grid"]:
        """The mean draw; a new tensor.

        Raises:
            ValueError: if no draw was added.
        """
        if self._probs is None:
            raise ValueError("no draw was added; call add() at least once")
        return self._probs / self.count

    def maps(self, names: Iterable[str]) -> dict[str, Float[Tensor, "*grid"]]:
        """The maps asked for, by name in `MAPS`.

        Raises:
            ValueError: if a name is unknown, or no draw was added.
        """
        wanted = tuple(names)
        if unknown := [name for name in wanted if name not in MAPS]:
            raise ValueError(f"no uncertainty map is called {unknown[0]!r}; there are {', '.join(MAPS)}")
        mean = self.mean()
        return {name: MAPS[name](self, mean) for name in wanted}

    def expected_entropy(self) -> Float[Tensor, "*grid"]:
        """Mean of H over the draws added so far."""
        if self._entropy is None:
            raise ValueError("no draw was added; call add() at least once")
        return self._entropy / self.count

    def mutual_information(self, mean: Float[Tensor, "classes *grid"]) -> Float[Tensor, "*grid"]:
        """BALD; clamped at 0, below which only rounding can take it."""
        return (entropy(mean) - self.expected_entropy()).clamp_min_(0)


MAPS: dict[str, Callable[[DrawSums, Tensor], Tensor]] = {
    "predictive_entropy": lambda sums, mean: entropy(mean),
    "expected_entropy": lambda sums, mean: sums.expected_entropy(),
    "mutual_information": lambda sums, mean: sums.mutual_information(mean),
    "margin": lambda sums, mean: margin(mean),
    "least_confidence": lambda sums, mean: least_confidence(mean),
}
"""Every map by name, from the sums and the mean draw."""
