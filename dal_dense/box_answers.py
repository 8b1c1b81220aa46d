"""What a person's answer to a detection query is, and what it costs: crops and frames, and single boxes.

The oracle plays a person who is never wrong: every object of a crop is drawn; a predicted box is
accepted if it overlaps its object far enough and names the right class, fixed if it overlaps less, and
rejected if there is nothing. A rejected prediction is charged like any other look.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dal_dense.boxes import ABSENT, IGNORED, Boxes, covered, iou
from dal_dense.costs import CostModel
from dal_dense.query import QueryRegion

UNCHANGED = 0.999
"""IoU from which a returned box is the one that was sent: files round their numbers."""
HIDDEN = 0.5
"""Share of a prediction on ground to ignore from which nobody can judge it."""


@dataclass(frozen=True)
class BoxRules:
    """When a box counts as seen, right, or nearly right.

    Attributes:
        min_visible: objects cut by a region's border to less than this share are ignored.
        accept_iou: the oracle accepts a prediction that overlaps its object this far.
        fix_iou: it fixes one that overlaps this far, and rejects one that does not.
    """

    min_visible: float = 0.25
    accept_iou: float = 0.7
    fix_iou: float = 0.1


@dataclass(frozen=True)
class BoxWork:
    """What an answer took.

    Attributes:
        seconds: without opening the image.
        objects: boxes drawn; None for a single box, which says nothing of the ground around it.
        area: pixels looked through; None likewise.
    """

    seconds: float
    objects: float | None
    area: float | None


def true_answer(
    truth: Boxes, region: QueryRegion, rules: BoxRules, classes: Sequence[str]
) -> Float[np.ndarray, "boxes 6"]:
    """The table of boxes that a person who is never wrong returns for a region."""
    if region.kind != "box":
        return truth.within(region.box, rules.min_visible).table()
    predicted = Boxes.of([corners_of(region)], [predicted_class(region, classes)])
    objects = truth.objects
    overlap = iou(predicted.corners, objects.corners)[0]
    near = (overlap >= rules.fix_iou) & (overlap > 0)
    if near.any():
        right = overlap >= rules.accept_iou
        agreed = near & right & (objects.classes == predicted.classes[0])
        best = int(np.where(agreed, overlap + 1, overlap).argmax())  # what makes it right goes before what is nearer
        meant = objects[np.array([best])]
        corners = predicted.corners if right[best] else meant.corners
        return Boxes(corners, meant.classes, meant.status).table()
    hidden = truth[truth.status == IGNORED]
    unclear = len(hidden) and covered(predicted.corners, hidden.corners).max() >= HIDDEN
    return Boxes(predicted.corners, predicted.classes, np.array([IGNORED if unclear else ABSENT], np.uint8)).table()


def box_work(
    region: QueryRegion, table: Float[np.ndarray, "boxes 6"], costs: CostModel, classes: Sequence[str]
) -> BoxWork:
    """What the answer cost, by what was done to the prediction; for crops and frames, by what was drawn."""
    boxes = Boxes.from_table(table)
    drawn = boxes.objects
    if region.kind != "box":
        area = float(np.prod(region.shape))
        return BoxWork(costs.seconds(area, 0.0, float(len(drawn))), float(len(drawn)), area)
    seconds = costs.region_seconds + costs.verify_seconds
    overlap = iou(np.array([corners_of(region)]), drawn.corners)[0]
    if (boxes.status == ABSENT).any() or not (overlap > 0).any():  # rejected; all that is drawn was missed
        return BoxWork(seconds + len(drawn) * costs.object_seconds, None, None)
    unchanged = (overlap >= UNCHANGED) & (drawn.classes == predicted_class(region, classes))
    seconds += 0.0 if unchanged.any() else costs.fix_seconds
    return BoxWork(seconds + (len(drawn) - 1) * costs.object_seconds, None, None)


def corners_of(region: QueryRegion) -> tuple[float, float, float, float]:
    """The predicted box that a region of kind box stands for."""
    (top, left), (bottom, right) = region.box
    return float(top), float(left), float(bottom), float(right)


def predicted_class(region: QueryRegion, classes: Sequence[str]) -> int:
    """The number of the class that the model gave the box; shares come back from the ledger in any order."""
    return max(range(1, len(classes)), key=lambda number: region.shares.get(classes[number], 0.0))
