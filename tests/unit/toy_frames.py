"""A few small frames on disk with two kinds of rectangles to find; for the tests of detectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dal_dense.boxes import Boxes
from dal_dense.records import ImageRecord
from dal_dense.regions import Box, Regions
from dal_dense.tasks.base import LabelledImage

FRAME = (72, 96)
OBJECTS = ("background", "bright", "dark")


def toy_frame(root: Path, name: str, seed: int, shape: tuple[int, int] = FRAME) -> tuple[ImageRecord, Boxes]:
    """One PNG with three rectangles that do not overlap, its record and its boxes."""
    rng = np.random.default_rng(seed)
    values = np.full((*shape, 3), 120.0)
    cells = rng.permutation(4)[:3]
    corners, classes = [], []
    for cell in cells:
        rows, cols = shape[0] // 2, shape[1] // 2
        height, width = rng.integers(14, rows - 6), rng.integers(16, cols - 6)
        top = (cell // 2) * rows + rng.integers(2, rows - height - 1)
        left = (cell % 2) * cols + rng.integers(2, cols - width - 1)
        kind = int(rng.integers(1, 3))
        values[top : top + height, left : left + width] = (230, 200, 60) if kind == 1 else (20, 40, 60)
        corners.append([float(v) for v in (top, left, top + height, left + width)])
        classes.append(kind)
    noisy = (values + rng.normal(0, 8, values.shape)).clip(0, 255).astype(np.uint8)
    path = root / f"{name}.png"
    Image.fromarray(noisy).save(path)
    return ImageRecord(name, (path,), root, f"drive{seed % 2}", None, 2), Boxes.of(corners, classes)


def labelled(record: ImageRecord, truth: Boxes, regions: list[Box], kinds: tuple[str, ...]) -> LabelledImage:
    """The truth inside some regions, as if a person had drawn it."""
    tables = tuple(truth.within(region, 0.25).table() for region in regions)
    return LabelledImage(record, Regions.of(regions, 2), tables, kinds)
