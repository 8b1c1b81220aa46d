"""Pictures of the regions a round asks for: image, the model's proposal, its uncertainty.

The loop writes them at the time of asking, when the proposals are at hand; the report only embeds
them. Volumes are shown as radiologists look at them (axial slice, anterior up, the patient's right
on the left of the picture), through the slice of the box that the model is least sure of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import cv2
import matplotlib
import numpy as np
from jaxtyping import Float, Integer, UInt8

from dal_dense.errors import DataError
from dal_dense.images import Header, anatomical_axes, read_header, read_image
from dal_dense.query import Query, QueryRegion
from dal_dense.records import ImageRecord
from dal_dense.report.palette import UNCERTAINTY_MAP, class_colour, class_colours, rgb
from dal_dense.tasks.base import IGNORE, Proposal

PANEL = (210, 260)
"""Largest height and width of one panel, screen pixels."""
GAP = 6
"""Clear columns between the panels of a tile, screen pixels."""
MARGIN = 0.5
"""Context shown on each side of a box, as a share of the box's own side."""

Rectangle = tuple[int, int, int, int]
"""First row, first column, one past the last row, one past the last column."""


@runtime_checkable
class Records(Protocol):
    """The part of a pool that the gallery needs."""

    def __getitem__(self, image_id: str) -> ImageRecord:
        """The image of this id."""
        ...


@dataclass(frozen=True)
class View:
    """What a tile is drawn from, all on one plane.

    Attributes:
        image: the box with context around it, uint8 grey (rows, cols) or RGB (rows, cols, 3).
        box: where the box lies in `image`.
        aspect: height of a pixel over its width.
        label: class numbers of the proposal, uint8, of the box's shape; None if there is no model yet.
        uncertainty: score map, float32, of the box's shape; None likewise.
        found: detection: corners of predicted boxes in `image`, class number, score, float64 (n, 6).
        single: the box is the prediction itself, so its own panel shows it in the class's colour alone.
    """

    image: UInt8[np.ndarray, "rows cols *rgb"]
    box: Rectangle
    aspect: float = 1.0
    label: Integer[np.ndarray, "box_rows box_cols"] | None = None
    uncertainty: Float[np.ndarray, "box_rows box_cols"] | None = None
    found: Float[np.ndarray, "boxes 6"] | None = None
    single: bool = False


def tiles_for_query(
    query: Query,
    pool: Records,
    proposals: Mapping[str, Proposal],
    classes: Sequence[str],
    folder: Path,
    window: tuple[float, float] | None = None,
    *,
    background: bool = True,
    most: int = 24,
) -> list[Path]:
    """Write `<region id>.png` for the query's first regions, and `legend-<round>.json` beside them.

    Args:
        query: the round's query.
        pool: gives the image of an id.
        proposals: region id to the model's answer; regions without one show the image alone.
        classes: class names by class number, for the legend.
        folder: where the tiles go, `run_dir/gallery`; created if missing.
        window: lowest and highest intensity shown (CT: HU); None spreads the 1st to 99th percentile.
        background: class 0 is background and not coloured.
        most: tiles at most, so that a report stays a few megabytes.

    An image that can no longer be read has no tile: its round reports the fault, not its picture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = query.regions[:most]
    known = [proposals[r.id].uncertainty for r in shown if r.id in proposals]
    top = max((float(np.percentile(u, 99)) for u in known if u.size), default=0.0)
    legend = {"classes": class_colours(classes, background=background), "uncertainty_max": top}
    written = []
    for image_id in dict.fromkeys(r.image_id for r in shown):
        try:
            header, image = read_header(pool[image_id]), read_image(pool[image_id])
        except DataError:
            continue
        for region in (r for r in shown if r.image_id == image_id):
            view = view_of(region, image, header, proposals.get(region.id), window)
            written.append(save_tile(folder, region, view, top=top, background=background))
    # last, so that it marks a gallery as whole
    _replace(folder / f"legend-{query.round}.json", json.dumps(legend, indent=1).encode())
    return written


def save_tile(folder: Path, region: QueryRegion, view: View, *, top: float, background: bool = True) -> Path:
    """Draw one tile of up to three panels and write `<region id>.png`; `top` is the heat map's upper end."""
    picture = draw_tile(view, top=top, background=background)
    # level 4: far less time than level 6, for files little larger
    done, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGBA2BGRA), [cv2.IMWRITE_PNG_COMPRESSION, 4])
    if not done:
        raise DataError(f"tile of region {region.id}, {picture.shape}: OpenCV could not write it as PNG")
    path = folder / f"{region.id}.png"
    _replace(path, data.tobytes())
    return path


