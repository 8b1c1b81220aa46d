"""The training of detectors: stopped at any moment and called again, it ends with the very same weights.

Nothing is drawn from the global generator as the caller left it: the windows of iteration i, and
the sampling and dropout in iteration i, are functions of (seed, i), and the learning rate is a
function of i. What a half-done fit leaves is therefore weights, optimiser state and a number.

    half_done/           inputs.txt, half_done.pt, finished members; gone once the fit is done
    member_00.safetensors, ... or snapshot_00.safetensors, ... (the end of the fit first)
    figures.json, model.json    the finished fit; model.json comes last
"""

from __future__ import annotations

import json
import math
import pickle
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dal_dense.config import TaskConfig, TrainConfig, UncertaintyConfig
from dal_dense.errors import Stopped
from dal_dense.noise import derive_seed
from dal_dense.tasks.base import Hooks
from dal_dense.tasks.detection_backend import Detector
from dal_dense.tasks.detection_difficulty import class_difficulty
from dal_dense.tasks.detection_ground import Windows
from dal_dense.tasks.detection_weights import ModelCard, fresh, load_detectors, placed
from dal_dense.tasks.parts import Parts, part_seed
from dal_dense.tasks.training import (
    LOOK_EVERY,
    PERTURB,
    check_finite,
    deterministic,
    diverged,
    late_snapshots,
    learning_rate,
    mixed_precision,
    seeded,
)
from dal_dense.tasks.weights import (
    MODEL_FILE,
    load_state,
    put_state,
    read_card,
    read_foreign,
    save_state,
    take_matching,
    write_card,
    write_text,
    write_whole,
)


@dataclass(frozen=True)
class Plan:
    """The settings of a fit.

    Attributes:
        make: a fresh detector, weights from the global generator.
        prefixes: under which the tensors of a user's weights may belong.
        task: network and training.
        uncertainty: how many members or snapshots.
        classes: names.
        device: where it runs.
        clock: seconds, for checkpoints and the figures only.
    """

    make: Callable[[], Detector]
    prefixes: tuple[str, ...]
    task: TaskConfig
    uncertainty: UncertaintyConfig
    classes: tuple[str, ...]
    device: torch.device
    clock: Callable[[], float] = time.monotonic

    @property
    def members(self) -> int:
        """Networks trained."""
        return self.uncertainty.count if self.uncertainty.draws == "ensemble" else 1

    def snapshots(self, member: int) -> dict[int, str]:
        """Iterations after which a member's weights are kept, the end first, to file name."""
        iterations = self.task.train.iterations
        if self.uncertainty.draws != "checkpoints":
            return {iterations: f"member_{member:02d}.safetensors"}
        late = late_snapshots(iterations, self.uncertainty.count)
        return {n: f"snapshot_{k:02d}.safetensors" for k, n in enumerate(late)}


@dataclass
class _Progress:
    iteration: int = 0
    loss: float = math.nan
    seconds: float = 0.0


def fit_detectors(
    plan: Plan, windows: Windows, *, seed: int, out: Path, previous: Path | None, inputs: str, hooks: Hooks
) -> None:
    """Train into `out`, from where an earlier call with the same inputs was stopped; the first process writes.

    Raises:
        DataError: if weights to begin from cannot be used.
        ConfigError: the loss is no longer a number.
        Stopped: the person asked to stop; the half-done work is saved.
    """
    ranks, work = hooks.ranks, out / "half_done"
    if ranks.first:
        (out / MODEL_FILE).unlink(missing_ok=True)
        _clear_for(inputs, work)
    for member in range(plan.members):
        stamp = work / _stamp(member)
        if not ranks.told(stamp.exists):
            figures = _train_member(plan, windows, member, seed, work, previous, inputs, hooks)
            if ranks.first:
                write_text(stamp, json.dumps(figures))
    ranks.told(lambda: _finish(plan, windows, out, work, inputs, hooks))


def _finish(plan: Plan, windows: Windows, out: Path, work: Path, inputs: str, hooks: Hooks) -> None:
    """From trained members to a finished folder."""
    files = [name for m in range(plan.members) for name in plan.snapshots(m).values()]
    for stale in out.glob("*.safetensors"):
        stale.unlink()
    for name in files:
        shutil.copyfile(work / name, out / name)
    card = ModelCard(
        task=plan.task.name,
        network=plan.task.network,
        detection=plan.task.detection,
        classes=plan.classes,
        role="snapshots" if plan.uncertainty.draws == "checkpoints" else "members",
        files=tuple(files),
        difficulty=(0.0,) * len(plan.classes),
        inputs=inputs,
    )
    detectors = load_detectors(out, card, plan.make, plan.device)
    difficulty = class_difficulty(detectors[0], windows, len(plan.classes), hooks)
    if not all(map(math.isfinite, difficulty)):  # the last step, whose loss nobody saw, broke the weights
        raise diverged(plan.task.train.iterations)
    stamps = [json.loads((work / _stamp(m)).read_text()) for m in range(plan.members)]
    total = {name: math.fsum(s[name] for s in stamps) for name in stamps[0]}
    total["loss"] /= len(stamps)
    total["iterations"] = float(plan.task.train.iterations * plan.members)
    write_card(out, card.model_copy(update={"difficulty": difficulty}), total)
    shutil.rmtree(work)


def _train_member(
    plan: Plan, windows: Windows, member: int, seed: int, work: Path, previous: Path | None, inputs: str, hooks: Hooks
) -> dict[str, float]:
    """One member's training, and its figures."""
    own = derive_seed(seed, "member", member)
    detector = fresh(plan.make, own)
    taken = _first_weights(detector, plan, member, previous, hooks)
    placed(detector.module, plan.device)
    run = _Run(detector, plan, replace(windows, seed=own), own, work, inputs, member)
    loss, seconds = run.train(hooks)
    return {"loss": loss, "train_seconds": seconds, "weights_matched": float(taken)}


