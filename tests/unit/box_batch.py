"""A small detection batch, for the tests of its export and of its return."""

import json
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from dal_dense.boxes import Boxes
from dal_dense.config import DataConfig
from dal_dense.exchange.batch import write_batch
from dal_dense.exchange.returns import read_returns
from dal_dense.pool import Pool, open_pool
from dal_dense.query import Query, QueryRegion
from dal_dense.tasks.base import Proposal

CLASSES = {0: "background", 1: "car", 2: "person"}
SHAPE = (200, 300)
Kind = Literal["crop", "image", "box"]


def region(name: str, image: str, start: tuple[int, int], stop: tuple[int, int], kind: Kind = "crop") -> QueryRegion:
    return QueryRegion(id=name, image_id=image, kind=kind, start=start, stop=stop, score=0.25, seconds=9)


CROP = region("r00-000", "a", (10, 20), (110, 170))
ORIGIN = region("r00-001", "a", (120, 0), (180, 80))
IMAGE = region("r00-002", "b", (0, 0), SHAPE, "image")
BOX = region("r00-003", "c", (60, 100), (81, 141), "box")
LONELY = region("r00-004", "c", (150, 250), (170, 280), "box")
REGIONS = (CROP, ORIGIN, IMAGE, BOX, LONELY)
"""LONELY was predicted by nobody."""

TABLES = {
    "r00-000": [[12.5, 24.25, 40.0, 90.75, 1, 0], [10.0, 20.0, 60.125, 50.0, 2, 0]],
    "r00-001": [[130.0, 0.0, 150.5, 33.0, 2, 0]],
    "r00-002": [],
    "r00-003": [[60.5, 100.25, 80.5, 140.75, 1, 0]],
}
SCORES = {"r00-000": [0.9, 0.4], "r00-001": [0.3], "r00-002": [], "r00-003": [0.55]}


def table(rows: list[list[float]]) -> np.ndarray:
    return np.array(rows, np.float64).reshape(-1, 6)


def proposals(*regions: QueryRegion) -> dict[str, Proposal]:
    return {
        r.id: Proposal(table(TABLES[r.id]), np.zeros(r.shape, np.float32), np.array(SCORES[r.id], np.float64))
        for r in regions
        if r.id in TABLES
    }


def make_pool(root: Path) -> Pool:
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "c.png"):
        cv2.imwrite(str(root / "images" / name), rng.integers(0, 256, (*SHAPE, 3), dtype=np.uint8))
    data = DataConfig(format="folder", masks=None, classes=CLASSES, test_fraction=0)
    return open_pool(data, root, seed=0)


def export(tmp: Path, pool: Pool, *regions: QueryRegion, number: int = 0, proposed: Any = None) -> Path:
    query = Query(round=number, strategy="random", seed=1, regions=regions)
    return write_batch(
        tmp / "queries" / f"round_{number:03d}", query, pool, proposals(*regions) if proposed is None else proposed,
        run_id="run", classes=pool.classes, model_sha256="ab", boxes=True,
    )  # fmt: skip


def document(batch: Path, name: str = "coco_crops.json") -> dict[str, Any]:
    read: dict[str, Any] = json.loads((batch / name).read_text())
    return read


def review(content: dict[str, Any], *names: str) -> dict[str, Any]:
    for image in content["images"]:
        image["reviewed"] = not names or any(image["file_name"].startswith(n) for n in names)
    return content


def give_back(batch: Path, content: object, name: str = "labels.json") -> None:
    (batch / "returned" / name).write_text(json.dumps(content))


def labels_of(batch: Path, min_visible: float = 0.25) -> tuple[dict[str, np.ndarray], list[str]]:
    found, problems = read_returns(batch, batch / "returned", min_visible=min_visible)
    return {f.region_id: f.label for f in found}, problems


def objects(label: np.ndarray) -> Boxes:
    return Boxes.from_table(label).objects
