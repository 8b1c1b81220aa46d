import math

import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric

from dal_dense.tasks.monai_evaluate import Scoreboard, confusion, dice, iou, seen

CLASSES = ("background", "a", "b")


def one_hot(label: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(label.long(), 3).movedim(-1, 0).float()


def draw(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    gen = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, 3, (6, 7), generator=gen).to(torch.uint8) for _ in range(2))  # type: ignore[return-value]


def test_dice_equals_monai_and_iou_its_transform():
    truth, found = draw(0)
    matrix = confusion(truth, found, 3)
    assert matrix.sum() == 42
    expected = DiceMetric(include_background=True)(one_hot(found)[None], one_hot(truth)[None])[0]
    assert dice(matrix) == pytest.approx(expected.numpy())
    assert iou(matrix) == pytest.approx(dice(matrix) / (2 - dice(matrix)))


def test_ignored_ground_counts_nowhere():
    truth, found = draw(1)
    matrix = confusion(truth, found, 3)
    truth[0] = 255
    assert np.array_equal(matrix - confusion(draw(1)[0][:1], found[:1], 3), confusion(truth, found, 3))


def test_mean_dice_is_over_images_then_classes_without_background():
    board = Scoreboard(CLASSES, "dice", True)
    a, b = torch.zeros(4, 4, dtype=torch.uint8), torch.zeros(4, 4, dtype=torch.uint8)
    a[0, :2], b[0] = 1, 1
    found_a, found_b = a.clone(), b.clone()
    found_a[0, 0] = 0  # dice 2/3
    board.add("p1", seen(one_hot(found_a), a))
    board.add("p2", seen(one_hot(found_b), b))
    result = board.result()
    assert result.per_class["a"] == pytest.approx((2 / 3 + 1) / 2)
    assert math.isnan(result.per_class["b"])
    assert result.value == pytest.approx((2 / 3 + 1) / 2)
    assert result.per_group == pytest.approx({"p1": 2 / 3, "p2": 1.0})
    assert result.extra["ece"] == pytest.approx(1 / 32)


def test_miou_pools_all_pixels():
    board = Scoreboard(CLASSES, "miou", False)
    pairs = [draw(2), draw(3)]
    for truth, found in pairs:
        board.add("drive", seen(one_hot(found), truth))
    pooled = iou(sum(confusion(t, f, 3) for t, f in pairs))
    assert board.result().value == pytest.approx(pooled.mean())
    assert board.result().per_group["drive"] == pytest.approx(pooled.mean())


@pytest.mark.parametrize("metric", ["dice", "miou"])
def test_a_class_counts_if_the_truth_holds_it_whatever_is_predicted(metric: str) -> None:
    truth, found = torch.zeros(4, 4, dtype=torch.uint8), torch.zeros(4, 4, dtype=torch.uint8)
    truth[0], found[0], found[3, 0] = 1, 1, 2  # one false voxel of a class that is not there
    board = Scoreboard(CLASSES, metric, True)
    board.add("p", seen(one_hot(found), truth))
    result = board.result()
    assert math.isnan(result.per_class["b"]) and result.value == result.per_group["p"] == 1
    board.add("q", seen(one_hot(truth), torch.full_like(truth, 2)))  # there, and not found
    assert board.result().per_class["b"] == 0 and board.result().value < 1
    assert board.result().per_group["p"] == 0.5  # where it is not there, false voxels count


def test_false_voxels_in_a_healthy_patient_count_in_the_figure_of_the_patient() -> None:
    board, healthy = Scoreboard(CLASSES, "dice", True), torch.zeros(4, 4, dtype=torch.uint8)
    ill, false = healthy.clone(), healthy.clone()
    ill[0], false[0, 0] = 1, 1
    for k in range(4):
        board.add(f"ill{k}", seen(one_hot(ill), ill))
        board.add(f"healthy{k}", seen(one_hot(false), healthy))
    result = board.result()
    assert result.value == 0.5 and sorted(result.per_group.values()) == [0, 0, 0, 0, 1, 1, 1, 1]


def test_nothing_measured_is_nan_not_a_crash():
    assert math.isnan(Scoreboard(CLASSES, "dice", True).result().value)
