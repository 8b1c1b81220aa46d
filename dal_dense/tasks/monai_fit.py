"""The training loop: stopped at any moment and called again, it ends with the very same weights.

Nothing is drawn from a global generator: the crops of iteration i and the dropout of iteration i
are functions of (seed, i), and the learning rate is a function of i. What a half-done fit leaves is
therefore parameters, optimiser state and a number.
"""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dal_dense.config import TrainConfig
from dal_dense.errors import Stopped
from dal_dense.tasks.base import Hooks
from dal_dense.tasks.monai_batches import Crops
from dal_dense.tasks.monai_losses import dice_ce
from dal_dense.tasks.monai_networks import Network
from dal_dense.tasks.monai_weights import put_weights, save_weights
from dal_dense.tasks.parts import Parts, part_seed
from dal_dense.tasks.training import (
    LOOK_EVERY,
    PERTURB,
    check_finite,
    deterministic,
    learning_rate,
    mixed_precision,
    seeded,
)
from dal_dense.tasks.weights import write_whole

CLIP = 1.0
"""Largest norm of a gradient."""


@dataclass(frozen=True)
class Stint:
    """One member's training.

    Attributes:
        crops: where batches come from.
        train: settings.
        background: class 0 is background.
        seed: of dropout.
        device: where it runs.
        folder: where the half-done state and snapshots go.
        inputs: digest of labels, seed and settings; a state of other inputs is not continued.
        snapshots: iterations after which the weights are kept, to file name.
        clock: seconds, for checkpoints and the figures only.
    """

    crops: Crops
    train: TrainConfig
    background: bool
    seed: int
    device: torch.device
    folder: Path
    inputs: str
    snapshots: Mapping[int, str]
    clock: Callable[[], float] = time.monotonic


@dataclass
class _Progress:
    iteration: int = 0
    loss: float = math.nan
    seconds: float = 0.0


def train_network(network: Network, stint: Stint, hooks: Hooks, *, done: int, total: int) -> tuple[float, float]:
    """Train, or go on training, one network; its snapshots lie in the folder afterwards.

    Args:
        network: freshly built (or warm) weights, on the device.
        stint: what to do.
        hooks: progress, the wish to stop, and who shares the parts of each step; the first process writes.
        done: iterations of earlier members, for progress.
        total: iterations of all members.

    Returns:
        Running mean of the loss at the end, and seconds of training.

    Raises:
        Stopped: the person asked to stop; the half-done state is saved.
        ConfigError: the loss is no longer a number.
    """
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=stint.train.lr, weight_decay=stint.train.weight_decay, fused=True
    )
    state, ranks = stint.folder / "half_done.pt", hooks.ranks
    at = _resume(ranks.told(lambda: _half_done(state)), stint, network, optimiser)
    parts = Parts(network, partial(_loss, network, stint), stint.train.parts, ranks)
    began = saved = stint.clock()
    before = at.seconds
    network.train()
    loss = torch.tensor(at.loss, device=stint.device)
    with deterministic(stint.device):
        while at.iteration < stint.train.iterations:
            loss = _step(network, optimiser, stint.train, parts, at.iteration, loss)
            at.iteration += 1
            hooks.progress("fit", done + at.iteration, total)
            if at.iteration % LOOK_EVERY == 0:
                check_finite(loss, at.iteration)
            if ranks.first and at.iteration in stint.snapshots:
                save_weights(network, stint.folder / stint.snapshots[at.iteration])
            now = stint.clock()
            at.seconds = before + now - began
            stopping = ranks.agreed(hooks.stopping())
            if (stopping or now - saved >= stint.train.checkpoint_seconds) and at.iteration < stint.train.iterations:
                at.loss, saved = float(loss), now
                if ranks.first:
                    _save(state, stint, network, optimiser, at)
                if stopping:
                    raise Stopped
    check_finite(loss, at.iteration)
    if ranks.first:
        state.unlink(missing_ok=True)
    return float(loss), at.seconds


def _step(
    network: Network,
    optimiser: torch.optim.Optimizer,
    train: TrainConfig,
    parts: Parts,
    iteration: int,
    running: Tensor,
) -> Tensor:
    """One optimiser step; returns the running mean of the loss, still on the device."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(train, iteration)
    loss = parts.gradient(iteration)
    nn.utils.clip_grad_norm_(network.parameters(), CLIP)
    optimiser.step()
    return torch.where(running.isnan(), loss, 0.98 * running + 0.02 * loss)


def _loss(network: Network, stint: Stint, iteration: int, part: int) -> Tensor:
    images, labels = stint.crops.batch(iteration, stint.device, part)
    with seeded(part_seed(stint.seed, "dropout", iteration, part), stint.device), mixed_precision(stint.device):
        logits = network(images)
    return dice_ce(logits, labels, background=stint.background)


def start_from(network: Network, weights: Mapping[str, Tensor], where: Path, train: TrainConfig) -> None:
    """Give a fresh network the last round's weights: as they are (warm), or shrunk and perturbed.

    The perturbation is a share of the fresh network's own weights (Ash & Adams 2020, "On Warm-Starting
    Neural Network Training").
    """
    if train.start == "shrink_perturb":
        fresh = {name: p.detach().cpu().clone() for name, p in network.named_parameters()}
        weights = {k: train.shrink * w + PERTURB * fresh[k] if k in fresh else w for k, w in weights.items()}
    put_weights(network, weights, where)


def _save(path: Path, stint: Stint, network: Network, optimiser: torch.optim.Optimizer, at: _Progress) -> None:
    state = {
        "inputs": stint.inputs,
        "seed": stint.seed,
        "iteration": at.iteration,
        "loss": at.loss,
        "seconds": at.seconds,
        "network": {name: p.detach() for name, p in network.named_parameters()},
        "optimiser": optimiser.state_dict(),
    }
    write_whole(path, lambda target: torch.save(state, target))


def _half_done(path: Path) -> dict[str, Any] | None:
    """What an earlier call left; None if it is absent or damaged."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError):
        return None
    return state


def _resume(
    state: dict[str, Any] | None, stint: Stint, network: Network, optimiser: torch.optim.Optimizer
) -> _Progress:
    """Where an earlier call left off; a state that is absent or of other inputs means the beginning."""
    if state is None or (state["inputs"], state["seed"]) != (stint.inputs, stint.seed):
        return _Progress()
    put_weights(network, state["network"], stint.folder)
    optimiser.load_state_dict(state["optimiser"])
    return _Progress(int(state["iteration"]), float(state["loss"]), float(state["seconds"]))
