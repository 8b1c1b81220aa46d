"""A run may find its data elsewhere, but each image that was asked must have the shape that it had then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dal_dense.config import DataConfig
from dal_dense.errors import DataError
from dal_dense.ledger import Ledger
from dal_dense.pool import Pool, open_pool
from dal_dense.query import Query, QueryRegion
from dal_dense.shapes import EVENT, check_shapes, remember_shapes
from tests.world import write_box_frames, write_frames

CLASSES = {0: "sky", 1: "road", 2: "car"}
A, B = "drive0_00", "drive1_01"


def pool_at(root: Path, shape: tuple[int, int] = (24, 32)) -> Pool:
    data = DataConfig(format="folder", classes=CLASSES, ignore_index=255, test_fraction=0.0)
    return open_pool(data, write_frames(root, shape=shape), seed=0)


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return pool_at(tmp_path / "data")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "run", config={}, versions={}, seed=0, clock=lambda: 0.0) as opened:
        yield opened


def query_of(*images: str, stop: tuple[int, int] = (20, 30)) -> Query:
    regions = [
        QueryRegion(id=f"r{i}", image_id=name, kind="crop", start=(2, 3), stop=stop, score=0.0, seconds=1.0)
        for i, name in enumerate(images)
    ]
    return Query(round=0, strategy="random", seed=0, regions=tuple(regions))


def ask(ledger: Ledger, pool: Pool, query: Query) -> None:
    remember_shapes(ledger, pool, query)
    ledger.record_query(query)


def test_a_new_run_and_a_moved_folder_are_fine(ledger: Ledger, pool: Pool, tmp_path: Path) -> None:
    check_shapes(tmp_path / "nowhere", pool)
    check_shapes(ledger.run_dir, pool)
    ask(ledger, pool, query_of(A, B))
    check_shapes(ledger.run_dir, pool_at(tmp_path / "moved"))


@pytest.mark.parametrize("shape", [(48, 64), (24, 33), (23, 32)])
def test_another_shape_is_refused(ledger: Ledger, pool: Pool, tmp_path: Path, shape: tuple[int, int]) -> None:
    ask(ledger, pool, query_of(A))
    other = pool_at(tmp_path / "other", shape)
    with pytest.raises(DataError) as told:
        check_shapes(ledger.run_dir, other)
    assert str(told.value) == (
        f"{other[A].paths[0]}: holds {shape[0]} x {shape[1]} pixels, but this run asked it at 24 x 32; "
        "give the data the run was begun with (data_root), or begin a new run_dir"
    )


@pytest.mark.parametrize(("shape", "fits"), [((20, 30), True), ((48, 64), True), ((19, 64), False), ((48, 29), False)])
def test_of_older_ledgers_the_regions_must_lie_inside(
    ledger: Ledger, tmp_path: Path, shape: tuple[int, int], fits: bool
) -> None:
    ledger.record_query(query_of(A))
    other = pool_at(tmp_path / "other", shape)
    if fits:
        return check_shapes(ledger.run_dir, other)
    with pytest.raises(DataError, match="pixels, but this run asked a region up to 20 x 30 of it; give the data "):
        check_shapes(ledger.run_dir, other)


def test_images_that_were_not_asked_or_are_set_aside_or_broken_may_be_any(
    ledger: Ledger, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(ledger, pool, query_of(A, B))
    other = pool_at(tmp_path / "other", (48, 64))
    ledger.record_event("quarantine", {"image": A, "reason": "damaged"})
    other[B].paths[0].write_bytes(b"")
    looked: list[str] = []
    whole = check_shapes.__globals__["read_header"]
    monkeypatch.setattr("dal_dense.shapes.read_header", lambda record: looked.append(record.id) or whole(record))
    check_shapes(ledger.run_dir, other)
    assert looked == [B]


def test_a_shape_is_recorded_once_and_of_a_query_that_was_cut_off_does_not_stand(
    ledger: Ledger, pool: Pool, tmp_path: Path
) -> None:
    remember_shapes(ledger, pool_at(tmp_path / "other", (48, 64)), query_of(A))  # and then the program was killed
    check_shapes(ledger.run_dir, pool)
    ask(ledger, pool, query_of(A, B))
    check_shapes(ledger.run_dir, pool)
    remember_shapes(ledger, pool, query_of(A, B))
    told = [{A: [48, 64]}, {A: [24, 32], B: [24, 32]}]
    assert [e["images"] for e in ledger.events(EVENT)] == told


def test_frames_with_boxes(ledger: Ledger, tmp_path: Path) -> None:
    """Their listing says another size too, so nobody else finds fault with them."""

    def boxes_at(root: Path, shape: tuple[int, int]) -> Pool:
        data = DataConfig(format="coco", listing="train.json", test_fraction=0.0)
        return open_pool(data, write_box_frames(root, shape=shape), seed=0, boxes=True)

    pool = boxes_at(tmp_path / "data", (96, 144))
    first = pool.train[0].id
    ask(ledger, pool, query_of(first))
    check_shapes(ledger.run_dir, pool)
    with pytest.raises(DataError, match=f"{first}.jpg: holds 128 x 160 pixels, but this run asked it at 96 x 144; "):
        check_shapes(ledger.run_dir, boxes_at(tmp_path / "other", (128, 160)))
