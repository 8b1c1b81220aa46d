"""What is known of the pool is a function of the ledger and of nothing else."""

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from dal_dense.boxes import ABSENT, IGNORED, OBJECT
from dal_dense.config import DataConfig
from dal_dense.errors import DataError, LabelError
from dal_dense.labels import ground, know_initial, labelled_images
from dal_dense.ledger import Ledger
from dal_dense.pool import Pool, open_pool
from dal_dense.query import Query, QueryRegion
from dal_dense.tasks.base import IGNORE, FitReport, Measurement

DATA = DataConfig(format="folder", classes={0: "road", 7: "car"}, ignore_index=9, test_fraction=0.0)
WHOLE = ((0, 0), (6, 8))


def write_frame(root: Path, name: str, mask: bool = True) -> None:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(root / "images" / f"{name}.png"), np.full((6, 8, 3), 90, np.uint8))
    if mask:
        values = np.zeros((6, 8), np.uint8)
        values[2:4, 3:] = 7
        values[5] = 9
        cv2.imwrite(str(root / "masks" / f"{name}.png"), values)


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    for name in "bdca":
        write_frame(tmp_path / "data", name)
    return open_pool(DATA, tmp_path / "data", seed=0)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "run", config={}, versions={}, seed=0, clock=lambda: 0.0) as opened:
        yield opened


def ask(ledger: Ledger, round: int, *wanted: tuple[str, str, tuple[int, int]]) -> None:
    regions = tuple(
        QueryRegion(id=name, image_id=image, kind="crop", start=at, stop=(at[0] + 2, at[1] + 3), score=0.0, seconds=1.0)
        for name, image, at in wanted
    )
    ledger.record_query(Query(round=round, strategy="random", seed=0, regions=regions))


def answer(ledger: Ledger, name: str, value: int) -> None:
    ledger.record_answer(name, np.full((2, 3), value, np.uint8), seconds=1.0, source="oracle")


def test_initial_masks_cover_whole_images(ledger: Ledger, pool: Pool) -> None:
    assert know_initial(ledger, pool, [pool["c"], pool["a"]]) == 2
    first, second = labelled_images(ledger, pool)
    assert (first.record, second.record) == (pool["a"], pool["c"])
    assert list(first.regions.boxes()) == [WHOLE]
    (label,) = first.labels
    assert label.dtype == np.uint8 and np.unique(label).tolist() == [0, 1, IGNORE] and (label[2:4, 3:] == 1).all()
    assert ground(ledger, pool) == ({"a": [WHOLE], "c": [WHOLE]}, {}, {})


def test_answers_join_by_image_in_the_order_asked(ledger: Ledger, pool: Pool, tmp_path: Path) -> None:
    ask(
        ledger,
        0,
        ("r0", "b", (2, 3)),
        ("r1", "a", (0, 0)),
        ("r2", "b", (0, 0)),
        ("r3", "d", (0, 0)),
        ("r4", "d", (4, 5)),
    )
    know_initial(ledger, pool, [pool["c"]])
    for value, name in enumerate(["r2", "r1", "r0"]):  # the order of arrival must not matter
        answer(ledger, name, value)
    ledger.record_rejected("r4", "too dark")
    found = labelled_images(ledger, pool)
    assert [image.record.id for image in found] == ["a", "b", "c"]
    assert list(found[1].regions.boxes()) == [((2, 3), (4, 6)), ((0, 0), (2, 3))]
    assert [int(label[0, 0]) for label in found[1].labels] == [2, 0]
    labelled, blocked, judged = ground(ledger, pool)
    assert labelled == {image.record.id: list(image.regions.boxes()) for image in found}
    assert blocked == {"d": [((0, 0), (2, 3)), ((4, 5), (6, 8))]} and judged == {}


def test_a_repeated_fit_sees_the_labels_of_the_first(ledger: Ledger, pool: Pool, tmp_path: Path) -> None:
    ask(ledger, 0, ("r0", "b", (0, 0)), ("r1", "a", (0, 0)))
    answer(ledger, "r0", 1)
    ledger.close_round(0)
    answer(ledger, "r1", 1)  # late
    assert [image.record.id for image in labelled_images(ledger, pool, upto=0)] == ["b"]
    assert [image.record.id for image in labelled_images(ledger, pool)] == ["a", "b"]
    ledger.record_fit(0, FitReport(tmp_path / "run" / "w", "0" * 64, {}))
    ledger.record_measurement(0, Measurement("miou", 0.5, {}))
    assert [image.record.id for image in labelled_images(ledger, pool, upto=1)] == ["a", "b"]


def test_quarantined_images_are_left_out(ledger: Ledger, pool: Pool) -> None:
    know_initial(ledger, pool, [pool["c"]])
    ask(ledger, 0, ("r0", "b", (0, 0)), ("r1", "a", (0, 0)), ("r2", "b", (3, 0)))
    answer(ledger, "r0", 1)
    answer(ledger, "r1", 1)
    smaller = pool.quarantine("b", "truncated").quarantine("c", "truncated")
    assert [image.record.id for image in labelled_images(ledger, smaller)] == ["a"]
    assert ground(ledger, smaller) == ({"a": [((0, 0), (2, 3))]}, {}, {})


