"""COCO json for a batch of frames: crops, and whole frames with region marks.

Category ids are class number + 1: tools refuse 0. Two more names are ours: `__query__` outlines a
region on its whole frame, `__ignore__` marks ground that shall stay unlabelled. CVAT drops every
extra field of an image record, so the file's name carries the id, and so does each annotation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dal_dense.exchange.polygons import components, segmentation
from dal_dense.query import SidecarRegion
from dal_dense.tasks.base import Proposal

QUERY_NAME = "__query__"
IGNORE_NAME = "__ignore__"
CROPS, FRAMES = "coco_crops.json", "coco_frames.json"


def categories(classes: Sequence[str]) -> list[dict[str, Any]]:
    """The classes, then our two marks; ids from 1."""
    names = [*classes, IGNORE_NAME, QUERY_NAME]
    return [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(names, 1)]


def write_crops(
    folder: Path,
    entries: Sequence[SidecarRegion],
    proposals: Mapping[str, Proposal],
    classes: Sequence[str],
    background: int | None,
) -> None:
    """`coco_crops.json`: one image a region, file names relative to `images/`."""
    images, annotations = [], []
    for number, entry in enumerate(entries, 1):
        region = entry.region
        rows, columns = region.shape
        images.append(image_record(number, Path(entry.files["image"]).name, rows, columns) | {"query_id": region.id})
        if region.id in proposals:
            label = proposals[region.id].label.astype(np.uint8)
            annotations += _pieces(label, number, entry, len(classes), background)
    write_document(folder / CROPS, images, annotations, categories(classes))


def write_frames(
    folder: Path,
    entries: Sequence[SidecarRegion],
    proposals: Mapping[str, Proposal],
    classes: Sequence[str],
    background: int | None,
) -> None:
    """`coco_frames.json`: one image a frame, file names relative to `frames/`, a `__query__` mark a region."""
    images, annotations = [], []
    for number, asked in enumerate(by_image(entries), 1):
        rows, columns = asked[0].source.shape
        name = Path(asked[0].files["frame"]).name
        images.append(image_record(number, name, rows, columns) | {"query_ids": [e.region.id for e in asked]})
        for entry in asked:
            annotations.append(mark(number, entry, len(classes) + 2))
            if entry.region.id in proposals:
                label = proposals[entry.region.id].label.astype(np.uint8)
                placed = np.pad(label, _margins(entry), constant_values=255)
                annotations += _pieces(placed, number, entry, len(classes), background)
    write_document(folder / FRAMES, images, annotations, categories(classes))


def by_image(entries: Sequence[SidecarRegion]) -> list[list[SidecarRegion]]:
    """The regions of each image, in the order in which the images were asked."""
    grouped: dict[str, list[SidecarRegion]] = {}
    for entry in entries:
        grouped.setdefault(entry.region.image_id, []).append(entry)
    return list(grouped.values())


def _margins(entry: SidecarRegion) -> list[tuple[int, int]]:
    sides = zip(entry.region.start, entry.region.stop, entry.source.shape, strict=True)
    return [(start, whole - stop) for start, stop, whole in sides]


def image_record(number: int, name: str, rows: int, columns: int) -> dict[str, Any]:
    """An image that nobody has reviewed yet."""
    return {"id": number, "file_name": name, "width": columns, "height": rows, "reviewed": False}


def _pieces(
    label: UInt8[np.ndarray, "h w"], image: int, entry: SidecarRegion, n_classes: int, background: int | None
) -> list[dict[str, Any]]:
    """One annotation a class and connected piece; background is ground without annotation."""
    found = []
    for value in range(n_classes):
        if value == background:
            continue
        for piece in components(label, value):
            rows, columns = piece.mask.shape
            found.append(
                {
                    "image_id": image,
                    "category_id": value + 1,
                    "segmentation": segmentation(piece, label.shape),
                    "area": int(piece.mask.sum()),
                    "bbox": [piece.left, piece.top, columns, rows],
                    "iscrowd": 0,
                    "attributes": {"query_id": entry.region.id, "score": entry.region.score},
                }
            )
    return found


def mark(image: int, entry: SidecarRegion, category: int) -> dict[str, Any]:
    """The outline of a region on its whole frame."""
    (top, left), (bottom, right) = entry.region.box
    return {
        "image_id": image,
        "category_id": category,
        "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
        "area": (bottom - top) * (right - left),
        "bbox": [left, top, right - left, bottom - top],
        "iscrowd": 0,
        "attributes": {"query_id": entry.region.id, "score": entry.region.score},
    }


def write_document(
    path: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]], named: list[dict[str, Any]]
) -> None:
    """Write a COCO json; annotations are numbered from 1."""
    numbered = [{"id": i, **a} for i, a in enumerate(annotations, 1)]
    path.write_text(json.dumps({"images": images, "annotations": numbered, "categories": named}), encoding="utf-8")