def view_of(
    region: QueryRegion,
    image: Float[np.ndarray, "channels *grid"],
    header: Header,
    proposal: Proposal | None,
    window: tuple[float, float] | None,
) -> View:
    """Cut the plane to show out of an image of any dimension."""
    if len(region.start) == 2:
        return _frame_view(region, image, proposal)
    return _volume_view(region, image, header, proposal, window)


def _frame_view(region: QueryRegion, image: Float[np.ndarray, "channels rows cols"], proposal: Proposal | None) -> View:
    start, stop = _context(region, image.shape[1:], range(2))
    crop = image[:, start[0] : stop[0], start[1] : stop[1]]
    shown = np.moveaxis(np.clip(np.rint(crop[:3]), 0, 255).astype(np.uint8), 0, -1)
    if shown.shape[-1] != 3:
        shown = shown[..., 0]
    (r0, c0), (r1, c1) = region.start, region.stop
    box = (r0 - start[0], c0 - start[1], r1 - start[0], c1 - start[1])
    if proposal is None:
        return View(shown, box)
    heat = np.asarray(proposal.uncertainty, np.float32)
    if proposal.scores is None:
        return View(shown, box, label=proposal.label, uncertainty=heat)
    corners = proposal.label[:, :4] - np.array([start[0], start[1], start[0], start[1]])
    found = np.column_stack([corners, proposal.label[:, 4], proposal.scores])
    return View(shown, box, uncertainty=heat, found=found, single=region.kind == "box")


def _volume_view(
    region: QueryRegion,
    image: Float[np.ndarray, "channels i j k"],
    header: Header,
    proposal: Proposal | None,
    window: tuple[float, float] | None,
) -> View:
    affine = np.eye(4) if header.affine is None else header.affine
    right, back, feet = anatomical_axes(affine)
    level = _least_sure(proposal, feet, region.shape[feet])
    start, stop = _context(region, image.shape[1:], (right, back))
    plane = np.take(image[0], region.start[feet] + level, axis=feet)

    def oriented(array: np.ndarray) -> np.ndarray:  # rows from front to back, columns from the patient's right to left
        array = array.T if right < back else array
        return array[:: -1 if affine[1, back] > 0 else 1, :: -1 if affine[0, right] > 0 else 1]

    inside = np.zeros(image.shape[1:], bool).take(0, axis=feet)
    rest = [a for a in range(3) if a != feet]
    inside[tuple(slice(region.start[a], region.stop[a]) for a in rest)] = True
    cut = tuple(slice(start[a], stop[a]) for a in rest)
    rows, cols = np.nonzero(oriented(inside[cut]))
    view = View(
        _grey(oriented(plane[cut]), window),
        (int(rows.min()), int(cols.min()), int(rows.max()) + 1, int(cols.max()) + 1),
        header.spacing[back] / header.spacing[right],
    )
    if proposal is None:
        return view
    label = oriented(np.take(proposal.label, level, axis=feet))
    uncertainty = oriented(np.take(np.asarray(proposal.uncertainty, np.float32), level, axis=feet))
    return View(view.image, view.box, view.aspect, label, uncertainty)


def _context(region: QueryRegion, shape: Sequence[int], axes: Sequence[int]) -> tuple[list[int], list[int]]:
    """The box with a margin along `axes`, inside the image."""
    start, stop = list(region.start), list(region.stop)
    for a in axes:
        more = max(4, round(MARGIN * region.shape[a])) if region.kind != "box" else max(24, 2 * region.shape[a])
        start[a], stop[a] = max(0, start[a] - more), min(int(shape[a]), stop[a] + more)
    return start, stop


def _least_sure(proposal: Proposal | None, axis: int, count: int) -> int:
    """Slice of the box, along `axis`, with the highest mean uncertainty; the middle one without a model."""
    if proposal is None:
        return count // 2
    others = tuple(a for a in range(3) if a != axis)
    return int(np.asarray(proposal.uncertainty).mean(axis=others).argmax())


def _grey(plane: Float[np.ndarray, "rows cols"], window: tuple[float, float] | None) -> UInt8[np.ndarray, "rows cols"]:
    low, high = window if window else np.percentile(plane, (1, 99))
    scaled = (plane - low) / max(float(high - low), 1e-6)
    return np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)


