"""Average precision as COCO defines it, by pycocotools, on the frames as they are stored."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dal_dense.boxes import IGNORED, OBJECT, Boxes
from dal_dense.detections import Detections
from dal_dense.tasks.base import Measurement
from dal_dense.tasks.detection_groups import interval, mean_precision, ranked

SIZES = ("all", "small", "medium", "large")
"""COCO's ranges of area: below 32^2, below 96^2 and from there on, pixels of the stored frame."""


Found = tuple[list[float], int, float]
"""Corners, class and score of a box."""


def boxes_of(found: Detections) -> list[Found]:
    """What is measured of a prediction: plain numbers, small enough to be sent to another process."""
    return list(zip(found.corners.tolist(), found.classes.tolist(), found.scores.tolist(), strict=True))


@dataclass
class Scoreboard:
    """Running record of one measurement.

    Attributes:
        classes: names; the position is the class number, 0 is background.
        metric: ap50, or ap (mean over IoU 0.5 to 0.95).
        most: boxes kept a frame.
        seed: of the groups drawn for the interval.
    """

    classes: tuple[str, ...]
    metric: str
    most: int
    seed: int = 0
    _groups: list[str] = field(default_factory=list)
    _images: list[dict[str, Any]] = field(default_factory=list)
    _truth: list[dict[str, Any]] = field(default_factory=list)
    _found: list[dict[str, Any]] = field(default_factory=list)

    def add(self, group: str, found: Sequence[Found], truth: Boxes) -> None:
        """Take one frame in. Without objects it counts too: what is found there is false."""
        image = len(self._images) + 1
        self._groups.append(group)
        self._images.append({"id": image})
        for corners, kind, status in zip(truth.corners.tolist(), truth.classes.tolist(), truth.status, strict=True):
            kinds = [kind] if status == OBJECT else range(1, len(self.classes)) if status == IGNORED else []
            for each in kinds:  # ground to ignore is so for every class
                crowd = int(status == IGNORED)
                number = len(self._truth) + 1
                self._truth.append(
                    {"id": number, "image_id": image, "category_id": each, "iscrowd": crowd} | _box(corners)
                )
        for corners, kind, score in found:
            self._found.append({"image_id": image, "category_id": kind, "score": score} | _box(corners))

    def result(self) -> Measurement:
        """The measurement over everything added; NaN for a class without objects.

        `per_class` and `per_group` are of the headline metric. Of more than one group `extra` holds the interval.
        """
        run = self._matched()
        shape = (10, 101, len(self.classes) - 1, len(SIZES))  # thresholds, recalls, classes, sizes
        precision = np.full(shape, -1.0) if run is None else run.eval["precision"][..., -1]
        cuts = {"ap": precision, "ap50": precision[:1]}
        extra = {
            name if size == "all" else f"{name}_{size}": float(_mean_known(cut[..., k], (0, 1, 2)))
            for name, cut in cuts.items()
            for k, size in enumerate(SIZES)
        }
        per_class = _mean_known(cuts[self.metric][..., 0], (0, 1))
        per_group, ends = self._over_groups(run, len(cuts[self.metric]))
        return Measurement(
            metric=self.metric,
            value=extra[self.metric],
            per_class=dict(zip(self.classes[1:], per_class.tolist(), strict=True)),
            per_group=per_group,
            extra=extra | ends,
        )

    def _over_groups(self, run: COCOeval | None, thresholds: int) -> tuple[dict[str, float], dict[str, float]]:
        """The metric of each group alone, and the ends of the interval."""
        names, number = np.unique(np.array(self._groups, dtype=object), return_inverse=True)
        if run is None:
            return dict.fromkeys(names, float("nan")), {}
        classes = ranked(run, number, thresholds)
        alone = {
            name: mean_precision(classes, one) for name, one in zip(names, np.eye(len(names), dtype=int), strict=True)
        }
        ends = interval(classes, len(names), seed=self.seed)
        return alone, dict(zip(("interval_low", "interval_high"), ends or (), strict=False))

    def _matched(self) -> COCOeval | None:
        """pycocotools' run; None where nothing is to be found."""
        if not any(not t["iscrowd"] for t in self._truth):
            return None
        categories = [{"id": c, "name": name} for c, name in enumerate(self.classes) if c]
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports each step
            truth = _coco(self._images, self._truth, categories)
            found = _coco(
                self._images, [{"id": i + 1, "iscrowd": 0} | f for i, f in enumerate(self._found)], categories
            )
            run = Near(truth, found, "bbox")
            run.params.maxDets = [1, 10, max(self.most, 11)]
            run.evaluate()
            run.accumulate()
        return run


class Near(COCOeval):  # type: ignore[misc]
    """pycocotools, asked only about the boxes that can match something.

    Its matching is a loop over thresholds, boxes and objects, anew for each range of areas. Most boxes that a detector
    keeps overlap no object by the lowest threshold, so none of them ever matches: their columns are filled in.
    """

    def evaluateImg(self, image: Any, kind: Any, areas: Any, most: int) -> Any:  # noqa: N802
        """The matches of one class in one frame, as the method that this one calls returns them."""
        key = (image, kind)
        boxes, overlaps = self._dts[key], self.ious[key]
        if len(overlaps) == 0:  # nothing found, or no object
            return super().evaluateImg(image, kind, areas, most)
        surest = [boxes[i] for i in np.argsort([-b["score"] for b in boxes], kind="stable")[:most]]
        near = (overlaps >= min(self.params.iouThrs)).any(1)
        try:
            self._dts[key], self.ious[key] = [surest[i] for i in np.flatnonzero(near)], overlaps[near]
            few = super().evaluateImg(image, kind, areas, most)
        finally:
            self._dts[key], self.ious[key] = boxes, overlaps
        matches = np.zeros((len(self.params.iouThrs), len(surest)))
        ignored = np.tile([not areas[0] <= b["area"] <= areas[1] for b in surest], (len(matches), 1))
        matches[:, near], ignored[:, near] = few["dtMatches"], few["dtIgnore"]
        rows = {"dtIds": [b["id"] for b in surest], "dtScores": [b["score"] for b in surest]}
        return few | rows | {"dtMatches": matches, "dtIgnore": ignored}


def _coco(images: list[dict[str, Any]], annotations: list[dict[str, Any]], categories: list[dict[str, Any]]) -> COCO:
    index = COCO()
    index.dataset = {"images": images, "annotations": annotations, "categories": categories}
    index.createIndex()
    return index


def _box(corners: list[float]) -> dict[str, Any]:
    top, left, bottom, right = corners
    width, height = right - left, bottom - top
    return {"bbox": [left, top, width, height], "area": width * height}


def _mean_known(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Mean of what is not -1, which is what pycocotools writes where there is no object; NaN if nothing is left."""
    known = values > -1
    count = known.sum(axes)
    return np.where(count > 0, np.where(known, values, 0).sum(axes) / np.maximum(count, 1), np.nan)
