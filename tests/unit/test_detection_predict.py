"""Sums over draws, suppression, consistency, and the way back to the stored frame."""

import math

import numpy as np
import torch

from dal_dense.config import DetectionConfig, NetworkConfig, UncertaintyConfig
from dal_dense.tasks.detection_backend import Rows
from dal_dense.tasks.detection_predict import RowSums, consistency, predict_frame, suppressed
from dal_dense.tasks.torchvision_detection import TorchvisionDetector

ALL = DetectionConfig(min_score=0.0, nms_iou=1.0)


def rows(probs: list[list[float]], boxes: list[list[float]]) -> Rows:
    return Rows(torch.tensor(probs), torch.tensor(boxes), torch.arange(len(probs)).float()[:, None])


def test_means_over_draws_of_the_same_rows() -> None:
    sums = RowSums()
    sums.add(rows([[0.2, 0.8], [0.9, 0.1]], [[0, 0, 10, 10], [20, 20, 30, 40.0]]))
    sums.add(rows([[0.6, 0.4], [0.7, 0.3]], [[2, 0, 12, 10], [20, 20, 30, 40.0]]))
    found = sums.kept(ALL)
    assert torch.allclose(found.probs, torch.tensor([[0.4, 0.6], [0.8, 0.2]]))
    assert found.corners.tolist() == [[1, 0, 11, 10], [20, 20, 30, 40]]
    assert torch.allclose(found.spread, torch.tensor([math.sqrt(0.5) / 10, 0.0]), atol=1e-6)
    h = [-sum(p * math.log(p) for p in each) for each in ((0.2, 0.8), (0.6, 0.4))]
    assert math.isclose(float(found.expected_entropy[0]), sum(h) / 2, rel_tol=1e-5)
    assert found.consistency.tolist() == [1, 1] and found.embedding[:, 0].tolist() == [0, 1]
    assert found.classes.tolist() == [1, 1]


def test_far_corners_keep_a_spread_of_zero() -> None:
    sums = RowSums()
    for _ in range(7):
        sums.add(rows([[0.5, 0.5]], [[4001.3, 3000.7, 4033.1, 3050.9]]))
    assert float(sums.kept(ALL).spread) == 0


def test_suppression_is_within_a_class_and_best_first() -> None:
    probs = torch.tensor([[0.3, 0.6, 0.1], [0.2, 0.7, 0.1], [0.2, 0.1, 0.7], [0.96, 0.04, 0], [0.1, 0.9, 0]])
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 11], [0, 0, 10, 10], [50, 50, 60, 60], [70, 0, 70, 9]])
    assert suppressed(probs, boxes, DetectionConfig()).tolist() == [1, 2]  # the last is empty, one is too unsure
    assert suppressed(probs, boxes, DetectionConfig(max_boxes=1)).tolist() == [1]


def test_consistency_is_calds() -> None:
    same = rows([[0.1, 0.9]], [[0, 0, 10, 10.0]])
    assert math.isclose(float(consistency(same, same)), 1 + 0.9 - 1.3, rel_tol=1e-5)
    other = rows([[0.9, 0.1]], [[0, 0, 10, 5.0]])
    js = math.log(2) + 0.9 * math.log(0.9) + 0.1 * math.log(0.1)
    expected = abs(0.5 + 0.5 * (1 - js) * (0.9 + 0.1) - 1.3)
    assert math.isclose(float(consistency(same, other)), expected, rel_tol=1e-5)


def test_corners_come_back_to_the_stored_frame() -> None:
    """A frame and its half give the same boxes, in the coordinates of the frame."""
    torch.manual_seed(0)
    small = np.random.default_rng(0).integers(0, 255, (3, 32, 48)).astype(np.float32)
    large = small.repeat(2, 1).repeat(2, 2)
    found = []
    for frame, long_side in ((small, None), (large, 48)):
        detection = DetectionConfig(backbone="tiny", min_score=0.0, long_side=long_side)
        torch.manual_seed(0)
        detector = TorchvisionDetector(NetworkConfig(name="faster_rcnn"), detection, 3)
        pred = predict_frame(
            [detector], frame, image_id="a", detection=detection, uncertainty=UncertaintyConfig(), difficulty=(0.0,) * 3
        )
        assert pred.shape == frame.shape[1:]
        assert pred.dense.shape == (8, 12) and pred.features.shape == (32, 2, 3)
        found.append(pred.found)
    few = found[0].corners[:5] * 2
    apart = (few[:, None] - found[1].corners[None]).abs().amax(2).amin(1)
    assert apart.median() < 3  # the prefilter changes pixels a little
    assert (found[1].corners[:, 2] > 40).any()


def test_the_floor_is_the_score_under_which_boxes_were_dropped() -> None:
    frame = np.random.default_rng(0).integers(0, 255, (3, 32, 48)).astype(np.float32)
    for least, most in ((0.05, 3), (0.05, 10_000), (0.9, 3)):
        detection = DetectionConfig(backbone="tiny", min_score=least, max_boxes=most)
        torch.manual_seed(0)
        detector = TorchvisionDetector(NetworkConfig(name="faster_rcnn"), detection, 3)
        pred = predict_frame(
            [detector], frame, image_id="a", detection=detection, uncertainty=UncertaintyConfig(), difficulty=(0.0,) * 3
        )
        assert (len(pred.found) == most) == (most == 3 and least < 0.9)
        assert pred.floor == (float(pred.found.scores.min()) if len(pred.found) == most else least)
