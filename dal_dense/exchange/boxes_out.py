"""A detection batch: crops, whole frames with region marks, and predicted boxes as COCO json.

Category ids are class numbers: 0, the background, is no category, and tools refuse it. A box query is shown with
the ground around it; the sidecar knows where that lies. CVAT reads rectangles only where `segmentation` is empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from dal_dense.box_answers import corners_of, predicted_class
from dal_dense.boxes import COLUMNS, IGNORED, OBJECT, Boxes, iou
from dal_dense.exchange import frames
from dal_dense.exchange.coco import CROPS, FRAMES, IGNORE_NAME, QUERY_NAME, by_image, image_record, mark, write_document
from dal_dense.query import QueryRegion, SidecarRegion, SourceImage
from dal_dense.regions import Box, slices
from dal_dense.tasks.base import Proposal

FOLDERS = ("images", "frames", "region_masks")
CONTEXT, LEAST_CONTEXT = 1.0, 32
"""Ground shown on each side of a box query: its longer side, and at least so many pixels."""

Offered = tuple[list[float], float | None]
"""A row of a table of boxes, and its probability."""


def categories(classes: Sequence[str]) -> list[dict[str, Any]]:
    """The object classes, then our two marks; the id of a class is its number."""
    names = [*classes[1:], IGNORE_NAME, QUERY_NAME]
    return [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(names, 1)]


def write_frame(
    folder: Path,
    image_id: str,
    image: Float[np.ndarray, "channels h w"],
    source: tuple[Path, SourceImage],
    regions: Sequence[QueryRegion],
    proposals: Mapping[str, Proposal],
    classes: Sequence[str],
) -> dict[str, SidecarRegion]:
    """Write one frame's crops, the whole frame with the regions marked, and the mask of the regions.

    Args:
        folder: the batch.
        image_id: names the whole frame's files.
        image: RGB, 0..255.
        source: the frame's own file, and what the sidecar says of it.
        regions: the regions asked of this frame: crops, the whole image, boxes.
        proposals: the model's answers by region id, where there are any.
        classes: names; the position is the class number.

    Returns:
        Region id to its entry of the sidecar.

    Raises:
        ValueError: if a proposal is no table of boxes with a score each.
    """
    path, described = source
    pixels = frames.pixels_of(image)
    rows, columns = pixels.shape[:2]
    roles = {
        "frame": frames.save_marked(folder, image_id, pixels, path, regions),
        "region_mask": f"region_masks/{image_id}.png",
    }
    frames.save(folder / roles["region_mask"], region_mask((rows, columns), regions))
    entries = {}
    for region in regions:
        is_box = region.kind == "box"
        suffix = Path(roles["frame"]).suffix if region.kind == "image" else ".png"  # a whole frame stays small
        entry = SidecarRegion(
            region=region,
            source=described,
            files=roles
            | {"image": f"images/{region.id}{suffix}"}
            | ({"proposal": CROPS} if region.id in proposals else {}),
            shown=surroundings(region.box, (rows, columns)) if is_box else None,
            predicted=_predicted(region, proposals, (rows, columns), classes) if is_box else None,
        )
        frames.save(folder / entry.files["image"], pixels[slices(entry.window)])
        entries[region.id] = entry
    return entries


def region_mask(shape: tuple[int, int], regions: Sequence[QueryRegion]) -> UInt8[np.ndarray, "h w"]:
    """255 inside this round's regions, 0 elsewhere."""
    mask = np.zeros(shape, np.uint8)
    for region in regions:
        mask[slices(region.box)] = 255
    return mask


