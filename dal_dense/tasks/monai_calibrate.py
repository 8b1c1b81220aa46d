"""The temperature of a fit, from labelled regions that training never saw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dal_dense.calibration import CalibrationSums, fit_temperature, mean_probabilities
from dal_dense.noise import derive_seed
from dal_dense.tasks.base import IGNORE
from dal_dense.tasks.monai_batches import Piece
from dal_dense.tasks.monai_infer import Pass, Windows, pass_logits

VOXELS_A_PIECE = 20_000
"""Held-out voxels remembered a piece; a random subset where there are more."""


def calibrate(
    draws: Sequence[Pass], pieces: Sequence[Piece], windows: Windows, *, seed: int
) -> tuple[float, dict[str, float]]:
    """Temperature, and ECE before and after on the held-out voxels.

    What is calibrated is the prediction that is measured: the mean over the members.

    Args:
        draws: one plain pass a member.
        pieces: held-out ground.
        windows: as at inference.
        seed: of the subset of voxels.
    """
    logits: list[Tensor] = []
    truth: list[Tensor] = []
    for piece in pieces:
        voxels = np.flatnonzero((piece.label != IGNORE).numpy().reshape(-1))
        if len(voxels) > VOXELS_A_PIECE:
            rng = np.random.default_rng(derive_seed(seed, "calibrate", len(truth)))
            voxels = np.sort(rng.choice(voxels, VOXELS_A_PIECE, replace=False))
        if not len(voxels):
            continue
        rows = torch.from_numpy(voxels)
        outputs = [pass_logits(draw, piece.image, windows).flatten(1).cpu()[:, rows].T for draw in draws]
        logits.append(torch.stack(outputs))
        truth.append(piece.label.reshape(-1)[rows])
    if not truth:
        return 1.0, {"temperature": 1.0, "held_out_voxels": 0.0}
    values, classes = torch.cat(logits, 1), torch.cat(truth)
    # one class alone would be "calibrated" by certainty without bound
    several = bool((classes != classes[0]).any())
    temperature = fit_temperature(values, classes) if several else 1.0
    return temperature, {
        "temperature": temperature,
        "ece_before": _error(values, classes, 1.0),
        "ece_after": _error(values, classes, temperature),
        "held_out_voxels": float(len(classes)),
    }


def _error(logits: Tensor, truth: Tensor, temperature: float) -> float:
    sums = CalibrationSums()
    sums.add(mean_probabilities(logits, temperature).T, truth)
    return sums.error()
