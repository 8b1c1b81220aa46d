"""COCO annotations become boxes, or a message that names the annotation."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dal_dense.box_truth import read_boxes
from dal_dense.boxes import IGNORED, OBJECT, Boxes
from dal_dense.errors import DataError
from dal_dense.records import IGNORE

SHAPE = (20, 30)
NUMBERS = {7: 1, 3: 2, 9: IGNORE, 0: 0}


def read(*annotations: dict[str, Any]) -> Boxes:
    return read_boxes("f.jpg", [{"id": 5, "category_id": 7, **a} for a in annotations], SHAPE, NUMBERS)


def test_x_y_width_height_become_rows_and_columns() -> None:
    boxes = read({"bbox": [2, 3, 10, 4]}, {"bbox": [0.5, 0, 1, 1.25], "category_id": 3})
    assert boxes.corners.tolist() == [[3, 2, 7, 12], [0, 0.5, 1.25, 1.5]]
    assert boxes.classes.tolist() == [1, 2] and boxes.status.tolist() == [OBJECT, OBJECT]


def test_no_annotation_is_no_box() -> None:
    assert len(read()) == 0 and read().table().shape == (0, 6)


@given(st.floats(-40, 40), st.floats(-40, 40), st.floats(0.1, 80), st.floats(0.1, 80))
def test_boxes_are_cut_at_the_frame_or_refused_outside(x: float, y: float, width: float, height: float) -> None:
    outside = x >= SHAPE[1] or y >= SHAPE[0] or x + width <= 0 or y + height <= 0
    if outside:
        with pytest.raises(DataError, match=r"annotation 5 .*outside the frame of 30 x 20"):
            read({"bbox": [x, y, width, height]})
        return
    ((top, left, bottom, right),) = read({"bbox": [x, y, width, height]}).corners.tolist()
    assert 0 <= top < bottom <= SHAPE[0] and 0 <= left < right <= SHAPE[1]
    assert top in (0, y) and left in (0, x) and bottom in (SHAPE[0], y + height) and right in (SHAPE[1], x + width)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"bbox": [2, 3, 0, 4]}, "width 0 and height 4"),
        ({"bbox": [2, 3, -5, 4]}, "width -5 and height 4"),
        ({"bbox": [2, 3, 5, -4]}, "width 5 and height -4"),
        ({"bbox": [2, 3, float("nan"), 4]}, "not finite"),
        ({"bbox": [2, float("inf"), 4, 4]}, "not finite"),
        ({}, "no box; detection needs bbox"),
        ({"bbox": None}, "no box"),
        ({"bbox": []}, "no box"),
        ({"bbox": [1, 2, 3]}, "no box"),
        ({"bbox": ["1", "2", "3", "4"]}, "no box"),
        ({"bbox": "1234"}, "no box"),
        ({"segmentation": []}, "no box"),
        ({"segmentation": {"counts": [4, 4], "size": [4, 2]}}, "no box"),
        ({"segmentation": [[1, 2, 3]]}, "polygon that is no list of x, y"),
        ({"segmentation": [["a", "b"]]}, "polygon that is no list"),
        ({"segmentation": [4, 5]}, "polygon that is no list"),
        ({"segmentation": [[1, 2, 1, 9]]}, "width 0"),
    ],
)
def test_a_bad_annotation_is_named(bad: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=rf"^f\.jpg: annotation 5 .*{words}"):
        read({"bbox": [1, 1, 2, 2], "id": 4}, bad)


def test_polygons_do_where_there_is_no_box() -> None:
    boxes = read({"segmentation": [[2, 3, 8, 3, 8, 9], [1, 5, 2, 5, 2, 12]]})
    assert boxes.corners.tolist() == [[3, 1, 12, 8]]


def test_crowds_and_ignored_categories_are_ground_to_ignore() -> None:
    box = {"bbox": [1, 1, 4, 4]}
    boxes = read(
        {**box, "iscrowd": 1},
        {**box, "ignore": 1},
        {**box, "category_id": 9},
        {**box, "category_id": 55, "iscrowd": 1},
        {**box, "iscrowd": 0, "ignore": 0},
    )
    assert boxes.status.tolist() == [IGNORED] * 4 + [OBJECT]
    assert boxes.classes.tolist() == [0, 0, 0, 0, 1]


def test_categories_that_are_no_class_or_background_are_left_out() -> None:
    assert read({"bbox": [1, 1, 4, 4], "category_id": 55}, {"bbox": [1, 1, 4, 4], "category_id": 0}).classes.size == 0
    assert len(read({"category_id": 55}, {"category_id": 0})) == 0  # their boxes are not even looked at
