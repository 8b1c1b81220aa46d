"""Every setting of a run: strict, typed, data only.

`load_config(argv)` reads YAML and `--any.key value` overrides and checks all of it before anything
heavy is imported. `build.py` is the one place where the names here become objects.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from dal_dense.config_data import DataConfig as DataConfig
from dal_dense.config_task import DetectionConfig as DetectionConfig
from dal_dense.config_task import IntensityConfig as IntensityConfig
from dal_dense.config_task import NetworkConfig as NetworkConfig
from dal_dense.config_task import Settings as Settings
from dal_dense.config_task import TaskConfig as TaskConfig
from dal_dense.config_task import TrainConfig as TrainConfig
from dal_dense.config_task import UncertaintyConfig as UncertaintyConfig


class QueryConfig(Settings):
    """What is asked: crops, slices or whole images."""

    kind: Literal["crop", "slice", "image", "box"] = Field(
        default="crop",
        description="crop: windows; slice: axial slices; image: all of it; box (detection): single predictions "
        "to verify, fix or reject, and crops beside them to draw what was missed; the start set is asked as crops",
    )
    sizes: tuple[tuple[int, ...], ...] = Field(
        default=((32, 32, 32),),
        description="crop, box: one or several sizes of crops. Volumes: right-left, back-front, feet-head; "
        "frames: rows, columns",
        min_length=1,
    )
    unit: Literal["voxel", "mm"] = Field(default="voxel", description="unit of sizes (frames: pixels)")
    stride: int = Field(default=1, ge=1, description="step of candidate boxes, voxels; 1 is exact")
    per_image: int = Field(
        default=12,
        ge=1,
        le=1_000_000,
        description="candidates kept an image and size; but for kind box, as many again by class quota, and as many "
        "drawn blindly",
    )
    scan_images: int | None = Field(
        default=None, ge=1, description="score only so many pool images a round, drawn by seed; null: all"
    )
    max_per_image: int | None = Field(default=None, ge=1, description="cap of chosen regions an image and round")
    max_per_group: int | None = Field(
        default=None, ge=1, description="cap of chosen regions a group (patient, drive) and round"
    )
    min_gap: float | None = Field(
        default=None,
        gt=0,
        description="least time between two images of a group that are labelled or asked, as data.time_field counts",
    )


class CostConfig(Settings):
    """Seconds of an expert's time. A preset from the literature, every figure overridable."""

    preset: Literal["ct_contour", "frame_polygon", "frame_clicks", "box_clicks", "box_drawing"] = Field(
        default="ct_contour", description="where the figures come from, see docs/concepts/costs.md"
    )
    image_seconds: float | None = Field(default=None, ge=0, description="open an image, once an image and round")
    region_seconds: float | None = Field(default=None, ge=0, description="go to a region")
    search_seconds: float | None = Field(
        default=None, ge=0, description="look through 1000 units of area (mm^2 or pixels)"
    )
    boundary_seconds: float | None = Field(default=None, ge=0, description="draw 1 unit of contour (mm or pixel)")
    object_seconds: float | None = Field(default=None, ge=0, description="begin and finish one object")
    verify_seconds: float | None = Field(default=None, ge=0, description="look at one predicted box and decide")
    fix_seconds: float | None = Field(default=None, ge=0, description="correct one predicted box")
    prior_boundary: float | None = Field(
        default=None, ge=0, description="contour to expect where no model has looked, units per 1000 units of area"
    )
    prior_objects: float | None = Field(
        default=None, ge=0, description="objects to expect where no model has looked, per 1000 units of area"
    )
    refit: bool = Field(
        default=True, description="correct predictions by the run's own log of predicted and charged seconds"
    )


class BudgetConfig(Settings):
    """How much of the expert's time is spent, and when."""

    rounds: int = Field(default=4, ge=1, description="query rounds after the start set")
    seconds_per_round: float = Field(default=600.0, gt=0, description="predicted labelling seconds a round")
    start_seconds: float = Field(
        default=600.0,
        ge=0,
        description="seconds of the start set, chosen without a model; 0 if masks are there already",
    )
    total_seconds: float | None = Field(
        default=None, gt=0, description="stop once so many seconds are charged; null: after the rounds"
    )


StrategyName = Literal[
    "random",
    "uniform",
    "foreground_random",
    "greedy",
    "per_second",
    "power",
    "clasp",
    "coreset",
    "facility_location",
    "badge",
    "kmeans",
    "typiclust",
    "probcover",
    "hybrid",
    "box_count",
    "ppal",
]