def _first_weights(detector: Detector, plan: Plan, member: int, previous: Path | None, hooks: Hooks) -> int:
    """Weights of the last round or from the user's file; how many tensors were taken."""
    train, file = plan.task.train, plan.task.detection.weights
    if previous is not None and train.start != "scratch":
        files = read_card(previous, ModelCard).files
        last = previous / files[member % len(files)]
        state = load_state(last)
        if train.start == "shrink_perturb":
            state = _perturbed(detector.module, state, train)
        put_state(detector.module, state, last)
        return len(state)
    if file is None:
        return 0
    taken = take_matching(detector.module, read_foreign(Path(file)), Path(file), plan.prefixes)
    hooks.progress(f"tensors taken from {Path(file).name}", taken, len(detector.module.state_dict()))
    return taken


def _perturbed(module: nn.Module, state: Mapping[str, Tensor], train: TrainConfig) -> dict[str, Tensor]:
    """Ash & Adams 2020, "On Warm-Starting Neural Network Training": shrunk, plus a share of fresh weights."""
    own = {name: p.detach() for name, p in module.named_parameters()}
    return {k: train.shrink * w + PERTURB * own[k] if k in own and own[k].shape == w.shape else w
            for k, w in state.items()}  # fmt: skip


@dataclass
class _Run:
    """The loop of one member."""

    detector: Detector
    plan: Plan
    windows: Windows
    seed: int
    folder: Path
    inputs: str
    member: int

    def train(self, hooks: Hooks) -> tuple[float, float]:
        """Running mean of the loss at the end, and seconds of training."""
        settings, clock, module = self.plan.task.train, self.plan.clock, self.detector.module
        wanted = [p for p in module.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(wanted, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
        ranks = hooks.ranks
        at = self._resume(ranks.told(self._half_done), optimiser)
        parts = Parts(module, self._loss, settings.parts, ranks)
        began = saved = clock()
        before, done = at.seconds, self.member * settings.iterations
        snapshots = self.plan.snapshots(self.member)
        loss = torch.tensor(at.loss, device=self.plan.device)
        with deterministic(self.plan.device):
            while at.iteration < settings.iterations:
                loss = self._step(optimiser, parts, at.iteration, loss)
                at.iteration += 1
                hooks.progress("fit", done + at.iteration, self.plan.members * settings.iterations)
                if at.iteration % LOOK_EVERY == 0:
                    check_finite(loss, at.iteration)
                if ranks.first and at.iteration in snapshots:
                    save_state(module, self.folder / snapshots[at.iteration])
                now = clock()
                at.seconds = before + now - began
                stopping = ranks.agreed(hooks.stopping())
                if (stopping or now - saved >= settings.checkpoint_seconds) and at.iteration < settings.iterations:
                    at.loss, saved = float(loss), now
                    if ranks.first:
                        self._save(optimiser, at)
                    if stopping:
                        raise Stopped
        check_finite(loss, at.iteration)
        if ranks.first:
            self._state.unlink(missing_ok=True)
        return float(loss), at.seconds

    def _step(self, optimiser: torch.optim.Optimizer, parts: Parts, iteration: int, running: Tensor) -> Tensor:
        """One optimiser step; returns the running mean of the loss, still on the device."""
        settings = self.plan.task.train
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(settings, iteration)
        loss = parts.gradient(iteration)
        nn.utils.clip_grad_norm_(self.detector.module.parameters(), settings.clip)
        optimiser.step()
        return torch.where(running.isnan(), loss, 0.98 * running + 0.02 * loss)

    def _loss(self, iteration: int, part: int) -> Tensor:
        samples, device = self.windows.batch(iteration, part), self.plan.device
        with seeded(part_seed(self.seed, "step", iteration, part), device), mixed_precision(device):
            try:
                losses = self.detector.losses(samples)
            except FloatingPointError as problem:  # Detectron2 looks for itself
                raise diverged(iteration) from problem
        return torch.stack([loss.float() for loss in losses.values()]).sum()

    @property
    def _state(self) -> Path:
        return self.folder / "half_done.pt"

    def _save(self, optimiser: torch.optim.Optimizer, at: _Progress) -> None:
        state = {
            "inputs": self.inputs,
            "seed": self.seed,
            "iteration": at.iteration,
            "loss": at.loss,
            "seconds": at.seconds,
            "network": {name: value.detach() for name, value in self.detector.module.state_dict().items()},
            "optimiser": optimiser.state_dict(),
        }
        write_whole(self._state, lambda target: torch.save(state, target))

    def _half_done(self) -> dict[str, Any] | None:
        """What an earlier call left; None if it is absent or damaged."""
        try:
            state: dict[str, Any] = torch.load(self._state, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError):
            return None
        return state

    def _resume(self, state: dict[str, Any] | None, optimiser: torch.optim.Optimizer) -> _Progress:
        """Where an earlier call left off; a state that is absent or of other inputs means the beginning."""
        if state is None or (state["inputs"], state["seed"]) != (self.inputs, self.seed):
            return _Progress()
        put_state(self.detector.module, state["network"], self._state)
        optimiser.load_state_dict(state["optimiser"])
        return _Progress(int(state["iteration"]), float(state["loss"]), float(state["seconds"]))


def _clear_for(inputs: str, folder: Path) -> None:
    """Empty the folder of half-done work if it was for other labels, seed or settings."""
    note = folder / "inputs.txt"
    if not note.exists() or note.read_text() != inputs:
        shutil.rmtree(folder, ignore_errors=True)
        write_text(note, inputs)


def _stamp(member: int) -> str:
    return f"member_{member:02d}.json"
