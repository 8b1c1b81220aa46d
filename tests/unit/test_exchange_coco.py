"""Frames go out as COCO and PNG and come back pixel for pixel; nothing in a returned json is trusted."""

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as rle
from pycocotools.coco import COCO

from dal_dense.config import DataConfig
from dal_dense.errors import DataError
from dal_dense.exchange.asked import load_sidecar
from dal_dense.exchange.batch import write_batch
from dal_dense.exchange.coco_returns import _unpacked
from dal_dense.exchange.polygons import components, run_lengths, segmentation
from dal_dense.exchange.returns import read_returns
from dal_dense.pool import Pool, open_pool
from dal_dense.query import Query, QueryRegion
from dal_dense.tasks.base import Proposal

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools 2.0.11
CLASSES = {0: "void", 1: "car", 2: "person"}
SHAPE = (40, 60)
BOX, OTHER = ((3, 5), (20, 30)), ((25, 40), (40, 60))


def region(box: tuple[tuple[int, ...], tuple[int, ...]], name: str, image: str = "drive_1") -> QueryRegion:
    return QueryRegion(id=name, image_id=image, kind="crop", start=box[0], stop=box[1], score=0.25, seconds=60)


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    (tmp_path / "data" / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("drive_1.png", "drive_2.jpg"):
        smooth = cv2.resize(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8), SHAPE[::-1])
        cv2.imwrite(str(tmp_path / "data" / "images" / name), smooth)
    data = DataConfig(format="folder", masks=None, classes=CLASSES, test_fraction=0)
    return open_pool(data, tmp_path / "data", seed=0)


REGIONS = (region(BOX, "r00-000"), region(OTHER, "r00-001"), region(BOX, "r00-002", "drive_2"))