def draw_tile(view: View, *, top: float, background: bool = True) -> UInt8[np.ndarray, "height width 4"]:
    """RGBA picture: the image with its box, the proposal over it, the heat map over it; clear gaps."""
    rows, cols = view.image.shape[:2]
    scale = min(PANEL[0] / (rows * view.aspect), PANEL[1] / cols)
    height, width = max(8, round(rows * view.aspect * scale)), max(8, round(cols * scale))
    smaller = height < rows and width < cols
    base = cv2.resize(view.image, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
    base = base if base.ndim == 3 else np.repeat(base[..., None], 3, -1)
    place = _scaled(view.box, height / rows, width / cols)
    panels = [base.copy()]
    if view.label is not None:
        panels.append(_with_labels(base, place, view.label, background))
    if view.found is not None:
        panels.append(_with_boxes(base, view.found, (height / rows, width / cols), background))
    if view.uncertainty is not None:
        panels.append(_with_heat(base, place, view.uncertainty, top))
    sheet = np.zeros((height, width * len(panels) + GAP * (len(panels) - 1), 4), np.uint8)
    for n, panel in enumerate(panels):
        left = n * (width + GAP)
        outlined = not (view.single and n == 1)
        sheet[:, left : left + width, :3] = _outlined(panel, place) if outlined else panel
        sheet[:, left : left + width, 3] = 255
    return sheet


def _scaled(box: Rectangle, down: float, across: float) -> Rectangle:
    r0, c0, r1, c1 = round(box[0] * down), round(box[1] * across), round(box[2] * down), round(box[3] * across)
    return r0, c0, max(r1, r0 + 1), max(c1, c0 + 1)


def _with_labels(
    base: UInt8[np.ndarray, "height width 3"], place: Rectangle, label: Integer[np.ndarray, "r c"], background: bool
) -> UInt8[np.ndarray, "height width 3"]:
    """Classes as a light tint with a full-colour edge, so that the anatomy below stays visible."""
    r0, c0, r1, c1 = place
    number = cv2.resize(label.astype(np.uint8), (c1 - c0, r1 - r0), interpolation=cv2.INTER_NEAREST)
    table = np.array([rgb(class_colour(n, background=background)) for n in range(256)], np.uint8)
    shown = (number != IGNORE) & (number >= int(background))
    edge = np.zeros_like(shown)
    edge[1:] |= number[1:] != number[:-1]
    edge[:, 1:] |= number[:, 1:] != number[:, :-1]
    edge = cv2.dilate(edge.astype(np.uint8), np.ones((2, 2), np.uint8)).astype(bool)
    weight = np.where(edge, 1.0, 0.35)[..., None] * shown[..., None]
    picture = base.copy()
    picture[r0:r1, c0:c1] = np.rint((1 - weight) * picture[r0:r1, c0:c1] + weight * table[number]).astype(np.uint8)
    return picture


def _with_boxes(
    base: UInt8[np.ndarray, "height width 3"],
    found: Float[np.ndarray, "boxes 6"],
    scale: tuple[float, float],
    background: bool,
) -> UInt8[np.ndarray, "height width 3"]:
    """Predicted boxes in their class's colour, the surest on top; the fainter, the less sure."""
    picture = base.copy()
    for r0, c0, r1, c1, number, score in sorted(found.tolist(), key=lambda row: row[5]):
        low = (round(c0 * scale[1]), round(r0 * scale[0]))
        high = (round(c1 * scale[1]) - 1, round(r1 * scale[0]) - 1)
        drawn = cv2.rectangle(picture.copy(), low, high, rgb(class_colour(int(number), background=background)), 2)
        picture = np.asarray(cv2.addWeighted(drawn, 0.35 + 0.65 * score, picture, 0.65 - 0.65 * score, 0), np.uint8)
    return picture


def _with_heat(
    base: UInt8[np.ndarray, "height width 3"], place: Rectangle, uncertainty: Float[np.ndarray, "r c"], top: float
) -> UInt8[np.ndarray, "height width 3"]:
    """The score map inside the box, the image around it dimmed."""
    r0, c0, r1, c1 = place
    smooth = cv2.resize(uncertainty, (c1 - c0, r1 - r0), interpolation=cv2.INTER_LINEAR)
    heat = matplotlib.colormaps[UNCERTAINTY_MAP](np.clip(smooth / max(top, 1e-12), 0, 1))[..., :3]
    picture = np.rint(base * 0.45).astype(np.uint8)
    picture[r0:r1, c0:c1] = np.rint(0.2 * base[r0:r1, c0:c1] + 0.8 * 255 * heat).astype(np.uint8)
    return picture


def _outlined(panel: UInt8[np.ndarray, "height width 3"], place: Rectangle) -> UInt8[np.ndarray, "height width 3"]:
    """The box as a white line within a dark one: it shows on bone, air and sky alike."""
    r0, c0, r1, c1 = place
    corners = (c0, r0), (min(c1, panel.shape[1]) - 1, min(r1, panel.shape[0]) - 1)
    drawn = cv2.rectangle(np.ascontiguousarray(panel), *corners, (10, 10, 10), 4)
    return np.asarray(cv2.rectangle(drawn, *corners, (255, 255, 255), 2), np.uint8)


def _replace(path: Path, data: bytes) -> None:
    """Write whole or not at all, so that a report never embeds half a picture."""
    half = path.with_name(path.name + ".part")
    half.write_bytes(data)
    half.replace(path)
