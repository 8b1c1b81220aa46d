"""Tiny pools on disk, for tests of the whole loop."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np


def write_volumes(root: Path, *, train: int = 4, test: int = 2, shape: tuple[int, int, int] = (14, 12, 10)) -> Path:
    """An MSD folder of small CTs: a bright ball and a dim box in noise, another place in each."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(train + test):
        write_volume(root, f"case_{i:02d}", i, shape)
    pairs = [{"image": f"imagesTr/case_{i:02d}.nii.gz", "label": f"labelsTr/case_{i:02d}.nii.gz"} for i in range(train + test)]
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
