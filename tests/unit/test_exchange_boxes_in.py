"""Boxes come back as they went out; verdicts on predictions are understood; nothing in a returned json is trusted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from box_batch import (
    REGIONS,
    SHAPE,
    TABLES,
    document,
    export,
    give_back,
    labels_of,
    make_pool,
    region,
    review,
    table,
)
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dal_dense.boxes import ABSENT, IGNORED, OBJECT
from dal_dense.exchange.returns import read_returns
from dal_dense.pool import Pool
from dal_dense.tasks.base import Proposal

PREDICTED = [60.5, 100.25, 80.5, 140.75, 1]
NEVER = [150.0, 250.0, 170.0, 280.0, 0]
"""What stands for the prediction where there was none: the region."""


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return make_pool(tmp_path / "data")


@pytest.fixture
def batch(tmp_path: Path, pool: Pool) -> Path:
    return export(tmp_path, pool, *REGIONS)


def in_order(rows: list[list[float]]) -> list[list[float]]:
    return sorted(rows, key=lambda r: (r[5], r[4], *r[:4]))


def image_id(content: dict[str, Any], name: str) -> int:
    found: int = next(i["id"] for i in content["images"] if i["file_name"].startswith(name))
    return found


def without(content: dict[str, Any], name: str) -> dict[str, Any]:
    """Every box of one image deleted."""
    number = image_id(content, name)
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != number]
    return content


def draw(content: dict[str, Any], name: str, bbox: list[float], category: int = 1, **more: Any) -> None:
    content["annotations"].append(
        {"id": 900, "image_id": image_id(content, name), "category_id": category, "bbox": bbox, **more}
    )


@pytest.mark.parametrize("name", ["coco_crops.json", "coco_frames.json"])
def test_what_goes_out_comes_back_exactly(name: str, batch: Path) -> None:
    give_back(batch, review(document(batch, name)))
    labels, problems = labels_of(batch)
    assert problems == [] and list(labels) == [r.id for r in REGIONS]
    for region_id, rows in TABLES.items():
        np.testing.assert_array_equal(labels[region_id], table(in_order(rows)))
        assert labels[region_id].dtype == np.float64
    np.testing.assert_array_equal(labels["r00-004"], table([[*NEVER, ABSENT]]))


corner = st.floats(0, 1, width=32)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=st.tuples(corner, corner, corner, corner), start=st.tuples(st.integers(0, 90), st.integers(0, 150)))
def test_no_float_moves_on_its_way_through_a_crop(
    places: tuple[float, ...], start: tuple[int, int], pool: Pool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Detectors give float32, so that float64 holds every sum."""
    crop = region("r00-000", "a", start, (start[0] + 110, start[1] + 150))
    rows, columns = sorted((places[0], places[2])), sorted((places[1], places[3]))
    corners = [np.float32(start[0] + rows[0] * 110), np.float32(start[1] + columns[0] * 150)]
    corners += [np.float32(start[0] + rows[1] * 110), np.float32(start[1] + columns[1] * 150)]
    assume(min(corners[2] - corners[0], corners[3] - corners[1]) > 1e-4)  # a box of no area is ground to ignore
    given_rows = table([[*map(float, corners), 2, OBJECT]])
    proposed = {"r00-000": Proposal(given_rows, np.zeros((1, 1), np.float32), np.array([0.5]))}
    batch = export(tmp_path_factory.mktemp("run"), pool, crop, proposed=proposed)
    give_back(batch, review(document(batch)))
    labels, problems = labels_of(batch)
    assert problems == []
    np.testing.assert_array_equal(labels["r00-000"], given_rows)


# -- what counts as reviewed -----------------------------------------------------------------------


def test_reviewed_and_empty_is_an_answer_and_not_reviewed_is_none(batch: Path) -> None:
    give_back(batch, review(document(batch), "r00-002", "r00-000"))
    labels, problems = labels_of(batch)
    assert labels.keys() == {"r00-000", "r00-002"} and labels["r00-002"].shape == (0, 6)
    assert len(problems) == 1 and "left open: r00-001.png, r00-003.png, r00-004.png" in problems[0]


def test_a_tool_that_drops_the_mark_needs_reviewed_txt(batch: Path) -> None:
    content = document(batch)
    for image in content["images"]:
        del image["reviewed"]
    give_back(batch, content)
    assert labels_of(batch)[0] == {}
    (batch / "returned" / "reviewed.txt").write_text("r00-003\nb\n")
    assert labels_of(batch)[0].keys() == {"r00-002", "r00-003"}


