"""Weights on disk: safetensors, written whole or not at all, nothing pickled."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dal_dense.errors import DataError

MODEL_FILE = "model.json"
FIGURES_FILE = "figures.json"

LITTLE = 1 << 20
"""Bytes: with less than this free, a write that failed is taken to have failed for want of space."""


def save_state(module: nn.Module, path: Path) -> None:
    """Parameters and buffers as safetensors, by rename."""
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in module.state_dict().items()}
    write_whole(path, lambda target: save_file(plain, target))


def load_state(path: Path) -> dict[str, Tensor]:
    """Named tensors of a safetensors file.

    Raises:
        DataError: if the file is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as problem:
        raise DataError(
            f"weights {path} cannot be read ({problem}); restore the file, or delete its folder and run again to refit"
        ) from problem


def put_state(module: nn.Module, state: Mapping[str, Tensor], where: Path) -> None:
    """Copy named parameters and buffers into a network of the same names and shapes.

    Raises:
        DataError: if names or shapes differ.
    """
    own = module.state_dict()
    if own.keys() != state.keys() or any(own[k].shape != state[k].shape for k in own):
        raise DataError(
            f"weights {where} belong to another network (other names or shapes than the settings under task describe); "
            "keep task.network and task.detection as they were, or set task.train.start to scratch"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state[name])


def read_foreign(path: Path) -> dict[str, Tensor]:
    """Named tensors of a file that someone else made: .safetensors, or a state_dict as .pth or .pt.

    Raises:
        DataError: if it cannot be read without unpickling objects, or holds no tensors by name.
    """
    remedy = "give a .safetensors file, or a .pth file that torch.save wrote from a state_dict"
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, KeyError, ValueError, SafetensorError, pickle.UnpicklingError) as problem:
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise DataError(f"task.detection.weights {path} cannot be read ({reason}); {remedy}") from problem
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    tensors = {k: v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, dict) else {}
    if not tensors:
        raise DataError(f"task.detection.weights {path} holds no tensors by name; {remedy}")
    return tensors


def take_matching(module: nn.Module, state: Mapping[str, Tensor], where: Path, prefixes: tuple[str, ...]) -> int:
    """Copy what matches by name and shape, under the prefix under which most does.

    Returns:
        How many tensors were taken.

    Raises:
        DataError: if nothing matches.
    """
    own = module.state_dict()
    choices = [
        {prefix + k: v for k, v in state.items() if prefix + k in own and own[prefix + k].shape == v.shape}
        for prefix in prefixes
    ]
    best = max(choices, key=len)
    if not best:
        names = ", ".join(list(state)[:3])
        raise DataError(
            f"task.detection.weights {where}: none of its {len(state)} tensors ({names}, ...) fits the network by name "
            "and shape; choose the file that belongs to task.detection.backbone and task.network.name"
        )
    with torch.no_grad():
        for name, value in best.items():
            own[name].copy_(value)
    return len(best)


Card = TypeVar("Card", bound=BaseModel)


def write_card(folder: Path, card: BaseModel, figures: Mapping[str, float]) -> None:
    """Declare the folder finished."""
    write_text(folder / FIGURES_FILE, json.dumps(dict(figures), indent=1))
    write_text(folder / MODEL_FILE, card.model_dump_json(indent=1))


def read_card(folder: Path, kind: type[Card]) -> Card:
    """The description of a finished fit.

    Raises:
        DataError: if there is none, or it is damaged.
    """
    try:
        return kind.model_validate_json((folder / MODEL_FILE).read_text())
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
