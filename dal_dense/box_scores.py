"""One number a predicted box: how much its label would teach. Larger is more."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from dal_dense.detections import Detections

ALPHA, BETA = 0.3, 0.2
"""Shape of PPAL's class weights, as published."""
STEADY = 1.3
"""CALD's base point: agreement of a box that is found again, but not surely; no m is larger."""


def box_scores(name: str, found: Detections, difficulty: Float[Tensor, " C"]) -> Float[Tensor, " N"]:
    """The score of each box, >= 0.

    Args:
        name: one of the settings' `uncertainty.score`.
        found: the frame's boxes.
        difficulty: of each class, for `difficulty_entropy`.

    Raises:
        ValueError: for another name.
    """
    probs = found.probs.float()
    if name == "predictive_entropy":
        return entropy(probs)
    if name == "expected_entropy":
        return found.expected_entropy
    if name == "mutual_information":  # BALD; Houlsby et al. 2011
        return (entropy(probs) - found.expected_entropy).clamp_min(0)
    if name == "margin":
        first, second = probs.topk(2, dim=1).values.unbind(1)
        return (1 - (first - second)).clamp(0, 1)
    if name == "least_confidence":
        return (1 - probs.amax(1)).clamp(0, 1)
    if name == "spread":
        return found.spread
    if name == "inconsistency":  # Yu et al. 2022, CALD: most where a box is neither lost nor found again for sure
        return (STEADY - found.consistency).clamp_min(0)
    if name == "difficulty_entropy":
        return class_weights(difficulty)[found.classes] * binary_entropy(found.scores)
    raise ValueError(f"no score of a box is called {name!r}")


def entropy(probs: Float[Tensor, "N C"]) -> Float[Tensor, " N"]:
    """Of the whole class distribution, nats."""
    total: Tensor = torch.special.entr(probs).sum(1)
    return total.clamp_min(0)


def binary_entropy(scores: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Of object or not, nats."""
    total: Tensor = torch.special.entr(scores) + torch.special.entr(1 - scores)
    return total.clamp_min(0)


def class_weights(difficulty: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
    """PPAL's weight of a class: 1 where it is easy, 1 + beta where it is hardest (Yang et al. 2024)."""
    return 1 + ALPHA * BETA * torch.log1p((math.exp(1 / ALPHA) - 1) * difficulty.float().clamp(0, 1))
