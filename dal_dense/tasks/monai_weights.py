"""A fitted model on disk and in memory: safetensors files and `model.json`, nothing pickled.

`model.json` is written last, by rename, so a folder that holds it is a finished fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import save_file
from torch import Tensor, nn

from dal_dense.config import NetworkConfig
from dal_dense.errors import DataError
from dal_dense.tasks.monai_networks import Network, build_network
from dal_dense.tasks.weights import folder_sha256, load_state, read_card, write_whole


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
        put_weights(network, load_state(folder / name), folder / name)
        networks.append(placed(network, device).eval().requires_grad_(False))
    return tuple(networks)


def load_model(folder: Path, device: torch.device) -> Model:
    """A finished fit, ready to predict."""
    card = read_card(folder, ModelCard)
    return Model(card, load_networks(folder, card, device), folder_sha256(folder))


def placed(network: Network, device: torch.device) -> Network:
    """On its device, in the memory layout that is fastest there (measured: 3-D on the CPU gains a quarter)."""
    network.to(device)
    if device.type == "cpu" and any(p.ndim == 5 for p in network.parameters()):
        for p in network.parameters():
            if p.ndim == 5:
                p.data = p.data.contiguous(memory_format=torch.channels_last_3d)
    return network
