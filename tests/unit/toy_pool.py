"""A few small images on disk with bright and brighter blobs to find; for the tests of task adapters."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from dal_dense.records import ImageRecord
from dal_dense.regions import Box, Regions, slices
from dal_dense.tasks.base import LabelledImage

CLASSES = ("background", "blob", "core")
AFFINES = (np.diag([-2.0, 2.0, 3.0, 1.0]), np.array([[0.0, 2, 0, 5], [2, 0, 0, 1], [0, 0, -3, 2], [0, 0, 0, 1]]))


def toy_truth(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Two nested balls somewhere in the image, uint8 class numbers."""
    rng = np.random.default_rng(seed)
    place = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    centre = np.array([rng.uniform(0.3, 0.7) * n for n in shape])
    distance = np.linalg.norm((place - centre) / np.array(shape) * 10, axis=-1)
    return np.select([distance < 1.3, distance < 2.6], [2, 1], 0).astype(np.uint8)


def toy_record(root: Path, name: str, shape: tuple[int, ...], seed: int) -> tuple[ImageRecord, np.ndarray]:
    """Write one image (NIfTI or PNG) and give its record and truth."""
    truth = toy_truth(shape, seed)
    rng = np.random.default_rng(seed + 1000)
    values = np.array([40, 110, 180])[truth] + rng.normal(0, 12, shape)
    if len(shape) == 3:
        path = root / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(values.astype(np.int16), AFFINES[seed % 2]), path)
    else:
        path = root / f"{name}.png"
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(path)
    return ImageRecord(name, (path,), root, f"group{seed % 3}", None, len(shape)), truth


def known(record: ImageRecord, truth: np.ndarray, boxes: list[Box]) -> LabelledImage:
    """The truth inside some boxes, as if a person had drawn it."""
    return LabelledImage(
        record, Regions.of(boxes, truth.ndim), tuple(np.ascontiguousarray(truth[slices(b)]) for b in boxes)
    )
