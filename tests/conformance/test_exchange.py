"""What any exchange format must do: the batch is whole, and labels come back as they went out.

A new format adds a pool to `POOLS` and a way of returning labels to `WAYS`; every test then holds for it.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import nibabel as nib
import numpy as np
import pytest
from pycocotools import mask as rle

from dal_dense.config import DataConfig
from dal_dense.exchange.asked import load_sidecar
from dal_dense.exchange.batch import write_batch
from dal_dense.exchange.returns import read_returns
from dal_dense.pool import Pool, open_pool
from dal_dense.query import Query, QueryRegion, Sidecar
from dal_dense.regions import slices
from dal_dense.tasks.base import IGNORE, Proposal

SHAPES = {"volumes": (14, 11, 9), "frames": (33, 47), "boxes": (33, 47)}
BOXES = {  # a corner, a border, the middle, one voxel thick
    "volumes": [((0, 0, 0), (5, 4, 3)), ((9, 6, 4), (14, 11, 9)), ((5, 4, 3), (8, 9, 4)), ((0, 10, 8), (8, 11, 9))],
    "frames": [((0, 0), (8, 9)), ((20, 40), (33, 47)), ((10, 10), (19, 31)), ((32, 0), (33, 20))],
    "boxes": [((0, 0), (8, 9)), ((20, 40), (33, 47)), ((10, 10), (19, 31)), ((31, 0), (33, 20))],
}
Labels = dict[str, np.ndarray]


def volumes(root: Path) -> None:
    affine = np.diag([-1.1, 0.9, 2.0, 1.0])
    affine[:3, 3] = 20, -7, 300
    for i in range(2):
        values = np.random.default_rng(i).integers(-900, 900, SHAPES["volumes"]).astype(np.int16)
        nib.save(nib.Nifti1Image(values, affine), root / f"image_{i}.nii.gz")


def frames(root: Path) -> None:
    for i in range(2):
        values = np.random.default_rng(i).integers(0, 256, (*SHAPES["frames"], 3), dtype=np.uint8)
        cv2.imwrite(str(root / f"image_{i}.png"), values)


POOLS: dict[str, Callable[[Path], None]] = {"volumes": volumes, "frames": frames, "boxes": frames}


@dataclass(frozen=True)
class Case:
    kind: str
    pool: Pool
    query: Query
    labels: Labels
    batch: Path

    @property
    def returned(self) -> Path:
        return self.batch / "returned"


def random_label(kind: str, region: QueryRegion, rng: np.random.Generator, ignore: bool) -> np.ndarray:
    """Voxels of three classes, or up to four boxes; with ground to ignore if asked."""
    if kind != "boxes":
        return rng.choice([0, 1, 2, IGNORE] if ignore else [0, 1, 2], region.shape).astype(np.uint8)
    rows = []
    for _ in range(rng.integers(5)):
        low = rng.uniform(0, 0.6, 2)
        high = low + rng.uniform(0.1, 0.4, 2)
        start, sides = np.array(region.start), np.array(region.shape)
        corners = np.float32([*(start + low * sides), *(start + high * sides)])  # as detectors give them
        status = rng.integers(2) if ignore else 0
        rows.append([*corners.tolist(), 0 if status else rng.integers(1, 3), status])
    return np.array(sorted(rows, key=lambda r: (r[5], r[4], *r[:4])), np.float64).reshape(-1, 6)


def empty_label(kind: str, region: QueryRegion) -> np.ndarray:
    return np.zeros((0, 6)) if kind == "boxes" else np.zeros(region.shape, np.uint8)


def give_crops(case: Case, labels: Labels) -> None:
    for name, label in labels.items():
        if case.pool.ndim == 3:
            affine = nib.load(case.batch / "images" / f"{name}.nii.gz").affine
            nib.save(nib.Nifti1Image(label, affine), case.returned / f"{name}.nii.gz")
        else:
            cv2.imwrite(str(case.returned / f"{name}.png"), label)


def give_whole(case: Case, labels: Labels) -> None:
    for image in {r.image_id for r in case.query.regions}:
        kind = "volumes" if case.pool.ndim == 3 else "frames"
        whole = np.full(SHAPES[kind], IGNORE, np.uint8)
        for region in case.query.regions:
            if region.image_id == image and region.id in labels:
                whole[slices(region.box)] = labels[region.id]
        if case.pool.ndim == 3:
            affine = nib.load(case.pool[image].paths[0]).affine
            nib.save(nib.Nifti1Image(whole, affine), case.returned / f"{image}.nii")
        else:
            cv2.imwrite(str(case.returned / f"{image}.png"), whole)
    (case.returned / "reviewed.txt").write_text("\n".join(labels))


def give_coco(case: Case, labels: Labels, name: str) -> None:
    """As a tool would, drawn anew as masks by an encoder that is not ours; finished images are marked."""
    content = json.loads((case.batch / name).read_text())
    numbers = {c["name"]: c["id"] for c in content["categories"]}
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] == numbers["__query__"]]
    for image in content["images"]:
        image["reviewed"] = image.get("query_id") in labels
        for region in case.query.regions:
            if region.id in labels and region.id in (image.get("query_id"), *image.get("query_ids", ())):
                drawn = np.zeros((image["height"], image["width"]), np.uint8)
                at = slices(region.box) if "query_ids" in image else ...
                drawn[at] = labels[region.id]
                for value, category in ((1, "one"), (2, "two"), (IGNORE, "__ignore__")):
                    code = rle.encode(np.asfortranarray(drawn == value).astype(np.uint8))
                    mask = {"size": list(drawn.shape), "counts": code["counts"].decode()}
                    content["annotations"].append(
                        {"image_id": image["id"], "category_id": numbers[category], "segmentation": mask}
                    )
    if name == "coco_frames.json":
        (case.returned / "reviewed.txt").write_text("\n".join(labels))
    (case.returned / "export.json").write_text(json.dumps(content))


def give_boxes(case: Case, labels: Labels, name: str) -> None:
    """As a tool would, drawn anew; finished images are marked."""
    content = json.loads((case.batch / name).read_text())
    numbers = {c["name"]: c["id"] for c in content["categories"]}
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] == numbers["__query__"]]
    for image in content["images"]:
        image["reviewed"] = image.get("query_id") in labels
        for region in case.query.regions:
            if region.id in labels and region.id in (image.get("query_id"), *image.get("query_ids", ())):
                top, left = (0, 0) if "query_ids" in image else region.start
                for r0, c0, r1, c1, number, status in labels[region.id].tolist():
                    category = numbers["__ignore__"] if status else numbers[case.pool.classes[int(number)]]
                    bbox = [c0 - left, r0 - top, c1 - c0, r1 - r0]
                    content["annotations"].append({"image_id": image["id"], "category_id": category, "bbox": bbox})
    if name == "coco_frames.json":
        (case.returned / "reviewed.txt").write_text("\n".join(labels))
    (case.returned / "export.json").write_text(json.dumps(content))


WAYS: dict[str, tuple[str, Callable[[Case, Labels], None]]] = {
    "NIfTI crops": ("volumes", give_crops),
    "NIfTI scans": ("volumes", give_whole),
    "index PNG crops": ("frames", give_crops),
    "index PNG frames": ("frames", give_whole),
    "COCO crops": ("frames", lambda case, labels: give_coco(case, labels, "coco_crops.json")),
    "COCO frames": ("frames", lambda case, labels: give_coco(case, labels, "coco_frames.json")),
    "COCO boxes of crops": ("boxes", lambda case, labels: give_boxes(case, labels, "coco_crops.json")),
    "COCO boxes of frames": ("boxes", lambda case, labels: give_boxes(case, labels, "coco_frames.json")),
}


def build(tmp: Path, kind: str) -> Case:
    (tmp / "data" / "images").mkdir(parents=True)
    POOLS[kind](tmp / "data" / "images")
    data = DataConfig(format="folder", masks=None, classes={0: "background", 1: "one", 2: "two"}, test_fraction=0)
    pool = open_pool(data, tmp / "data", seed=0)
    regions = tuple(
        QueryRegion(id=f"r03-{i:03d}", image_id=f"image_{i % 2}", kind="crop", start=a, stop=b, score=0.1, seconds=9)
        for i, (a, b) in enumerate(BOXES[kind])
    )
    rng = np.random.default_rng(7)
    labels = {r.id: random_label(kind, r, rng, ignore=False) for r in regions}
    labels[regions[0].id] = empty_label(kind, regions[0])  # looked at
    scores = {k: np.full(len(v), 0.5) if kind == "boxes" else None for k, v in labels.items()}
    proposals = {k: Proposal(v, np.zeros(v.shape, np.float32), scores[k]) for k, v in labels.items()}
    query = Query(round=3, strategy="hybrid", seed=11, regions=regions)
    batch = write_batch(
        tmp / "queries" / "round_003", query, pool, proposals,
        run_id="a-run", classes=pool.classes, model_sha256="f" * 64, boxes=kind == "boxes",
    )  # fmt: skip
    return Case(kind, pool, query, labels, batch)


@pytest.fixture(params=POOLS)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return build(tmp_path, request.param)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Case, Callable[[Case, Labels], None]]:
    kind, give = WAYS[request.param]
    return build(tmp_path, kind), give


def same(found: list[Any], expected: Labels) -> None:
    assert {f.region_id for f in found} == expected.keys()
    for item in found:
        assert item.label.dtype == expected[item.region_id].dtype and item.label.flags.writeable
        np.testing.assert_array_equal(item.label, expected[item.region_id])


def test_the_sidecar_says_where_every_region_came_from(case: Case) -> None:
    sidecar = load_sidecar(case.batch)
    assert Sidecar.model_validate_json(sidecar.model_dump_json()) == sidecar
    assert tuple(e.region for e in sidecar.regions) == case.query.regions
    assert (sidecar.run, sidecar.round, sidecar.strategy, sidecar.seed) == ("a-run", 3, "hybrid", 11)
    for entry in sidecar.regions:
        record = case.pool[entry.region.image_id]
        assert entry.source.sha256 == hashlib.sha256((record.root / entry.source.path).read_bytes()).hexdigest()
        assert entry.source.shape == SHAPES[case.kind]
        assert (entry.source.affine is not None) == (case.pool.ndim == 3)
        assert {"image", "proposal"} <= entry.files.keys() and entry.status == "open"


def test_every_file_named_is_there_and_inside_the_batch(case: Case) -> None:
    for entry in load_sidecar(case.batch).regions:
        for file in entry.files.values():
            path = (case.batch / file).resolve()
            assert path.is_file() and path.is_relative_to(case.batch.resolve())
    assert (case.batch / "README.txt").read_text().strip() and case.returned.is_dir()


def test_nothing_is_left_beside_a_finished_batch_and_none_of_it_depends_on_when(case: Case, tmp_path: Path) -> None:
    assert [p.name for p in case.batch.parent.iterdir()] == ["round_003"]
    again = build(tmp_path / "again", case.kind)
    files = {p.relative_to(case.batch): p.read_bytes() for p in case.batch.rglob("*") if p.is_file()}
    assert files == {p.relative_to(again.batch): p.read_bytes() for p in again.batch.rglob("*") if p.is_file()}


def test_nothing_back_is_no_answer_and_no_problem(case: Case) -> None:
    assert read_returns(case.batch, case.returned) == ([], [])
    assert read_returns(case.batch, case.batch / "not there") == ([], [])


def test_labels_come_back_as_they_went_out(way: tuple[Case, Callable[[Case, Labels], None]]) -> None:
    case, give = way
    give(case, case.labels)
    found, problems = read_returns(case.batch, case.returned)
    same(found, case.labels)
    assert problems == [] and [f.region_id for f in found] == [r.id for r in case.query.regions]


def test_any_other_label_comes_back_too_ignore_included(way: tuple[Case, Callable[[Case, Labels], None]]) -> None:
    case, give = way
    rng = np.random.default_rng(1)
    labels = {r.id: random_label(case.kind, r, rng, ignore=True) for r in case.query.regions}
    give(case, labels)
    found, problems = read_returns(case.batch, case.returned)
    same(found, labels)
    assert problems == []


def test_part_of_the_labels_may_come_back(way: tuple[Case, Callable[[Case, Labels], None]]) -> None:
    case, give = way
    part = {k: v for k, v in case.labels.items() if k in ("r03-001", "r03-002")}
    give(case, part)
    found, _ = read_returns(case.batch, case.returned)
    same(found, part)


def test_a_bad_file_hides_no_good_one(way: tuple[Case, Callable[[Case, Labels], None]]) -> None:
    case, give = way
    give(case, case.labels)
    image = {"id": 1, "file_name": "../x.png", "width": 1, "height": 1}
    bad = {
        "r99-999.nii.gz": b"x", "r99-998.png": b"x", "bad.json": b"{", "a.nrrd": b"x", "times.csv": b"no\n1\n",
        "up.json": json.dumps({"images": [image], "annotations": [], "categories": []}).encode(),
    }  # fmt: skip
    for name, content in bad.items():
        (case.returned / name).write_bytes(content)
    found, problems = read_returns(case.batch, case.returned)
    same(found, case.labels)
    assert sorted(p.split(":")[0] for p in problems) == sorted(bad)
    assert all("\n" not in p for p in problems)