def test_names_count_not_numbers(batch: Path) -> None:
    """As Label Studio exports: categories from 0, images with a prefix and a folder."""
    content = review(document(batch))
    content["categories"] = [{"id": 0, "name": "person"}, {"id": 1, "name": "car"}, {"id": 2, "name": "tool's own"}]
    for annotation in content["annotations"]:
        annotation["category_id"] = {1: 1, 2: 0}[annotation["category_id"]]
    for image in content["images"]:
        image["file_name"] = f"images\\0a1b2c3d-{image['file_name']}"
    give_back(batch, content)
    labels, problems = labels_of(batch)
    assert problems == []
    np.testing.assert_array_equal(labels["r00-000"], table(in_order(TABLES["r00-000"])))


def test_a_label_studio_export_is_taken(batch: Path) -> None:
    """As label-studio-sdk 2.1 writes it: ids from 0, names on the server, rounding, no size where nothing is drawn."""
    names = {"__ignore__": 0, "__query__": 1, "car": 2, "person": 3}
    more = {"segmentation": [], "ignore": 0, "iscrowd": 0, "area": 1.0}
    content = {
        "images": [
            {"width": 150, "height": 100, "id": 0, "file_name": "/data/upload/1/0a1b2c3d-r00-000.png"},
            {"width": None, "height": None, "id": 1, "file_name": "/data/local-files/?d=images/r00-002.jpg"},
            {"width": None, "height": None, "id": 2, "file_name": "/data/upload/1/r00-003.png"},
        ],
        "categories": [{"id": number, "name": name} for name, number in names.items()],
        "annotations": [
            {"id": 0, "image_id": 0, "category_id": 2, "bbox": [4.249999999999999, 2.5, 66.5, 27.5000000001]} | more,
            {"id": 1, "image_id": 0, "category_id": 3, "bbox": [0.0, 0.0, 30.0, 50.125]} | more,
        ],
        "info": {"year": 2026, "version": "1.0", "contributor": "Label Studio"},
    }  # fmt: skip
    give_back(batch, content)
    (batch / "returned" / "reviewed.txt").write_text("*")
    labels, problems = labels_of(batch)
    assert problems == [] and labels.keys() == {"r00-000", "r00-002", "r00-003"}
    np.testing.assert_allclose(labels["r00-000"], table(in_order(TABLES["r00-000"])), atol=1e-9)
    assert len(labels["r00-002"]) == 0 and labels["r00-003"].tolist() == [[*PREDICTED, ABSENT]]


# -- box queries -----------------------------------------------------------------------------------

WINDOW = (19, 59)
"""Row and column of the frame where the picture of BOX begins."""


def answer_to_box(batch: Path, *drawn: tuple[list[float], int]) -> list[list[float]]:
    """BOX's label if these boxes (x, y, width, height in the frame; category) are left on its picture."""
    content = without(review(document(batch), "r00-003"), "r00-003")
    for (x, y, width, height), category in drawn:
        draw(content, "r00-003", [x - WINDOW[1], y - WINDOW[0], width, height], category)
    give_back(batch, content)
    labels, _ = labels_of(batch)
    found: list[list[float]] = labels["r00-003"].tolist()
    return found


KEPT = [100.25, 60.5, 40.5, 20.0]


def test_a_box_that_is_left_is_accepted(batch: Path) -> None:
    assert answer_to_box(batch, (KEPT, 1)) == [[*PREDICTED, OBJECT]]


def test_a_box_that_is_moved_or_renamed_is_an_object_where_it_is_now(batch: Path) -> None:
    assert answer_to_box(batch, ([110, 55, 40, 20], 2)) == [[55, 110, 75, 150, 2, OBJECT]]


def test_a_box_that_is_deleted_leaves_the_prediction_as_absent(batch: Path) -> None:
    assert answer_to_box(batch) == [[*PREDICTED, ABSENT]]


def test_a_missed_object_nearby_is_one_more(batch: Path) -> None:
    assert answer_to_box(batch, ([70, 100, 20, 10], 2), (KEPT, 1)) == [
        [*PREDICTED, OBJECT],
        [100, 70, 110, 90, 2, OBJECT],
    ]


