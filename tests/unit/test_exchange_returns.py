"""What lies in a folder of returns beside good labels: marks, times, bins, copies of what was sent."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from dal_dense.config import DataConfig
from dal_dense.exchange.batch import write_batch
from dal_dense.exchange.inbox import OWNER
from dal_dense.exchange.returns import read_returns
from dal_dense.pool import Pool, open_pool
from dal_dense.query import Query, QueryRegion
from dal_dense.tasks.base import Proposal


def region(name: str, image: str, start: tuple[int, int], stop: tuple[int, int]) -> QueryRegion:
    return QueryRegion(id=name, image_id=image, kind="crop", start=start, stop=stop, score=1, seconds=9)


FIRST = (region("r00-000", "a", (0, 0), (8, 9)), region("r00-001", "b", (2, 2), (6, 6)))
SECOND = (region("r01-000", "a", (10, 10), (16, 16)),)


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    (tmp_path / "data" / "images").mkdir(parents=True)
    for name in ("a", "b"):
        cv2.imwrite(str(tmp_path / "data" / "images" / f"{name}.png"), np.full((20, 20, 3), 90, np.uint8))
    data = DataConfig(format="folder", masks=None, classes={0: "void", 1: "car"}, test_fraction=0)
    return open_pool(data, tmp_path / "data", seed=0)


def export(tmp: Path, pool: Pool, number: int, *regions: QueryRegion) -> Path:
    query = Query(round=number, strategy="random", seed=1, regions=regions)
    proposals = {r.id: Proposal(np.ones(r.shape, np.uint8), np.zeros(r.shape, np.float32)) for r in regions}
    return write_batch(
        tmp / "queries" / f"round_{number:03d}", query, pool, proposals,
        run_id="run", classes=pool.classes, model_sha256="ab",
    )  # fmt: skip


@pytest.fixture
def batch(tmp_path: Path, pool: Pool) -> Path:
    return export(tmp_path, pool, 0, *FIRST)


def read(batch: Path, *earlier: Path, place: Path | None = None) -> tuple[set[str], list[str]]:
    found, problems = read_returns(batch, place or batch / "returned", earlier=earlier)
    return {f.region_id for f in found}, problems


def save(folder: Path, *regions: QueryRegion) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for one in regions:
        cv2.imwrite(str(folder / f"{one.id}.png"), np.zeros(one.shape, np.uint8))


def coco(folder: Path, batch: Path, name: str = "export.json") -> None:
    """The crops with their proposals, as a tool exports them: without marks."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text((batch / "coco_crops.json").read_text())


def test_a_time_for_an_image_or_a_stranger_is_told(batch: Path) -> None:
    returned = batch / "returned"
    save(returned, *FIRST)
    (returned / "times.csv").write_text("region_id,seconds\na,50\nr00-001,7\nr00-077,3\n")
    found, problems = read_returns(batch, returned)
    assert {f.region_id: f.seconds for f in found} == {"r00-000": None, "r00-001": 7}
    assert problems == [
        "'a' in times.csv is an image, so its time is not charged; log each region's time",
        "'r00-077' in times.csv was not asked",
    ]


def test_of_two_times_for_a_region_the_first_stays_and_the_other_is_told(batch: Path) -> None:
    returned = batch / "returned"
    save(returned, *FIRST)
    (returned / "bob").mkdir()
    (returned / "bob" / "times.csv").write_text("region_id,seconds\nr00-000,8\nr00-001,7\n")
    (returned / "studio.json").write_text(
        json.dumps([{"file_upload": "r00-001.png", "annotations": [{"lead_time": s}]} for s in (5, 4)])
    )
    (returned / "times.csv").write_text("region_id,seconds\nr00-000,6\nr00-001,7\nr00-000,9\n")
    found, problems = read_returns(batch, returned)
    assert {f.region_id: f.seconds for f in found} == {"r00-000": 6, "r00-001": 5}
    assert problems == [
        "studio.json: r00-001 has 5 s already; 4 s is not used. Keep one of the two",
        "times.csv: line 4: r00-000 has 6 s already; 9 s is not used. Keep one of the two",
        "times.csv: r00-001 has 5 s already; 7 s is not used. Keep one of the two",
        "bob/times.csv: r00-000 has 6 s already; 8 s is not used. Keep one of the two",
        "bob/times.csv: r00-001 has 5 s already; 7 s is not used. Keep one of the two",
    ]


def test_lead_times_of_whole_frames_are_told(batch: Path) -> None:
    tasks = [{"file_upload": f"{n}.png", "annotations": [{"lead_time": 5}]} for n in ("a", "r00-001", "elsewhere")]
    (batch / "returned" / "studio.json").write_text(json.dumps(tasks))
    assert read(batch)[1] == ["studio.json: lead times of whole images are not charged (a); log them by region"]


