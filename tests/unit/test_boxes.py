"""Boxes are cut, compared and checked as a pixel count says."""

import sqlite3

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dal_dense.boxes import ABSENT, IGNORED, OBJECT, Boxes, area, checked_table, covered, iou
from dal_dense.errors import LabelError
from dal_dense.ledger_rows import checked_label, difference, label_sha256, pack, unpack
from dal_dense.query import QueryRegion

SIDE = 12
corner = st.integers(0, SIDE - 1)


@st.composite
def whole_boxes(draw: st.DrawFn) -> tuple[int, int, int, int]:
    top, left = draw(corner), draw(corner)
    return top, left, draw(st.integers(top + 1, SIDE)), draw(st.integers(left + 1, SIDE))


def painted(box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[box[0] : box[2], box[1] : box[3]] = True
    return mask


@given(st.lists(whole_boxes(), min_size=1, max_size=4), st.lists(whole_boxes(), min_size=1, max_size=4))
def test_overlap_is_that_of_the_pixels(one: list[tuple[int, ...]], other: list[tuple[int, ...]]) -> None:
    a, b = (np.array(boxes, np.float64) for boxes in (one, other))
    for i, first in enumerate(map(painted, one)):
        assert area(a)[i] == first.sum()
        for j, second in enumerate(map(painted, other)):
            shared = (first & second).sum()
            assert iou(a, b)[i, j] == pytest.approx(shared / (first | second).sum())
            assert covered(a, b)[i, j] == pytest.approx(shared / first.sum())
    assert (iou(a, b) == iou(b, a).T).all()


def test_no_boxes_and_boxes_turned_inside_out() -> None:
    none, some = np.zeros((0, 4)), np.array([[0.0, 0, 2, 2]])
    assert iou(none, some).shape == (0, 1) and covered(some, none).shape == (1, 0)
    assert area(np.array([[3.0, 0, 1, 2], [0, 0, 0, 9]])).tolist() == [0, 0]
    assert iou(some, np.array([[2.0, 2, 0, 0]])).tolist() == [[0]]


@given(st.lists(whole_boxes(), max_size=5), whole_boxes(), st.floats(0, 1))
def test_within_sees_what_the_region_shows(boxes: list[tuple[int, ...]], region: tuple[int, ...], least: float) -> None:
    given = Boxes.of(np.array(boxes, np.float64).reshape(-1, 4), [1 + i for i in range(len(boxes))])
    seen = given.within((region[:2], region[2:]), least)
    expected = []
    for i, box in enumerate(boxes):
        shown = painted(box) & painted(region)
        if shown.any():
            share = shown.sum() / painted(box).sum()
            expected.append((i + 1, shown, IGNORED if share < least else OBJECT))
    assert [c for c, _, _ in expected] == seen.classes.tolist()
    assert [s for _, _, s in expected] == seen.status.tolist()
    for (_, shown, _), corners in zip(expected, seen.corners.astype(int).tolist(), strict=True):
        assert (painted(tuple(corners)) == shown).all()


def test_within_leaves_ground_to_ignore_and_a_whole_object_is_whole() -> None:
    boxes = Boxes.of([[0, 0, 10, 10], [1.3, 2.7, 3.1, 4.9]], [0, 2], [IGNORED, OBJECT])
    seen = boxes.within(((0, 0), (5, 5)), 1.0)
    assert seen.status.tolist() == [IGNORED, OBJECT] and seen.corners[0].tolist() == [0, 0, 5, 5]


def test_tables_are_values() -> None:
    boxes = Boxes.of([[0, 1, 2, 3.5], [4, 4, 5, 5], [6, 6, 7, 7]], [2, 0, 1], [OBJECT, IGNORED, ABSENT])
    again = Boxes.from_table(boxes.table())
    assert boxes.table().shape == (3, 6) and (again.table() == boxes.table()).all()
    assert len(boxes.objects) == 1 and boxes.objects.classes.tolist() == [2]
    assert Boxes.of([], []).table().shape == (0, 6) and len(Boxes.of([], []).objects) == 0


GOOD = [1.0, 1, 4, 5, 2, OBJECT]
REGION = ((0, 0), (10, 20))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([4.0, 1, 1, 5, 2, 0], "empty, turned inside out"),
        ([1.0, 5, 4, 5, 2, 0], "empty, turned inside out"),
        ([1.0, 1, 4, np.nan, 2, 0], "NaN or infinite"),
        ([1.0, 1, np.inf, 5, 2, 0], "NaN or infinite"),
        ([1.0, 1, 4, 20.6, 2, 0], r"leaves its region, rows 0..10 and columns 0..20; cut it there"),
        ([-0.6, 1, 4, 5, 2, 0], "leaves its region"),
        ([-0.4, 1, -0.1, 5, 2, 0], "outside its ground"),  # within the tolerance, and nothing would be left of it
        ([1.0, 30, 4, 35, 2, 0], "outside its ground"),
        ([1.0, 1, 4, 5, 2, 3], "status 3; it must be 0, 1 or 2"),
        ([1.0, 1, 4, 5, 3, 0], r"class 3, outside 1\.\.2"),
        ([1.0, 1, 4, 5, 0, 0], r"class 0, outside 1\.\.2"),
        ([1.0, 1, 4, 5, 1.5, 0], r"class 1\.5"),
    ],
)
def test_a_bad_box_is_told(row: list[float], words: str) -> None:
    with pytest.raises(LabelError, match=f"region r.*{words}"):
        checked_table("region r", np.array([GOOD, row]), REGION, 3)