def test_a_box_moved_right_away_says_that_the_prediction_was_wrong_too(batch: Path) -> None:
    """40.5 x 20 against the same box moved along: 33.5 columns leave an overlap of 0.095, 33 one of 0.102."""
    far, near = [133.75, 60.5, 40.5, 20.0], [133.25, 60.5, 40.5, 20.0]
    assert [row[5] for row in answer_to_box(batch, (far, 1))] == [OBJECT, ABSENT]
    assert [row[5] for row in answer_to_box(batch, (near, 1))] == [OBJECT]


def test_a_prediction_on_ignored_ground_is_no_mistake(batch: Path) -> None:
    assert [row[5] for row in answer_to_box(batch, ([90, 50, 60, 40], 3))] == [IGNORED]
    assert [row[5] for row in answer_to_box(batch, ([60, 20, 10, 10], 3))] == [IGNORED, ABSENT]


def test_on_a_whole_frame_a_box_answers_one_query(tmp_path: Path, pool: Pool) -> None:
    """Two predictions side by side, whose surroundings overlap, and a crop below."""
    one, other = region("r00-000", "a", (50, 50), (70, 70), "box"), region("r00-001", "a", (50, 80), (70, 100), "box")
    crop = region("r00-002", "a", (75, 40), (120, 140))
    batch = export(tmp_path, pool, one, other, crop, proposed={})
    content = review(document(batch, "coco_frames.json"))
    for bbox in ([52, 50, 20, 20], [71, 40, 6, 6], [60, 80, 9, 9], [250, 150, 9, 9]):  # kept, missed, the crop's, far
        draw(content, "a", [float(n) for n in bbox])
    give_back(batch, content)
    labels, problems = labels_of(batch)
    assert problems == []
    assert labels["r00-000"].tolist() == [[50, 52, 70, 72, 1, OBJECT], [40, 71, 46, 77, 1, OBJECT]][::-1]
    assert labels["r00-001"].tolist() == [[50, 80, 70, 100, 0, ABSENT]]
    assert labels["r00-002"].tolist() == [[80, 60, 89, 69, 1, OBJECT]]


@pytest.mark.parametrize("name", ["coco_crops.json", "coco_frames.json"])
def test_a_missed_object_is_drawn_in_its_look_and_not_in_the_box_query_beside(
    name: str, tmp_path: Path, pool: Pool
) -> None:
    """A box, and two looks that show some of its surroundings: in one an object was missed, the other is empty."""
    box = region("r00-000", "a", (60, 100), (80, 140), "box")
    look, empty = region("r00-001", "a", (60, 145), (90, 185)), region("r00-002", "a", (85, 90), (115, 130))
    nothing = Proposal(table([]), np.zeros((30, 40), np.float32), np.zeros(0))
    kept = Proposal(table([[60, 100, 80, 140, 1, OBJECT]]), np.zeros((20, 40), np.float32), np.array([0.9]))
    proposed = {"r00-000": kept, "r00-001": nothing, "r00-002": nothing}
    batch = export(tmp_path, pool, box, look, empty, proposed=proposed)
    guide = (batch / "README.txt").read_text().splitlines()
    assert [line.endswith("  box") for line in guide if line.startswith("  r00-")] == [True, False, False]
    content = review(document(batch, name))
    assert [a["attributes"].get("query_id") for a in content["annotations"] if a["category_id"] == 1] == ["r00-000"]
    if name == "coco_crops.json":
        draw(content, "r00-001", [5.0, 4.0, 12.0, 16.0], 2)
    else:
        draw(content, "a", [150.0, 64.0, 12.0, 16.0], 2)
    give_back(batch, content)
    labels, problems = labels_of(batch)
    assert problems == [] and labels["r00-000"].tolist() == [[60, 100, 80, 140, 1, OBJECT]]
    assert labels["r00-001"].tolist() == [[64, 150, 80, 162, 2, OBJECT]] and labels["r00-002"].shape == (0, 6)


def test_two_queries_that_one_object_overlaps_share_nothing(tmp_path: Path, pool: Pool) -> None:
    one, other = region("r00-000", "a", (50, 50), (70, 70), "box"), region("r00-001", "a", (50, 60), (70, 80), "box")
    batch = export(tmp_path, pool, one, other, proposed={})
    content = review(document(batch, "coco_frames.json"))
    draw(content, "a", [61.0, 50.0, 20.0, 20.0])
    give_back(batch, content)
    labels, _ = labels_of(batch)
    assert labels["r00-000"].tolist() == [[50, 50, 70, 70, 0, ABSENT]]
    assert labels["r00-001"].tolist() == [[50, 61, 70, 81, 1, OBJECT]]


