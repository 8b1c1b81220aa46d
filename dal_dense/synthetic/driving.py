"""Synthetic driving frames: seeded, as frames and index masks with COCO boxes beside them.

Each drive is a street of its own with one weather (sun with hard shade, overcast, dusk, fog), one
camera and temporally correlated frames in which people and cars move. What makes it hard: people
and signs of a few pixels, occlusion, cars in the colour of the road, bright awnings that are no
signs, shade across the road.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool
from pycocotools import mask as coco_mask

from dal_dense.errors import DataError
from dal_dense.synthetic.drive import WEATHER, Drive, Frame
from dal_dense.synthetic.scene import IGNORE
from dal_dense.synthetic.store import Progress, begin, finish, is_complete, silent, write_json
from dal_dense.synthetic.street import PERSON, SIGN, VEHICLE

DRIVING_CLASSES = ("road", "sidewalk", "building", "vegetation", "sky", "vehicle", "person", "sign")
THINGS = {VEHICLE: "vehicle", PERSON: "person", SIGN: "sign"}

_VERSION = 1  # raise when the same parameters make other pixels
_STEP = 0.4  # seconds between frames
_SMALL = 8  # visible pixels below which an object is marked as crowd: neither asked for nor punished
_JPEG_QUALITY = 93


def drive(seed: int, stream: int, number: int, size: tuple[int, int]) -> Drive:
    """One drive: the same for the same four arguments, whatever else is made.

    Args:
        seed: of the set.
        stream: 0 for the pool, 1 for the test drives.
        number: of the drive in its stream; weathers take turns.
        size: rows, columns of a frame.
    """
    rng = np.random.default_rng((seed, 3, stream, number))
    return Drive(rng, list(WEATHER)[number % len(WEATHER)], size, _STEP)


def _parameters(
    seed: int, drives: int, frames: int, test_drives: int, test_frames: int, size: Sequence[int]
) -> dict[str, Any]:
    return {
        "set": "driving",
        "version": _VERSION,
        "seed": seed,
        "drives": drives,
        "frames_per_drive": frames,
        "test_drives": test_drives,
        "test_frames_per_drive": test_frames,
        "size": list(size),
    }


def write_driving(
    root: Path,
    *,
    seed: int = 0,
    drives: int = 4,
    frames_per_drive: int = 15,
    test_drives: int = 4,
    test_frames_per_drive: int = 4,
    size: tuple[int, int] = (192, 320),
    progress: Progress = silent,
) -> None:
    """Write `images/*.jpg`, `masks/*.png`, `splits.json`, `classes.json`, COCO boxes and a manifest.

    A frame's id is `drive01_0003` in the pool and `test01_0003` for measuring: the part before the
    underscore is its group. Masks hold positions in `DRIVING_CLASSES`, or 255. The objects are in
    `annotations/instances_train.json` and `instances_test.json`, with boxes and run-length masks of what is visible.

    Raises:
        DataError: if a number is too small to make a set, the folder holds another set or files of another
            origin, or it cannot be made.
    """
    if min(size) < 32 or min(drives, frames_per_drive) < 1 or min(test_drives, test_frames_per_drive, seed) < 0:
        raise DataError(
            f"a driving set needs a drive with a frame of 32 x 32 pixels and a seed from 0 on; "
            f"got {drives} drives of {frames_per_drive} frames, {test_drives} of {test_frames_per_drive} to measure "
            f"with, {size}, seed {seed}"
        )
    parameters = _parameters(seed, drives, frames_per_drive, test_drives, test_frames_per_drive, size)
    begin(root, parameters)
    for folder in ("images", "masks", "annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    total = drives * frames_per_drive + test_drives * test_frames_per_drive
    splits: dict[str, list[str]] = {}
    plan = (("train", "drive", drives, frames_per_drive), ("test", "test", test_drives, test_frames_per_drive))
    for stream, (split, prefix, count, length) in enumerate(plan):
        listing = _Listing()
        for number in range(count):
            street = drive(seed, stream, number, size)
            for index in range(length):
                name = f"{prefix}{number + 1:02d}_{index:04d}"
                frame = street.frame(index)
                _save(root, name, frame)
                listing.add(name, frame)
                progress("driving frames", sum(map(len, splits.values())) + len(listing.images), total)
        splits[split] = [Path(image["file_name"]).stem for image in listing.images]
        write_json(root / "annotations" / f"instances_{split}.json", listing.coco())
    write_json(root / "splits.json", splits)
    write_json(
        root / "classes.json",
        {"classes": [{"id": n, "name": c} for n, c in enumerate(DRIVING_CLASSES)], "ignore": IGNORE},
    )
    finish(root)


def ensure_driving(
    root: Path,
    *,
    seed: int = 0,
    drives: int = 4,
    frames_per_drive: int = 15,
    test_drives: int = 4,
    test_frames_per_drive: int = 4,
    size: tuple[int, int] = (192, 320),
    progress: Progress = silent,
) -> bool:
    """Like `write_driving`, but do nothing if that very set is there; true if it was made now."""
    if is_complete(root, _parameters(seed, drives, frames_per_drive, test_drives, test_frames_per_drive, size)):
        return False
    write_driving(
        root,
        seed=seed,
        drives=drives,
        frames_per_drive=frames_per_drive,
        test_drives=test_drives,
        test_frames_per_drive=test_frames_per_drive,
        size=size,
        progress=progress,
    )
    return True


def _save(root: Path, name: str, frame: Frame) -> None:
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    for path, pixels, options in (
        (root / "images" / f"{name}.jpg", cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR), quality),
        (root / "masks" / f"{name}.png", frame.label, []),
    ):
        if not cv2.imwrite(str(path), pixels, options):
            raise DataError(f"{path}: could not be written; is the disk full or the folder read-only?")


class _Listing:
    """Gathers images and objects for one COCO file."""

    def __init__(self) -> None:
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, name: str, frame: Frame) -> None:
        """One frame and what is visible of its objects."""
        rows, columns = frame.label.shape
        record = {"id": len(self.images) + 1, "file_name": f"{name}.jpg", "width": columns, "height": rows}
        self.images.append(record | {"group": name.split("_")[0]})
        for thing in np.unique(frame.thing[frame.thing > 0]):
            visible = frame.thing == thing
            kind = int(np.bincount(frame.label[visible]).argmax())
            self.annotations.append(
                {"id": len(self.annotations) + 1, "image_id": record["id"], "category_id": kind, "track": int(thing)}
                | _object(visible)
            )

    def coco(self) -> dict[str, Any]:
        """The file's content."""
        return {
            "info": {"description": "synthetic driving frames made by dal_dense.synthetic", "licence": "CC0-1.0"},
            "images": self.images,
            "annotations": self.annotations,
            "categories": [{"id": number, "name": name} for number, name in THINGS.items()],
        }


def _object(visible: Bool[np.ndarray, "rows columns"]) -> dict[str, Any]:
    """Box (x, y, width, height), area and exact visible pixels of one object."""
    down, across = (np.flatnonzero(visible.any(axis)) for axis in (1, 0))
    left, top = int(across[0]), int(down[0])
    area = int(visible.sum())
    rle = coco_mask.encode(np.asfortranarray(visible.astype(np.uint8)))
    return {
        "bbox": [left, top, int(across[-1]) - left + 1, int(down[-1]) - top + 1],
        "area": area,
        "iscrowd": int(area < _SMALL),
        "segmentation": {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode()},
    }