def test_single_boxes_are_told_from_whole_ground_by_what_was_asked(ledger: Ledger, pool: Pool) -> None:
    def region(name: str, image: str, kind: str, start: tuple[int, int], stop: tuple[int, int]) -> QueryRegion:
        return QueryRegion(id=name, image_id=image, kind=kind, start=start, stop=stop, score=0, seconds=1)

    regions = (
        region("r0", "a", "crop", (0, 0), (2, 3)),
        region("r1", "a", "box", (2, 3), (4, 6)),
        region("r2", "a", "box", (0, 0), (6, 8)),
        region("r3", "b", "box", (0, 0), (1, 1)),
        region("r4", "b", "box", (3, 3), (4, 4)),
        region("r5", "b", "image", (0, 0), (6, 8)),
        region("r6", "d", "box", (1, 1), (3, 3)),
    )
    ledger.record_query(Query(round=0, strategy="random", seed=0, regions=regions))

    def back(name: str, *rows: list[float]) -> None:
        table = np.array(rows, np.float64).reshape(-1, 6)
        ledger.record_answer(name, table, seconds=1.0, source="oracle")

    back("r0", [0, 0, 1, 1, 1, OBJECT])
    fixed, beside, speck = [2.4, 3.6, 5.5, 7.2, 1, OBJECT], [0, 0, 1, 1.4, 1, OBJECT], [5.8, 7.9, 6, 8, 1, OBJECT]
    back("r1", fixed, beside, speck, [1, 1, 3, 3, 0, IGNORED])
    back("r2", [0, 0, 6, 8, 1, ABSENT])
    back("r6", [1, 1, 3, 3, 1, OBJECT])  # as it was asked: one box
    ledger.record_rejected("r4", "too dark")
    labelled, blocked, judged = ground(ledger, pool)
    assert labelled == {"a": [((0, 0), (2, 3))]} and blocked == {"b": [((0, 0), (6, 8))]}
    assert {name: list(j.answered.boxes()) for name, j in judged.items()} == {
        "a": [((2, 3), (4, 6)), ((2, 4), (6, 7)), ((0, 0), (1, 1)), ((5, 7), (6, 8)), ((0, 0), (6, 8))],
        "b": [],
        "d": [((1, 1), (3, 3))],
    }
    assert {name: list(j.open.boxes()) for name, j in judged.items()} == {
        "a": [],
        "b": [((0, 0), (1, 1)), ((3, 3), (4, 4))],
        "d": [],
    }
    assert ground(ledger, pool.quarantine("a", "cut").quarantine("b", "cut"))[2].keys() == {"d"}


def test_a_mask_that_changed_is_named(ledger: Ledger, pool: Pool) -> None:
    know_initial(ledger, pool, [pool["a"], pool["b"]])
    path = pool["b"].mask
    assert path is not None
    cv2.imwrite(str(path), np.zeros((6, 8), np.uint8))
    with pytest.raises(LabelError, match=r"masks.b\.png: the mask of b changed since"):
        labelled_images(ledger, pool)
    path.unlink()
    with pytest.raises(DataError, match=r"b\.png"):
        labelled_images(ledger, pool)


def test_an_image_with_labels_that_is_gone_is_named(ledger: Ledger, pool: Pool, tmp_path: Path) -> None:
    ask(ledger, 0, ("r0", "b", (0, 0)))
    answer(ledger, "r0", 1)
    (tmp_path / "data" / "images" / "b.png").unlink()
    with pytest.raises(DataError, match="b: not in the pool"):
        labelled_images(ledger, open_pool(DATA, tmp_path / "data", seed=0))


def test_knowing_may_be_cut_and_called_again(ledger: Ledger, pool: Pool, tmp_path: Path) -> None:
    assert know_initial(ledger, pool, [pool["a"]]) == 1  # killed here, say
    ask(ledger, 0, ("r0", "b", (0, 0)))
    assert know_initial(ledger, pool, pool.train) == 2  # c and d; b was asked and keeps its answers
    assert know_initial(ledger, pool, pool.train) == 0
    assert [i.image_id for i in ledger.initial()] == ["a", "c", "d"]
    write_frame(tmp_path / "data", "e", mask=False)
    grown = pool.refresh()
    with pytest.raises(LabelError, match="image e: its mask"):
        know_initial(ledger, grown, grown.train)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with NumPy 2
def test_a_coco_listing_may_grow_but_not_change(ledger: Ledger, tmp_path: Path) -> None:
    write_frame(tmp_path, "a", mask=False)
    square = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 3, 3], "area": 9, "iscrowd": 0}
    listing = {
        "images": [{"id": 1, "file_name": "a.png", "height": 6, "width": 8}],
        "categories": [{"id": 1, "name": "car"}],
        "annotations": [{**square, "segmentation": [[1, 1, 4, 1, 4, 4, 1, 4]]}],
    }
    data = DataConfig(format="coco", listing="coco.json", test_fraction=0.0)

    def pool_now() -> Pool:
        (tmp_path / "coco.json").write_text(json.dumps(listing))
        return open_pool(data, tmp_path, seed=0)

    pool = pool_now()
    know_initial(ledger, pool, pool.train)
    write_frame(tmp_path, "b", mask=False)
    listing["images"].append({"id": 2, "file_name": "b.png", "height": 6, "width": 8})
    (known,) = labelled_images(ledger, pool_now())
    assert (known.labels[0][1:4, 1:4] == 1).all() and known.labels[0].sum() == 9
    listing["annotations"][0]["segmentation"] = [[1, 1, 5, 1, 5, 4, 1, 4]]
    with pytest.raises(LabelError, match="changed since"):
        labelled_images(ledger, pool_now())
