"""What every training loop here shares: seeds, precision, determinism, the schedule."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from dal_dense.config import TrainConfig
from dal_dense.errors import ConfigError

WARM_UP = 0.1
"""Share of the iterations in which the learning rate rises."""

PERTURB = 0.1
"""shrink_perturb: share of a fresh network's weights that is added to the shrunk ones."""

LOOK_EVERY = 20
"""Iterations between checks that the loss is a number (each waits for the device)."""


def learning_rate(train: TrainConfig, iteration: int) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak (Smith & Topin 2019; Loshchilov & Hutter 2017)."""
    warm = max(1, round(WARM_UP * train.iterations))
    if iteration < warm:
        return train.lr * (iteration + 1) / warm
    along = (iteration - warm) / max(1, train.iterations - warm)
    return train.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * along)))


def late_snapshots(iterations: int, count: int) -> list[int]:
    """Iterations of `count` snapshots spread over the last third of a fit, the end first."""
    thirds = [iterations - round(k * iterations / 3 / count) for k in range(count)]
    return list(dict.fromkeys(max(1, n) for n in thirds))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draws from their own seed; the global generator is as it was afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def mixed_precision(device: torch.device) -> torch.autocast:
    """bfloat16 where CUDA has it; float32 elsewhere."""
    wanted = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted)


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """The same convolution algorithms run after run on CUDA, for training and inference alike."""
    cudnn = torch.backends.cudnn
    if device.type != "cuda":
        yield
        return
    # what is not named here would go to flags()'s own defaults, and `enabled` to False
    with cudnn.flags(enabled=cudnn.enabled, allow_tf32=cudnn.allow_tf32, deterministic=True, benchmark=False):
        yield


def check_finite(loss: Tensor, iteration: int) -> None:
    """Raise `ConfigError` if the running loss is no longer a number."""
    if not bool(torch.isfinite(loss)):
        raise diverged(iteration)


def diverged(iteration: int) -> ConfigError:
    """What to tell when the loss is no longer a number."""
    return ConfigError(
        f"task.train.lr: the loss is no longer a number at iteration {iteration}; "
        "lower task.train.lr (a third of it is a good next try)"
    )
