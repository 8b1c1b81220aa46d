"""Look windows: where they lie, what they are expected to hold, and that they get along with the boxes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toy_predictions import CLASSES, NOTHING, SHAPE, boxed, looks, offers, prediction, singles, spec

from dal_dense.acquire import Basket, Budget, Round, acquire
from dal_dense.box_looks import look_figures, look_windows
from dal_dense.box_proposals import frame_proposals
from dal_dense.box_scores import box_scores
from dal_dense.boxes import Boxes
from dal_dense.config import StrategyConfig
from dal_dense.detections import FramePrediction
from dal_dense.errors import ConfigError
from dal_dense.offers import KINDS
from dal_dense.regions import Box, Regions, joined, slices

SIZE = (8, 12)


def map_of(pred: FramePrediction, *, covered: bool = True) -> np.ndarray:
    """The dense map a pixel at a time; 0 where a kept box lies unless `covered`."""
    full = np.kron(pred.dense.numpy(), np.ones((SHAPE[0] // 6, SHAPE[1] // 9), np.float32))
    for top, left, bottom, right in pred.found.corners.round().int().tolist() if not covered else ():
        full[min(top, SHAPE[0] - 1) : max(bottom, top + 1), min(left, SHAPE[1] - 1) : max(right, left + 1)] = 0
    return full


def inside(pred: FramePrediction, box: Box) -> np.ndarray:
    """Share of each kept box that lies in a window."""
    kept = Boxes.of(pred.found.corners.double().numpy(), [1] * len(pred.found))
    (top, left), (bottom, right) = box
    cut = np.clip(kept.corners, [top, left, top, left], [bottom, right, bottom, right])
    share: np.ndarray = (cut[:, 2:] - cut[:, :2]).prod(1) / (kept.corners[:, 2:] - kept.corners[:, :2]).prod(1)
    return share


def holds_a_centre(pred: FramePrediction, box: Box) -> bool:
    middle = (pred.found.corners[:, :2] + pred.found.corners[:, 2:]).double().numpy() / 2
    return bool(((middle >= box[0]) & (middle < box[1])).all(1).any())


def touches(box: Box, others: Regions) -> bool:
    return bool(Regions.of([box], 2).overlaps(others).any())


def peak(row: int, column: int, low: float = 0.1) -> torch.Tensor:
    """A map that is high in one cell of 4 x 4 pixels."""
    dense = torch.full((6, 9), low)
    dense[row, column] = 0.65
    return dense


# --- where


def test_a_look_lies_where_the_map_is_high_and_nothing_was_kept() -> None:
    high = ((12, 24), (16, 28))
    pred = replace(boxed([1.0, 1, 9, 9]), dense=peak(3, 6))
    first = next(looks(offers(pred, spec("box"))).regions.boxes())
    assert all(first[0][a] <= high[0][a] and first[1][a] >= high[1][a] for a in range(2))
    kept = replace(boxed([1.0, 1, 9, 9], [11.0, 23, 17, 29]), dense=peak(3, 6))  # the very place is a question already
    made = looks(offers(kept, spec("box")))
    assert len(made) and not any(touches(box, Regions.of([((13, 25), (15, 27))], 2)) for box in made.regions.boxes())


@given(st.integers(0, 10**6), st.integers(0, 9), st.integers(0, 2), st.sampled_from([1, 3]))
@example(131072, 9, 0, 1)  # a quarter of one box is more than one pixel, of the same box in whole pixels it is not
@settings(max_examples=15, deadline=None)
def test_the_best_look_is_the_best_of_all_that_may_be(seed: int, boxes: int, known: int, stride: int) -> None:
    pred = prediction(seed, boxes)
    start = torch.randint(0, 12, (known, 2), generator=torch.Generator().manual_seed(seed))
    taken = Regions(start, start + torch.tensor([5, 7]))
    found = list(look_windows(pred, [SIZE], stride, 3, taken).boxes())
    field = map_of(pred, covered=False)
    rows, columns = ({*range(0, n - s + 1, stride), n - s} for n, s in zip(SHAPE, SIZE, strict=True))
    windows = Regions.of([((r, c), (r + SIZE[0], c + SIZE[1])) for r in rows for c in columns], 2)
    free = windows[~windows.overlaps(joined(taken, cores(pred))).any(1)]
    best = max((float(field[slices(box)].sum()) for box in free.boxes()), default=0.0)
    assert bool(found) == (best > 0)
    for box in found:
        assert not touches(box, taken) and not holds_a_centre(pred, box) and (inside(pred, box) <= 0.25 + 1e-6).all()
    if found:
        (top, left), (bottom, right) = found[0]
        assert float(field[top:bottom, left:right].sum()) == pytest.approx(best, rel=1e-5)


def cores(pred: FramePrediction) -> Regions:
    """What is left of each box without its outer quarters, out to whole pixels; of the box as it is asked, too."""
    found = []
    asked = list(pred.pixels().boxes())
    for corners, pixels in zip(pred.found.corners.tolist(), asked, strict=True):
        start, stop = [], []
        for low, high, first, last in zip(corners[:2], corners[2:], *pixels, strict=True):
            quarter, whole = (high - low) / 4, (last - first) // 4
            start.append(min(math.floor(low + quarter), first + whole))
            stop.append(max(math.ceil(high - quarter), math.floor(low + quarter) + 1, last - whole))
        found.append((tuple(start), tuple(stop)))
    return Regions.of(found, 2)


@pytest.mark.parametrize("name", ["labelled", "blocked", "answered", "waiting"])
@given(st.integers(0, 10**6), st.integers(0, 6))
@settings(max_examples=15, deadline=None)
def test_no_look_touches_ground_that_is_labelled_asked_or_judged(name: str, seed: int, boxes: int) -> None:
    gen = torch.Generator().manual_seed(seed)
    start = torch.randint(0, 12, (3, 2), generator=gen)
    places = Regions(start, start + torch.randint(1, 6, (3, 2), generator=gen))
    pred = prediction(seed, boxes)
    for box in looks(offers(pred, spec("box"), **{name: places})).regions.boxes():
        assert not touches(box, places)
    everything = Regions.of([((0, 0), SHAPE)], 2)
    assert not len(looks(offers(pred, spec("box"), **{name: everything})))


def test_there_is_no_look_where_the_map_is_silent_or_boxes_lie_everywhere() -> None:
    assert not len(looks(offers(replace(boxed([1.0, 1, 9, 9]), dense=torch.zeros(6, 9)), spec("box"))))
    assert not len(looks(offers(boxed([0.0, 0, *SHAPE]), spec("box"))))
    corner = replace(boxed([0.0, 0, 24, 35]), dense=peak(0, 0, low=0.0))  # what is left free is silent
    assert not len(looks(offers(corner, spec("box", sizes=((4, 1),)))))


def test_sizes_are_those_of_the_settings() -> None:
    made = looks(offers(boxed(), spec("box", sizes=((4, 4), (8, 100)), per_image=2)))
    sides = (made.regions.stop - made.regions.start).tolist()
    assert sides == [[4, 4], [4, 4], [8, 36], [8, 36]]
    with pytest.raises(ConfigError, match=r"query.sizes: \(4, 4, 4\) does not fit"):
        look_windows(boxed(), [(4, 4, 4)], 1, 2, NOTHING)


# --- what is expected of them


@given(
    st.integers(0, 10**6), st.integers(0, 12), st.sampled_from([0.0, 0.05, 0.3]), st.sampled_from(["margin", "spread"])
)
@settings(max_examples=15, deadline=None)
def test_the_price_and_the_score_of_a_look(seed: int, boxes: int, floor: float, score: str) -> None:
    pred = replace(prediction(seed, boxes), floor=floor)
    values = box_scores(score, pred.found, pred.difficulty)
    made = looks(offers(pred, spec("box", score=score, sizes=((8, 12), (4, 9)))))
    field, whole = map_of(pred, covered=False), map_of(pred).sum()
    least = max(floor, 0.01)
    sure = pred.found.scores.tolist()
    low = [(s, v) for s, v in zip(sure, values.tolist(), strict=True) if s <= 2 * least]
    entropy = -least * math.log(least) - (1 - least) * math.log(1 - least)
    one = sum(v for _, v in low) / len(low) if low else entropy
    for n, ((top, left), (bottom, right)) in enumerate(made.regions.boxes()):
        pixels = (bottom - top) * (right - left)
        share = float(field[top:bottom, left:right].sum()) / whole
        objects, worth = share * (least + sum(s for s, _ in low)), share * (one + sum(v for _, v in low))
        assert objects > 0 and float(made.objects[n]) == pytest.approx(objects, rel=1e-4)
        assert float(made.seconds[n]) == pytest.approx(1 + 0.03 * pixels / 1000 + 7 * objects, rel=1e-4)
        assert float(made.score[n] * made.extent[n]) == pytest.approx(worth, rel=1e-4)
        assert (float(made.area[n]), float(made.image_seconds[n]), float(made.boundary[n])) == (pixels, 5, 0)
        mass = pred.found.probs[:, 1:].sum(0)
        shares = [0.0, *(mass / mass.sum()).tolist()] if boxes else [1.0] + [0.0] * (CLASSES - 1)
        assert made.shares[n].tolist() == pytest.approx(shares, abs=1e-5)
        by_class = [float(made.score[n]) * s for s in shares[1:]]
        assert made.class_score[n].tolist() == pytest.approx([0.0, *by_class], abs=1e-6)
    assert (made.extra["random"] == 0).all() and made.parts is not None and not len(made.parts.row)


def test_all_that_was_dropped_is_spread_over_the_map() -> None:
    """Nothing kept: the windows of a tiling share the one chance between them."""
    pred = replace(boxed(), dense=peak(3, 6))
    tiles = Regions.of([((r, c), (r + 8, c + 12)) for r in range(0, 24, 8) for c in range(0, 36, 12)], 2)
    objects, worth = look_figures(pred, torch.zeros(0), tiles)
    assert float(objects.sum()) == pytest.approx(0.05, rel=1e-5)
    assert float(worth.sum()) == pytest.approx(-0.05 * math.log(0.05) - 0.95 * math.log(0.95), rel=1e-5)
    assert int(objects.argmax()) == 5  # rows 8..16, columns 24..36


def test_the_least_sure_boxes_say_how_many_were_dropped() -> None:
    pred = replace(boxed([1.0, 1, 9, 9], [1.0, 12, 9, 20], [1.0, 24, 9, 32]), dense=torch.full((6, 9), 0.3))
    pred.found.probs[1:] = torch.tensor([[0.92, 0.08, 0.0], [0.85, 0.15, 0.0]])
    window = Regions.of([((12, 0), (24, 18))], 2)
    objects, worth = look_figures(pred, torch.tensor([1.0, 2.0, 0.09]), window)
    assert float(objects) == pytest.approx((0.05 + 0.08) / 4)
    assert float(worth) == pytest.approx((2 + 2) / 4)


# --- beside the boxes


@given(st.integers(0, 10**6), st.integers(0, 12))
@example(333777, 7)  # a box 0.4 pixels wide, which is rounded to the pixel beside its centre
@settings(max_examples=15, deadline=None)
def test_a_frames_looks_of_one_size_and_its_boxes_never_bar_each_other(seed: int, boxes: int) -> None:
    made = offers(prediction(seed, boxes), spec("box"))
    for row in (~made.labelled).nonzero()[:, 0].tolist():
        basket = Basket(made, Budget(1e9))
        basket.take(row, 0.0)
        barred = basket.price.isinf()
        barred[row] = False
        assert not barred[made.kind != made.kind[row]].any()
        assert made.kind[row] == KINDS.index("box") or not barred.any()


def test_looks_are_asked_once_the_boxes_are_sure() -> None:
    """Two boxes, and one that was nearly dropped: what else was dropped is sought before a sure box is verified."""
    per_second, first = StrategyConfig(name="per_second"), {}
    for sure in (0.5, 0.999):
        pred = boxed([2.0, 2, 10, 10], [14.0, 2, 22, 10], [22.0, 34, 24, 36], sure=sure)
        pred = replace(pred, dense=peak(3, 6, low=0.001))
        pred.found.probs[2] = torch.tensor([0.94, 0.06, 0.0])
        made = offers(pred, spec("box", per_image=1))
        asked = acquire(made, Budget(30.0), per_second, Round(1, 2, 0), quota_classes=(1,)).rows.tolist()
        first[sure] = next(row for row in asked if row != 2)
    assert first == {0.5: 0, 0.999: 3}


def test_a_look_is_proposed_no_box_and_the_map() -> None:
    pred = prediction(3, 5)
    made = looks(offers(pred, spec("box")))
    assert len(made)
    for only in (True, False):
        for proposal, (start, stop) in zip(
            frame_proposals(pred, made.regions, boxes_only=only), made.regions.boxes(), strict=True
        ):
            assert proposal.label.shape == (0, 6) and proposal.scores is not None and len(proposal.scores) == 0
            assert np.array_equal(proposal.uncertainty, map_of(pred)[start[0] : stop[0], start[1] : stop[1]])


def test_a_rejected_box_bars_its_ground_alone() -> None:
    pred = replace(boxed(), dense=torch.full((6, 9), 0.3))
    judged = Regions.of([((8, 12), (16, 24))], 2)
    made = offers(pred, spec("box"), answered=judged)
    assert len(looks(made)) == 3 and not looks(made).regions.overlaps(judged).any() and not len(singles(made))
