"""Tiny pools on disk, for tests of the whole loop."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np


def write_volumes(root: Path, *, train: int = 4, test: int = 2, shape: tuple[int, int, int] = (14, 12, 10)) -> Path:
    """An MSD folder of small CTs: a bright ball and a dim box in noise, another place in each."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(train + test):
        write_volume(root, f"case_{i:02d}", i, shape)
    pairs = [
        {"image": f"imagesTr/case_{i:02d}.nii.gz", "label": f"labelsTr/case_{i:02d}.nii.gz"}
        for i in range(train + test)
    ]
    listing = {
        "name": "tiny",
        "labels": {"0": "background", "1": "ball", "2": "box"},
        "training": pairs[:train],
        "test": pairs[train:],
    }
    (root / "dataset.json").write_text(json.dumps(listing))
    return root


def write_volume(root: Path, name: str, seed: int, shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(seed)
    grid = np.indices(shape)
    centre = np.array([rng.uniform(0.3, 0.7) * n for n in shape]).reshape(3, 1, 1, 1)
    mask = np.zeros(shape, np.uint8)
    mask[2:5, 2:5, 2:6] = 2
    mask[((grid - centre) ** 2).sum(0) < 9] = 1
    image = rng.normal(0, 30, shape) + np.array([-50.0, 120.0, 40.0])[mask]
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    nib.save(nib.Nifti1Image(image.astype(np.int16), affine), root / "imagesTr" / f"{name}.nii.gz")
    nib.save(nib.Nifti1Image(mask, affine), root / "labelsTr" / f"{name}.nii.gz")


def write_frames(root: Path, *, frames: int = 6, shape: tuple[int, int] = (24, 32)) -> Path:
    """A folder of small JPEG frames with index masks: a dark road below, a bright car on it; 255 along the border."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(frames):
        write_frame(root, f"drive{i % 3}_{i:02d}", i, shape)
    return root


def write_frame(root: Path, name: str, seed: int, shape: tuple[int, int] = (24, 32)) -> None:
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, np.uint8)
    mask[shape[0] // 2 :] = 1
    top, left = shape[0] // 2 + 2, int(rng.integers(2, shape[1] - 10))
    mask[top : top + 5, left : left + 7] = 2
    grey = np.array([150.0, 60.0, 230.0])[mask] + rng.normal(0, 8, shape)
    mask[:, 0] = 255
    pixels = np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    cv2.imwrite(str(root / "images" / f"{name}.jpg"), pixels)
    cv2.imwrite(str(root / "masks" / f"{name}.png"), mask)


def settings(root: Path, run_dir: Path, **more: str) -> list[str]:
    """A command line for `write_volumes`; `more` names settings with `__` for dots."""
    given = {
        "run_dir": run_dir,
        "data_root": root,
        "data.format": "msd",
        "task.train.patch": "[8, 8, 8]",
        "query.sizes": "[[6, 6, 4]]",
        "query.per_image": "4",
        "budget.rounds": "2",
        "budget.start_seconds": "150",
        "budget.seconds_per_round": "150",
        **{k.replace("__", "."): v for k, v in more.items()},
    }
    return [f"--{k}={v}" for k, v in given.items()]


def frame_settings(root: Path, run_dir: Path, **more: str) -> list[str]:
    """A command line for `write_frames`."""
    frames = {
        "data__format": "folder",
        "data__classes": "{0: sky, 1: road, 2: car}",
        "data__ignore_index": "255",
        "data__group_pattern": r"^(drive\d)_",
        "data__test_fraction": "0.3",
        "task__train__patch": "[8, 8]",
        "task__background": "false",
        "query__sizes": "[[8, 10]]",
        "costs__preset": "frame_polygon",
    }
    return settings(root, run_dir, **{**frames, **more})


def write_box_frames(root: Path, *, frames: int = 8, test: int = 3, shape: tuple[int, int] = (96, 144)) -> Path:
    """Small frames of cars (dark) and people (bright) with a COCO json for the pool and one for measuring."""
    for split, count, first in (("train", frames, 0), ("test", test, 100)):
        images, annotations = [], []
        for i in range(count):
            rng = np.random.default_rng(first + i)
            pixels = rng.normal(120, 10, (*shape, 3))
            name = f"drive{i % 3}_{first + i:04d}.jpg"
            images.append({"id": i + 1, "file_name": name, "height": shape[0], "width": shape[1]})
            for category, (rows, columns), value in ((1, (12, 18), 30), (2, (16, 8), 230)):
                for _ in range(int(rng.integers(0, 3))):
                    top, left = int(rng.integers(0, shape[0] - rows)), int(rng.integers(0, shape[1] - columns))
                    pixels[top : top + rows, left : left + columns] = value
                    box = [left, top, columns, rows]
                    annotations.append(
                        {"id": len(annotations) + 1, "image_id": i + 1, "category_id": category, "bbox": box}
                        | {"area": rows * columns, "iscrowd": 0}
                    )
            (root / "images").mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / "images" / name), pixels.clip(0, 255).astype(np.uint8))
        categories = [{"id": 1, "name": "car"}, {"id": 2, "name": "person"}]
        (root / f"{split}.json").write_text(
            json.dumps({"images": images, "annotations": annotations, "categories": categories})
        )
    return root


def box_settings(root: Path, run_dir: Path, **more: str) -> list[str]:
    """A command line for `write_box_frames`: a tiny detector, a few steps a fit."""
    given = {
        "run_dir": run_dir,
        "data_root": root,
        "threads": "1",
        "data.format": "coco",
        "data.listing": "train.json",
        "data.test_listing": "test.json",
        "data.unannotated": "empty",
        "data.group_pattern": r"^([a-z]+\d+)_\d+$",
        "task.name": "torchvision_detection",
        "task.metric": "ap50",
        "task.network.name": "faster_rcnn",
        "task.detection.backbone": "tiny",
        "task.detection.anchor_sizes": "[8, 16, 32, 64]",
        "task.intensity.kind": "rgb",
        "task.train.patch": "[48, 64]",
        "task.train.iterations": "4",
        "task.train.batch": "2",
        "query.sizes": "[[32, 48]]",
        "query.stride": "4",
        "query.per_image": "3",
        "costs.preset": "box_clicks",
        "budget.rounds": "2",
        "costs.prior_objects": "1",
        "budget.start_seconds": "110",
        "budget.seconds_per_round": "100",
        **{k.replace("__", "."): v for k, v in more.items()},
    }
    return [f"--{k}={v}" for k, v in given.items()]