@pytest.mark.parametrize("name", ["reviewed.txt", "times.csv"])
def test_a_folder_in_place_of_a_text_file_is_told(batch: Path, name: str) -> None:
    save(batch / "returned", *FIRST)
    (batch / "returned" / name).mkdir()
    assert read(batch) == ({"r00-000", "r00-001"}, [f"{name}: a folder; expected a text file"])


def test_marks_that_cannot_be_read_are_told(batch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(batch / "returned", *FIRST)
    (batch / "returned" / "reviewed.txt").write_text("*")
    real = Path.read_text

    def refuse(path: Path, encoding: str | None = None, errors: str | None = None) -> str:
        if path.name == "reviewed.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, encoding, errors)

    monkeypatch.setattr(Path, "read_text", refuse)
    told = ["reviewed.txt: cannot be read (Permission denied); check its permissions"]
    assert read(batch) == ({"r00-000", "r00-001"}, told)


def test_a_subfolder_that_cannot_be_opened_is_told(batch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(batch / "returned", FIRST[0])
    save(batch / "returned" / "locked", FIRST[1])
    real = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found, problems = read(batch)
    assert found == {"r00-000"} and len(problems) == 1
    assert "locked: cannot be looked into (Permission denied)" in problems[0]


def test_a_star_speaks_for_its_own_folder_alone(batch: Path) -> None:
    returned = batch / "returned"
    coco(returned / "alice", batch)
    coco(returned / "bob", batch, "open.json")
    (returned / "alice" / "Reviewed.TXT").write_text("*\n")
    drawn = json.loads((returned / "bob" / "open.json").read_text())
    drawn["annotations"] = []
    (returned / "bob" / "open.json").write_text(json.dumps(drawn))
    found, problems = read(batch)
    assert found == {"r00-000", "r00-001"}
    assert len(problems) == 1 and problems[0].startswith("bob/open.json: not marked as reviewed")


@pytest.mark.parametrize("mark", ["*", "a"])
def test_an_old_mark_says_nothing_of_a_new_round(tmp_path: Path, pool: Pool, batch: Path, mark: str) -> None:
    place = tmp_path / "inbox"
    coco(place, batch, "first.json")
    (place / "reviewed.txt").write_text(mark)
    assert "r00-000" in read(batch, place=place)[0]
    second = export(tmp_path, pool, 1, *SECOND)
    coco(place, second, "second.json")
    found, problems = read(second, batch, place=place)
    assert "r01-000" not in found
    assert any(p.startswith(f"'{mark}' in reviewed.txt is unclear") and "name the finished" in p for p in problems)
    (place / "reviewed.txt").write_text("r01-000")
    assert "r01-000" in read(second, batch, place=place)[0]


def test_with_reviewed_txt_a_whole_frame_that_it_does_not_name_is_unfinished(batch: Path) -> None:
    returned = batch / "returned"
    for name in ("a", "b"):
        cv2.imwrite(str(returned / f"{name}.png"), np.zeros((20, 20), np.uint8))
    assert read(batch) == ({"r00-000", "r00-001"}, [])
    (returned / "reviewed.txt").write_text("r00-000")
    found, problems = read(batch)
    assert found == {"r00-000"} and len(problems) == 1
    assert problems[0].startswith("b.png: reviewed.txt names neither b nor a region of it")
    (returned / "reviewed.txt").write_text("r00-000\nb")
    assert read(batch) == ({"r00-000", "r00-001"}, [])


def test_a_batch_that_is_sent_back_whole_answers_only_what_is_finished(batch: Path) -> None:
    copy = batch / "returned" / "from alice"
    for path in [p for p in batch.rglob("*") if p.is_file()]:
        target = copy / path.relative_to(batch)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    save(copy / "returned", FIRST[1])
    found, problems = read(batch)
    assert found == {"r00-001"}  # r00-000.png lies in proposals/, untouched
    assert any(p.startswith("from alice/proposals: holds what was sent") for p in problems)


def test_a_folder_of_proposals_is_no_answer(batch: Path) -> None:
    save(batch / "returned" / "proposals", *FIRST)
    found, problems = read(batch)
    assert found == set() and len(problems) == 1 and "lest an untouched proposal" in problems[0]


@pytest.mark.parametrize("name", [".snapshot", "#recycle", "$RECYCLE.BIN"])
def test_what_was_thrown_away_stays_away(batch: Path, name: str) -> None:
    save(batch / "returned" / name, *FIRST)
    assert read(batch) == (set(), [])


def test_the_returns_of_another_run_below_ours_are_left_alone(batch: Path) -> None:
    save(batch / "returned", FIRST[0])
    save(batch / "returned" / "other", FIRST[1])
    (batch / "returned" / "other" / OWNER).write_text("another")
    found, problems = read(batch)
    assert found == {"r00-000"} and problems == ["other: takes the labels of another run, so it is not looked into"]