def surroundings(box: Box, shape: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """A box with the ground around it, as far as the frame goes."""
    (top, left), (bottom, right) = box
    around = max(LEAST_CONTEXT, round(CONTEXT * max(bottom - top, right - left)))
    return (max(top - around, 0), max(left - around, 0)), (
        min(bottom + around, shape[0]),
        min(right + around, shape[1]),
    )


def write_crops(
    folder: Path, entries: Sequence[SidecarRegion], proposals: Mapping[str, Proposal], classes: Sequence[str]
) -> None:
    """`coco_crops.json`: one image a region, file names relative to `images/`."""
    images, annotations = [], []
    for number, entry in enumerate(entries, 1):
        (top, left), (bottom, right) = entry.window
        name = Path(entry.files["image"]).name
        images.append(image_record(number, name, bottom - top, right - left) | {"query_id": entry.region.id})
        annotations += _annotations(number, entry, proposals, classes, (top, left))
    write_document(folder / CROPS, images, annotations, categories(classes))


def write_frames(
    folder: Path, entries: Sequence[SidecarRegion], proposals: Mapping[str, Proposal], classes: Sequence[str]
) -> None:
    """`coco_frames.json`: one image a frame, file names relative to `frames/`, a `__query__` mark a region."""
    images, annotations = [], []
    for number, asked in enumerate(by_image(entries), 1):
        rows, columns = asked[0].source.shape
        name = Path(asked[0].files["frame"]).name
        images.append(image_record(number, name, rows, columns) | {"query_ids": [e.region.id for e in asked]})
        for entry in asked:
            annotations.append(mark(number, entry, len(classes) + 1) | {"segmentation": []})
            annotations += _annotations(number, entry, proposals, classes, (0, 0))
    write_document(folder / FRAMES, images, annotations, categories(classes))


def offered(
    region: QueryRegion, proposals: Mapping[str, Proposal], shape: tuple[int, ...], classes: Sequence[str]
) -> list[Offered]:
    """The predicted boxes of a region, cut at its border (of a box query: the frame's), in the frame's coordinates.

    Of a box query it is one: the box that lies where the region does, else the region itself as the class that
    it was chosen for.

    Raises:
        ValueError: if the proposal is no table of boxes with a score each.
    """
    found = _rows(region, proposals[region.id], shape) if region.id in proposals else []
    if region.kind != "box":
        return found
    if not found:
        meant = any(region.shares.get(name, 0.0) > 0 for name in classes[1:])
        return [([*corners_of(region), float(predicted_class(region, classes)), float(OBJECT)], None)] if meant else []
    overlap = iou(np.array([row[:4] for row, _ in found]), np.array([corners_of(region)]))[:, 0]
    return [found[int(overlap.argmax())]]


def _rows(region: QueryRegion, proposal: Proposal, shape: tuple[int, ...]) -> list[Offered]:
    table, scores = proposal.label, proposal.scores
    given = np.full(len(table), np.nan) if scores is None else np.asarray(scores, np.float64)
    if table.ndim != 2 or table.shape[1] != COLUMNS or given.shape != (len(table),):
        raise ValueError(f"proposal for {region.id}: shape {table.shape}, {given.size} scores; boxes need (n, 6), n")
    if not np.isfinite(table).all() or (scores is not None and not np.isfinite(given).all()):
        raise ValueError(f"proposal for {region.id}: a box or score is NaN or infinite")
    place = ((0, 0), shape) if region.kind == "box" else region.box
    found: list[Offered] = []
    for row, score in zip(table, given.tolist(), strict=True):
        kept = Boxes.from_table(row[None]).within(place, 0.0).table().tolist()
        found += [(box, None if scores is None else score) for box in kept]
    return found


def _predicted(
    region: QueryRegion, proposals: Mapping[str, Proposal], shape: tuple[int, int], classes: Sequence[str]
) -> tuple[float, float, float, float, float]:
    """The predicted box of a box query and its class; the region itself, class 0, if no model chose it."""
    for (top, left, bottom, right, number, _), _ in offered(region, proposals, shape, classes):
        return top, left, bottom, right, number
    return *corners_of(region), 0.0


def _annotations(
    image: int,
    entry: SidecarRegion,
    proposals: Mapping[str, Proposal],
    classes: Sequence[str],
    origin: tuple[int, int],
) -> list[dict[str, Any]]:
    """One annotation a box; `origin` is the frame's pixel at the image's corner."""
    found = []
    for (top, left, bottom, right, number, status), score in offered(
        entry.region, proposals, entry.source.shape, classes
    ):
        if status not in (OBJECT, IGNORED):
            continue
        width, height = right - left, bottom - top
        said = {} if score is None else {"score": score}
        found.append(
            {
                "image_id": image,
                "category_id": len(classes) if status == IGNORED else int(number),
                "bbox": [left - origin[1], top - origin[0], width, height],
                "area": width * height,
                "segmentation": [],
                "iscrowd": 0,
                **said,
                "attributes": {"query_id": entry.region.id, **said},
            }
        )
    return found