class StrategyConfig(Settings):
    """Which regions win."""

    name: StrategyName = Field(default="hybrid", description="acquisition strategy")
    start: Literal["random", "uniform"] = Field(
        default="uniform", description="strategy of the start set (no model, no truth)"
    )
    beta: float = Field(
        default=1.0, gt=0, description="power: inverse noise; clasp, hybrid: its value in the first round"
    )
    beta_end: float = Field(
        default=100.0, gt=0, description="clasp, hybrid: inverse noise in the last round (log schedule)"
    )
    class_share: float = Field(
        default=0.66, ge=0, le=1, description="clasp: budget share of class quotas; hybrid: weight of class scores"
    )
    diversity: float = Field(
        default=1.0, ge=0, description="hybrid: exponent on the distance to what is labelled or chosen"
    )
    balance: float = Field(default=0.5, ge=0, description="hybrid: exponent on the rarity of classes")
    cost_power: float = Field(default=1.0, ge=0, description="hybrid: exponent on predicted seconds; 0 ignores cost")


class AnnotatorConfig(Settings):
    """Who answers."""

    name: Literal["oracle", "people"] = Field(
        default="oracle", description="oracle: held-back masks; people: export, wait, import"
    )
    initial_masks: tuple[str, ...] | Literal["all", "none"] = Field(
        default="none",
        description="ids of pool images whose masks are known from the start; all: every mask that is there (people)",
    )
    returns: str | None = Field(
        default=None, description="people: folder where labels come back; null: the batch's own returned/"
    )
    accept_iou: float = Field(
        default=0.7, ge=0, le=1, description="oracle, boxes: a prediction that overlaps its object so far is accepted"
    )
    fix_iou: float = Field(
        default=0.1, ge=0, le=1, description="oracle, boxes: one that overlaps this far is fixed, below it is rejected"
    )
    proceed_at: float = Field(
        default=1.0, gt=0, le=1, description="people: go on once this share of the round is back; the rest stays open"
    )


