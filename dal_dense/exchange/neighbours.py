"""An object belongs to one query of a round, also where several crops show it.

A box query shows the ground around its own prediction, so people may draw a neighbour there that is asked elsewhere:
in a crop that it lies in wholly, or in a box query whose prediction it overlaps more. There it stays, and goes from
this answer; unless that query came back without it, for nothing that was drawn may be lost. What is drawn on this
query's own prediction goes only once the other answer is there and holds it: else the prediction would be recorded as
absent where there is an object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float

from dal_dense.boxes import ABSENT, OBJECT, Boxes, checked_table, covered, iou
from dal_dense.exchange.asked import Asked, Returned
from dal_dense.exchange.boxes_in import OVERLAP, in_order, predicted_box, verdict
from dal_dense.query import SidecarRegion

HELD = 0.5
"""IoU from which a box of another answer is the same object."""


def told_apart(found: Sequence[Returned], asked: Asked) -> list[Returned]:
    """Answers to box queries without the objects of other queries of their image and round, in the same order.

    Args:
        found: labels; one a region, but for regions that are answered already.
        asked: what was asked; what has not come back yet is taken to hold the neighbours that belong to it.
    """
    drawn = {item.region_id: _drawn(item) for item in found}
    own = {name: boxes[np.flatnonzero(~_belonging(name, boxes, asked).any(1))] for name, boxes in drawn.items()}
    return [_without(item, _drawn(item), own, asked) for item in found]


def _drawn(item: Returned) -> Boxes:
    boxes = Boxes.from_table(item.label)
    return boxes[boxes.status != ABSENT]


def _others(name: str, asked: Asked) -> list[SidecarRegion]:
    """What else was asked of the image in the round."""
    same = asked.images[asked.regions[name].region.image_id]
    return [e for e in same if e.region.id != name and asked.rounds[e.region.id] == asked.rounds[name]]


def _belonging(name: str, boxes: Boxes, asked: Asked) -> Bool[np.ndarray, "boxes others"]:
    """Which of the other queries each box belongs to; of box queries that are not this one's, the nearest."""
    others = _others(name, asked)
    belongs = np.zeros((len(boxes), len(others)), bool)
    mine = asked.regions[name]
    if mine.region.kind != "box" or not others:
        return belongs
    single = np.array([e.region.kind == "box" for e in others])
    overlap = iou(boxes.corners, np.array([predicted_box(e)[:4] for e in others])) * single
    least = np.maximum(_on_prediction(mine, boxes), OVERLAP)
    nearest = overlap.argmax(1)
    rows = np.arange(len(boxes))
    belongs[rows, nearest] = (overlap > least[:, None])[rows, nearest]
    places = np.array([[*e.region.start, *e.region.stop] for e in others], np.float64)
    belongs |= (covered(boxes.corners, places) == 1) & ~single
    belongs[boxes.status != OBJECT] = False
    return belongs


def _on_prediction(entry: SidecarRegion, boxes: Boxes) -> Float[np.ndarray, " boxes"]:
    overlap: np.ndarray = iou(boxes.corners, np.array([predicted_box(entry)[:4]]))[:, 0]
    return overlap


def _without(item: Returned, drawn: Boxes, own: dict[str, Boxes], asked: Asked) -> Returned:
    """One answer without what others hold; its verdict is made anew of what is left."""
    entry = asked.regions[item.region_id]
    belongs = _belonging(item.region_id, drawn, asked)
    beside = _on_prediction(entry, drawn) < OVERLAP
    gone: Bool[np.ndarray, " boxes"] = np.zeros(len(drawn), bool)
    for column, other in enumerate(_others(item.region_id, asked)):
        held = own.get(other.region.id)
        there = beside if held is None else (iou(drawn.corners, held.objects.corners) >= HELD).any(1)
        gone = np.logical_or(gone, belongs[:, column] & there)
    if not gone.any():
        return item
    table = verdict(entry, drawn[~gone])
    place = (0, 0), entry.source.shape
    return replace(item, label=in_order(checked_table(f"region {item.region_id}", table, place, len(asked.classes))))
