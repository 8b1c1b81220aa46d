"""A COCO json that came back from a detection batch, as tables of boxes in the frame's coordinates.

What counts as reviewed is said in `coco_document`. Of a crop or a whole image, all objects inside are taken;
what crosses the region's border is cut there. Of a box query:

    the box is there, moved or not        an object
    nothing there overlaps it             the prediction is recorded as absent (rejected)
    further boxes drawn nearby            objects too
    the ground is marked `__ignore__`     ground that says nothing

On a whole frame, a drawn box belongs to one box query at most: the one it overlaps most, else the nearest whose
surroundings hold its middle; of boxes drawn on crops see `neighbours`. `iscrowd: 1` and `__ignore__` are ground to
ignore.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int

from dal_dense.boxes import ABSENT, IGNORED, OBJECT, Boxes, checked_table, covered, iou
from dal_dense.errors import LabelError
from dal_dense.exchange.asked import Asked, Returned
from dal_dense.exchange.coco_document import Drawn, Runs, Sheet, Values, read_sheets
from dal_dense.exchange.coco_returns import run_lengths
from dal_dense.query import SidecarRegion

OVERLAP = 0.1
"""A drawn box is the prediction, fixed, if their intersection over union reaches this."""
COVERED = 0.5
"""A prediction of which so much lies on ignored ground is not rejected."""
OUTSIDE = 1.0
"""Pixels by which a box may leave its image; it is cut at the border then."""

_Corners = tuple[float, float, float, float]


class _Annotation(Drawn):
    bbox: list[float] | None = None
    iscrowd: int | bool | None = None
    score: float | None = None


def read_document(path: Path, asked: Asked, file: str) -> tuple[list[Returned], list[str]]:
    """Every reviewed region of one COCO json; what cannot be taken is told and hides nothing else.

    Args:
        path: the file.
        asked: what was asked.
        file: how messages name it.

    Raises:
        LabelError: if the file as a whole is no COCO json.
    """
    return read_sheets(path, asked, file, _Annotation, _labels)


def _labels(
    sheet: Sheet,
    entries: list[SidecarRegion],
    annotations: list[_Annotation],
    values: Values,
    asked: Asked,
    file: str,
) -> list[Returned]:
    drawn = _drawn(sheet, annotations, values, asked, file)
    rounds = {asked.rounds[e.region.id] for e in entries}
    together = [e for e in sheet.entries if asked.rounds[e.region.id] in rounds]  # what was on the frame that was sent
    mine = {} if sheet.is_crop else _shared_out(drawn, together, sheet.entries)
    found = []
    for entry in entries:
        name, place = entry.region.id, entry.region.box
        if entry.region.kind == "box":
            table = verdict(entry, drawn[mine[name]] if name in mine else drawn)
            place = (0, 0), entry.source.shape
        else:
            table = drawn.within(place, asked.min_visible).table()
        table = checked_table(f"{file}: region {name}", table, place, len(asked.classes))
        found.append(Returned(name, in_order(table), None, file))
    return found


def _drawn(sheet: Sheet, annotations: Sequence[_Annotation], values: Values, asked: Asked, file: str) -> Boxes:
    """All that is drawn on one image, in the frame's coordinates."""
    corners: list[_Corners] = []
    classes: list[int] = []
    status: list[int] = []
    for annotation in annotations:
        where = f"{file}: {sheet.image.file_name!r}, annotation {annotation.id}"
        value = sheet.value(annotation, values, asked, where)
        if value is None:
            continue
        if value == 0:
            raise LabelError(f"{where}: category {asked.classes[0]!r} is no object; give it an object's class")
        _check_score(annotation, where)
        corners.append(_corners(annotation, sheet.shape, where))
        ignored = value == asked.ignore or bool(annotation.iscrowd)
        classes.append(0 if ignored else value)
        status.append(IGNORED if ignored else OBJECT)
    boxes = Boxes.of(corners, classes, status)
    top, left = sheet.entries[0].window[0] if sheet.is_crop else (0, 0)
    return Boxes(boxes.corners + np.array([top, left, top, left], np.float64), boxes.classes, boxes.status)


def _check_score(annotation: _Annotation, where: str) -> None:
    attributes = annotation.attributes
    score = attributes.get("score") if isinstance(attributes, dict) else None
    if isinstance(score, float) and not np.isfinite(score):
        raise LabelError(f"{where}: its score is {score}; delete the score or the box, and export it again")


