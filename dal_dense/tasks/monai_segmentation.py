"""Semantic segmentation by MONAI, volumes and frames in one adapter: the `Task` on one screen.

geometry   monai_geometry    stored grid to model grid and back: one recipe for training and inference;
           monai_thin        regions thinner than its voxels
ground     monai_ground      labelled regions become pieces; some are held out
batches    monai_batches     crops on labelled voxels, batch i a function of (seed, i)
network    monai_networks    UNet, DynUNet, SegResNet
fit        monai_members     members, temperature; monai_fit the loop, monai_losses, monai_calibrate
predict    monai_infer       sliding windows, draws streamed into `DrawSums`
evaluate   monai_evaluate    Dice or mIoU from confusion matrices
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import prod
from pathlib import Path
from threading import RLock

import numpy as np
import torch
from torch import Tensor

from dal_dense.config import QueryConfig, TaskConfig, UncertaintyConfig
from dal_dense.costs import CostModel
from dal_dense.errors import ConfigError, DataError
from dal_dense.images import read_header, read_image
from dal_dense.offer_maps import DensePrediction, offers_from_maps
from dal_dense.offers import Offers
from dal_dense.query_sizes import offer_spec
from dal_dense.records import Header, ImageRecord
from dal_dense.regions import Regions, slices
from dal_dense.tasks.base import FitReport, Hooks, LabelledImage, Measurement, Proposal
from dal_dense.tasks.monai_evaluate import Scoreboard, Seen, seen
from dal_dense.tasks.monai_geometry import Geometry, ModelGrid, turn_back
from dal_dense.tasks.monai_ground import gather, held_out
from dal_dense.tasks.monai_infer import Windows, draw_sums, measured_passes, passes
from dal_dense.tasks.monai_members import Plan, fit_members
from dal_dense.tasks.monai_weights import Model, ModelCard, load_model
from dal_dense.tasks.weights import MODEL_FILE, folder_sha256, read_card, read_figures
from dal_dense.uncertainty import likeliest

FLIP_AXES = {3: ("left_right", "front_back", "up_down"), 2: ("up_down", "left_right")}
"""Anatomical name of each model-grid axis: volumes lie in RAS, frames as rows and columns."""

LARGE = 1 << 28
"""Probabilities of an image, 1 GiB of them, from which no second one is looked at before it is reduced."""


class MonaiSegmentation:
    """The MONAI adapter.

    Args:
        task: network, geometry, training.
        uncertainty: where draws come from; calibration.
        query: what is asked.
        costs: seconds an action.
        classes: names; the position is the class number.
        ndim: 2 (frames) or 3 (volumes).
        in_channels: channels of the pool's images.
        device: where networks run.
        mask_of: the truth of a test image on its stored grid, class numbers and `IGNORE`.
        seed: of blindly drawn candidate boxes.

    Raises:
        ConfigError: if settings contradict each other or the data.
    """

    def __init__(
        self,
        *,
        task: TaskConfig,
        uncertainty: UncertaintyConfig,
        query: QueryConfig,
        costs: CostModel,
        classes: Sequence[str],
        ndim: int,
        in_channels: int,
        device: torch.device,
        mask_of: Callable[[ImageRecord], np.ndarray | None],
        seed: int = 0,
    ) -> None:
        if len(task.train.patch) != ndim:
            raise ConfigError(
                f"task.train.patch: {len(task.train.patch)} numbers found, {ndim} expected for "
                f"{'volumes' if ndim == 3 else 'frames'}; give {ndim} numbers"
            )
        self._task, self._uncertainty, self._query, self._costs = task, uncertainty, query, costs
        self._classes, self._ndim, self._in_channels = tuple(classes), ndim, in_channels
        self._device, self._mask_of, self._seed = device, mask_of, seed
        self._flips = _flip_axes(task, uncertainty, ndim)
        self._geometry = Geometry(spacing=task.spacing, frame_size=task.frame_size, intensity=task.intensity)
        self._windows = Windows(task.train.patch, task.window_overlap, device)
        self._foreground = tuple(range(1 if task.background else 0, len(self._classes)))
        self._last: tuple[tuple[str, str], DensePrediction] | None = None  # so that propose repeats nothing
        self._network = RLock()  # one image at a time, while another one is read or reduced

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; the position is the class number."""
        return self._classes

    def fit(
        self, labelled: Sequence[LabelledImage], *, seed: int, out: Path, previous: Path | None, hooks: Hooks
    ) -> FitReport:
        """Train on labelled regions only; a fit that `out` holds already, whole or half-done, is not begun anew.

        Raises:
            DataError: if an image cannot be used, or nothing is labelled.
            Stopped: the person asked to stop; call again to go on.
        """
        inputs = self._digest(labelled, seed, previous)
        if hooks.ranks.told(lambda: not (out / MODEL_FILE).exists() or read_card(out, ModelCard).inputs != inputs):
            self._fit(labelled, seed=seed, out=out, previous=previous, hooks=hooks, inputs=inputs)
        return hooks.ranks.told(lambda: FitReport(out, folder_sha256(out), read_figures(out)))

    def load(self, weights: Path) -> Model:
        """The fitted networks of a folder.

        Raises:
            DataError: if the folder holds no finished fit, or one of other classes or dimensions.
        """
        model = load_model(weights, self._device)
        card = model.card
        if (card.classes, card.ndim, card.in_channels) != (self._classes, self._ndim, self._in_channels):
            raise DataError(
                f"{weights} was fitted on {card.ndim}-D images with {card.in_channels} channels and the classes "
                f"{', '.join(card.classes)}; this pool has {self._ndim}-D images, {self._in_channels} channels and "
                f"{', '.join(self._classes)}; name a model of this pool"
            )
        return model

    def evaluate(self, model: object, records: Sequence[ImageRecord], *, hooks: Hooks) -> Measurement:
        """Dice or mIoU on fully labelled images, on their stored grids; `extra` holds the ECE."""
        fitted = _model(model)
        board = Scoreboard(self._classes, self._task.metric, self._task.background)

        def look(record: ImageRecord) -> Seen:
            truth = self._mask_of(record)
            if truth is None:
                raise DataError(f"{record.paths[0]} is a test image without mask; give it one, or move it to the pool")
            with self._alone_if_large(truth.shape):
                image, grid, _ = self._read(record)
                with self._network:
                    sums, _ = draw_sums(
                        measured_passes(fitted), image, self._windows, fitted.card.temperature, features=False
                    )
                probs = self._geometry.values_back(sums.finish()[0], grid)
                return seen(probs, torch.from_numpy(truth).to(probs.device))

        for record, found in zip(records, hooks.share("evaluate", look, records), strict=True):
            board.add(record.group, found)
        return board.result()

    def predict(self, model: object, record: ImageRecord) -> DensePrediction:
        """Mean probabilities, uncertainty maps and features of one image, on its stored grid."""
        fitted = _model(model)
        key = (fitted.sha256, record.id)
        last = self._last
        if last is None or last[0] != key:
            self._last = last = None  # let go of the old one before the new one is made
            self._last = last = (key, self._predict(fitted, record))
        return last[1]

    def offers(
        self, model: object, record: ImageRecord, labelled: Regions, blocked: Regions, *, image: int, group: int
    ) -> Offers:
        """Regions of one image worth asking for; rows of labelled ground come last."""
        header = read_header(record)
        spec = offer_spec(
            self._query,
            header,
            self._costs,
            uncertainty=self._uncertainty,
            quota_classes=self._foreground,
        )
        with self._alone_if_large(header.shape):
            return offers_from_maps(
                self.predict(model, record),
                spec,
                image_id=record.id,
                image=image,
                group=group,
                labelled=labelled,
                blocked=blocked,
                seed=self._seed,
            )

    def propose(self, model: object, record: ImageRecord, regions: Regions) -> list[Proposal]:
        """The likeliest class of every voxel of each region, and the score map there."""
        found = self.predict(model, record)
        score = found.maps[self._uncertainty.score]
        return [
            Proposal(
                label=likeliest(found.mean[(slice(None), *slices(box))]).cpu().numpy(),
                uncertainty=score[slices(box)].float().cpu().numpy(),
            )
            for box in regions.boxes()
        ]

    def parameters_sha256(self, model: object) -> str:
        """Identity of the weights."""
        return _model(model).sha256

    def _alone_if_large(self, shape: Sequence[int]) -> AbstractContextManager[object]:
        """Around all that is done with an image of this shape."""
        return self._network if prod(shape) * len(self._classes) >= LARGE else nullcontext()

    def _read(self, record: ImageRecord) -> tuple[Tensor, ModelGrid, Header]:
        header = read_header(record)
        image, grid = self._geometry.image(read_image(record, channels=self._in_channels), header)
        return image, grid, header

    def _predict(self, model: Model, record: ImageRecord) -> DensePrediction:
        image, grid, _ = self._read(record)
        with self._network:
            sums, features = draw_sums(
                passes(model, self._uncertainty, self._flips, record.id),
                image,
                self._windows,
                model.card.temperature,
                features=True,
            )
        mean, maps = sums.finish(dict.fromkeys(("predictive_entropy", self._uncertainty.score)))
        back = {name: self._geometry.values_back(values[None], grid)[0].clamp_min_(0) for name, values in maps.items()}
        probs = self._geometry.values_back(mean, grid)
        return DensePrediction(probs, back, None if features is None else turn_back(features, grid))

    def _digest(self, labelled: Sequence[LabelledImage], seed: int, previous: Path | None) -> str:
        """Identity of everything that decides the weights."""
        total = hashlib.sha256(f"{seed} {self._classes} {self._ndim} {self._in_channels}".encode())
        total.update(self._task.model_dump_json(exclude={"metric": True, "train": {"checkpoint_seconds"}}).encode())
        total.update(self._uncertainty.model_dump_json(include={"draws", "count", "temperature", "held_out"}).encode())
        if previous is not None and self._task.train.start != "scratch":
            total.update(folder_sha256(previous).encode())
        for known in labelled:
            total.update(known.record.id.encode())
            for box, label in zip(known.regions.boxes(), known.labels, strict=True):
                total.update(repr(box).encode() + np.ascontiguousarray(label).tobytes())
        return total.hexdigest()

    def _fit(
        self,
        labelled: Sequence[LabelledImage],
        *,
        seed: int,
        out: Path,
        previous: Path | None,
        hooks: Hooks,
        inputs: str,
    ) -> None:
        ground = gather(
            labelled,
            self._geometry,
            held=held_out(labelled, self._uncertainty.held_out if self._uncertainty.temperature else 0.0),
            train=self._task.train,
            classes=len(self._classes),
            in_channels=self._in_channels,
            seed=seed,
            hooks=hooks,
        )
        plan = Plan(
            task=self._task,
            uncertainty=self._uncertainty,
            classes=self._classes,
            ndim=self._ndim,
            in_channels=self._in_channels,
            windows=self._windows,
            flips=self._flips,
        )
        fit_members(plan, ground, seed=seed, out=out, previous=previous, inputs=inputs, hooks=hooks)