def random_label(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Blobs, holes and single pixels of three classes."""
    noise = np.random.default_rng(seed).random(shape).astype(np.float32)
    return np.digitize(cv2.GaussianBlur(noise, (0, 0), 1.0), [0.48, 0.55]).astype(np.uint8)


LABELS = {r.id: random_label(i, r.shape) for i, r in enumerate(REGIONS)}


def export(tmp: Path, pool: Pool, *regions: QueryRegion, background: int | None = 0, number: int = 0) -> Path:
    query = Query(round=number, strategy="random", seed=1, regions=regions)
    proposals = {r.id: Proposal(LABELS[r.id], np.zeros(r.shape, np.float32)) for r in regions if r.id in LABELS}
    return write_batch(
        tmp / "queries" / f"round_{number:03d}", query, pool, proposals,
        run_id="run", classes=pool.classes, model_sha256="ab", background=background,
    )  # fmt: skip


@pytest.fixture
def batch(tmp_path: Path, pool: Pool) -> Path:
    return export(tmp_path, pool, *REGIONS)


def document(batch: Path, name: str = "coco_crops.json") -> dict[str, Any]:
    read: dict[str, Any] = json.loads((batch / name).read_text())
    return read


def give_back(batch: Path, content: object, name: str = "labels.json") -> None:
    (batch / "returned" / name).write_text(json.dumps(content))


def review(content: dict[str, Any], *names: str) -> dict[str, Any]:
    for image in content["images"]:
        image["reviewed"] = not names or any(image["file_name"].startswith(n) for n in names)
    return content


def labels_of(batch: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    found, problems = read_returns(batch, batch / "returned")
    return {f.region_id: f.label for f in found}, problems


@settings(max_examples=150, deadline=None)
@given(arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_outlines_and_run_lengths_are_exact(mask: np.ndarray) -> None:
    label = mask.astype(np.uint8)
    again = np.zeros_like(mask)
    for piece in components(label, 1):
        shape = segmentation(piece, mask.shape)
        if isinstance(shape, dict):
            assert sum(shape["counts"]) == mask.size
        code = rle.frPyObjects(shape, *mask.shape)
        drawn = rle.decode(rle.merge(code) if isinstance(code, list) else code).astype(bool)
        assert drawn.sum() == piece.mask.sum() and not (drawn & again).any()
        again |= drawn
    np.testing.assert_array_equal(again, mask)
    packed = rle.encode(np.asfortranarray(label))
    assert rle.frPyObjects({"size": list(mask.shape), "counts": run_lengths(mask)}, *mask.shape) == packed
    assert _unpacked(packed["counts"].decode(), "here") == run_lengths(mask)


def test_long_runs_unpack() -> None:
    mask = np.zeros((300, 500), np.uint8)
    mask[10:200, 40:41], mask[250:, 300:] = 1, 1
    packed = rle.encode(np.asfortranarray(mask))
    assert _unpacked(packed["counts"].decode(), "here") == run_lengths(mask.astype(bool))


@pytest.mark.parametrize("name", ["coco_crops.json", "coco_frames.json"])
def test_what_goes_out_comes_back_to_the_pixel(name: str, batch: Path) -> None:
    give_back(batch, review(document(batch, name)))
    labels, problems = labels_of(batch)
    assert problems == [] and labels.keys() == LABELS.keys()
    for region_id, label in labels.items():
        np.testing.assert_array_equal(label, LABELS[region_id])


@pytest.mark.parametrize("name", ["coco_crops.json", "coco_frames.json"])
def test_pycocotools_reads_what_we_write(name: str, batch: Path) -> None:
    coco = COCO(batch / name)
    assert min(coco.cats) == 1 and [c["name"] for c in coco.cats.values()][:3] == ["void", "car", "person"]
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        assert mask.sum() == annotation["area"] and annotation["iscrowd"] == 0
        assert annotation["attributes"]["query_id"] in LABELS
        rows, columns = np.nonzero(mask)
        left, top, width, height = annotation["bbox"]
        assert (left, top, left + width, top + height) == (
            columns.min(), rows.min(), columns.max() + 1, rows.max() + 1,
        )  # fmt: skip
    assert all(image["reviewed"] is False for image in coco.imgs.values())


def test_marks_surround_the_regions_and_leave_them_untouched(batch: Path, pool: Pool) -> None:
    source = cv2.imread(str(pool["drive_1"].paths[0]))
    frame = cv2.imread(str(batch / "frames" / "drive_1.png"))
    for (top, left), (bottom, right) in (BOX, OTHER):
        np.testing.assert_array_equal(frame[top:bottom, left:right], source[top:bottom, left:right])
    assert tuple(frame[2, 10]) == (255, 0, 255) and tuple(frame[24, 50]) == (255, 0, 255)
    np.testing.assert_array_equal(cv2.imread(str(batch / "images" / "r00-001.png")), source[25:40, 40:60])
    assert (batch / "frames" / "drive_2.jpg").is_file()  # stays small
    marks = [a for a in document(batch, "coco_frames.json")["annotations"] if a["category_id"] == 5]
    assert [m["bbox"] for m in marks] == [[5, 3, 25, 17], [40, 25, 20, 15], [5, 3, 25, 17]]


def test_reviewed_and_empty_is_a_label_and_not_reviewed_is_none(batch: Path) -> None:
    content = review(document(batch), "r00-000", "r00-001")
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 2]
    give_back(batch, content)
    labels, problems = labels_of(batch)
    assert labels.keys() == {"r00-000", "r00-001"} and (labels["r00-001"] == 0).all()
    assert len(problems) == 1 and "left open: r00-002.png" in problems[0]


def test_a_tool_that_drops_the_mark_needs_reviewed_txt(batch: Path) -> None:
    content = document(batch)
    for image in content["images"]:
        del image["reviewed"]
    give_back(batch, content)
    assert labels_of(batch)[0] == {}
    (batch / "returned" / "reviewed.txt").write_text("r00-002\ndrive_1 # both\nr77-000\n")
    labels, problems = labels_of(batch)
    assert labels.keys() == LABELS.keys() and problems == ["'r77-000' in reviewed.txt was not asked"]
    (batch / "returned" / "reviewed.txt").write_text("*\n")
    assert labels_of(batch)[0].keys() == LABELS.keys()


def test_without_background_empty_ground_stays_unlabelled(tmp_path: Path, pool: Pool) -> None:
    batch = export(tmp_path, pool, *REGIONS, background=None)
    content = review(document(batch))
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 1]
    give_back(batch, content)
    label = labels_of(batch)[0]["r00-000"]
    np.testing.assert_array_equal(label, np.where(LABELS["r00-000"] == 0, 255, LABELS["r00-000"]))


def square(image: int, category: int, left: int, top: int, side: int) -> dict[str, Any]:
    right, bottom = left + side, top + side
    outline = [left, top, right, top, right, bottom, left, bottom]
    return {"id": left, "image_id": image, "category_id": category, "segmentation": [outline]}


def test_names_count_not_numbers_and_the_smaller_lies_on_top(batch: Path) -> None:
    content = review(document(batch), "r00-000")
    names = ["__ignore__", "person", "tool's own", "car"]
    content["categories"] = [{"id": i, "name": n, "colour": "red"} for i, n in enumerate(names, 31)]
    content["annotations"] = [square(1, 32, 4, 4, 2), square(1, 34, 2, 2, 8), square(1, 31, 3, 3, 4)]
    give_back(batch, content)
    expected = np.zeros((17, 25), np.uint8)
    expected[2:10, 2:10], expected[3:7, 3:7], expected[4:6, 4:6] = 1, 255, 2
    np.testing.assert_array_equal(labels_of(batch)[0]["r00-000"], expected)


def test_a_prefix_and_a_folder_that_a_tool_adds_to_names_do_no_harm(batch: Path) -> None:
    content = review(document(batch))
    for image in content["images"]:
        image["file_name"] = f"images\\0a1b2c3d-{image['file_name']}"
    give_back(batch, content)
    assert labels_of(batch)[0].keys() == LABELS.keys()


def test_frames_answer_only_the_regions_they_outline(tmp_path: Path, pool: Pool) -> None:
    first = export(tmp_path, pool, *REGIONS)
    second = export(tmp_path, pool, region(((0, 40), (20, 60)), "r01-000"), number=1)
    give_back(second, review(document(first, "coco_frames.json")), "first.json")
    found, problems = read_returns(second, second / "returned", earlier=[first])
    assert [f.region_id for f in found] == ["r00-000", "r00-001", "r00-002"] and problems == []
    content = review(document(second, "coco_frames.json"))
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 5]
    give_back(second, content, "second.json")
    found, problems = read_returns(second, second / "returned", earlier=[first])
    assert len(found) == 3 and len(problems) == 1 and "rounds 0, 1 all ask drive_1" in problems[0]


@pytest.mark.parametrize(
    "name", ["../../r00-000.png", "/etc/r00-000.png", "..\\..\\r00-000.png", "C:\\r00-000.png", "a/../r00-000.png"]
)
def test_a_file_name_that_leads_out_is_refused(name: str, batch: Path) -> None:
    content = review(document(batch))
    content["images"][0]["file_name"] = name
    give_back(batch, content)
    labels, problems = labels_of(batch)
    assert labels.keys() == {"r00-001", "r00-002"}
    assert len(problems) == 1 and "leads out of the folder" in problems[0]


def broken(kind: str, content: dict[str, Any]) -> None:
    """Spoil the first image's part of a good document."""
    first = next(a for a in content["annotations"] if a["image_id"] == 1)
    match kind:
        case "not asked":
            content["images"][0]["file_name"] = "r09-999.png"
        case "size":
            content["images"][0]["width"] += 1
        case "category":
            content["categories"].append({"id": 77, "name": "elephant"})
            first["category_id"] = 77
        case "no category":
            first["category_id"] = 78
        case "box only":
            first["segmentation"] = []
        case "two points":
            first["segmentation"] = [[1, 1, 5, 5]]
        case "odd":
            first["segmentation"] = [[1, 1, 5, 5, 5, 1, 2]]
        case "far":
            first["segmentation"] = [[1, 1, 1e9, 5, 5, 1e9]]
        case "nan":
            first["segmentation"] = [[1, 1, float("nan"), 5, 5, 1]]
        case "text":
            first["segmentation"] = "here"
        case "rle size":
            first["segmentation"] = {"size": [1700, 25], "counts": [0, 1700 * 25]}
        case "rle sum":
            first["segmentation"] = {"size": [17, 25], "counts": [0, 10**12]}
        case "rle negative":
            first["segmentation"] = {"size": [17, 25], "counts": [-5, 17 * 25 + 5]}
        case "rle short":
            first["segmentation"] = {"size": [17, 25], "counts": "04"}
        case "rle noise":
            first["segmentation"] = {"size": [17, 25], "counts": "ooooooooooooooooooooo"}
        case "rle letters":
            first["segmentation"] = {"size": [17, 25], "counts": "\u20ac 1"}
        case "rle breaks off":
            first["segmentation"] = {"size": [17, 25], "counts": "0o"}


KINDS = {
    "not asked": "was not asked", "size": "expected 25 x 17", "category": "elephant", "no category": "category id 78",
    "box only": "no outline", "two points": "3 points", "odd": "3 points", "far": "far outside", "nan": "damaged",
    "text": "damaged", "rle size": "size", "rle sum": "sum to", "rle negative": "sum to", "rle short": "sum to",
    "rle noise": "damaged", "rle letters": "damaged", "rle breaks off": "break off",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_spoilt_image_is_told_and_hides_no_good_one(kind: str, batch: Path) -> None:
    content = review(document(batch))
    broken(kind, content)
    give_back(batch, content)
    labels, problems = labels_of(batch)
    assert labels.keys() == {"r00-001", "r00-002"}
    assert any(KINDS[kind] in p for p in problems) and all("labels.json" in p for p in problems)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"images": 3}', "[" * 100_000, '"\\ud800"', "\udcff"])
def test_what_is_no_coco_json_is_told(text: str, batch: Path) -> None:
    (batch / "returned" / "bad.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    give_back(batch, review(document(batch)), "good.json")
    labels, problems = labels_of(batch)
    assert labels.keys() == LABELS.keys()
    assert text == "[]" or (len(problems) == 1 and problems[0].startswith("bad.json"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_value_anywhere_makes_it_crash(data: st.DataObject, batch: Path) -> None:
    content = review(document(batch))
    part = data.draw(st.sampled_from(["images", "annotations", "categories"]))
    entry = data.draw(st.sampled_from(content[part]))
    entry[data.draw(st.sampled_from(sorted(entry)))] = data.draw(json_values)
    give_back(batch, content)
    labels, _ = labels_of(batch)
    assert all(label.shape in {(17, 25), (15, 20)} for label in labels.values())


# -- index PNGs and the folder itself --------------------------------------------------------------


def png(batch: Path, name: str, values: np.ndarray) -> None:
    cv2.imwrite(str(batch / "returned" / name), values)


def test_index_pngs_of_crops_and_of_whole_frames_come_back(batch: Path) -> None:
    png(batch, "r00-002.png", LABELS["r00-002"])
    whole = np.random.default_rng(5).choice([0, 1, 2, 255], SHAPE).astype(np.uint8)
    png(batch, "drive_1.png", whole)
    labels, problems = labels_of(batch)
    assert problems == []
    np.testing.assert_array_equal(labels["r00-002"], LABELS["r00-002"])
    np.testing.assert_array_equal(labels["r00-000"], whole[3:20, 5:30])
    np.testing.assert_array_equal(labels["r00-001"], whole[25:40, 40:60])


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("r00-000.png", np.zeros((9, 9), np.uint8), "expected (17, 25) or (40, 60)"),
        ("r00-000.png", np.full((17, 25), 9, np.uint8), "[9]"),
        ("r00-000.png", np.zeros((17, 25, 3), np.uint8), "in colour"),
        ("r00-000.jpg", np.zeros((17, 25), np.uint8), "save the mask as PNG"),
        ("r05-000.png", np.zeros((17, 25), np.uint8), "was not asked"),
    ],
)
def test_a_bad_png_is_told(name: str, values: np.ndarray, expected: str, batch: Path) -> None:
    png(batch, name, values)
    png(batch, "r00-001.png", LABELS["r00-001"])
    labels, problems = labels_of(batch)
    assert labels.keys() == {"r00-001"} and len(problems) == 1
    assert expected in problems[0] and problems[0].startswith(name)


def test_damaged_pngs_are_told(batch: Path) -> None:
    good = (batch / "proposals" / "r00-000.png").read_bytes()
    (batch / "returned" / "r00-000.png").write_bytes(good[:60])
    (batch / "returned" / "r00-001.png").write_bytes(b"")
    (batch / "returned" / "r00-002.png").write_bytes((batch / "frames" / "drive_2.jpg").read_bytes())
    labels, problems = labels_of(batch)
    assert labels == {} and len(problems) == 3


def test_links_out_of_the_folder_are_refused_and_other_oddities_told(batch: Path, tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "r00-000.png").write_bytes((batch / "proposals" / "r00-000.png").read_bytes())
    (batch / "returned" / "r00-000.png").symlink_to(outside / "r00-000.png")
    (batch / "returned" / "more").symlink_to(outside)
    os.mkfifo(batch / "returned" / "r00-001.png")
    sub = batch / "returned" / "annotations"
    sub.mkdir()
    (sub / "r00-002.png").write_bytes((batch / "proposals" / "r00-002.png").read_bytes())
    (batch / "returned" / ".DS_Store").write_bytes(b"x")
    labels, problems = labels_of(batch)
    assert labels.keys() == {"r00-002"}
    assert [p.split(":")[0] for p in problems] == ["more", "r00-000.png", "r00-001.png"]
    assert "leads out" in problems[0] and "leads out" in problems[1] and "no plain file" in problems[2]


def test_two_different_labels_for_one_region_are_told_and_neither_is_taken(batch: Path) -> None:
    png(batch, "r00-000.png", LABELS["r00-000"])
    give_back(batch, review(document(batch)))
    labels, problems = labels_of(batch)
    assert labels.keys() == LABELS.keys() and problems == []  # the two agree
    png(batch, "r00-000.png", LABELS["r00-000"] * 0)
    labels, problems = labels_of(batch)
    assert labels.keys() == {"r00-001", "r00-002"} and "different labels" in problems[0]


def test_logged_times_come_with_the_labels(batch: Path) -> None:
    give_back(batch, review(document(batch)))
    folder = batch / "returned"
    (folder / "times.csv").write_text("region_id,seconds\nr00-000,12.5\nr00-001,soon\nr88-000,1\nr00-002,-1\n")
    task = {"file_upload": "0a1b2c3d-r00-001.png", "annotations": [{"lead_time": 40}, {"lead_time": 2.5}]}
    (folder / "studio.json").write_text(json.dumps([task]))
    found, problems = read_returns(batch, folder)
    assert {f.region_id: f.seconds for f in found} == {"r00-000": 12.5, "r00-001": 42.5, "r00-002": None}
    assert [p.split(" ")[0] for p in problems] == ["times.csv:", "times.csv:", "'r88-000'"]


def test_the_sidecar_ties_everything_together(batch: Path, pool: Pool) -> None:
    sidecar = load_sidecar(batch)
    assert sidecar.classes == {"0": "void", "1": "car", "2": "person"} and sidecar.ignore_index == 255
    for entry in sidecar.regions:
        assert all((batch / f).is_file() for f in entry.files.values())
        assert entry.source.path == f"images/{pool[entry.region.image_id].paths[0].name}"
    (batch / "query.json").write_text("{}")
    with pytest.raises(DataError, match=r"query\.json.*not a sidecar"):
        read_returns(batch, batch / "returned")