class Config(Settings):
    """All settings of a run."""

    run_dir: Path = Field(description="folder of the run: ledger, weights, batches, report")
    data_root: Path = Field(description="folder that holds the data")
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="everything random comes from it")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps")
    threads: int | None = Field(default=None, ge=1, le=1024, description="CPU threads of torch; null: its own choice")
    data: DataConfig = Field(description="pool")
    task: TaskConfig = Field(default_factory=TaskConfig, description="task adapter")
    uncertainty: UncertaintyConfig = Field(default_factory=UncertaintyConfig, description="uncertainty")
    query: QueryConfig = Field(default_factory=QueryConfig, description="what is asked")
    costs: CostConfig = Field(default_factory=CostConfig, description="labelling time")
    budget: BudgetConfig = Field(default_factory=BudgetConfig, description="budget")
    strategy: StrategyConfig = Field(default_factory=StrategyConfig, description="acquisition")
    annotator: AnnotatorConfig = Field(default_factory=AnnotatorConfig, description="annotator")

    @field_validator("device")
    @classmethod
    def _a_device(cls, text: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", text):
            raise ValueError(f"{text!r} is no device; use auto, cpu, cuda, cuda:1 (or another number) or mps")
        return text

    @model_validator(mode="after")
    def _possible(self) -> Config:
        train, unsure = self.task.train, self.uncertainty
        if unsure.draws == "mc_dropout" and self.task.network.dropout == 0:
            raise ValueError(
                "uncertainty.draws mc_dropout needs task.network.dropout above 0; raise it or choose other draws"
            )
        if unsure.draws == "flips" and not train.flip_axes:
            raise ValueError("uncertainty.draws flips needs task.train.flip_axes: name the axes that may be flipped")
        self._check_task()
        self._check_axes()
        axes = {len(size) for size in self.query.sizes}
        if self.query.kind in ("crop", "box") and axes != {len(train.patch)}:
            raise ValueError(
                f"query.sizes has {sorted(axes)} numbers a size, task.train.patch has {len(train.patch)}; "
                "both need 3 for volumes and 2 for frames"
            )
        if any(side < 1 for size in (*self.query.sizes, train.patch) for side in size):
            raise ValueError("query.sizes and task.train.patch need sides of at least 1")
        if self.budget.start_seconds == 0 and self.annotator.initial_masks in ("none", ()):
            raise ValueError(
                "budget.start_seconds is 0 and annotator.initial_masks is none, so the first model has nothing to "
                "learn from; raise the one or name masks in the other"
            )
        self._check_data()
        return self

    def _check_data(self) -> None:
        data = self.data
        if data.format in ("folder", "dicom") and data.masks is None:
            if self.annotator.name == "oracle":
                raise ValueError(
                    "annotator.name oracle answers from masks, but data.masks is null; name the folder or use people"
                )
            if self.annotator.initial_masks not in ("none", ()):
                raise ValueError(
                    "annotator.initial_masks names masks, but data.masks is null; name the folder, or set it to none"
                )
        axes = {"coco": 2, "dicom": 3}.get(data.format, len(self.task.train.patch))
        if len(self.task.train.patch) != axes:
            raise ValueError(
                f"task.train.patch {list(self.task.train.patch)}: data.format {data.format} holds "
                f"{'volumes' if axes == 3 else 'frames'}; give {axes} numbers"
            )
        if self.query.min_gap is not None and data.time_field is None and data.time_pattern is None:
            raise ValueError("query.min_gap needs to know times; set data.time_field or data.time_pattern")

    def _check_axes(self) -> None:
        """Settings that only one of volumes and frames has; the patch says which they are."""
        task = self.task
        if len(task.train.patch) == 2:
            if self.query.kind == "slice":
                raise ValueError(
                    "query.kind slice needs volumes, but task.train.patch has 2 numbers; give it 3, "
                    "or for frames use crop"
                )
            if "front_back" in task.train.flip_axes:
                raise ValueError("task.train.flip_axes: frames have no axis front_back; use left_right or up_down")
            if task.spacing is not None:
                raise ValueError(
                    "task.spacing is for volumes, but task.train.patch has 2 numbers; give it 3, or for frames use "
                    "task.frame_size"
                )
        elif task.frame_size is not None:
            raise ValueError(
                "task.frame_size is for frames, but task.train.patch has 3 numbers; give it 2, or for volumes use "
                "task.spacing"
            )

    def _check_task(self) -> None:
        """Settings that only one of segmentation and detection has."""
        detection = self.task.name != "monai_segmentation"
        if detection != self.costs.preset.startswith("box_"):
            names = "box_clicks or box_drawing" if detection else "ct_contour, frame_polygon or frame_clicks"
            raise ValueError(f"costs.preset {self.costs.preset} is not for {self.task.name}; use {names}")
        if detection:
            self._check_detection()
            return
        if self.query.kind == "box":
            raise ValueError("query.kind box needs a detection task; use crop, slice or image")
        if self.strategy.name == "ppal":
            raise ValueError("strategy.name ppal compares detected objects and needs a detection task; use hybrid")
        if self.uncertainty.score in ("spread", "inconsistency", "difficulty_entropy"):
            raise ValueError(f"uncertainty.score {self.uncertainty.score} is for detection; use predictive_entropy")
        alone = self.uncertainty.draws == "single" or self.uncertainty.count < 2
        if self.uncertainty.score == "mutual_information" and alone:
            raise ValueError(
                "uncertainty.score mutual_information compares draws; set uncertainty.draws to mc_dropout, flips, "
                "ensemble or checkpoints, and uncertainty.count to 2 or more"
            )

    def _check_detection(self) -> None:
        if self.data.format != "coco":
            raise ValueError("data.format must be coco for detection: boxes come from a COCO json")
        if self.query.kind == "slice":
            raise ValueError("query.kind slice needs volumes; use crop, image or box")
        single = self.uncertainty.draws == "single"
        if self.uncertainty.score in ("spread", "mutual_information") and single:
            raise ValueError(
                f"uncertainty.score {self.uncertainty.score} compares draws, but uncertainty.draws is single; "
                "use mc_dropout, flips, ensemble or checkpoints"
            )
        if self.uncertainty.score == "inconsistency" and self.uncertainty.draws != "flips":
            raise ValueError("uncertainty.score inconsistency needs uncertainty.draws flips")
        if self.uncertainty.score in ("spread", "mutual_information", "inconsistency") and self.uncertainty.count < 2:
            raise ValueError(f"uncertainty.score {self.uncertainty.score} needs uncertainty.count of at least 2")
        one_stage = self.task.network.name in ("retinanet", "fcos")
        if self.uncertainty.score == "spread" and self.uncertainty.draws == "mc_dropout" and one_stage:
            raise ValueError(
                f"uncertainty.score spread is 0 under mc_dropout in {self.task.network.name}: its box branch has no "
                "dropout; use flips, ensemble or checkpoints, or faster_rcnn"
            )
        if self.uncertainty.draws == "flips" and "left_right" not in self.task.train.flip_axes:
            raise ValueError("uncertainty.draws flips of detectors go left to right; add left_right to flip_axes")
        if not self.task.background:
            raise ValueError("task.background must be true for detection: class 0 is what is no object")
        if self.annotator.accept_iou < self.annotator.fix_iou:
            raise ValueError("annotator.accept_iou must be at least annotator.fix_iou: what is right needs no fixing")