def _model(model: object) -> Model:
    if not isinstance(model, Model):
        raise TypeError(f"expected a model from MonaiSegmentation.load, got {type(model).__name__}")
    return model


def _flip_axes(task: TaskConfig, uncertainty: UncertaintyConfig, ndim: int) -> tuple[int, ...]:
    """Model-grid axes that may be flipped; settings that cannot work together are told here.

    Raises:
        ConfigError: naming the setting and what to write.
    """
    axes, kind = FLIP_AXES[ndim], "volumes" if ndim == 3 else "frames"
    for name in task.train.flip_axes:
        if name not in axes:
            raise ConfigError(f"task.train.flip_axes: {kind} have no axis {name}; choose from {', '.join(axes)}")
    if ndim == 2 and task.spacing is not None:
        raise ConfigError("task.spacing: is for volumes, and the pool holds frames; use task.frame_size")
    if ndim == 3 and task.frame_size is not None:
        raise ConfigError("task.frame_size: is for frames, and the pool holds volumes; use task.spacing")
    if uncertainty.draws == "flips" and not task.train.flip_axes:
        raise ConfigError("uncertainty.draws: flips needs at least one axis in task.train.flip_axes")
    if uncertainty.draws == "mc_dropout" and task.network.dropout == 0:
        raise ConfigError("uncertainty.draws: mc_dropout needs task.network.dropout above 0")
    return tuple(i for i, name in enumerate(axes) if name in task.train.flip_axes)
