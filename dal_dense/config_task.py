"""Settings of the task adapter: network, geometry, training, detection, uncertainty."""

from __future__ import annotations

from itertools import pairwise
from math import log2
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

CONVERT = (
    'if you trust the file, convert it once: python -c "import pickle, sys, torch; '
    "d = pickle.load(open(sys.argv[1], 'rb'), encoding='latin1'); d = d.get('model', d); "
    "torch.save({k: torch.as_tensor(v) for k, v in d.items() if hasattr(v, 'shape')}, sys.argv[2])\" IN.pkl OUT.pth"
)
"""What to do with pickled weights, such as Detectron2's model zoo has."""


class Settings(BaseModel):
    """Strict and frozen: unknown keys, wrong types and numbers that are none or infinite are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class IntensityConfig(Settings):
    """How raw intensities become network input."""

    kind: Literal["window", "zscore", "rgb"] = Field(
        default="zscore",
        description="window: clip to low..high, scale to 0..1 (CT); zscore: per image; "
        "rgb: frames, 0..255 to about -1..1",
    )
    low: float = Field(default=-250.0, description="window: HU that becomes 0")
    high: float = Field(default=600.0, description="window: HU that becomes 1")

    @model_validator(mode="after")
    def _ordered(self) -> IntensityConfig:
        if self.high <= self.low:
            raise ValueError(f"high ({self.high:g}) must exceed low ({self.low:g})")
        return self


class NetworkConfig(Settings):
    """The network and its size."""

    name: Literal["unet", "dynunet", "segresnet", "faster_rcnn", "retinanet", "fcos"] = Field(
        default="unet", description="monai_segmentation: the first three; detection: the last three"
    )
    channels: tuple[int, ...] = Field(
        default=(16, 32, 64), description="segmentation: features a level, finest first", min_length=2
    )
    dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout rate; MC-dropout needs it above 0")

    @model_validator(mode="after")
    def _some_features(self) -> NetworkConfig:
        if min(self.channels) < 1:
            raise ValueError(f"channels {list(self.channels)} must be at least 1 a level")
        return self

    @model_validator(mode="after")
    def _levels(self) -> NetworkConfig:
        found = list(self.channels)
        if self.name == "dynunet" and len(found) < 3:
            raise ValueError(
                f"channels {found} are {len(found)} levels, but dynunet needs at least 3; add a level, or take unet"
            )
        doubled = [found[0] * 2**level for level in range(len(found))]
        if self.name == "segresnet" and found != doubled:
            raise ValueError(
                f"channels {found} do not suit segresnet, which doubles them a level; write {doubled}, "
                "or take unet or dynunet"
            )
        return self


class TrainConfig(Settings):
    """One fit."""

    iterations: int = Field(default=400, ge=1, description="optimiser steps a fit")
    batch: int = Field(
        default=4, ge=1, description="crops a step; detection: windows with as many pixels as so many patches"
    )
    parts: int = Field(
        default=1,
        ge=1,
        description="a step's batch in so many equal parts, each with its own loss and gradient; as many processes, "
        "or any number that divides it, share the training, and the weights are the same for all of them",
    )
    patch: tuple[int, ...] = Field(
        default=(32, 32, 32), description="training crop and sliding window, voxels of the model grid"
    )
    lr: float = Field(default=3e-3, gt=0, description="peak learning rate (AdamW, one cycle of warm-up and cosine)")
    weight_decay: float = Field(default=1e-4, ge=0, description="AdamW weight decay")
    start: Literal["scratch", "warm", "shrink_perturb"] = Field(
        default="scratch",
        description="weights of a new round: fresh, the last round's, or shrunk and perturbed (Ash & Adams 2020)",
    )
    shrink: float = Field(default=0.5, gt=0, le=1, description="shrink_perturb: factor on the last round's weights")
    flip_axes: tuple[Literal["left_right", "front_back", "up_down"], ...] = Field(
        default=(),
        description="axes that may be flipped in augmentation and flip draws; frames: left_right, up_down. "
        "Leave out any axis that tells classes apart (left from right parotid)",
    )
    rotate_degrees: float = Field(default=10.0, ge=0, description="segmentation: largest random rotation")
    scale: float = Field(default=0.1, ge=0, le=0.5, description="largest random zoom, as a share")
    intensity: float = Field(
        default=0.1, ge=0, description="random brightness and contrast, in units of the scaled image"
    )
    foreground: float = Field(
        default=0.67,
        ge=0,
        le=1,
        description="share of crops centred on a class drawn with equal chance, the rest anywhere labelled",
    )
    clip: float = Field(default=10.0, gt=0, description="detection: largest norm of the gradient")
    checkpoint_seconds: float = Field(default=120.0, gt=0, description="how often a half-done fit is saved")

    @model_validator(mode="after")
    def _even(self) -> TrainConfig:
        if self.batch % self.parts:
            raise ValueError(f"batch {self.batch} does not go into {self.parts} equal parts; make it a multiple")
        return self

    @model_validator(mode="after")
    def _frames_or_volumes(self) -> TrainConfig:
        if len(self.patch) not in (2, 3):
            raise ValueError(f"patch {list(self.patch)} needs 2 numbers for frames, 3 for volumes")
        return self


class DetectionConfig(Settings):
    """Detection only: the detector and what counts as a box."""

    backbone: Literal["tiny", "resnet18", "resnet34", "resnet50", "resnet101"] = Field(
        default="resnet18", description="convolutional trunk under the feature pyramid; tiny: for CPUs"
    )
    norm: Literal["group", "batch", "frozen"] = Field(
        default="group",
        description="normalisation: group trains from scratch with any batch; frozen needs weights",
    )
    weights: str | None = Field(
        default=None,
        description="file to begin the first fit from: .safetensors or .pth, a state_dict, never unpickled",
    )
    config_file: str | None = Field(
        default=None, description="detectron2: your own yaml (CfgNode) or .py (LazyConfig); null: from these settings"
    )
    long_side: int | None = Field(
        default=None, ge=32, description="frames are scaled so that their longer side is this; null: as stored"
    )
    anchor_sizes: tuple[float, ...] = Field(
        default=(16, 32, 64, 128),
        description="side of square anchors, pixels of the scaled frame, finest level first, ascending; "
        "fcos: only how many levels, and the finest",
        min_length=1,
    )
    min_score: float = Field(default=0.05, ge=0, lt=1, description="boxes of a lower score are dropped")
    nms_iou: float = Field(
        default=0.5, gt=0, le=1, description="of two boxes of a class that overlap more, one is kept"
    )
    max_boxes: int = Field(default=100, ge=1, description="boxes kept a frame")
    min_visible: float = Field(
        default=0.25, ge=0, le=1, description="objects cut by a region's border to less than this share are ignored"
    )

    @model_validator(mode="after")
    def _ascending(self) -> DetectionConfig:
        sizes = self.anchor_sizes
        if sizes[0] <= 0 or any(b <= a for a, b in pairwise(sizes)):
            raise ValueError(f"anchor_sizes {list(sizes)} must be above 0 and ascend")
        return self

    def finest_level(self, network: str) -> int:
        """The finest features have the stride 2**level: of a one-stage network nearest to a quarter of an anchor."""
        return 2 if network == "faster_rcnn" else min(4, max(2, round(log2(self.anchor_sizes[0] / 4))))


class TaskConfig(Settings):
    """The task adapter: network, geometry, training."""

    name: Literal["monai_segmentation", "torchvision_detection", "detectron2_detection"] = Field(
        default="monai_segmentation", description="adapter"
    )
    detection: DetectionConfig = Field(default_factory=DetectionConfig, description="detection only")
    network: NetworkConfig = Field(default_factory=NetworkConfig, description="network")
    spacing: tuple[float, float, float] | None = Field(
        default=None,
        description="volumes: voxel size in mm (right-left, back-front, feet-head) of the model grid; null: as stored",
    )
    frame_size: tuple[int, int] | None = Field(
        default=None, description="segmented frames: rows, columns of the model grid; null: as stored"
    )
    intensity: IntensityConfig = Field(default_factory=IntensityConfig, description="intensity scaling")
    train: TrainConfig = Field(default_factory=TrainConfig, description="training")
    window_overlap: float = Field(
        default=0.25, ge=0, lt=1, description="segmentation: overlap of sliding windows, Gaussian blending"
    )
    background: bool = Field(
        default=True,
        description="class 0 is background: left out of the mean Dice and of class quotas (segmented frames: false)",
    )
    metric: Literal["dice", "miou", "ap50", "ap"] = Field(
        default="dice", description="headline figure of a round; detection: ap50 or ap (COCO)"
    )

    @model_validator(mode="after")
    def _above_nothing(self) -> TaskConfig:
        for name, sides in (("spacing", self.spacing), ("frame_size", self.frame_size)):
            if any(side <= 0 for side in sides or ()):
                raise ValueError(f"{name} {list(sides or ())} must be above 0")
        return self

    @model_validator(mode="after")
    def _one_task(self) -> TaskConfig:
        detection = self.name != "monai_segmentation"
        if detection != (self.network.name in ("faster_rcnn", "retinanet", "fcos")):
            names = "faster_rcnn, retinanet or fcos" if detection else "unet, dynunet or segresnet"
            raise ValueError(f"network.name {self.network.name} is not for {self.name}; use {names}")
        if detection != (self.metric in ("ap50", "ap")):
            names = "ap50 or ap" if detection else "dice or miou"
            raise ValueError(f"metric {self.metric} does not fit {self.name}; use {names}")
        if detection:
            self._check_detector()
        else:
            self._check_patch()
        return self

    def _check_patch(self) -> None:
        """Every level but the first halves the patch, and the coarsest still needs two voxels a side."""
        patch, levels = self.train.patch, len(self.network.channels)
        factor = 2 ** (levels - 1)
        if any(n % factor or n < 2 * factor for n in patch):
            mended = [max(2 * factor, round(n / factor) * factor) for n in patch]
            raise ValueError(
                f"train.patch {list(patch)} does not fit {self.network.name} with {levels} levels: every edge must be "
                f"a multiple of {factor} and at least {2 * factor}; write {mended}, or take fewer task.network.channels"
            )

    def _check_detector(self) -> None:
        detection = self.detection
        file, weights = detection.config_file, detection.weights or ""
        if self.name == "torchvision_detection" and file is not None:
            raise ValueError(
                f"detection.config_file {file} is for Detectron2, and task.name is {self.name}; set task.name to "
                "detectron2_detection, or take config_file out"
            )
        if self.name == "detectron2_detection" and weights.endswith((".pkl", ".pickle")):
            raise ValueError(
                f"detection.weights {weights} is a pickle, which can run any code when it is opened; expected "
                f".safetensors or .pth; {CONVERT}"
            )
        if file is not None:
            if not file.endswith((".yaml", ".yml", ".py")):
                raise ValueError(
                    f"detection.config_file {file} is no config; give a .yaml (CfgNode) or .py (LazyConfig)"
                )
            return
        if detection.norm == "frozen" and not weights:
            raise ValueError(
                "detection.norm frozen keeps the statistics of a trained trunk, but task.detection.weights is null; "
                "name a file, or use group"
            )
        if detection.norm == "batch" and self.train.parts > 1:
            raise ValueError(
                f"train.parts: batch norm keeps running statistics, which {self.train.parts} parts would disagree on; "
                "set task.detection.norm to group or frozen, or task.train.parts to 1"
            )
        levels, most = len(detection.anchor_sizes), 8 - detection.finest_level(self.network.name)
        if not 2 <= levels <= most:
            raise ValueError(
                f"detection.anchor_sizes: {levels} sizes make {levels} pyramid levels; for these sizes give 2 to "
                f"{most}, one a level, each about twice the one before"
            )


class UncertaintyConfig(Settings):
    """Where probability draws come from and how they become one score a region."""

    draws: Literal["single", "mc_dropout", "flips", "ensemble", "checkpoints"] = Field(
        default="single",
        description="one softmax pass; dropout passes; flipped passes; M networks; late checkpoints of one fit",
    )
    count: int = Field(
        default=4, ge=1, le=256, description="draws: passes, members or checkpoints (flips: at most this many)"
    )
    score: Literal[
        "predictive_entropy",
        "expected_entropy",
        "mutual_information",
        "margin",
        "least_confidence",
        "spread",
        "inconsistency",
        "difficulty_entropy",
    ] = Field(
        default="predictive_entropy",
        description="score a voxel, or a predicted box; detection only: spread (of corners over draws), "
        "inconsistency (under flips; CALD), difficulty_entropy (PPAL)",
    )
    combine: Literal["sum", "mean", "max", "dense"] = Field(
        default="sum",
        description="detection: boxes' scores to a crop or frame; dense: the dense head's entropy instead of boxes",
    )
    pooling: Literal["mean", "topk"] = Field(
        default="mean",
        description="segmentation: score a region by the mean over the box, or the mean of its top share",
    )
    topk: float = Field(default=0.1, gt=0, le=1, description="topk: share of the box")
    temperature: bool = Field(
        default=True, description="segmentation: scale logits by a temperature fitted on held-out labelled regions"
    )
    held_out: float = Field(
        default=0.15, ge=0, lt=0.5, description="share of labelled regions kept from training to fit it"
    )
