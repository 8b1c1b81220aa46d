"""What the oracle answers to detection queries, and what each kind of answer costs."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dal_dense.box_answers import BoxRules, Known, box_work, predicted_class, true_answers
from dal_dense.boxes import ABSENT, IGNORED, OBJECT, Boxes
from dal_dense.costs import CostModel
from dal_dense.ledger_rows import checked_label, region_of, region_row
from dal_dense.query import QueryRegion

CLASSES = ("background", "van", "car")
VAN, CAR = 1, 2
RULES = BoxRules(min_visible=0.25, accept_iou=0.7, fix_iou=0.1)
COSTS = CostModel(
    image_seconds=1000.0, region_seconds=100.0, search_seconds=500.0, boundary_seconds=0.0, object_seconds=7.0,
    verify_seconds=2.0, fix_seconds=5.0, unit="pixel", source="test",
)  # fmt: skip
LOOKED = 102.0
"""Go there and verify."""


def asked(
    start: tuple[int, int] = (10, 10), stop: tuple[int, int] = (20, 20), kind: str = "box", likely: int = CAR
) -> QueryRegion:
    shares = {name: 0.9 if i == likely else 0.1 * (i > 0) for i, name in enumerate(CLASSES)}
    return QueryRegion(
        id="r01-000", image_id="a", kind=kind, start=start, stop=stop, score=1, seconds=1, shares=shares
    )  # fmt: skip


def truth(*boxes: Sequence[float], classes: Sequence[int] = (), status: Sequence[int] = ()) -> Boxes:
    return Boxes.of(list(boxes), classes or [CAR] * len(boxes), status)


def answer(region: QueryRegion, true: Boxes, rules: BoxRules = RULES) -> tuple[list[list[float]], float]:
    """The table, and seconds without opening the image; proven fit for the ledger."""
    table = checked_label(region, true_answers(true, [region], rules, CLASSES)[0], len(CLASSES))
    work = box_work(region, table, COSTS, CLASSES)
    assert (work.objects is None) == (work.area is None) == (region.kind == "box")
    return table.tolist(), work.seconds


# --- single boxes


def test_accepted_as_it_is() -> None:
    table, seconds = answer(asked(), truth([10, 10, 20, 22]))  # IoU 10 / 12
    assert table == [[10, 10, 20, 20, CAR, OBJECT]] and seconds == LOOKED


def test_fixed_where_it_overlaps_less() -> None:
    table, seconds = answer(asked(), truth([10, 10, 20, 26]))  # 10 / 16
    assert table == [[10, 10, 20, 26, CAR, OBJECT]] and seconds == LOOKED + 5


def test_a_wrong_class_is_fixed() -> None:
    table, seconds = answer(asked(likely=VAN), truth([10, 10, 20, 20]))
    assert table == [[10, 10, 20, 20, CAR, OBJECT]] and seconds == LOOKED + 5


def test_rejected_and_charged_where_there_is_nothing() -> None:
    for true in (truth(), truth([30, 30, 40, 40]), truth([19, 19, 40, 40])):
        table, seconds = answer(asked(), true)
        assert table == [[10, 10, 20, 20, CAR, ABSENT]] and seconds == LOOKED


def test_the_thresholds_are_settings_and_touching_boxes_never_mean_each_other() -> None:
    half = truth([10, 10, 20, 30])  # IoU exactly 1/2
    assert answer(asked(), half, BoxRules(accept_iou=0.5))[1] == LOOKED
    assert answer(asked(), half, BoxRules(accept_iou=0.51))[1] == LOOKED + 5
    assert answer(asked(), half, BoxRules(fix_iou=0.51))[0][0][5] == ABSENT
    assert answer(asked(), truth([50, 50, 60, 60]), BoxRules(accept_iou=0.0, fix_iou=0.0))[0][0][5] == ABSENT


def test_of_several_objects_the_one_that_makes_it_right_is_meant() -> None:
    nearer_van = truth([10, 10, 20, 20], [10, 10, 20, 21], classes=[VAN, CAR])
    assert answer(asked(), nearer_van) == ([[10, 10, 20, 20, CAR, OBJECT]], LOOKED)
    farther_car = truth([10, 10, 20, 20], [10, 10, 20, 30], classes=[VAN, CAR])
    assert answer(asked(), farther_car) == ([[10, 10, 20, 20, VAN, OBJECT]], LOOKED + 5)


def test_a_prediction_on_ground_to_ignore_says_nothing_and_an_object_there_counts() -> None:
    crowd = truth([0, 0, 15, 60], classes=[0], status=[IGNORED])
    assert answer(asked(), crowd) == ([[10, 10, 20, 20, CAR, IGNORED]], LOOKED)
    assert answer(asked((12, 10), (22, 20)), crowd)[0][0][5] == ABSENT  # three tenths are hidden
    with_car = truth([0, 0, 15, 60], [10, 10, 20, 20], classes=[0, CAR], status=[IGNORED, OBJECT])
    assert answer(asked(), with_car) == ([[10, 10, 20, 20, CAR, OBJECT]], LOOKED)


def together(true: Boxes, *asking: QueryRegion, earlier: Sequence[Known] = ()) -> list[list[float]]:
    tables = true_answers(true, asking, RULES, CLASSES, earlier)
    assert [len(t) for t in tables] == [1] * len(asking)
    return [t[0].tolist() for t in tables]


def before(*boxes: Sequence[float], classes: Sequence[int] = ()) -> list[Known]:
    """An answer to a single box that holds these."""
    return [(asked(), truth(*boxes, classes=classes).table())]


def test_an_object_is_given_to_the_best_prediction_and_the_others_are_absent() -> None:
    far, near, right = asked((10, 10), (20, 15)), asked((10, 10), (20, 16)), asked((10, 10), (20, 19))
    car = [10, 10, 20, 20, CAR]
    true = truth(car[:4])
    assert together(true, far, near) == [[10, 10, 20, 15, CAR, ABSENT], [*car, OBJECT]]
    assert together(true, near, far) == [[*car, OBJECT], [10, 10, 20, 15, CAR, ABSENT]]
    assert together(true, near, right)[0][5] == ABSENT and together(true, near, right)[1][:4] == [10, 10, 20, 19]
    wrong = asked((10, 10), (20, 20), likely=VAN)  # nearer, but the other needs no work
    assert [row[5] for row in together(true, wrong, right)] == [ABSENT, OBJECT]
    assert [row[5] for row in together(true, near, near)] == [OBJECT, ABSENT]


def test_a_prediction_between_two_objects_goes_to_the_one_that_is_left() -> None:
    true = truth([10, 10, 20, 20], [10, 18, 20, 28])
    exact, between = asked((10, 10), (20, 20)), asked((10, 13), (20, 23))
    assert together(true, between, exact) == [[10, 18, 20, 28, CAR, OBJECT], [10, 10, 20, 20, CAR, OBJECT]]
    assert together(true, between) == [[10, 10, 20, 20, CAR, OBJECT]]


@pytest.mark.parametrize(("stop", "status"), [((20, 20), ABSENT), ((20, 19), OBJECT)])
def test_what_lies_in_a_crop_wholly_is_labelled_there_alone(stop: tuple[int, int], status: int) -> None:
    """Whether the crop is asked beside the box or was answered before; what its border cuts is its own box's."""
    true = truth([10, 10, 20, 20])
    ground = asked((0, 0), stop, "crop")
    crop, box = true_answers(true, [ground, asked()], RULES, CLASSES)
    assert crop.tolist() == [[10, 10, *stop, CAR, OBJECT]] and box.tolist() == [[10, 10, 20, 20, CAR, status]]
    assert together(true, asked(), earlier=[(ground, crop)]) == box.tolist()
    beside = truth([10, 10, 20, 20], [10, 17, 20, 27])  # another one stays to be labelled
    assert together(beside, asked(), earlier=[(asked((0, 0), (20, 20), "crop"), crop)])[0][:4] == [10, 17, 20, 27]


