"""Settings that do not fit the task are refused before anything is opened, and say what to write instead."""

import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dal_dense.config import Config

DETECTION: dict[str, Any] = {
    "task": {
        "name": "torchvision_detection", "metric": "ap50", "network": {"name": "faster_rcnn"},
        "train": {"patch": [64, 96]},
    },
    "data": {"format": "coco", "listing": "all.json"},
    "query": {"sizes": [[32, 48]]},
    "costs": {"preset": "box_clicks"},
}  # fmt: skip
SEGMENTATION: dict[str, Any] = {"data": {"format": "msd"}}


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    both = {
        k: merged(v, change[k]) if isinstance(v, dict) and k in change else change.get(k, v) for k, v in base.items()
    }
    return both | {k: v for k, v in change.items() if k not in base}


def made(base: dict[str, Any], **change: Any) -> Config:
    return Config.model_validate({"run_dir": Path("run"), "data_root": Path("data"), **merged(base, change)})


@pytest.mark.parametrize("kind", ["crop", "image", "box"])
@pytest.mark.parametrize("name", ["torchvision_detection", "detectron2_detection"])
def test_detection_as_it_should_be(kind: str, name: str) -> None:
    config = made(DETECTION, query={"kind": kind}, task={"name": name}, strategy={"name": "ppal"})
    assert config.query.kind == kind and config.task.name == name


@pytest.mark.parametrize("number", [math.inf, math.nan])
@pytest.mark.parametrize(
    "where", [("budget", "seconds_per_round"), ("query", "min_gap"), ("strategy", "beta"), ("task", "window_overlap")]
)
def test_numbers_are_finite(where: tuple[str, str], number: float) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        made(SEGMENTATION, **{where[0]: {where[1]: number}})


def test_segmentation_as_it_should_be() -> None:
    assert made(SEGMENTATION).task.metric == "dice"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": {"network": {"name": "unet"}}}, "unet is not for torchvision_detection; use faster_rcnn, retinanet"),
        ({"task": {"metric": "dice"}}, "metric dice does not fit torchvision_detection; use ap50 or ap"),
        ({"costs": {"preset": "ct_contour"}}, "ct_contour is not for torchvision_detection; use box_clicks or box_dr"),
        ({"data": {"format": "folder"}}, "data.format must be coco for detection"),
        ({"query": {"kind": "slice"}}, "query.kind slice needs volumes; use crop, image or box"),
        ({"uncertainty": {"score": "spread"}}, "spread compares draws, but uncertainty.draws is single"),
        ({"uncertainty": {"score": "spread", "draws": "ensemble", "count": 1}}, "spread needs uncertainty.count of at"),
        (
            {"uncertainty": {"score": "spread", "draws": "mc_dropout"}, "task": {"network": {"name": "fcos"}}},
            "spread is 0 under mc_dropout in fcos",
        ),
        ({"task": {"background": False}}, "task.background must be true for detection"),
        (
            {"task": {"detection": {"anchor_sizes": [32, 16]}}},
            r"anchor_sizes \[32.0, 16.0\] must be above 0 and ascend",
        ),
        ({"uncertainty": {"score": "mutual_information"}}, "mutual_information compares draws"),
        ({"uncertainty": {"score": "inconsistency"}}, "inconsistency needs uncertainty.draws flips"),
        ({"uncertainty": {"draws": "flips"}}, "flips needs task.train.flip_axes"),
        ({"annotator": {"accept_iou": 0.3, "fix_iou": 0.5}}, "accept_iou must be at least annotator.fix_iou"),
        ({"query": {"kind": "box", "sizes": [[8, 8, 8]]}}, r"query.sizes has \[3\] numbers a size, .* has 2"),
        ({"query": {"min_gap": 2.0}}, "min_gap needs to know times; set data.time_field or data.time_pattern"),
    ],
)
def test_detection_settings_that_do_not_fit(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        made(DETECTION, **change)


def test_detection_settings_that_do() -> None:
    flips = {"draws": "flips", "score": "inconsistency"}
    assert (
        made(DETECTION, uncertainty=flips, task={"train": {"flip_axes": ["left_right"]}}).uncertainty.draws == "flips"
    )
    assert made(DETECTION, uncertainty={"draws": "ensemble", "score": "spread"}).uncertainty.score == "spread"
    assert made(DETECTION, data={"time_field": "t"}, query={"min_gap": 2.0}).query.min_gap == 2
    assert made(DETECTION, annotator={"accept_iou": 0.5, "fix_iou": 0.5}).annotator.fix_iou == 0.5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": {"network": {"name": "fcos"}}}, "fcos is not for monai_segmentation; use unet, dynunet or segresnet"),
        ({"task": {"metric": "ap"}}, "metric ap does not fit monai_segmentation; use dice or miou"),
        ({"costs": {"preset": "box_drawing"}}, "box_drawing is not for monai_segmentation; use ct_contour"),
        ({"query": {"kind": "box"}}, "query.kind box needs a detection task"),
        ({"strategy": {"name": "ppal"}}, "ppal compares detected objects and needs a detection task; use hybrid"),
        ({"uncertainty": {"score": "spread"}}, "score spread is for detection"),
        ({"uncertainty": {"score": "inconsistency"}}, "score inconsistency is for detection"),
        ({"uncertainty": {"score": "difficulty_entropy"}}, "score difficulty_entropy is for detection"),
    ],
)
def test_segmentation_settings_that_do_not_fit(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        made(SEGMENTATION, **change)
