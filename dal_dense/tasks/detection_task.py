"""Detection of boxes in frames, whatever the framework: the `Task` on one screen.

backend    detection_backend      what a framework must offer
partial    detection_partial      which anchors may be background
ground     detection_ground       labelled regions become windows, batch i a function of (seed, i)
fit        detection_fit          the loop, members, warm starts; detection_difficulty after it
predict    detection_predict      draws on shared rows, one suppression
evaluate   detection_evaluate     average precision by pycocotools
weights    detection_weights      model.json and safetensors
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock

import numpy as np
import torch

from dal_dense.box_offers import box_spec, frame_offers
from dal_dense.box_proposals import frame_proposals
from dal_dense.boxes import Boxes
from dal_dense.config import QueryConfig, TaskConfig, UncertaintyConfig
from dal_dense.costs import CostModel
from dal_dense.detections import FramePrediction
from dal_dense.errors import ConfigError, DataError
from dal_dense.images import read_header, read_image, sha256_of
from dal_dense.offers import Offers
from dal_dense.records import ImageRecord
from dal_dense.regions import Regions
from dal_dense.tasks.base import FitReport, Hooks, Judged, LabelledImage, Measurement, Proposal
from dal_dense.tasks.detection_backend import Backend
from dal_dense.tasks.detection_evaluate import Found, Scoreboard, boxes_of
from dal_dense.tasks.detection_fit import Plan, fit_detectors
from dal_dense.tasks.detection_ground import Windows, gather
from dal_dense.tasks.detection_predict import predict_frame
from dal_dense.tasks.detection_weights import Model, ModelCard, fresh, is_finished, load_model
from dal_dense.tasks.weights import folder_sha256, read_card, read_figures, read_foreign, take_matching

SAVED = {"backbone", "norm", "anchor_sizes", "config_file"}
"""Settings under task.detection that decide what a network is; the others may change after a fit."""


class Detection:
    """A detector behind the engine.

    Args:
        backend: the framework's part, of the settings and the number of classes.
        task: network, geometry, training.
        uncertainty: where draws come from.
        query: what is asked.
        costs: seconds an action.
        classes: names; the position is the class number, 0 is background.
        ndim: must be 2.
        in_channels: must be 3.
        device: where networks run.
        boxes_of: the truth of a test image.
        seed: of blindly drawn candidates, and of the groups drawn for the interval of a measurement.
        matching: offers carry each object's embedding (`ppal`); costs memory.

    Raises:
        ConfigError: if settings contradict each other or the data.
    """

    def __init__(
        self,
        *,
        backend: Callable[[TaskConfig, int], Backend],
        task: TaskConfig,
        uncertainty: UncertaintyConfig,
        query: QueryConfig,
        costs: CostModel,
        classes: Sequence[str],
        ndim: int,
        in_channels: int,
        device: torch.device,
        boxes_of: Callable[[ImageRecord], Boxes | None],
        seed: int = 0,
        matching: bool = False,
    ) -> None:
        _check(task, uncertainty, classes, ndim, in_channels)
        made = backend(task, len(classes))
        self._make, self._prefixes = made.make_detector, made.prefixes
        self._files = made.files
        self._task, self._uncertainty, self._query, self._costs = task, uncertainty, query, costs
        self._classes, self._device, self._boxes_of, self._seed = tuple(classes), device, boxes_of, seed
        self._matching = matching
        self._last: tuple[tuple[str, str], FramePrediction] | None = None  # so that propose repeats nothing
        self._network = Lock()  # one frame at a time, while another one is read or reduced
        self._try_to_begin()

    def _try_to_begin(self) -> None:
        """Build what the first fit begins with: a person should not label a start set first to be told it cannot be."""
        module = fresh(self._make, 0).module
        if self._task.detection.weights is not None:
            file = Path(self._task.detection.weights)
            take_matching(module, read_foreign(file), file, self._prefixes)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; the position is the class number."""
        return self._classes

    def fit(
        self, labelled: Sequence[LabelledImage], *, seed: int, out: Path, previous: Path | None, hooks: Hooks
    ) -> FitReport:
        """Train on labelled regions only; a fit that `out` holds already, whole or half-done, is not begun anew.

        Raises:
            DataError: if a frame or the weights to begin from cannot be used, or nothing is labelled.
            Stopped: the person asked to stop; call again to go on.
        """
        inputs = self._digest(labelled, seed, previous)
        if hooks.ranks.told(lambda: not is_finished(out, inputs)):
            detection, train = self._task.detection, self._task.train
            pieces = gather(labelled, detection=detection, train=train, hooks=hooks)
            if not pieces:
                raise DataError("no labelled region is left to train on; label some ground, or start with a start set")
            plan = Plan(self._make, self._prefixes, self._task, self._uncertainty, self._classes, self._device)
            windows = Windows(pieces, train, detection.min_visible, seed)
            fit_detectors(plan, windows, seed=seed, out=out, previous=previous, inputs=inputs, hooks=hooks)
        return hooks.ranks.told(lambda: FitReport(out, folder_sha256(out), read_figures(out)))

    def load(self, weights: Path) -> Model:
        """The fitted detectors of a folder.

        Raises:
            DataError: if the folder holds no finished fit, or one of other classes or another network.
        """
        card = read_card(weights, ModelCard)
        if card.classes != self._classes:
            raise DataError(
                f"{weights} was fitted on the classes {', '.join(card.classes)}; this pool has "
                f"{', '.join(self._classes)}; name a model of this pool"
            )
        mine = (self._task.name, self._task.network, self._task.detection.model_dump(include=SAVED))
        if (card.task, card.network, card.detection.model_dump(include=SAVED)) != mine:
            raise DataError(
                f"{weights} holds a {card.network.name} of {card.task} with other settings than task.network and "
                "task.detection describe; keep them as they were at the fit, or fit again"
            )
        return load_model(weights, self._make, self._device)

    def evaluate(self, model: object, records: Sequence[ImageRecord], *, hooks: Hooks) -> Measurement:
        """AP50 or AP on fully labelled frames."""
        fitted = _model(model)
        board = Scoreboard(self._classes, self._task.metric, self._task.detection.max_boxes, self._seed)
        plain = UncertaintyConfig(draws="ensemble" if fitted.card.role == "members" else "single")

        def look(record: ImageRecord) -> tuple[list[Found], Boxes]:
            truth = self._boxes_of(record)
            if truth is None:
                raise DataError(f"{record.paths[0]} is a test image without boxes; annotate it, or move it to the pool")
            return boxes_of(self._predict(fitted, record, plain).found), truth

        for record, (found, truth) in zip(records, hooks.share("evaluate", look, records), strict=True):
            board.add(record.group, found, truth)
        return board.result()

    def predict(self, model: object, record: ImageRecord) -> FramePrediction:
        """Kept boxes, dense map and features of one frame."""
        fitted = _model(model)
        key = (fitted.sha256, record.id)
        last = self._last
        if last is None or last[0] != key:
            self._last = last = (key, self._predict(fitted, record, self._uncertainty))
        return last[1]

    def offers(
        self, model: object, record: ImageRecord, labelled: Regions, blocked: Regions, *, image: int, group: int,
        judged: Judged | None = None,
    ) -> Offers:  # fmt: skip
        """Regions of one frame worth asking for; rows of labelled ground come last."""
        spec = box_spec(
            self._query,
            read_header(record),
            self._costs,
            uncertainty=self._uncertainty,
            classes=len(self._classes),
            matching=self._matching,
        )
        return frame_offers(
            self.predict(model, record), spec, image_id=record.id, image=image, group=group,
            labelled=labelled, blocked=blocked, judged=judged, seed=self._seed,
        )  # fmt: skip

    def propose(self, model: object, record: ImageRecord, regions: Regions) -> list[Proposal]:
        """The predicted boxes inside each region, and the dense map there."""
        return frame_proposals(self.predict(model, record), regions, boxes_only=self._query.kind == "box")

    def parameters_sha256(self, model: object) -> str:
        """Identity of the weights."""
        return _model(model).sha256

    def _predict(self, model: Model, record: ImageRecord, uncertainty: UncertaintyConfig) -> FramePrediction:
        return predict_frame(
            model.detectors,
            read_image(record, channels=3),
            image_id=record.id,
            detection=self._task.detection,
            uncertainty=uncertainty,
            difficulty=model.card.difficulty,
            turn=self._network,
        )

    def _digest(self, labelled: Sequence[LabelledImage], seed: int, previous: Path | None) -> str:
        """Identity of everything that decides the weights."""
        total = hashlib.sha256(f"{seed} {self._classes}".encode())
        task = self._task.model_dump_json(
            exclude={
                "metric": True,
                "train": {"checkpoint_seconds"},
                "detection": {"min_score", "nms_iou", "max_boxes"},
            }
        )
        total.update(task.encode())
        total.update(self._uncertainty.model_dump_json(include={"draws", "count"}).encode())
        weights = self._task.detection.weights
        for file in (*([] if weights is None else [Path(weights)]), *self._files):
            total.update(sha256_of(file).encode())
        if previous is not None and self._task.train.start != "scratch":
            total.update(folder_sha256(previous).encode())
        for known in labelled:
            total.update(known.record.id.encode() + repr(known.kinds).encode())
            for box, label in zip(known.regions.boxes(), known.labels, strict=True):
                total.update(repr(box).encode() + np.ascontiguousarray(label).tobytes())
        return total.hexdigest()