LEFT, RIGHT = region("r00-000", "a", (50, 50), (90, 90), "box"), region("r00-001", "a", (50, 90), (90, 130), "box")
CARS = {"r00-000": [50, 50, 90, 90, 1, OBJECT], "r00-001": [50, 90, 90, 130, 1, OBJECT]}


def drawn_on_crops(batch: Path, drawn: dict[str, list[list[int]]], *reviewed: str) -> dict[str, list[list[float]]]:
    """Labels if on the picture of each of these regions these boxes of the frame are left, as table rows."""
    content = review(document(batch), *(reviewed or drawn))
    content["annotations"] = []
    sidecar = json.loads((batch / "query.json").read_text())["regions"]
    corner = {e["region"]["id"]: (e["shown"] or [e["region"]["start"]])[0] for e in sidecar}
    for name, rows in drawn.items():
        for top, left, bottom, right, category, _ in rows:
            place = [left - corner[name][1], top - corner[name][0], right - left, bottom - top]
            draw(content, name, [float(n) for n in place], category)
    give_back(batch, content)
    return {name: label.tolist() for name, label in labels_of(batch)[0].items()}


def test_a_neighbour_that_has_its_own_query_is_that_querys_alone(tmp_path: Path, pool: Pool) -> None:
    """Both cars are drawn on both pictures; of what nobody asked, each picture keeps its own."""
    batch = export(tmp_path, pool, LEFT, RIGHT, proposed={})
    lorry = [100, 60, 110, 70, 2, OBJECT]
    both = [CARS["r00-000"], CARS["r00-001"]]
    labels = drawn_on_crops(batch, {"r00-000": [*both, lorry], "r00-001": both})
    assert labels == {"r00-000": [CARS["r00-000"], lorry], "r00-001": [CARS["r00-001"]]}
    alone = {"r00-000": [CARS["r00-000"]]}
    assert drawn_on_crops(batch, {"r00-000": both}) == alone  # the other is still waited for


def test_a_neighbour_is_kept_if_its_own_query_came_back_without_it(tmp_path: Path, pool: Pool) -> None:
    batch = export(tmp_path, pool, LEFT, RIGHT, proposed={})
    both = [CARS["r00-000"], CARS["r00-001"]]
    labels = drawn_on_crops(batch, {"r00-000": both, "r00-001": []})
    assert labels == {"r00-000": both, "r00-001": [[50, 90, 90, 130, 0, ABSENT]]}
    near = export(tmp_path / "near", pool, LEFT, region("r00-001", "a", (50, 60), (90, 100), "box"), proposed={})
    swapped = {"r00-000": [[50, 58, 90, 98, 1, OBJECT]], "r00-001": [[50, 52, 90, 92, 1, OBJECT]]}
    assert drawn_on_crops(near, swapped) == swapped  # one car, on each picture nearer to the other's prediction


def test_what_lies_in_a_crop_wholly_is_the_crops_once_that_holds_it(tmp_path: Path, pool: Pool) -> None:
    """A car beside the prediction, and one on the prediction itself, which reaches beyond the crop."""
    crop = region("r00-001", "a", (40, 95), (110, 135))
    batch = export(tmp_path, pool, LEFT, crop, proposed={})
    beside, on = [50, 100, 60, 110, 1, OBJECT], [55, 80, 85, 95, 1, OBJECT]
    cut = [50, 90, 60, 110, 1, OBJECT]
    part = [50, 95, 60, 110, 1, OBJECT]
    mine = [CARS["r00-000"]]
    labels = drawn_on_crops(batch, {"r00-000": [*mine, beside], "r00-001": [beside]})
    assert labels == {"r00-000": mine, "r00-001": [beside]}
    assert drawn_on_crops(batch, {"r00-000": [*mine, beside]}) == {"r00-000": mine}
    assert drawn_on_crops(batch, {"r00-000": [*mine, beside], "r00-001": []})["r00-000"] == in_order([*mine, beside])
    kept = drawn_on_crops(batch, {"r00-000": [*mine, cut], "r00-001": [part]})  # its border cuts it
    assert kept["r00-000"] == in_order([*mine, cut])
    wide = export(tmp_path / "wide", pool, LEFT, region("r00-001", "a", (40, 75), (110, 135)), proposed={})
    absent = [50, 50, 90, 90, 0, ABSENT]
    assert drawn_on_crops(wide, {"r00-000": [on]})["r00-000"] == [on]
    assert drawn_on_crops(wide, {"r00-000": [on], "r00-001": [on]}) == {"r00-000": [absent], "r00-001": [on]}
    assert drawn_on_crops(wide, {"r00-000": [on], "r00-001": []}) == {"r00-000": [on], "r00-001": []}


