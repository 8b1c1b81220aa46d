"""A fitted detector on disk and in memory: safetensors files and `model.json`, nothing pickled.

`model.json` is written last, by rename, so a folder that holds it is a finished fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from dal_dense.config import DetectionConfig, NetworkConfig
from dal_dense.errors import DataError
from dal_dense.tasks.detection_backend import Detector
from dal_dense.tasks.training import seeded
from dal_dense.tasks.weights import MODEL_FILE, folder_sha256, load_state, put_state, read_card


class ModelCard(BaseModel):
    """`model.json`: all that is needed to build the detectors again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["dal_dense.detection"] = "dal_dense.detection"
    version: Literal[1] = 1
    task: str
    network: NetworkConfig
    detection: DetectionConfig
    classes: tuple[str, ...]
    role: Literal["members", "snapshots"]
    files: tuple[str, ...]
    difficulty: tuple[float, ...]
    """PPAL's class difficulty at the end of the fit, 0..1, by class number."""
    inputs: str
    """Digest of the labels, seed and settings of the fit."""


@dataclass(frozen=True)
class Model:
    """Frozen detectors, ready to predict.

    Attributes:
        card: how they were made.
        detectors: ensemble members, or late snapshots of one fit with the last one first.
        sha256: identity of the folder they came from.
    """

    card: ModelCard
    detectors: tuple[Detector, ...]
    sha256: str


def is_finished(folder: Path, inputs: str) -> bool:
    """Does the folder hold a whole fit of these very inputs? A damaged or foreign card means no."""
    if not (folder / MODEL_FILE).exists():
        return False
    try:
        return read_card(folder, ModelCard).inputs == inputs
    except DataError:
        return False


def load_detectors(
    folder: Path, card: ModelCard, make: Callable[[], Detector], device: torch.device
) -> tuple[Detector, ...]:
    """The detectors that a card describes, in evaluation mode, frozen.

    Raises:
        DataError: if a file is missing or damaged, or belongs to another network.
    """
    detectors = []
    for name in card.files:
        detector = fresh(make, 0)
        put_state(detector.module, load_state(folder / name), folder / name)
        placed(detector.module, device).eval().requires_grad_(False)
        detectors.append(detector)
    return tuple(detectors)


def load_model(folder: Path, make: Callable[[], Detector], device: torch.device) -> Model:
    """A finished fit, ready to predict."""
    card = read_card(folder, ModelCard)
    return Model(card, load_detectors(folder, card, make, device), folder_sha256(folder))


def fresh(make: Callable[[], Detector], seed: int) -> Detector:
    """A new detector with weights from this seed; the global generator is as it was."""
    with seeded(seed, torch.device("cpu")):
        return make()


def placed(module: nn.Module, device: torch.device) -> nn.Module:
    """On its device, in the memory layout that convolutions like best."""
    return module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