def _model(model: object) -> Model:
    if not isinstance(model, Model):
        raise TypeError(f"expected a model from Detection.load, got {type(model).__name__}")
    return model


def _check(
    task: TaskConfig, uncertainty: UncertaintyConfig, classes: Sequence[str], ndim: int, in_channels: int
) -> None:
    """Settings that cannot work together or with the data.

    Raises:
        ConfigError: naming the setting and what to write.
    """
    if ndim != 2:
        raise ConfigError(f"task.name: {task.name} is for frames, and the pool holds volumes; use monai_segmentation")
    if in_channels != 3:
        raise ConfigError(
            f"task.name: {task.name} takes RGB frames, and the pool's have {in_channels} channels; "
            "give each frame one image file"
        )
    if len(classes) < 2:
        raise ConfigError("data.listing: names no category to detect; add categories to the COCO json")
    for name in task.train.flip_axes:
        if name not in ("left_right", "up_down"):
            raise ConfigError(f"task.train.flip_axes: frames have no axis {name}; choose from left_right, up_down")
    if uncertainty.draws == "flips" and "left_right" not in task.train.flip_axes:
        raise ConfigError("uncertainty.draws: flips of detectors go left to right; add left_right to flip_axes")
    if uncertainty.draws == "mc_dropout" and task.network.dropout == 0:
        raise ConfigError("uncertainty.draws: mc_dropout needs task.network.dropout above 0")
