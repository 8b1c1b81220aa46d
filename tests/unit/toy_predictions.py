"""What a detector might say of a small frame, and the offers that become of it."""

from __future__ import annotations

import torch

from dal_dense.box_offers import BoxSpec, frame_offers
from dal_dense.costs import PRESETS
from dal_dense.detections import Detections, FramePrediction
from dal_dense.offers import KINDS, Offers
from dal_dense.regions import Regions
from dal_dense.tasks.base import Judged

SHAPE = (24, 36)
CLASSES = 3
COSTS = PRESETS["box_clicks"]
NOTHING = Regions.of([], 2)


def spec(kind: str = "crop", **changes: object) -> BoxSpec:
    given = {
        "matching": True,
        "kind": kind, "sizes": ((8, 12),), "costs": COSTS, "per_image": 3, "stride": 1,
        "score": "predictive_entropy", "combine": "sum", "classes": CLASSES,
    }  # fmt: skip
    return BoxSpec(**{**given, **changes})  # type: ignore[arg-type]


def prediction(seed: int = 0, boxes: int = 9, shape: tuple[int, int] = SHAPE, side: float = 8) -> FramePrediction:
    gen = torch.Generator().manual_seed(seed)
    top = torch.tensor([*shape, *shape], dtype=torch.float32)
    first = torch.rand(boxes, 2, generator=gen) * (top[:2] - 1)
    corners = torch.cat([first, first + 0.2 + torch.rand(boxes, 2, generator=gen) * side], 1)
    corners = torch.minimum(corners, top)
    probs = torch.rand(boxes, CLASSES, generator=gen) + 0.05
    probs = probs / probs.sum(1, keepdim=True)
    best = probs[:, 1:].amax(1).argsort(descending=True)
    found = Detections(
        corners=corners,
        probs=probs[best],
        expected_entropy=torch.rand(boxes, generator=gen),
        spread=torch.rand(boxes, generator=gen),
        consistency=torch.rand(boxes, generator=gen),
        embedding=torch.randn(boxes, 5, generator=gen),
    )
    dense = torch.rand(6, 9, generator=gen)
    features, difficulty = torch.randn(4, 3, 5, generator=gen), torch.tensor([0.0, 0.2, 0.9])
    return FramePrediction(shape, found, dense, features, difficulty, floor=0.05)


def boxed(*corners: list[float], shape: tuple[int, int] = SHAPE, sure: float = 0.8) -> FramePrediction:
    """Given boxes, all of class 1."""
    n = len(corners)
    found = Detections(
        corners=torch.tensor(corners).reshape(n, 4),
        probs=torch.tensor([[1 - sure, sure, 0.0]] * n).reshape(n, 3),
        expected_entropy=torch.zeros(n),
        spread=torch.zeros(n),
        consistency=torch.ones(n),
        embedding=torch.arange(n * 5).float().reshape(n, 5),
    )
    return FramePrediction(shape, found, torch.rand(6, 9), torch.rand(4, 3, 5), torch.zeros(3), floor=0.05)


def offers(
    pred: FramePrediction,
    what: BoxSpec,
    labelled: Regions = NOTHING,
    blocked: Regions = NOTHING,
    answered: Regions = NOTHING,
    waiting: Regions = NOTHING,
) -> Offers:
    return frame_offers(
        pred, what, image_id="f", image=4, group=2, labelled=labelled, blocked=blocked,
        judged=Judged(answered, waiting), seed=1,
    )  # fmt: skip


def singles(made: Offers) -> Offers:
    """The single boxes on offer."""
    return made[(made.kind == KINDS.index("box")) & ~made.labelled]


def looks(made: Offers) -> Offers:
    """The crops on offer."""
    return made[(made.kind == KINDS.index("crop")) & ~made.labelled]
