"""Average precision, where it can be worked out by hand."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycocotools.cocoeval import COCOeval

from dal_dense.boxes import ABSENT, IGNORED, OBJECT, Boxes
from dal_dense.detections import Detections
from dal_dense.tasks import detection_evaluate
from dal_dense.tasks.detection_evaluate import Found, Scoreboard, boxes_of
from dal_dense.tasks.detection_groups import mean_precision, ranked

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
    score.add("d", found((BOX, 1, 0.9), (SMALL, 2, 0.8)), Boxes.of([BOX, SMALL], [1, 2]))
    result = score.result()
    assert result.metric == "ap50" and math.isclose(result.value, 1.0)
    assert result.per_class["car"] == result.per_class["tram"] == pytest.approx(1.0)
    assert math.isnan(result.per_class["bus"]) and set(result.per_class) == set(CLASSES[1:])
    assert result.extra["ap_small"] == result.extra["ap_medium"] == pytest.approx(1.0)
    assert math.isnan(result.extra["ap_large"])
    assert capsys.readouterr().out == ""


def test_half_of_the_objects_found() -> None:
    score = board()
    score.add("d", found((BOX, 1, 0.9)), Boxes.of([BOX, FAR], [1, 1]))
    assert score.result().value == pytest.approx(51 / 101)  # 101 recall points, precision 1 up to recall 0.5


def test_what_is_found_in_a_frame_without_objects_is_false() -> None:
    score = board()
    score.add("d", found((BOX, 1, 0.5)), Boxes.of([BOX], [1]))
    score.add("d", found((BOX, 1, 0.9)), Boxes.of([], []))
    assert score.result().value == pytest.approx(0.5)


def test_ground_to_ignore_counts_for_no_class_and_rejections_for_nothing() -> None:
    score = board()
    truth = Boxes.of([BOX, FAR, LARGE], [1, 0, 2], [OBJECT, IGNORED, ABSENT])
    score.add("d", found((BOX, 1, 0.5), (FAR, 1, 0.9), (FAR, 2, 0.9)), truth)
    result = score.result()
    assert result.value == pytest.approx(1.0) and math.isnan(result.per_class["tram"])


def test_loose_boxes_count_for_ap50_only() -> None:
    values = {}
    for metric in ("ap50", "ap"):
        score = board(metric)
        score.add("d", found(((0.0, 0.0, 50.0, 40.0), 1, 0.9)), Boxes.of([BOX], [1]))  # IoU 2/3
        result = score.result()
        values[metric] = result.value
        assert [result.per_class["car"], result.per_group["d"]] == pytest.approx([result.value] * 2)
        figures = {"ap": 0.4, "ap50": 1.0, "ap_medium": 0.4, "ap50_medium": 1.0}
        assert {k: result.extra[k] for k in figures} == pytest.approx(figures)
        assert math.isnan(result.extra["ap50_small"]) and math.isnan(result.extra["ap50_large"])
    assert values["ap50"] == pytest.approx(1.0) and values["ap"] == pytest.approx(0.4)


def test_nothing_at_all_is_not_a_number() -> None:
    for frames in (0, 1):
        score = board()
        for _ in range(frames):
            score.add("d", found((BOX, 1, 0.9)), Boxes.of([], []))
        assert math.isnan(score.result().value)
    score = board()
    score.add("d", found(), Boxes.of([BOX], [1]))
    assert score.result().value == 0


# --- groups and matching

Frame = tuple[str, list[Found], Boxes]


def drawn_frames(seed: int) -> list[Frame]:
    """Eight frames of four drives: objects found well or badly, false finds, ground to ignore; one drive is bare."""
    rng = np.random.default_rng(seed)
    frames = []
    for n in range(8):
        boxes, finds = [], []
        for _ in range(rng.integers(0, 4) if n % 4 else 0):
            top, left = rng.uniform(0, 200, 2)
            corners = (top, left, top + rng.uniform(10, 90), left + rng.uniform(10, 90))
            status = OBJECT if rng.random() < 0.8 else IGNORED
            boxes.append((corners, int(rng.integers(1, 3)), status))
            if rng.random() < 0.7:
                moved = tuple(c + rng.normal(0, 5) for c in corners)
                finds.append((moved, int(rng.integers(1, 3)), float(rng.random())))
        finds += [((c, c, c + 30.0, c + 20.0), 1, float(rng.random())) for c in rng.uniform(0, 200, rng.integers(0, 3))]
        corners, kinds, states = zip(*boxes, strict=True) if boxes else ((), (), ())
        frames.append((f"drive_{n % 4}", found(*finds), Boxes.of(corners, kinds, states)))
    return frames


def measured(frames: Sequence[Frame], metric: str, **more: int) -> Scoreboard:
    score = Scoreboard(CLASSES, metric, 100, **more)
    for frame in frames:
        score.add(*frame)
    return score


def value_of(frames: Sequence[Frame], metric: str) -> float:
    return measured([("one", *frame[1:]) for frame in frames], metric).result().value


def alike(one: float, other: float) -> bool:
    return one == pytest.approx(other, nan_ok=True)


@given(st.integers(0, 10**6), st.booleans())
@settings(max_examples=20, deadline=None)
def test_every_match_is_the_one_of_pycocotools_asked_about_every_box(seed: int, many: bool) -> None:
    """More boxes than a frame may keep, equal scores, ground to ignore, every size; and few boxes."""
    runs = []
    for matching in (detection_evaluate.Near, COCOeval):
        score = Scoreboard(CLASSES, "ap", 12)
        for group, finds, truth in drawn_frames(seed):
            rounded = [(corners, kind, round(sure, 1)) for corners, kind, sure in finds]
            score.add(group, rounded * 9 if many else finds, truth)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(detection_evaluate, "Near", matching)
            runs.append(score._matched())
    near, plain = runs
    assert (near is None) == (plain is None)
    if near and plain:
        assert [values_of(e) for e in near.evalImgs] == [values_of(e) for e in plain.evalImgs]
        assert np.array_equal(near.eval["precision"], plain.eval["precision"])


def values_of(matches: dict[str, Any] | None) -> dict[str, Any] | None:
    """The matches of a class in a frame as plain values, to be compared."""
    return matches and {key: np.asarray(value).tolist() for key, value in matches.items()}


@given(st.integers(0, 10**6), st.sampled_from(["ap50", "ap"]))
@settings(max_examples=5, deadline=None)
def test_ap_of_a_group_is_that_of_its_frames_alone(seed: int, metric: str) -> None:
    frames = drawn_frames(seed)
    result = measured(frames, metric).result()
    assert sorted(result.per_group) == [f"drive_{n}" for n in range(4)]
    for group, value in result.per_group.items():
        assert alike(value, value_of([f for f in frames if f[0] == group], metric))
    assert math.isnan(result.per_group["drive_0"])


@given(st.integers(0, 10**6), st.sampled_from(["ap50", "ap"]))
@example(118, "ap50")  # a found box of negative area, which pycocotools ignores
@settings(max_examples=10, deadline=None)
def test_ap_of_groups_drawn_again_is_that_of_a_test_set_with_their_frames_so_many_times(seed: int, metric: str) -> None:
    """Held against pycocotools on the frames repeated: one matching is enough for every drawing."""
    frames = drawn_frames(seed)
    run = measured(frames, metric)._matched()
    if run is None:
        return
    times = np.random.default_rng(seed).integers(0, 4, 4)
    classes = ranked(run, np.arange(8) % 4, {"ap50": 1, "ap": 10}[metric])
    again = [frame for n, frame in enumerate(frames) for _ in range(times[n % 4])]
    assert alike(mean_precision(classes, times), value_of(again, metric))
    assert alike(mean_precision(classes, np.ones(4, int)), value_of(frames, metric))


def test_the_interval_is_of_ap_itself_and_not_of_the_mean_over_groups() -> None:
    """A drive of a hundred cars, all found, and one of a single lost car: AP is near 1, their mean a half."""
    frames = [("big", found((BOX, 1, 0.9)), Boxes.of([BOX], [1]))] * 100 + [("small", found(), Boxes.of([BOX], [1]))]
    result = measured(frames, "ap50").result()
    assert result.value > 0.98 and result.per_group == {"big": pytest.approx(1.0), "small": 0.0}
    low, high = result.extra["interval_low"], result.extra["interval_high"]
    assert low == 0 and high == pytest.approx(1.0)  # a quarter of the draws holds the small drive alone
    mixed = [(f"drive_{n // 20}", *frame[1:]) for n, frame in enumerate(frames)]  # six drives, the last of one frame
    result = measured(mixed, "ap50").result()
    assert np.mean(list(result.per_group.values())) == pytest.approx(5 / 6)
    assert result.extra["interval_low"] > 0.9  # the bootstrap of the mean over groups would begin at a half


def test_the_interval_is_as_wide_as_theory_says() -> None:
    """All that is found is right and of one score: AP is the share found, a mean over drives of equal size."""
    rng = np.random.default_rng(0)
    hits = rng.random((40, 10)) < 0.6
    frames = [
        (f"drive_{drive:02d}", found((BOX, 1, 0.9)) if hit else found(), Boxes.of([BOX], [1]))
        for drive, row in enumerate(hits)
        for hit in row
    ]
    ends = [[extra[f"interval_{end}"] for end in ("low", "high")]
            for extra in (measured(frames, "ap50", seed=n).result().extra for n in (1, 1, 2, 3))]  # fmt: skip
    half = 1.96 * hits.mean(1).std() / math.sqrt(40)
    assert ends[0] == pytest.approx([hits.mean() - half, hits.mean() + half], abs=0.2 * half)
    assert ends[0] == ends[1] and any(e != ends[0] for e in ends[2:])


def test_one_group_has_no_interval_and_no_object_no_figure() -> None:
    frames = [("d", found((BOX, 1, 0.9)), Boxes.of([BOX], [1]))] * 3
    assert "interval_low" not in measured(frames, "ap50").result().extra
    bare = measured([("a", found(), Boxes.of([], [])), ("b", found(), Boxes.of([], []))], "ap50").result()
    assert set(bare.per_group) == {"a", "b"} and all(map(math.isnan, bare.per_group.values()))
    assert "interval_low" not in bare.extra
