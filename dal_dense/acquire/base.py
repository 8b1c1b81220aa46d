"""What goes into a choice and what comes out of it: plain frozen values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from dal_dense.config import StrategyConfig
from dal_dense.errors import ConfigError
from dal_dense.noise import derive_seed


@dataclass(frozen=True)
class Budget:
    """What one round may cost.

    Attributes:
        seconds: predicted labelling time in whole ticks (`basket.TICK`), images' opening included; never exceeded.
        max_per_image: most regions chosen in one image this round, at least 1; None: no cap.
        max_per_group: most regions chosen in one group (patient, drive) this round, at least 1; None: no cap.
        min_gap: least time between two images of one group that are labelled or asked; None: none. Needs
            `Offers.extra["time"]`.

    Raises:
        ConfigError: if the seconds are infinite or no number, or a cap allows nothing.
    """

    seconds: float
    max_per_image: int | None = None
    max_per_group: int | None = None
    min_gap: float | None = None

    def __post_init__(self) -> None:
        # rows that may not be taken cost infinite seconds, which must not be affordable
        if not math.isfinite(self.seconds):
            raise ConfigError(
                f"a budget needs a finite number of seconds, and got {self.seconds}; say how many to spend"
            )
        for name in ("max_per_image", "max_per_group"):
            if (cap := getattr(self, name)) is not None and cap < 1:
                raise ConfigError(f"{name}: a budget allows 1 region or more, and got {cap}; leave it out for no cap")


@dataclass(frozen=True)
class Round:
    """Which round is asked for: 0 is the start set, 1 to `total` follow."""

    number: int
    total: int
    seed: int

    def seed_for(self, strategy: str) -> int:
        """Seed of one strategy's draws in this round."""
        return derive_seed(self.seed, self.number, strategy)

    @property
    def progress(self) -> float:
        """0 in the first round, 1 in the last (0 if there is only one)."""
        return min(max((self.number - 1) / max(self.total - 1, 1), 0.0), 1.0)


@dataclass(frozen=True)
class Aim:
    """What a choice goes by; see `acquire`.

    Attributes:
        device: where rows of all shards are compared with each other.
    """

    budget: Budget
    options: StrategyConfig
    when: Round
    quota_classes: tuple[int, ...]
    device: torch.device


@dataclass(frozen=True)
class Selection:
    """K chosen rows, in the order chosen.

    Attributes:
        rows: rows of the Offers that were given, int64 (K,).
        seconds: predicted seconds, float64 (K,), whose sums are exact; the first of an image carries its opening.
        value: what each was chosen by, float32 (K,); its meaning is the strategy's.
    """

    rows: Int[Tensor, " K"]
    seconds: Float64[Tensor, " K"]
    value: Float[Tensor, " K"]

    def __len__(self) -> int:
        return self.rows.shape[0]

    @property
    def total(self) -> float:
        """Predicted seconds of all."""
        return float(self.seconds.sum())