def test_tables_of_another_shape_are_told() -> None:
    for table in (np.zeros((2, 5)), np.zeros(6)):
        with pytest.raises(LabelError, match="6 numbers a box"):
            checked_table("region r", table, REGION, 3)


def test_float_noise_at_the_border_is_cut_and_a_box_query_reaches_beyond_its_region() -> None:
    noisy = np.array([[-1e-6, 0, 10.3, 20, 1, OBJECT], [0, 0, 1, 1, 0, IGNORED], [0, 0, 1, 1, 0, ABSENT]])
    checked = checked_table("r", noisy, REGION, 3)
    assert checked[0, :4].tolist() == [0, 0, 10, 20] and len(checked) == 3
    far = np.array([[0.0, 0, 500, 900, 1, OBJECT]])
    assert (checked_table("r", far, None, None) == far).all()
    with pytest.raises(LabelError, match="leaves the image"):
        checked_table("r", np.array([[-3.0, 0, 5, 5, 1, OBJECT]]), None, None)
    assert checked_table("r", np.zeros((0, 6)), REGION, 3).shape == (0, 6)


def region(kind: str) -> QueryRegion:
    return QueryRegion(id="r00-000", image_id="a", kind=kind, start=(0, 0), stop=(4, 4), score=1, seconds=1)


def test_the_ledger_takes_tables_empty_ones_too() -> None:
    wide = np.array([[0.0, 0, 9, 9, 1, OBJECT]])
    assert (checked_label(region("box"), wide, 2) == wide).all()
    with pytest.raises(LabelError, match="leaves its region"):
        checked_label(region("crop"), wide, 2)
    database = sqlite3.connect(":memory:")
    database.row_factory = sqlite3.Row
    for table in (wide, np.zeros((0, 6))):
        back = unpack(database.execute("SELECT ? AS shape, ? AS dtype, ? AS label", pack(table)).fetchone(), "it")
        assert back.dtype == np.float64 and back.shape == table.shape and (back == table).all()
    assert label_sha256(wide) != label_sha256(np.zeros((0, 6)))


def test_how_two_tables_differ() -> None:
    one = np.array([[0.0, 0, 2, 2, 1, OBJECT], [1, 1, 3, 3, 1, OBJECT]])
    moved = one + np.array([[0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0]])
    assert difference(region("crop"), one, one.copy()) is None
    assert difference(region("crop"), one, moved) == "1 of 2 boxes differ"
    assert difference(region("crop"), one, one[:1]) == "2 boxes are recorded, 1 are returned"
    assert difference(region("crop"), np.zeros((0, 6)), np.zeros((0, 6))) is None
