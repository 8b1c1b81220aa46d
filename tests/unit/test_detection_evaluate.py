"""Average precision, where it can be worked out by hand."""

import math

import pytest
import torch

from dal_dense.boxes import ABSENT, IGNORED, OBJECT, Boxes
from dal_dense.detections import Detections
from dal_dense.tasks.detection_evaluate import Found, Scoreboard, boxes_of

CLASSES = ("background", "car", "tram", "bus")
BOX, SMALL, LARGE = (0.0, 0.0, 50.0, 60.0), (0.0, 0.0, 20.0, 20.0), (0.0, 0.0, 100.0, 120.0)
FAR = (200.0, 200.0, 250.0, 260.0)


def found(*boxes: tuple[tuple[float, ...], int, float]) -> list[Found]:
    probs = torch.zeros(len(boxes), len(CLASSES))
    for i, (_, kind, score) in enumerate(boxes):
        probs[i, kind], probs[i, 0] = score, 1 - score
    n = torch.ones(len(boxes))
    return boxes_of(Detections(torch.tensor([b for b, _, _ in boxes]).reshape(-1, 4), probs, n, n, n, n[:, None]))


def board(metric: str = "ap50") -> Scoreboard:
    return Scoreboard(CLASSES, metric, 100)


def test_a_perfect_model(capsys: pytest.CaptureFixture[str]) -> None:
    score = board()
    score.add(found((BOX, 1, 0.9), (SMALL, 2, 0.8)), Boxes.of([BOX, SMALL], [1, 2]))
    result = score.result()
    assert result.metric == "ap50" and math.isclose(result.value, 1.0)
    assert result.per_class["car"] == result.per_class["tram"] == pytest.approx(1.0)
    assert math.isnan(result.per_class["bus"]) and set(result.per_class) == set(CLASSES[1:])
    assert result.extra["ap_small"] == result.extra["ap_medium"] == pytest.approx(1.0)
    assert math.isnan(result.extra["ap_large"])
    assert capsys.readouterr().out == ""


def test_half_of_the_objects_found() -> None:
    score = board()
    score.add(found((BOX, 1, 0.9)), Boxes.of([BOX, FAR], [1, 1]))
    assert score.result().value == pytest.approx(51 / 101)  # 101 recall points, precision 1 up to recall 0.5


def test_what_is_found_in_a_frame_without_objects_is_false() -> None:
    score = board()
    score.add(found((BOX, 1, 0.5)), Boxes.of([BOX], [1]))
    score.add(found((BOX, 1, 0.9)), Boxes.of([], []))
    assert score.result().value == pytest.approx(0.5)


def test_ground_to_ignore_counts_for_no_class_and_rejections_for_nothing() -> None:
    score = board()
    truth = Boxes.of([BOX, FAR, LARGE], [1, 0, 2], [OBJECT, IGNORED, ABSENT])
    score.add(found((BOX, 1, 0.5), (FAR, 1, 0.9), (FAR, 2, 0.9)), truth)
    result = score.result()
    assert result.value == pytest.approx(1.0) and math.isnan(result.per_class["tram"])


def test_loose_boxes_count_for_ap50_only() -> None:
    values = {}
    for metric in ("ap50", "ap"):
        score = board(metric)
        score.add(found(((0.0, 0.0, 50.0, 40.0), 1, 0.9)), Boxes.of([BOX], [1]))  # IoU 2/3
        values[metric] = score.result().value
    assert values["ap50"] == pytest.approx(1.0) and values["ap"] == pytest.approx(0.4)


def test_nothing_at_all_is_not_a_number() -> None:
    for frames in (0, 1):
        score = board()
        for _ in range(frames):
            score.add(found((BOX, 1, 0.9)), Boxes.of([], []))
        assert math.isnan(score.result().value)
    score = board()
    score.add(found(), Boxes.of([BOX], [1]))
    assert score.result().value == 0