def _corners(annotation: _Annotation, shape: tuple[int, int], where: str) -> _Corners:
    """First row, first column, last row and last column inside the image.

    Raises:
        LabelError: if there is no box, or it is empty, turned inside out or outside the image.
    """
    if annotation.bbox:
        if len(annotation.bbox) != 4:
            raise LabelError(f"{where}: bbox {annotation.bbox}; expected x, y, width, height")
        left, top, width, height = annotation.bbox
        right, bottom = left + width, top + height
    else:
        left, top, right, bottom = _bounds(annotation.segmentation, shape, where)
        width, height = right - left, bottom - top
    said = f"{where}: the box at x {left:g}, y {top:g}, {width:g} wide and {height:g} high"
    if width < 0 or height < 0:
        raise LabelError(f"{said} is turned inside out; bbox is x, y, width, height from the upper left corner")
    if width == 0 or height == 0:
        raise LabelError(f"{said} is empty; draw or delete it")
    rows, columns = shape
    if left < -OUTSIDE or top < -OUTSIDE or right > columns + OUTSIDE or bottom > rows + OUTSIDE:
        raise LabelError(f"{said} leaves the image of {columns} x {rows} pixels; draw it inside")
    cut = max(top, 0.0), max(left, 0.0), min(bottom, float(rows)), min(right, float(columns))
    if cut[2] <= cut[0] or cut[3] <= cut[1]:
        raise LabelError(f"{said} lies outside the image of {columns} x {rows} pixels; draw it inside")
    return cut


def _bounds(drawing: list[list[float]] | Runs | None, shape: tuple[int, int], where: str) -> _Corners:
    """x and y from, x and y to, of an outline or a mask."""
    if not drawing:
        raise LabelError(f"{where}: has neither a box nor an outline; draw a rectangle")
    if isinstance(drawing, Runs):
        counts = run_lengths(drawing, shape, where)
        mask = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(shape, order="F")
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not rows.size:
            raise LabelError(f"{where}: its mask is empty; draw or delete it")
        return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
    for polygon in drawing:
        if len(polygon) < 6 or len(polygon) % 2:
            raise LabelError(f"{where}: a polygon needs at least 3 points, x and y each; it has {len(polygon)} numbers")
    x = [number for polygon in drawing for number in polygon[::2]]
    y = [number for polygon in drawing for number in polygon[1::2]]
    return min(x), min(y), max(x), max(y)


def _shared_out(
    drawn: Boxes, together: Sequence[SidecarRegion], entries: Sequence[SidecarRegion]
) -> dict[str, Bool[np.ndarray, " boxes"]]:
    """Box query to the boxes of the whole frame that answer it; no box answers two.

    Args:
        drawn: all boxes of the frame.
        together: what was asked of it in these rounds.
        entries: what was asked of it at any time.
    """
    asking = [e for e in together if e.region.kind == "box"]
    if not asking:
        return {}
    predicted = np.array([predicted_box(e)[:4] for e in asking])
    overlap = iou(drawn.corners, predicted)
    owner: Int[np.ndarray, " boxes"] = np.where(overlap.max(1) >= OVERLAP, overlap.argmax(1), -1)
    middle, centres = _middles(drawn.corners), _middles(predicted)
    far = np.linalg.norm(middle[:, None] - centres[None], axis=-1)
    for column, entry in enumerate(asking):
        far[~_holds(entry, middle), column] = np.inf
    elsewhere: Bool[np.ndarray, " boxes"] = np.zeros(len(drawn), bool)  # what lies in a crop is answered there
    for entry in entries:
        if entry.region.kind != "box":
            elsewhere = np.logical_or(elsewhere, _holds(entry, middle))
    near = (owner < 0) & np.isfinite(far).any(1) & ~elsewhere
    owner = np.where(near, far.argmin(1), owner)
    return {e.region.id: owner == i for i, e in enumerate(asking)}


def _middles(corners: Float64[np.ndarray, "boxes 4"]) -> Float64[np.ndarray, "boxes 2"]:
    middles: np.ndarray = (corners[:, :2] + corners[:, 2:]) / 2
    return middles


def _holds(entry: SidecarRegion, points: Float64[np.ndarray, "boxes 2"]) -> Bool[np.ndarray, " boxes"]:
    start, stop = (np.array(corner, np.float64) for corner in entry.window)
    return np.asarray(((points >= start) & (points < stop)).all(1), bool)


def predicted_box(entry: SidecarRegion) -> tuple[float, ...]:
    """Corners and class of what was asked."""
    return entry.predicted or (*map(float, (*entry.region.start, *entry.region.stop)), 0.0)


def verdict(entry: SidecarRegion, drawn: Boxes) -> Float64[np.ndarray, "boxes 6"]:
    """What is drawn, and the prediction as absent if nothing of it was kept."""
    prediction = np.array([predicted_box(entry)])
    objects, ignored = drawn.objects, drawn[drawn.status == IGNORED]
    kept = bool((iou(prediction[:, :4], objects.corners) >= OVERLAP).any())
    unclear = bool((covered(prediction[:, :4], ignored.corners) >= COVERED).any())
    table = drawn.table()
    return table if kept or unclear else np.concatenate([table, [[*prediction[0], ABSENT]]])


def in_order(table: Float64[np.ndarray, "boxes 6"]) -> Float64[np.ndarray, "boxes 6"]:
    """By status, class and corners: the order in which a tool lists boxes says nothing."""
    return np.ascontiguousarray(table[np.lexsort(table.T[[3, 2, 1, 0, 4, 5]])])