def test_a_query_of_an_earlier_round_takes_no_box_from_a_later_one(tmp_path: Path, pool: Pool) -> None:
    first = export(tmp_path, pool, region("r00-000", "a", (50, 50), (70, 70), "box"), proposed={})
    second = export(tmp_path, pool, region("r01-000", "a", (50, 80), (70, 100), "box"), number=1, proposed={})
    content = review(document(second, "coco_frames.json"))
    draw(content, "a", [71.0, 40.0, 6.0, 6.0])  # nearer to the first
    give_back(second, content)
    found, _ = read_returns(second, second / "returned", earlier=[first])
    assert [f.region_id for f in found] == ["r01-000"]
    assert found[0].label.tolist() == [[40, 71, 46, 77, 1, OBJECT], [50, 80, 70, 100, 0, ABSENT]]


# -- the region's border, ignored ground -------------------------------------------------------------


def test_on_a_whole_frame_objects_are_cut_at_the_regions_border(batch: Path) -> None:
    """CROP: rows 10..110, columns 20..170. Half inside, a tenth inside, outside."""
    content = review(document(batch, "coco_frames.json"), "a")
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] == 4]
    for bbox in ([0, 20, 40, 10], [161, 20, 90, 10], [200, 20, 40, 10]):
        draw(content, "a", [float(n) for n in bbox], 2)
    give_back(batch, content)
    half, sliver = [20, 20, 30, 40, 2], [20, 161, 30, 170, 2]
    assert labels_of(batch, min_visible=0.25)[0]["r00-000"].tolist() == [[*half, OBJECT], [*sliver, IGNORED]]
    assert labels_of(batch, min_visible=0.1)[0]["r00-000"].tolist() == [[*half, OBJECT], [*sliver, OBJECT]]
    assert labels_of(batch, min_visible=0.6)[0]["r00-000"].tolist() == [[*half, IGNORED], [*sliver, IGNORED]]


def test_crowds_and_ignore_marks_are_ground_to_ignore(batch: Path) -> None:
    content = without(review(document(batch), "r00-000"), "r00-000")
    draw(content, "r00-000", [1, 2, 3, 4], 3)
    draw(content, "r00-000", [10, 20, 30, 40], 1, iscrowd=1)
    draw(content, "r00-000", [50, 20, 30, 40], 2, iscrowd=0)
    draw(content, "r00-000", [0, 0, 150, 100], 4)  # our own mark
    give_back(batch, content)
    label = labels_of(batch)[0]["r00-000"]
    assert label[:, 5].tolist() == [OBJECT, IGNORED, IGNORED]
    assert label[1:, :4].tolist() == [[12, 21, 16, 24], [30, 30, 70, 60]]


def test_an_outline_without_a_box_stands_for_its_bounds(batch: Path) -> None:
    content = without(review(document(batch), "r00-000"), "r00-000")
    draw(content, "r00-000", [], 1, segmentation=[[5.5, 7, 20, 9, 11, 30.25], [4, 8, 5, 8, 5, 9]])
    runs = {"size": [100, 150], "counts": [2 * 100 + 3, 4, 96, 4, 100 * 150 - 307]}
    draw(content, "r00-000", [], 2, segmentation=runs)
    del content["annotations"][-1]["bbox"]
    give_back(batch, content)
    labels, problems = labels_of(batch)
    assert problems and all("not marked" in p for p in problems)
    assert labels["r00-000"].tolist() == [[17, 24, 40.25, 40, 1, OBJECT], [13, 22, 17, 24, 2, OBJECT]]


# -- bad input ---------------------------------------------------------------------------------------


