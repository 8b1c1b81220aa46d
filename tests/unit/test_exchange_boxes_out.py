"""A detection batch is COCO that pycocotools, torchvision and Detectron2 read, with marks, masks and surroundings."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from box_batch import (
    BOX,
    CROP,
    IMAGE,
    LONELY,
    ORIGIN,
    REGIONS,
    SCORES,
    SHAPE,
    TABLES,
    document,
    export,
    make_pool,
    table,
)
from pycocotools.coco import COCO
from torchvision.datasets import CocoDetection

from dal_dense.exchange.asked import load_sidecar
from dal_dense.exchange.boxes_out import surroundings
from dal_dense.pool import Pool
from dal_dense.tasks.base import Proposal

NAMES = ("coco_crops.json", "coco_frames.json")
PLACES = {"coco_crops.json": "images", "coco_frames.json": "frames"}


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return make_pool(tmp_path / "data")


@pytest.fixture
def batch(tmp_path: Path, pool: Pool) -> Path:
    return export(tmp_path, pool, *REGIONS)


def test_ids_are_class_numbers_and_proposals_are_boxes_with_a_score(batch: Path) -> None:
    content = document(batch)
    named = [(c["id"], c["name"]) for c in content["categories"]]
    assert named == [(1, "car"), (2, "person"), (3, "__ignore__"), (4, "__query__")]
    assert all(image["reviewed"] is False for image in content["images"])
    first = content["annotations"][0]
    assert first["bbox"] == [4.25, 2.5, 66.5, 27.5] and first["area"] == 66.5 * 27.5  # of the crop at row 10, column 20
    assert first["score"] == first["attributes"]["score"] == 0.9 and first["attributes"]["query_id"] == "r00-000"
    assert first["segmentation"] == [] and first["iscrowd"] == 0  # else CVAT makes no rectangle of it
    assert [a["score"] for a in content["annotations"]] == [s for scores in SCORES.values() for s in scores]


def test_a_frame_shows_every_region_and_box_where_it_is(batch: Path) -> None:
    content = document(batch, "coco_frames.json")
    by_id = {image["id"]: image for image in content["images"]}
    assert [i["query_ids"] for i in content["images"]] == [["r00-000", "r00-001"], ["r00-002"], ["r00-003", "r00-004"]]
    marks = [a for a in content["annotations"] if a["category_id"] == 4]
    assert [m["attributes"]["query_id"] for m in marks] == [r.id for r in REGIONS]
    assert marks[0]["bbox"] == [20, 10, 150, 100] and marks[0]["segmentation"] == []
    boxes = [a for a in content["annotations"] if a["category_id"] != 4]
    for annotation in boxes:
        left, top, width, height = annotation["bbox"]
        row = [top, left, top + height, left + width, annotation["category_id"], 0]
        assert row in TABLES[annotation["attributes"]["query_id"]]
        assert annotation["attributes"]["query_id"] in by_id[annotation["image_id"]]["query_ids"]
    assert len(boxes) == 4


def test_the_mask_of_regions_lies_beside_the_frame(batch: Path) -> None:
    mask = cv2.imread(str(batch / "region_masks" / "a.png"), cv2.IMREAD_UNCHANGED)
    expected = np.zeros(SHAPE, np.uint8)
    expected[10:110, 20:170] = expected[120:180, 0:80] = 255
    np.testing.assert_array_equal(mask, expected)
    roles = load_sidecar(batch).regions[0].files
    assert (batch / "images" / "r00-002.jpg").is_file()  # a whole frame stays as small as it was
    assert roles["region_mask"] == "region_masks/a.png" and roles["frame"] == "frames/a.png"


def test_a_box_is_shown_with_its_surroundings_and_the_sidecar_knows_where(batch: Path, pool: Pool) -> None:
    sidecar = load_sidecar(batch)
    assert sidecar.labels == "boxes"
    entries = {e.region.id: e for e in sidecar.regions}
    entry = entries["r00-003"]
    assert entry.shown == ((60 - 41, 100 - 41), (81 + 41, 141 + 41)) == entry.window
    assert entry.predicted == (60.5, 100.25, 80.5, 140.75, 1)
    source = cv2.imread(str(pool["c"].paths[0]))
    np.testing.assert_array_equal(cv2.imread(str(batch / "images" / "r00-003.png")), source[19:122, 59:182])
    assert entries["r00-004"].shown == ((118, 218), (200, 300))  # as far as the frame goes
    assert entries["r00-004"].predicted == (150, 250, 170, 280, 0)  # no model said anything: the region
    assert entries["r00-000"].shown is None and entries["r00-000"].window == CROP.box
    assert surroundings(((0, 0), (4, 4)), (500, 500)) == ((0, 0), (36, 36))


def test_of_a_box_query_the_proposal_is_the_one_box(tmp_path: Path, pool: Pool) -> None:
    rows = table([[61, 150, 81, 170, 2, 0], TABLES["r00-003"][0], [20, 20, 90, 200, 1, 0]])
    proposed = {BOX.id: Proposal(rows, np.zeros(BOX.shape, np.float32), np.array([0.9, 0.5, 0.8]))}
    batch = export(tmp_path, pool, BOX, proposed=proposed)
    (only,) = document(batch)["annotations"]
    assert only["score"] == 0.5 and only["bbox"] == [100.25 - 59, 60.5 - 19, 40.5, 20.0]


def test_a_box_query_whose_proposal_is_lost_is_shown_as_what_it_was_chosen_for(tmp_path: Path, pool: Pool) -> None:
    chosen = LONELY.model_copy(update={"shares": {"person": 0.4, "car": 0.1, "background": 0.5}})
    batch = export(tmp_path, pool, chosen, proposed={})
    (only,) = document(batch)["annotations"]
    assert only["bbox"] == [32, 32, 30, 20] and only["category_id"] == 2 and "score" not in only
    assert load_sidecar(batch).regions[0].predicted == (150, 250, 170, 280, 2)


def test_what_reaches_over_the_border_is_cut_and_what_is_no_object_is_not_shown(tmp_path: Path, pool: Pool) -> None:
    rows = table([[0, 0, 30, 60, 1, 0], [100, 160, 110, 190, 2, 1], [30, 30, 50, 50, 1, 2], [150, 0, 190, 9, 1, 0]])
    proposed = {CROP.id: Proposal(rows, np.zeros(CROP.shape, np.float32), np.array([0.5, 0.25, 0.75, 1.0]))}
    found = document(export(tmp_path, pool, CROP, proposed=proposed))["annotations"]
    assert [(a["bbox"], a["category_id"], a["score"]) for a in found] == [
        ([0, 0, 40, 20], 1, 0.5),
        ([140, 90, 10, 10], 3, 0.25),
    ]


@pytest.mark.parametrize(
    ("rows", "scores", "said"),
    [
        ([[1.0, 2.0, 3.0, 4.0]], [0.5], "shape"),
        ([[11, 21, 31, 41, 1, 0]], [0.5, 0.5], "2 scores"),
        ([[11, 21, np.nan, 41, 1, 0]], [0.5], "NaN"),
        ([[11, 21, 31, 41, 1, 0]], [np.nan], "NaN"),
    ],
)
def test_a_proposal_that_is_no_table_stops_the_export(
    rows: list[list[float]], scores: list[float], said: str, tmp_path: Path, pool: Pool
) -> None:
    proposed = {CROP.id: Proposal(np.array(rows, np.float64), np.zeros(CROP.shape, np.float32), np.array(scores))}
    with pytest.raises(ValueError, match=said):
        export(tmp_path, pool, CROP, proposed=proposed)


def test_the_first_batch_has_no_proposals(tmp_path: Path, pool: Pool) -> None:
    batch = export(tmp_path, pool, *REGIONS, proposed={})
    assert document(batch)["annotations"] == []
    assert all("proposal" not in e.files for e in load_sidecar(batch).regions)


@pytest.mark.parametrize("name", NAMES)
def test_pycocotools_reads_it(name: str, batch: Path) -> None:
    coco = COCO(batch / name)
    assert min(coco.cats) == min(coco.imgs) == min(coco.anns) == 1
    for annotation in coco.loadAnns(coco.getAnnIds(iscrowd=False)):
        image = coco.imgs[annotation["image_id"]]
        left, top, width, height = annotation["bbox"]
        assert 0 <= left < left + width <= image["width"] and 0 <= top < top + height <= image["height"]
        assert annotation["area"] == pytest.approx(width * height)


@pytest.mark.parametrize("name", NAMES)
def test_torchvision_reads_it(name: str, batch: Path) -> None:
    found = CocoDetection(batch / PLACES[name], batch / name)
    for (picture, target), record in zip(
        (found[i] for i in range(len(found))), document(batch, name)["images"], strict=True
    ):
        assert picture.size == (record["width"], record["height"])
        assert all({"bbox", "area", "iscrowd", "id", "category_id"} <= a.keys() for a in target)
    assert len(found) == (5 if name == "coco_crops.json" else 3)


@pytest.mark.detectron2
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", NAMES)
def test_detectron2_reads_it(name: str, batch: Path) -> None:
    pytest.importorskip("detectron2.data", reason="Detectron2 is not on the path", exc_type=ImportError)
    from detectron2.data import MetadataCatalog
    from detectron2.data.datasets import load_coco_json
    from detectron2.structures import BoxMode

    known = f"dal_dense_{batch.parent.parent.name}_{name}"
    found = load_coco_json(str(batch / name), str(batch / PLACES[name]), known)
    assert MetadataCatalog.get(known).thing_classes == ["car", "person", "__ignore__", "__query__"]
    content = document(batch, name)
    assert len(found) == len(content["images"]) and all(Path(f["file_name"]).is_file() for f in found)
    boxes = [a for f in found for a in f["annotations"]]
    assert [b["category_id"] + 1 for b in boxes] == [a["category_id"] for a in content["annotations"]]
    assert [b["bbox"] for b in boxes] == [a["bbox"] for a in content["annotations"]]
    assert all(b["bbox_mode"] == BoxMode.XYWH_ABS and b["iscrowd"] == 0 for b in boxes)


def test_the_readme_says_how_to_label_in_cvat_and_label_studio(batch: Path) -> None:
    text = (batch / "README.txt").read_text()
    assert '{"name": "__ignore__", "type": "rectangle", "attributes": []}' in text
    assert '<RectangleLabels name="label_rectangles" toName="image"><Label value="car"/>' in text
    assert "returned/reviewed.txt" in text and "EVERY object" in text and "background" not in text.split("Classes")[1]
    assert f"{BOX.id}  c  [60, 100] [81, 141]  about 9 s  box" in text
    assert all(r.id in text for r in (CROP, ORIGIN, IMAGE, LONELY))
