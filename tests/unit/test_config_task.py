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
    task = {"train": {"patch": [8, 12, 8]}, "network": {"name": "segresnet", "channels": [4, 8, 16]}}
    task["detection"] = {"norm": "frozen", "config_file": "a.json"}  # which no detector reads
    assert made(SEGMENTATION, task=task).task.train.patch == (8, 12, 8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": {"network": {"name": "unet"}}}, "unet is not for torchvision_detection; use faster_rcnn, retinanet"),
        ({"task": {"metric": "dice"}}, "metric dice does not fit torchvision_detection; use ap50 or ap"),
        ({"costs": {"preset": "ct_contour"}}, "ct_contour is not for torchvision_detection; use box_clicks or box_dr"),
        ({"data": {"format": "msd"}}, "data.format must be coco for detection"),
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
        ({"uncertainty": {"draws": "flips"}, "task": {"train": {"flip_axes": ["up_down"]}}}, "go left to right; add"),
        (
            {"task": {"detection": {"norm": "frozen"}}},
            "norm frozen .*weights is null; name a file, or use group",
        ),
        ({"task": {"detection": {"norm": "batch"}, "train": {"parts": 2}}}, "2 parts would disagree on; set"),
        ({"task": {"detection": {"anchor_sizes": [16]}}}, "1 sizes make 1 pyramid levels; .* 2 to 6"),
        (
            {"task": {"detection": {"anchor_sizes": [4, 8, 16, 32, 64, 128, 256]}}},
            "7 sizes make 7 pyramid levels; .* 2 to 6",
        ),
        (
            {"task": {"detection": {"anchor_sizes": [64, 128, 256, 512, 999]}, "network": {"name": "fcos"}}},
            "5 sizes make 5 pyramid levels; .* 2 to 4",
        ),
        (
            {"task": {"detection": {"config_file": "a.yaml"}}},
            "a.yaml is for Detectron2.* set task.name to detectron2_det",
        ),
        (
            {"task": {"detection": {"config_file": "a.json"}, "name": "detectron2_detection"}},
            "a.json is no config; give a .yaml",
        ),
        (
            {"task": {"detection": {"weights": "a.pkl"}, "name": "detectron2_detection"}},
            r"a.pkl is a pickle.*\.pth.*torch\.save",
        ),
        ({"data": {"listing": None}}, "listing is null, and format coco needs the json file"),
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
    assert made(DETECTION, data={"classes": {1: "car"}}).data.classes == {1: "car"}
    own = {"config_file": "a.py", "norm": "frozen", "anchor_sizes": [16]}  # the file decides
    assert made(DETECTION, task={"name": "detectron2_detection", "detection": own}).task.detection.norm == "frozen"
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
        (
            {"task": {"train": {"patch": [30, 32, 32]}}},
            r"\[30, 32, 32\] does not fit unet with 3 levels: .* multiple of 4 .* write \[32, 32, 32\]",
        ),
        ({"task": {"train": {"patch": [4, 32, 32]}}}, r"at least 8; write \[8, 32, 32\]"),
        ({"task": {"train": {"patch": [32]}}}, r"patch \[32\] needs 2 numbers for frames, 3 for volumes"),
        ({"task": {"network": {"name": "dynunet", "channels": [8, 16]}}}, "are 2 levels, but dynunet needs at least 3"),
        ({"task": {"network": {"name": "segresnet", "channels": [8, 16, 64]}}}, r"doubles .* write \[8, 16, 32\]"),
        ({"data": {"classes": {0: "only"}}}, "classes: 1 named, .* between 2 and 254"),
        ({"data": {"classes": {i: str(i) for i in range(255)}}}, "classes: 255 named, .* between 2 and 254"),
        ({"data": {"classes": {0: "road", 1: "car"}, "ignore_index": 1}}, "ignore_index 1 is the class 'car' too"),
        ({"data": {"group_field": "a", "group_pattern": "(b)", "group_table": "c"}}, "but one of them is enough; keep"),
        ({"data": {"time_field": "a", "time_pattern": "(b)"}}, "time_field and time_pattern are set"),
        ({"data": {"format": "folder"}}, "classes is null, and folders do not name them"),
        (
            {"data": {"format": "folder", "classes": {0: "a", 1: "b"}, "group_field": "drive"}},
            "group_field drive is a field of a coco or msd listing, and format is folder; use group_pattern",
        ),
        ({"data": {"format": "nnunet", "time_field": "t"}}, "time_field t is .* use time_pattern"),
        (
            {"data": {"format": "dicom", "classes": {0: "a", 1: "b"}, "masks": None}},
            "oracle answers from masks, but data.masks is null",
        ),
        (
            {
                "data": {"format": "folder", "classes": {0: "a", 1: "b"}, "masks": None},
                "annotator": {"name": "people", "initial_masks": "all"},
            },
            "initial_masks names masks, but data.masks is null",
        ),
        (
            {
                "data": {"format": "dicom", "classes": {0: "a", 1: "b"}},
                "task": {"train": {"patch": [32, 32]}},
                "query": {"sizes": [[8, 8]]},
            },
            r"patch \[32, 32\]: data.format dicom holds volumes; give 3 numbers",
        ),
        ({"data": {"format": "coco", "listing": "a.json"}}, r"data.format coco holds frames; give 2 numbers"),
        ({"uncertainty": {"score": "mutual_information"}}, "mutual_information compares draws; set"),
        (
            {"uncertainty": {"score": "mutual_information", "draws": "ensemble", "count": 1}},
            "uncertainty.count to 2 or more",
        ),
        (
            {"data": {"format": "folder", "classes": {0: "a", 1: "b"}, "images": "all", "masks": "./all"}},
            r"mask_suffix is needed when images and masks share a folder",
        ),
    ],
)
def test_segmentation_settings_that_do_not_fit(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        made(SEGMENTATION, **change)