def spoil(**change: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def apply(content: dict[str, Any], first: dict[str, Any]) -> None:
        first.update(change)

    return apply


def rename(name: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def apply(content: dict[str, Any], first: dict[str, Any]) -> None:
        content["images"][0]["file_name"] = name

    return apply


def unknown(content: dict[str, Any], first: dict[str, Any]) -> None:
    content["categories"].append({"id": 77, "name": "elephant"})
    first["category_id"] = 77


def background(content: dict[str, Any], first: dict[str, Any]) -> None:
    content["categories"].append({"id": 0, "name": "background"})
    first["category_id"] = 0


def text_image(content: dict[str, Any], first: dict[str, Any]) -> None:
    content["images"][0]["id"] = "r00-000"


BAD: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], None], str]] = {
    "outside": (spoil(bbox=[500, 20, 10, 10]), "leaves the image of 150 x 100 pixels"),
    "over the border": (spoil(bbox=[100, 20, 51.5, 10]), "leaves the image"),
    "before the border": (spoil(bbox=[-1.5, 20, 10, 10]), "leaves the image"),
    "just outside": (spoil(bbox=[150, 20, 0.9, 10]), "lies outside the image"),
    "zero width": (spoil(bbox=[10, 20, 0, 10]), "is empty"),
    "zero height": (spoil(bbox=[10, 20, 10, 0.0]), "is empty"),
    "swapped": (spoil(bbox=[40, 20, -10, 10]), "turned inside out"),
    "three numbers": (spoil(bbox=[40, 20, 10]), "expected x, y, width, height"),
    "text": (spoil(bbox=["40", "20", "10", "10"]), "damaged"),
    "NaN corner": (spoil(bbox=[float("nan"), 20, 10, 10]), "damaged"),
    "infinite": (spoil(bbox=[10, 20, float("inf"), 10]), "damaged"),
    "NaN score": (spoil(score=float("nan")), "damaged"),
    "NaN score inside": (spoil(attributes={"score": float("nan")}), "score is nan"),
    "unknown category": (unknown, "'elephant' is unknown; expected background, car, person, __ignore__"),
    "category 0": (spoil(category_id=0), "category id 0 is unknown"),
    "background": (background, "'background' is no object"),
    "text category": (spoil(category_id="car"), "damaged"),
    "text image id": (text_image, "images[0].id"),
    "no shape": (spoil(bbox=None), "neither a box nor an outline"),
    "two points": (spoil(bbox=None, segmentation=[[1, 1, 5, 5]]), "3 points"),
    "empty mask": (spoil(bbox=None, segmentation={"size": [100, 150], "counts": [15000]}), "mask is empty"),
    "mask size": (spoil(bbox=None, segmentation={"size": [1, 1], "counts": [0, 1]}), "size"),
    "climbs": (rename("../../r00-000.png"), "leads out of the folder"),
    "absolute": (rename("/etc/r00-000.png"), "leads out of the folder"),
    "drive": (rename("C:\\r00-000.png"), "leads out of the folder"),
    "climbs on the server": (rename("/data/upload/../../r00-000.png"), "leads out of the folder"),
    "stranger": (rename("r09-000.png"), "was not asked"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_spoilt_image_is_told_and_hides_no_good_one(kind: str, batch: Path) -> None:
    content = review(document(batch))
    change, said = BAD[kind]
    change(content, next(a for a in content["annotations"] if a["image_id"] == 1))
    give_back(batch, content)
    labels, problems = labels_of(batch)
    assert labels.keys() == {r.id for r in REGIONS} - {"r00-000"}
    assert any(said in p for p in problems) and all(p.startswith("labels.json: ") and "\n" not in p for p in problems)


def test_up_to_a_pixel_over_the_border_is_rounding_and_cut(batch: Path) -> None:
    content = without(review(document(batch), "r00-000"), "r00-000")
    draw(content, "r00-000", [-0.75, 0, 30, 100.5])
    give_back(batch, content)
    assert labels_of(batch)[0]["r00-000"].tolist() == [[10, 20, 110, 49.25, 1, OBJECT]]


def test_ids_as_digits_are_numbers(batch: Path) -> None:
    content = review(document(batch))
    for part in ("images", "categories", "annotations"):
        for item in content[part]:
            item |= {k: str(v) for k, v in item.items() if k in ("id", "image_id", "category_id")}
    give_back(batch, content)
    labels, problems = labels_of(batch)
    assert problems == [] and len(labels) == 5
    np.testing.assert_array_equal(labels["r00-000"], table(in_order(TABLES["r00-000"])))
    content["images"].append(content["images"][0] | {"id": 1})
    give_back(batch, content)
    assert labels_of(batch) == ({}, ["labels.json: an id occurs twice in images, so annotations are unclear; "
                                     "export it again"])  # fmt: skip


def test_annotations_on_images_that_are_not_there_are_told(batch: Path) -> None:
    content = review(document(batch))
    content["annotations"] += [{"image_id": n, "category_id": 1, "bbox": [1, 1, 2, 2]} for n in (99, 98, 97, 96, 99)]
    give_back(batch, content)
    labels, problems = labels_of(batch)
    assert len(labels) == 5
    assert problems == [
        "labels.json: annotations belong to images that it does not list (id 96, 97, 98 and 1 more); "
        "export it with all its images"
    ]


def test_masks_are_no_answer(batch: Path) -> None:
    give_back(batch, review(document(batch)))
    for name in ("r00-000.png", "a.nii.gz"):
        (batch / "returned" / name).write_bytes(b"x")
    labels, problems = labels_of(batch)
    assert len(labels) == 5 and len(problems) == 2
    assert all("return boxes as COCO json" in p for p in problems)


def test_2000_boxes_come_back(batch: Path) -> None:
    content = without(review(document(batch), "r00-002"), "r00-002")
    rng = np.random.default_rng(0)
    for top, left in rng.uniform(0, [190, 290], (2000, 2)).tolist():
        draw(content, "r00-002", [left, top, 10.0, 10.0], int(rng.integers(1, 3)))
    give_back(batch, content)
    assert labels_of(batch)[0]["r00-002"].shape == (2000, 6)


def test_the_same_from_two_tools_is_one_label_and_another_is_a_conflict(batch: Path) -> None:
    content = review(document(batch))
    give_back(batch, content)
    content["annotations"].reverse()
    content["annotations"][-1]["bbox"][0] += 0.01  # CVAT rounds
    give_back(batch, content, "again.json")
    labels, problems = labels_of(batch)
    assert len(labels) == 5 and problems == []
    content["annotations"][-1]["bbox"][0] += 3
    give_back(batch, content, "again.json")
    labels, problems = labels_of(batch)
    assert "r00-000" not in labels and len(labels) == 4 and "different labels" in problems[0]


def test_rounds_share_a_folder(tmp_path: Path, pool: Pool, batch: Path) -> None:
    second = export(tmp_path, pool, region("r01-000", "a", (120, 100), (180, 180)), number=1, proposed={})
    give_back(second, review(document(batch)), "first.json")
    give_back(second, review(document(second)), "second.json")
    found, problems = read_returns(second, second / "returned", earlier=[batch])
    assert [f.region_id for f in found] == [*(r.id for r in REGIONS), "r01-000"] and problems == []


def test_a_batch_sent_back_as_a_whole_is_no_answer(batch: Path) -> None:
    sent = batch / "returned" / "round_000"
    (sent / "region_masks").mkdir(parents=True)
    (sent / "query.json").write_text("{}")
    (sent / "region_masks" / "a.png").write_bytes(b"x")
    assert labels_of(batch)[1] == [
        "round_000/region_masks: holds what was sent, so it is not read, lest an untouched proposal becomes a label; "
        "put finished labels elsewhere in the folder of returns"
    ]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_value_anywhere_makes_it_crash_or_leaves_the_frame(data: st.DataObject, batch: Path) -> None:
    content = review(document(batch, data.draw(st.sampled_from(["coco_crops.json", "coco_frames.json"]))))
    part = data.draw(st.sampled_from(["images", "annotations", "categories"]))
    entry = data.draw(st.sampled_from(content[part]))
    entry[data.draw(st.sampled_from(sorted(entry)))] = data.draw(
        json_values | st.lists(st.floats(-400, 400), min_size=4, max_size=4)
    )
    give_back(batch, content)
    for label in labels_of(batch)[0].values():
        assert label.shape[1] == 6 and np.isfinite(label).all()
        assert (label[:, :2] >= 0).all() and (label[:, 2:4] <= SHAPE).all() and (label[:, 2:4] > label[:, :2]).all()
