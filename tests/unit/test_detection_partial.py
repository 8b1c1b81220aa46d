"""Shares of known ground, cut at the border first."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from dal_dense.tasks.detection_partial import area_table, known_share, may_be_background, overlaps, points_known

NONE = torch.zeros(0, 4)
NOTHING = area_table(torch.zeros(40, 40, dtype=torch.bool))


@given(st.integers(0, 2**32 - 1))
def test_share_is_the_mean_over_the_box_inside_the_image(seed: int) -> None:
    rng = np.random.default_rng(seed)
    known = rng.random((7, 9)) < 0.5
    fine = np.kron(known, np.ones((8, 8)))  # eighths of a pixel, so that the sum over cells is exact
    x0, y0 = rng.integers(-16, 64, 2)
    x1, y1 = x0 + rng.integers(1, 60), y0 + rng.integers(1, 60)
    part = fine[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
    box = torch.tensor([[x0, y0, x1, y1]]) / 8
    share = known_share(box, area_table(torch.from_numpy(known)))
    assert np.isclose(float(share), part.mean() if part.size else 0.0, atol=1e-5)


def test_border_anchors_are_cut_before_they_are_judged() -> None:
    """Three quarters of this anchor lie outside the image; what is inside is unknown."""
    known = torch.zeros(40, 40, dtype=torch.bool)
    known[:, 10:] = True
    anchor = torch.tensor([[-30.0, 0, 10, 10], [-30, 0, 30, 10]])
    assert may_be_background(anchor, area_table(known), NONE, NOTHING).tolist() == [False, True]


def test_boxes_on_a_rejected_prediction_may_be_background_anywhere() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 21], [20, 20, 30, 30]])
    absent = torch.tensor([[0.0, 0, 10, 10]])
    assert may_be_background(boxes, NOTHING, absent, NOTHING).tolist() == [True, False, False]


def test_boxes_on_ignored_ground_by_half_are_never_background() -> None:
    """A crowd on the left 9 of 20 columns of a rejected prediction, of which each of these boxes is half or more."""
    crowd = torch.zeros(40, 40, dtype=torch.bool)
    crowd[:20, :9] = True
    boxes = torch.tensor([[0.0, 0, 10, 20], [0, 0, 18, 20], [0, 0, 19, 20], [10, 0, 20, 20]])
    allowed = may_be_background(boxes, NOTHING, torch.tensor([[0.0, 0, 20, 20]]), area_table(crowd))
    assert allowed.tolist() == [False, False, True, True]


def test_points_lie_on_pixels() -> None:
    known = torch.zeros(4, 6, dtype=torch.bool)
    known[1, 2] = True
    points = torch.tensor([[2.0, 1.0], [2.99, 1.99], [3.0, 1.0], [-0.1, 1], [6.0, 3.9], [2.5, 4.0]])
    assert points_known(points, area_table(known)).tolist() == [True, True, False, False, False, False]


def test_many_boxes_are_compared_in_chunks() -> None:
    start = torch.rand(3000, 2, generator=torch.Generator().manual_seed(0)) * 100
    boxes = torch.cat([start, start + 5], 1)
    assert overlaps(boxes, boxes.flip(0), 0.99).all()
    assert not overlaps(boxes, NONE, 0.5).any()
