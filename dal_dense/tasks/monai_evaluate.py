"""Dice and mIoU from one confusion matrix an image; nothing larger is kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from dal_dense.calibration import CalibrationSums
from dal_dense.tasks.base import IGNORE, Measurement
from dal_dense.uncertainty import likeliest


def confusion(
    truth: UInt8[Tensor, "*grid"], predicted: UInt8[Tensor, "*grid"], classes: int
) -> Int[np.ndarray, "classes classes"]:
    """Voxels by true class (rows) and predicted class (columns); `IGNORE` in the truth is left out."""
    pairs = truth.int() * classes + predicted
    if not bool((known := truth != IGNORE).all()):
        pairs = pairs[known]
    counts: Int[np.ndarray, "classes classes"] = (
        torch.bincount(pairs.flatten(), minlength=classes**2).reshape(classes, classes).cpu().numpy()
    )
    return counts


def dice(matrix: Int[np.ndarray, "classes classes"]) -> Float[np.ndarray, " classes"]:
    """2 TP / (2 TP + FP + FN) a class; NaN where it is neither there nor predicted."""
    return _ratio(2 * np.diag(matrix), matrix.sum(0) + matrix.sum(1))


def iou(matrix: Int[np.ndarray, "classes classes"]) -> Float[np.ndarray, " classes"]:
    """TP / (TP + FP + FN) a class; NaN where it is neither there nor predicted."""
    hits = np.diag(matrix)
    return _ratio(hits, matrix.sum(0) + matrix.sum(1) - hits)


def _ratio(above: np.ndarray, below: np.ndarray) -> Float[np.ndarray, " classes"]:
    ratio = np.full(len(below), np.nan)
    np.divide(above, below, out=ratio, where=below > 0)
    return ratio


def _mean(values: np.ndarray) -> Float[np.ndarray, " classes"]:
    """Mean over the first axis without NaN; NaN where there is nothing else."""
    there = ~np.isnan(values)
    return _ratio(np.where(there, values, 0).sum(0), there.sum(0))


@dataclass(frozen=True)
class Seen:
    """What is counted in one image: small enough to be sent to another process.

    Attributes:
        matrix: see `confusion`.
        calibration: of its labelled voxels.
    """

    matrix: Int[np.ndarray, "classes classes"]
    calibration: CalibrationSums


def seen(probs: Float[Tensor, "classes *grid"], truth: UInt8[Tensor, "*grid"]) -> Seen:
    """Count one image, on its own stored grid."""
    known, calibration = truth != IGNORE, CalibrationSums()
    if bool(known.all()):  # as most truth is; picking out the voxels would copy all probabilities
        calibration.add(probs.flatten(1), truth.flatten())
    else:
        calibration.add(probs[:, known], truth[known])
    return Seen(confusion(truth, likeliest(probs), probs.shape[0]), calibration)


@dataclass
class Scoreboard:
    """Running figures of one measurement.

    Args:
        classes: names.
        metric: dice (mean over images, then over classes) or miou (all voxels pooled). A class counts if the truth
            of any image holds it, so that a few false voxels do not change over which classes the mean is.
        background: class 0 is left out of means.
    """

    classes: tuple[str, ...]
    metric: str
    background: bool
    _matrices: dict[str, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    _calibration: CalibrationSums = field(default_factory=CalibrationSums)

    def add(self, group: str, image: Seen) -> None:
        """Take one image in."""
        self._matrices[group].append(image.matrix)
        self._calibration.take(image.calibration)

    def result(self) -> Measurement:
        """The measurement over everything added."""
        everything = [m for group in self._matrices.values() for m in group]
        there = np.sum(everything, axis=0).sum(1) > 0 if everything else np.zeros(len(self.classes), bool)
        per_class = self._per_class(everything, there)
        return Measurement(
            metric=self.metric,
            value=self._over_classes(per_class),
            per_class=dict(zip(self.classes, per_class.tolist(), strict=True)),
            per_group={g: self._over_classes(self._per_class(m, there)) for g, m in sorted(self._matrices.items())},
            extra={"ece": self._calibration.error(), **self._calibration.bins()},
        )

    def _per_class(
        self, matrices: Sequence[np.ndarray], there: Bool[np.ndarray, " classes"]
    ) -> Float[np.ndarray, " classes"]:
        if not matrices:
            return np.full(len(self.classes), np.nan)
        miou = self.metric == "miou"
        figures = iou(np.sum(matrices, axis=0)) if miou else _mean(np.stack([dice(m) for m in matrices]))
        return np.where(there, figures, np.nan)

    def _over_classes(self, values: np.ndarray) -> float:
        counted = values[1:] if self.background else values
        return float(_mean(counted[:, None])[0])