def test_what_an_earlier_answer_holds_is_not_labelled_again() -> None:
    true = truth([10, 10, 20, 20])
    for earlier, status in (
        ([10, 10, 20, 20], ABSENT),
        ([10, 10, 20, 15], ABSENT),  # IoU exactly 1/2
        ([10, 10, 20, 14], OBJECT),
        ([40, 40, 50, 50], OBJECT),
    ):
        assert together(true, asked(), earlier=before(earlier))[0][5] == status, earlier
    low = BoxRules(accept_iou=0.4)  # what it accepted at IoU 0.4 is that object
    assert true_answers(true, [asked()], low, CLASSES, before([10, 10, 20, 14]))[0][0, 5] == ABSENT
    two = truth([10, 10, 20, 20], [10, 10, 20, 18], classes=[CAR, VAN])  # a van before a car, IoU 0.8
    assert together(two, asked(), earlier=before([10, 10, 20, 19], classes=[VAN]))[0] == [10, 10, 20, 20, CAR, OBJECT]


@given(st.integers(0, 10**6), st.integers(0, 6), st.integers(0, 5))
def test_no_object_is_labelled_twice(seed: int, predictions: int, objects: int) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 12, (predictions + objects, 2))
    corners = np.concatenate([corners, corners + rng.integers(2, 10, corners.shape)], 1).tolist()
    asking = [asked((a, b), (c, d)) for a, b, c, d in corners[:predictions]]
    true = truth(*corners[predictions:])
    rules = BoxRules(accept_iou=1.0)  # so that every answer is the object itself
    tables = true_answers(true, asking, rules, CLASSES)
    drawn = [tuple(t[0, :4]) for t in tables if t[0, 5] == OBJECT]
    there = [tuple(map(float, box)) for box in corners[predictions:]]
    assert all(drawn.count(box) <= there.count(box) for box in drawn)
    again = true_answers(true, asking, rules, CLASSES, before(*there))
    assert all(t[0, 5] == ABSENT for t in again)


