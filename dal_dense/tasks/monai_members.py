"""A whole fit: every member trained, the temperature found, the folder declared finished.

out/half_done/    what a stopped fit needs: finished members, the state of the one under way
out/*.safetensors, figures.json, model.json    the finished fit; model.json comes last
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dal_dense.config import TaskConfig, UncertaintyConfig
from dal_dense.noise import derive_seed
from dal_dense.tasks.base import Hooks
from dal_dense.tasks.monai_batches import Crops
from dal_dense.tasks.monai_calibrate import calibrate
from dal_dense.tasks.monai_fit import Stint, start_from, train_network
from dal_dense.tasks.monai_ground import Ground
from dal_dense.tasks.monai_infer import Windows, measured_passes
from dal_dense.tasks.monai_networks import Network, build_network
from dal_dense.tasks.monai_weights import Model, ModelCard, load_networks, placed
from dal_dense.tasks.training import late_snapshots
from dal_dense.tasks.weights import MODEL_FILE, load_state, read_card, write_card, write_text


@dataclass(frozen=True)
class Plan:
    """The settings of a fit.

    Attributes:
        task: network and training.
        uncertainty: how many members or snapshots.
        classes: names.
        ndim: 2 or 3.
        in_channels: of the images.
        windows: for calibration; its device is where everything runs.
        flips: model-grid axes that may be flipped.
    """

    task: TaskConfig
    uncertainty: UncertaintyConfig
    classes: tuple[str, ...]
    ndim: int
    in_channels: int
    windows: Windows
    flips: tuple[int, ...]

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


def fit_members(
    plan: Plan, ground: Ground, *, seed: int, out: Path, previous: Path | None, inputs: str, hooks: Hooks
) -> None:
    """Train into `out`, from where an earlier call with the same inputs was stopped; the first process writes.

    Raises:
        DataError: if no labelled voxel is left to train on, or the last round's weights do not fit.
        Stopped: the person asked to stop; the half-done work is saved.
    """
    ranks, work = hooks.ranks, out / "half_done"
    if ranks.first:
        (out / MODEL_FILE).unlink(missing_ok=True)
        _clear_for(inputs, work)
    for member in range(plan.members):
        stamp = work / _stamp(member)
        if not ranks.told(stamp.exists):
            loss, seconds = _train(plan, ground, member, seed, work, previous, inputs, hooks)
            if ranks.first:
                write_text(stamp, json.dumps({"loss": loss, "train_seconds": seconds}))
    ranks.told(lambda: _finish(plan, ground, seed, out, work, inputs))


def _finish(plan: Plan, ground: Ground, seed: int, out: Path, work: Path, inputs: str) -> None:
    """From trained members to a finished folder."""
    files = [name for m in range(plan.members) for name in plan.snapshots(m).values()]
    for stale in out.glob("*.safetensors"):
        stale.unlink()
    for name in files:
        shutil.copyfile(work / name, out / name)
    card = ModelCard(
        network=plan.task.network,
        ndim=plan.ndim,
        in_channels=plan.in_channels,
        classes=plan.classes,
        temperature=1.0,
        role="snapshots" if plan.uncertainty.draws == "checkpoints" else "members",
        files=tuple(files),
        inputs=inputs,
    )
    model = Model(card, load_networks(out, card, plan.windows.device), "")
    temperature, figures = calibrate(measured_passes(model), ground.held, plan.windows, seed=seed)
    stamps = [json.loads((work / _stamp(m)).read_text()) for m in range(plan.members)]
    figures["loss"] = sum(s["loss"] for s in stamps) / len(stamps)
    figures["train_seconds"] = sum(s["train_seconds"] for s in stamps)
    figures["iterations"] = float(plan.task.train.iterations * plan.members)
    write_card(out, card.model_copy(update={"temperature": temperature}), figures)
    shutil.rmtree(work)


def _train(
    plan: Plan,
    ground: Ground,
    member: int,
    seed: int,
    work: Path,
    previous: Path | None,
    inputs: str,
    hooks: Hooks,
) -> tuple[float, float]:
    """One member: final loss and seconds."""
    train = plan.task.train
    own = derive_seed(seed, "member", member)
    stint = Stint(
        crops=Crops(ground.train, train, plan.flips, plan.task.background, own),
        train=train,
        background=plan.task.background,
        seed=own,
        device=plan.windows.device,
        folder=work,
        inputs=inputs,
        snapshots=plan.snapshots(member),
    )
    network = _first_weights(plan, member, own, previous)
    total = plan.members * train.iterations
    return train_network(network, stint, hooks, done=member * train.iterations, total=total)


def _first_weights(plan: Plan, member: int, seed: int, previous: Path | None) -> Network:
    network = build_network(
        plan.task.network, ndim=plan.ndim, in_channels=plan.in_channels, classes=len(plan.classes), seed=seed
    )
    if previous is not None and plan.task.train.start != "scratch":
        files: Sequence[str] = read_card(previous, ModelCard).files
        last = previous / files[member % len(files)]
        start_from(network, load_state(last), last, plan.task.train)
    return placed(network, plan.windows.device)


def _clear_for(inputs: str, folder: Path) -> None:
    """Empty the folder of half-done work if it was for other labels, seed or settings."""
    note = folder / "inputs.txt"
    if not note.exists() or note.read_text() != inputs:
        shutil.rmtree(folder, ignore_errors=True)
        write_text(note, inputs)


def _stamp(member: int) -> str:
    return f"member_{member:02d}.json"
