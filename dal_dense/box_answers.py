"""What a person's answer to a detection query is, and what it costs: crops and frames, and single boxes.

The oracle plays a person who is never wrong: every object of a crop is drawn; a predicted box is
accepted if it overlaps its object far enough and names the right class, fixed if it overlaps less, and
rejected if there is nothing. A rejected prediction is charged like any other look. An object is labelled once: a
crop that it lies in wholly holds it, else one prediction is given it, the best one; a second is fixed to another
object that it overlaps, or rejected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dal_dense.boxes import ABSENT, COLUMNS, IGNORED, Boxes, covered, iou
from dal_dense.costs import CostModel
from dal_dense.query import QueryRegion
from dal_dense.regions import Box

UNCHANGED = 0.999
"""IoU from which a returned box is the one that was sent: files round their numbers."""
HIDDEN = 0.5
"""Share of a prediction on ground to ignore from which nobody can judge it."""

SAME_OBJECT = 0.5
"""IoU from which a box that an earlier answer holds is an object."""

Known = tuple[QueryRegion, Float[np.ndarray, "_ 6"]]
"""A region and its answer."""


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


def true_answers(
    truth: Boxes,
    regions: Sequence[QueryRegion],
    rules: BoxRules,
    classes: Sequence[str],
    earlier: Sequence[Known] = (),
) -> list[Float[np.ndarray, "boxes 6"]]:
    """The tables of boxes that a person who is never wrong returns for one frame's regions of a round.

    Args:
        truth: everything in the frame.
        regions: all that is asked of it in the round, so that the answers do not depend on what is done already.
        rules: what counts as right.
        classes: names by number.
        earlier: answers of earlier rounds; nobody labels an object again that they hold.
    """
    ground = [r.box for r in (*regions, *(r for r, _ in earlier)) if r.kind != "box"]
    before = [label for r, label in earlier if r.kind == "box"]
    claimed = _lying_in(truth.objects, ground)
    claimed |= _claimed(truth.objects, Boxes.from_table(np.concatenate([np.zeros((0, COLUMNS)), *before])), rules)
    single = [r for r in regions if r.kind == "box"]
    predicted = Boxes.of([corners_of(r) for r in single], [predicted_class(r, classes) for r in single])
    meant = iter(_verdicts(truth, predicted, rules, sorted(claimed)))
    return [next(meant) if r.kind == "box" else truth.within(r.box, rules.min_visible).table() for r in regions]


def _verdicts(
    truth: Boxes, predicted: Boxes, rules: BoxRules, claimed: list[int]
) -> list[Float[np.ndarray, "boxes 6"]]:
    """What becomes of each prediction: as it is, its object instead of it, or nothing there."""
    objects, hidden = truth.objects, truth[truth.status == IGNORED]
    overlap = iou(predicted.corners, objects.corners)
    near = (overlap >= rules.fix_iou) & (overlap > 0)
    near[:, claimed] = False
    agreed = (overlap >= rules.accept_iou) & (objects.classes[None] == predicted.classes[:, None])
    # what makes a prediction right goes before what is nearer
    pairs = _one_to_one(np.where(near, np.where(agreed, overlap + 1, overlap), 0.0))
    unclear: np.ndarray = np.any(covered(predicted.corners, hidden.corners) >= HIDDEN, axis=1)
    tables = []
    for row in range(len(predicted)):
        this = predicted[row : row + 1]
        if row in pairs:
            found = objects[pairs[row] : pairs[row] + 1]
            corners = this.corners if overlap[row, pairs[row]] >= rules.accept_iou else found.corners
            this = Boxes(corners, found.classes, found.status)
        else:  # nothing is there, or it is a second box of an object
            this = Boxes(this.corners, this.classes, np.array([IGNORED if unclear[row] else ABSENT], np.uint8))
        tables.append(this.table())
    return tables


def _lying_in(objects: Boxes, ground: Sequence[Box]) -> set[int]:
    """Objects that crops and frames hold: what lies in one wholly. What a border cuts is labelled in part alone."""
    places = np.array([[*start, *stop] for start, stop in ground], np.float64).reshape(-1, 4)
    inside: np.ndarray = np.any(covered(objects.corners, places) == 1, axis=1)
    return set(np.flatnonzero(inside).tolist())


def _claimed(objects: Boxes, earlier: Boxes, rules: BoxRules) -> set[int]:
    """Objects that single boxes hold: each earlier box claims the one of its class that it overlaps most."""
    earlier = earlier.objects
    overlap = iou(earlier.corners, objects.corners)
    same = overlap >= min(SAME_OBJECT, max(rules.accept_iou, 1e-12))  # an accepted box may lie no nearer
    value = np.where(same, overlap + (objects.classes[None] == earlier.classes[:, None]), 0.0)
    return set(_one_to_one(value).values())


def _one_to_one(value: Float[np.ndarray, "n m"]) -> dict[int, int]:
    """Row to column: the most valuable pair first, of equals the first; none of value 0, no column twice."""
    pairs: dict[int, int] = {}
    left = value.copy()
    while left.size and left.max() > 0:
        row, column = np.unravel_index(left.argmax(), left.shape)
        pairs[int(row)] = int(column)
        left[row], left[:, column] = 0.0, 0.0
    return pairs


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
