"""Are the probabilities right? One temperature to mend them, and the error that is left.

Temperature scaling and the expected calibration error as in Guo et al. 2017, "On Calibration of
Modern Neural Networks"; ECE with 15 equal bins of the likeliest class's probability.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Integer
from torch import Tensor

BINS = 15
LOWEST, HIGHEST = 0.25, 8.0
"""Bounds of the temperature."""

_GOLDEN = (math.sqrt(5) - 1) / 2


def mean_probabilities(logits: Float[Tensor, "members n classes"], temperature: float) -> Float[Tensor, "n classes"]:
    """Mean over the members of softmax(logits / temperature)."""
    return torch.softmax(logits / temperature, -1).mean(0)


def negative_log_likelihood(
    logits: Float[Tensor, "members n classes"], truth: Integer[Tensor, " n"], temperature: float
) -> float:
    """Mean -log p of the true class, in nats."""
    p = mean_probabilities(logits, temperature).gather(1, truth[:, None].long())
    return float(-p.double().clamp_min(1e-12).log().mean())


def fit_temperature(
    logits: Float[Tensor, "members n classes"], truth: Integer[Tensor, " n"], *, steps: int = 24
) -> float:
    """The temperature of least negative log-likelihood, by golden section on its logarithm.

    Args:
        logits: of held-out voxels; the members' mean is what gets calibrated.
        truth: class numbers.
        steps: each narrows the bracket by 0.618; 24 leave a relative error of 4e-5.
    """
    low, high = math.log(LOWEST), math.log(HIGHEST)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left = negative_log_likelihood(logits, truth, math.exp(left))
    at_right = negative_log_likelihood(logits, truth, math.exp(right))
    for _ in range(steps):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = negative_log_likelihood(logits, truth, math.exp(left))
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = negative_log_likelihood(logits, truth, math.exp(right))
    return math.exp((low + high) / 2)


class CalibrationSums:
    """Running sums a bin of confidence, so that whole test sets stream through."""

    def __init__(self) -> None:
        self._sums = torch.zeros(3, BINS, dtype=torch.float64)  # voxels, confidence, hits

    def add(self, probs: Float[Tensor, "classes n"], truth: Integer[Tensor, " n"]) -> None:
        """Take voxels in; every one must have a true class."""
        confidence, predicted = probs.max(0)
        bins = (confidence * BINS).long().clamp_(0, BINS - 1)
        for row, values in enumerate((None, confidence, (predicted == truth))):
            weights = None if values is None else values.double()
            self._sums[row] += torch.bincount(bins, weights=weights, minlength=BINS).double().cpu()

    def take(self, other: CalibrationSums) -> None:
        """Take in the voxels of other sums."""
        self._sums += other._sums

    def error(self) -> float:
        """Expected calibration error, 0 to 1; NaN if nothing was added."""
        voxels, confidence, hits = self._sums
        total = voxels.sum()
        return float((confidence - hits).abs().sum() / total) if total > 0 else math.nan

    def bins(self) -> dict[str, float]:
        """Mean confidence and accuracy of each bin that holds voxels, as `bin_07_confidence`, `bin_07_accuracy`."""
        voxels, confidence, hits = self._sums
        found = {}
        for b in voxels.nonzero()[:, 0].tolist():
            found[f"bin_{b:02d}_confidence"] = float(confidence[b] / voxels[b])
            found[f"bin_{b:02d}_accuracy"] = float(hits[b] / voxels[b])
        return found


def reliability_bins(figures: Mapping[str, float | None]) -> list[tuple[float, float]]:
    """(confidence, accuracy) a bin, out of the figures that `CalibrationSums.bins` named."""
    pairs = [(figures.get(f"bin_{b:02d}_confidence"), figures.get(f"bin_{b:02d}_accuracy")) for b in range(BINS)]
    return [(c, a) for c, a in pairs if c is not None and a is not None]
