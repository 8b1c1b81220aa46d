"""Targets against torchvision's own, and the leak that the overrides close."""

import sys
from pathlib import Path

import pytest
import torch
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.fcos import FCOS
from torchvision.ops import box_iou

from dal_dense.config import DetectionConfig, NetworkConfig
from dal_dense.tasks import detection_partial, torchvision_partial
from dal_dense.tasks.detection_backend import Sample
from dal_dense.tasks.detection_partial import KNOWN, area_table, cut_to_image, known_share
from dal_dense.tasks.torchvision_detection import TorchvisionDetector
from dal_dense.tasks.torchvision_partial import (
    BACKGROUND,
    IGNORED,
    match_anchors,
    match_points,
    responsible,
    usable_proposals,
)

sys.path.insert(0, str(Path(__file__).parent))
from torchvision_probe import probe

NONE = torch.zeros(0, 4)


def scattered(n: int, seed: int, largest: float = 30.0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    start = torch.rand(n, 2, generator=draw) * 80
    return torch.cat([start, start + 2 + torch.rand(n, 2, generator=draw) * largest], 1)


def target(boxes: torch.Tensor, known: bool = True, absent: torch.Tensor = NONE) -> dict[str, torch.Tensor]:
    ground = torch.full((120, 120), known)
    tables = {"known": area_table(ground), "ignored": area_table(ground & False)}
    return {"boxes": boxes, "labels": torch.ones(len(boxes)).long(), "absent": absent} | tables


@pytest.mark.parametrize("seed", range(4))
def test_on_known_ground_anchors_match_as_torchvisions(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_partial, "BLOCK", 50)
    boxes, anchors = scattered(9, seed), scattered(400, seed + 100)
    stock = Matcher(0.5, 0.4, allow_low_quality_matches=True)(box_iou(boxes, anchors))
    assert torch.equal(match_anchors(anchors, target(boxes), high=0.5, low=0.4), stock)
    assert (stock >= 0).any()


def test_unknown_ground_is_ignored_but_positives_stay() -> None:
    boxes, anchors = scattered(9, 0), scattered(400, 100)
    known = match_anchors(anchors, target(boxes), high=0.5, low=0.4)
    unknown = match_anchors(anchors, target(boxes, known=False), high=0.5, low=0.4)
    assert torch.equal(unknown >= 0, known >= 0) and (unknown != BACKGROUND).all()
    far = torch.tensor([[500.0, 500, 510, 510]])  # no anchor overlaps it: none becomes its positive
    assert (match_anchors(anchors, target(far), high=0.5, low=0.4) < 0).all()
    apart, between = torch.tensor([[0.0, 0, 9, 9], [50, 50, 60, 60]]), torch.tensor([[20.0, 20, 30, 30]])
    assert (match_anchors(apart, target(between), high=0.5, low=0.4) < 0).all()
    nothing = match_anchors(anchors, target(NONE), high=0.5, low=0.4)
    assert (nothing == BACKGROUND).all()


def test_proposals_that_say_nothing_are_dropped() -> None:
    boxes = torch.tensor([[10.0, 10, 30, 30]])
    proposals = torch.tensor([[10.0, 10, 30, 28], [60, 60, 80, 80], [40, 40, 50, 50]])
    rejected = torch.tensor([[40.0, 40, 50, 52]])
    (kept,) = usable_proposals([proposals], [target(boxes, known=False, absent=rejected)])
    assert kept.tolist() == [proposals[0].tolist(), proposals[2].tolist()]
    assert len(usable_proposals([proposals], [target(boxes)])[0]) == 3


def test_ignored_ground_goes_before_a_rejected_prediction() -> None:
    rejected = torch.tensor([[16.0, 16, 48, 48]])
    goal = target(NONE, known=False, absent=rejected)
    crowd = goal | {"ignored": area_table(torch.ones(120, 120, dtype=torch.bool))}
    point = torch.tensor([[28.0, 28, 36, 36]])
    for ground, anchor, used in ((goal, BACKGROUND, 1), (crowd, IGNORED, 0)):
        assert match_anchors(rejected, ground, high=0.5, low=0.4).tolist() == [anchor]
        assert match_points(point, ground, [1]).tolist() == [anchor]
        assert len(usable_proposals([rejected], [ground])[0]) == used


@pytest.mark.parametrize("seed", range(4))
def test_on_known_ground_points_match_as_torchvisions(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TorchvisionDetector(NetworkConfig(name="fcos"), DetectionConfig(backbone="tiny"), 2).module
    taken = []
    monkeypatch.setattr(model.head, "compute_loss", lambda t, o, a, matched: taken.append(matched[0]) or {})
    grids = [(30, 30), (15, 15), (8, 8), (4, 4)]
    anchors = torch.cat(model.anchor_generator.grid_anchors(grids, [[torch.tensor(s)] * 2 for s in (4, 8, 16, 32)]))
    boxes = scattered(12, seed, 60)
    levels = [h * w for h, w in grids]
    FCOS.compute_loss(model, [target(boxes)], {}, [anchors], levels)
    monkeypatch.setattr(torchvision_partial, "CHUNK", 500)
    assert torch.equal(responsible(anchors, boxes, levels), taken[0])
    assert (taken[0] >= 0).any()
    unknown = match_points(anchors, target(boxes, known=False, absent=scattered(3, 9, 60)), levels)
    assert torch.equal(unknown >= 0, taken[0] >= 0)
    assert (unknown == IGNORED).any() and (unknown == BACKGROUND).any()


@pytest.mark.parametrize(("network", "match"), [("retinanet", "match_anchors"), ("fcos", "match_points")])
def test_losses_are_over_the_positives_of_the_batch(network: str, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Detectron2: a window of few positives weighs as much as they do."""
    torch.manual_seed(0)
    detector = TorchvisionDetector(NetworkConfig(name=network, dropout=0.0), DetectionConfig(backbone="tiny"), 3)
    ground = torch.ones(96, 96, dtype=torch.bool)
    tables = area_table(ground), area_table(~ground)
    windows = [
        Sample(torch.rand(3, 96, 96) * 255, boxes, torch.ones(len(boxes)).long(), NONE, *tables)
        for boxes in (scattered(8, 1, 14), scattered(1, 2, 14))
    ]
    counts, stock = [], getattr(torchvision_partial, match)

    def counted(*args: object, **more: object) -> torch.Tensor:
        counts.append(int((stock(*args, **more) >= 0).sum()))
        return stock(*args, **more)

    monkeypatch.setattr(torchvision_partial, match, counted)
    many, few, both = (detector.losses(batch) for batch in (windows[:1], windows[1:], windows))
    assert counts[0] > 2 * counts[1] > 0 and counts[2:] == counts[:2]
    for name in both:
        total = many[name] * counts[0] + few[name] * counts[1]
        assert torch.allclose(both[name] * sum(counts[:2]), total, rtol=1e-4), name


def leak(network: str) -> dict[str, int]:
    """Rows on unknown ground with a gradient, by head."""
    torch.manual_seed(0)
    known = torch.zeros(72, 96, dtype=torch.bool)
    known[:, :48] = True
    boxes = torch.tensor([[4.0, 5, 22, 20]])
    sample = Sample(
        torch.rand(3, 72, 96) * 255, boxes, torch.tensor([1]), NONE, area_table(known), area_table(known & False)
    )
    detector = TorchvisionDetector(NetworkConfig(name=network, dropout=0.1), DetectionConfig(backbone="tiny"), 3)
    found = {}
    for head, (rows, grads) in probe(detector, [sample]).items():
        cut = cut_to_image(rows[0], 72, 96)
        there = (known_share(cut, sample.known) < KNOWN) & (cut[:, 0] > 50)
        found[head] = int((grads[0][there] != 0).sum())
    return found


@pytest.mark.parametrize("network", ["faster_rcnn", "retinanet", "fcos"])
def test_the_gradient_leaks_without_the_override(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(leak(network).values()) == {0}
    everything = lambda boxes, *more: torch.ones(len(boxes), dtype=torch.bool)  # noqa: E731
    monkeypatch.setattr(torchvision_partial, "may_be_background", everything)
    monkeypatch.setattr(torchvision_partial, "points_known", everything)
    leaks = leak(network)
    assert min(leaks.values()) > 0, leaks


def test_border_anchors_leak_where_they_are_not_cut_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judged whole, as if ground beyond the image were known, they would be taught as background."""
    uncut = lambda boxes, known, *more: (known_share(boxes, known) >= KNOWN) | (boxes[:, 2] > 120)  # noqa: E731
    assert leak("retinanet") == {"head": 0}
    monkeypatch.setattr(torchvision_partial, "may_be_background", uncut)
    assert leak("retinanet")["head"] > 0
    assert detection_partial.KNOWN == 0.5
