"""A fitted model on disk and in memory: safetensors files and `model.json`, nothing pickled.

`model.json` is written last, by rename, so a folder that holds it is a finished fit.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dal_dense.config import NetworkConfig
from dal_dense.errors import DataError
from dal_dense.tasks.monai_networks import Network, build_network

MODEL_FILE = "model.json"
FIGURES_FILE = "figures.json"

LITTLE = 1 << 20
"""Bytes: with less than this free, a write that failed is taken to have failed for want of space."""


class ModelCard(BaseModel):
    """`model.json`: all that is needed to build the networks again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["dal_dense.monai_segmentation"] = "dal_dense.monai_segmentation"
    version: Literal[1] = 1
    network: NetworkConfig
    ndim: int
    in_channels: int
    classes: tuple[str, ...]
    temperature: float
    role: Literal["members", "snapshots"]
    files: tuple[str, ...]
    inputs: str
    """Digest of the labels, seed and settings of the fit."""


@dataclass(frozen=True)
class Model:
    """Frozen networks, ready to predict.

    Attributes:
        card: how they were made.
        networks: ensemble members, or late snapshots of one fit with the last one first.
        sha256: identity of the folder they came from.
    """

    card: ModelCard
    networks: tuple[Network, ...]
    sha256: str


def save_weights(network: nn.Module, path: Path) -> None:
    """Parameters as safetensors, by rename. Modules that share parameters are written once."""
    plain = {name: p.detach().cpu().contiguous() for name, p in network.named_parameters()}
    write_whole(path, lambda target: save_file(plain, target))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Named parameters of a safetensors file.

    Raises:
        DataError: if the file is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as problem:
        raise DataError(
            f"weights {path} cannot be read ({problem}); restore the file, or delete its folder and run again to refit"
        ) from problem


def put_weights(network: nn.Module, weights: Mapping[str, Tensor], where: Path) -> None:
    """Copy named parameters into a network.

    Raises:
        DataError: if names or shapes differ.
    """
    own = dict(network.named_parameters())
    if own.keys() != weights.keys() or any(own[k].shape != weights[k].shape for k in own):
        raise DataError(
            f"weights {where} belong to another network (other parameters or shapes than task.network describes); "
            "keep task.network as it was, or set task.train.start to scratch"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])


def write_card(folder: Path, card: ModelCard, figures: Mapping[str, float]) -> None:
    """Declare the folder finished."""
    write_text(folder / FIGURES_FILE, json.dumps(dict(figures), indent=1))
    write_text(folder / MODEL_FILE, card.model_dump_json(indent=1))


def read_card(folder: Path) -> ModelCard:
    """The description of a finished fit.

    Raises:
        DataError: if there is none, or it is damaged.
    """
    try:
        return ModelCard.model_validate_json((folder / MODEL_FILE).read_text())
    except (OSError, ValidationError) as problem:
        raise DataError(
            f"{folder} holds no finished model (no valid {MODEL_FILE}); "
            "name the folder of a finished fit, or run again to refit"
        ) from problem


def read_figures(folder: Path) -> dict[str, float]:
    """The figures of a finished fit."""
    return {k: float(v) for k, v in json.loads((folder / FIGURES_FILE).read_text()).items()}


def folder_sha256(folder: Path) -> str:
    """Over names and contents of the weights and `model.json`; the figures hold times and are left out."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix == ".safetensors" or p.name == MODEL_FILE):
        total.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def load_networks(folder: Path, card: ModelCard, device: torch.device) -> tuple[Network, ...]:
    """The networks that a card describes, in evaluation mode, frozen.

    Raises:
        DataError: if a file is missing or damaged, or does not fit the card.
    """
    networks = []
    for name in card.files:
        network = build_network(
            card.network, ndim=card.ndim, in_channels=card.in_channels, classes=len(card.classes), seed=0
        )
        put_weights(network, load_weights(folder / name), folder / name)
        networks.append(placed(network, device).eval().requires_grad_(False))
    return tuple(networks)


def load_model(folder: Path, device: torch.device) -> Model:
    """A finished fit, ready to predict."""
    card = read_card(folder)
    return Model(card, load_networks(folder, card, device), folder_sha256(folder))


def placed(network: Network, device: torch.device) -> Network:
    """On its device, in the memory layout that is fastest there (measured: 3-D on the CPU gains a quarter)."""
    network.to(device)
    if device.type == "cpu" and any(p.ndim == 5 for p in network.parameters()):
        for p in network.parameters():
            if p.ndim == 5:
                p.data = p.data.contiguous(memory_format=torch.channels_last_3d)
    return network


def write_text(path: Path, text: str) -> None:
    """A small file, by rename."""
    write_whole(path, lambda target: target.write_text(text))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside `path`, flush to disk, rename: the file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    try:
        write(beside)
    except (SafetensorError, RuntimeError) as problem:  # neither library raises OSError when the disk is full
        if shutil.disk_usage(path.parent).free > LITTLE:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from problem
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    beside.replace(path)