def charged(*rows: Sequence[float]) -> float:
    return box_work(asked(), np.array(rows, np.float64).reshape(-1, 6), COSTS, CLASSES).seconds


def test_what_people_return_for_one_box() -> None:
    kept, moved, gone = [10, 10, 20, 20, CAR, 0], [10, 11, 20, 20, CAR, 0], [10, 10, 20, 20, CAR, ABSENT]
    beside, crowd = [40, 40, 50, 50, VAN, 0], [40, 40, 90, 90, 0, IGNORED]
    assert charged(kept) == LOOKED and charged(moved) == LOOKED + 5 and charged(gone) == LOOKED
    assert charged([10.0001, 10, 20, 20, CAR, 0]) == LOOKED  # files round
    assert charged(beside, kept) == LOOKED + 7 and charged(beside, moved) == LOOKED + 12
    assert charged(beside, beside, gone) == LOOKED + 14
    assert charged(kept, crowd) == LOOKED and charged(moved, crowd) == LOOKED + 5
    assert charged(crowd) == LOOKED and charged(beside, crowd) == LOOKED + 7 and charged() == LOOKED


def test_the_predicted_class_survives_the_ledger() -> None:
    """JSON in the ledger sorts the shares by name, and "background" need not come first, nor "car" last."""
    names = ("nothing", "van", "car", "bus")
    shares = {"nothing": 0.0, "van": 0.6, "car": 0.3, "bus": 0.1}
    region = asked().model_copy(update={"shares": shares})
    columns = ("id", "image_id", "kind", "start", "stop", "q_score", "q_seconds", "q_boundary", "q_objects", "q_extra")
    back = region_of(_row(dict(zip(columns, region_row(region), strict=True))))
    assert back == region and predicted_class(region, names) == predicted_class(back, names) == 1
    assert predicted_class(region.model_copy(update={"shares": {}}), names) == 1


def _row(values: dict[str, object]) -> object:
    import sqlite3

    database = sqlite3.connect(":memory:")
    database.row_factory = sqlite3.Row
    named = ", ".join(f"? AS {name}" for name in values)
    return database.execute(f"SELECT {named}", tuple(values.values())).fetchone()


# --- crops and frames


@pytest.mark.parametrize("kind", ["crop", "image"])
def test_all_of_a_region_is_drawn_and_slivers_are_ignored(kind: str) -> None:
    true = truth(
        [2, 2, 6, 6], [8, 4, 16, 8], [9, 0, 19, 2], [30, 30, 35, 35], [0, 8, 3, 12], status=[0, 0, 0, 0, IGNORED]
    )
    table, seconds = answer(asked((0, 0), (10, 10), kind), true)
    assert table == [
        [2, 2, 6, 6, CAR, OBJECT],
        [8, 4, 10, 8, CAR, OBJECT],  # a quarter of it shows
        [9, 0, 10, 2, CAR, IGNORED],  # a tenth
        [0, 8, 3, 10, CAR, IGNORED],
    ]
    assert seconds == 100 + 0.5 * 100 + 2 * 7


def test_an_empty_region_costs_its_search() -> None:
    region = asked((0, 0), (10, 20), "crop")
    assert answer(region, truth()) == ([], 100 + 0.5 * 200)
    work = box_work(region, np.zeros((0, 6)), COSTS, CLASSES)
    assert (work.objects, work.area) == (0, 200)


corner = st.integers(0, 30)
some = st.lists(st.tuples(corner, corner, st.integers(1, 15), st.integers(1, 15), st.integers(1, 2)), max_size=5)


@given(some, corner, corner, st.integers(1, 15), st.integers(1, 15), st.sampled_from(["box", "crop"]))
def test_every_answer_is_fit_for_the_ledger_and_charged(
    objects: list[tuple[int, ...]], top: int, left: int, rows: int, columns: int, kind: str
) -> None:
    true = truth(*[(a, b, a + h, b + w) for a, b, h, w, _ in objects], classes=[c for *_, c in objects])
    region = asked((top, left), (top + rows, left + columns), kind)
    table, seconds = answer(region, true)
    if kind == "box":
        assert len(table) == 1 and seconds in (LOOKED, LOOKED + 5)
        assert table[0][5] == OBJECT or table[0][:4] == [top, left, top + rows, left + columns]
    else:
        assert seconds == pytest.approx(100 + rows * columns / 2 + 7 * sum(row[5] == OBJECT for row in table))
