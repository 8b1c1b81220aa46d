"""The whole program on tiny frames with boxes: every kind of region, people, resuming."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dal_dense.box_offers import frame_offers
from dal_dense.boxes import ABSENT, OBJECT, Boxes, iou
from dal_dense.ledger import Ledger
from dal_dense.offers import Offers
from dal_dense.results import load
from dal_dense.tasks.base import Judged
from tests.e2e.command import TrainAl, batch, main_of_script, story
from tests.world import box_settings, write_box_frames


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames that no test writes to."""
    return write_box_frames(tmp_path_factory.mktemp("boxes"))


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> TrainAl:
    """The command with the real detector and no curves drawn."""
    from tests.e2e.command import Ended

    monkeypatch.setattr("dal_dense.report.figures._svg", lambda *given, **more: "<svg/>")
    main = main_of_script()

    def call(argv: list[str]) -> Ended:
        capsys.readouterr()
        status = main(argv)
        said = capsys.readouterr()
        return Ended(status, " ".join(said.out.split()), said.err)

    return call


@pytest.mark.parametrize("kind", ["crop", "image", "box"])
def test_a_run_of_each_kind(
    plain: TrainAl, data: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Judged | None] = {}

    def spied(*args: Any, **given: Any) -> Offers:
        told[given["image_id"]] = given["judged"]  # the last round's
        return frame_offers(*args, **given)

    monkeypatch.setattr("dal_dense.tasks.detection_task.frame_offers", spied)
    ended = plain(box_settings(data, tmp_path / "run", query__kind=kind))
    assert (ended.status, ended.err) == (0, ""), ended.err
    with Ledger.read(tmp_path / "run") as ledger:
        queries = ledger.queries()
        assert [q.round for q in queries] == [0, 1, 2] and ledger.open_regions() == []
        assert {r.kind for r in queries[0].regions} == {"crop" if kind == "box" else kind}
        for answer in ledger.answered():
            boxes = Boxes.from_table(answer.label)
            assert answer.label.dtype == np.float64 and answer.seconds > 0
            if answer.region.kind == "box":
                assert len(boxes) == 1 and int(boxes.status[0]) in (OBJECT, ABSENT)
        single = ledger.answered(kind="box")
        assert bool(single) == (kind == "box")
        before = {a.region.image_id for a in single if a.round < 2}
        assert {name for name, judged in told.items() if judged is not None and len(judged.answered)} == before
        for one, other in itertools.permutations(single, 2):
            if one.region.image_id == other.region.image_id and one.round < other.round:
                asked = np.array([[*other.region.start, *other.region.stop]], np.float64)
                known = Boxes.from_table(one.label).objects.corners.round()
                assert (iou(asked, known) < 0.5).all(), "asked again what an answer held"
        if kind == "box":
            looks_are_as_they_should_be(ledger, data)
        assert all(0 < q.seconds <= 110 for q in queries)
    results = load(tmp_path / "run")
    assert results.metric == "ap50" and set(results.rounds[-1].per_class) >= {"car", "person"}


def looks_are_as_they_should_be(ledger: Ledger, data: Path) -> None:
    """Beside predictions, rounds ask for crops on ground that nobody has judged; all objects inside are drawn."""
    assert {r.kind for q in ledger.queries()[1:] for r in q.regions} == {"box", "crop"}
    everything = json.loads((data / "train.json").read_text())
    names = {image["id"]: image["file_name"].removesuffix(".jpg") for image in everything["images"]}
    looked = [a for a in ledger.answered(kind="crop") if a.round > 0]
    assert {len(a.label) > 0 for a in looked} == {True, False}
    for answer in looked:
        (top, left), (bottom, right) = answer.region.box
        boxes = [a["bbox"] for a in everything["annotations"] if names[a["image_id"]] == answer.region.image_id]
        corners = [(y, x, y + height, x + width) for x, y, width, height in boxes]
        cut = [(max(a, top), max(b, left), min(c, bottom), min(d, right)) for a, b, c, d in corners]
        seen = [tuple(map(float, box)) for box in cut if box[0] < box[2] and box[1] < box[3]]
        assert sorted(seen) == sorted(map(tuple, answer.label[:, :4].tolist()))
        objects = int((answer.label[:, 5] == OBJECT).sum())
        assert answer.seconds == pytest.approx(1 + 0.03 * (bottom - top) * (right - left) / 1000 + 7 * objects)
        for other in ledger.answered():
            before = other.round < answer.round and other.region.image_id == answer.region.image_id
            ground = [other.region.box, *(((a, b), (c, d)) for a, b, c, d, *_ in other.label.tolist())]
            if before:
                assert not any(a < bottom and top < c and b < right and left < d for (a, b), (c, d) in ground)


def test_a_run_called_again_after_every_round_ends_the_same(plain: TrainAl, data: Path, tmp_path: Path) -> None:
    assert plain(box_settings(data, tmp_path / "whole")).status == 0
    for rounds in (1, 2):
        assert plain(box_settings(data, tmp_path / "parts", budget__rounds=str(rounds))).status == 0
    whole, parts = story(tmp_path / "whole"), story(tmp_path / "parts")
    assert whole[:3] == parts[:3]


@pytest.mark.parametrize("kind", ["crop", "box"])
def test_people_get_regions_and_return_boxes(plain: TrainAl, data: Path, tmp_path: Path, kind: str) -> None:
    few = {"task__detection__min_score": "0", "task__detection__max_boxes": "5"}  # so that ground is left to look at
    argv = box_settings(data, tmp_path / "run", annotator__name="people", budget__rounds="1", query__kind=kind, **few)
    for number in range(2):
        assert plain(argv).status == 0
        folder = batch(tmp_path / "run", number)
        document = json.loads((folder / "coco_crops.json").read_text())
        for image in document["images"]:
            image["reviewed"] = True
        (folder / "returned" / "done.json").write_text(json.dumps(document))
    ended = plain(argv)
    assert (ended.status, ended.err) == (0, ""), ended.err
    with Ledger.read(tmp_path / "run") as ledger:
        assert ledger.open_regions() == [] and len(ledger.fits()) == 2
        assert {a.source for a in ledger.answered()} == {"people"}
        assert {a.region.kind for a in ledger.answered(1)} == {"crop", kind}
        for answer in ledger.answered(1):
            assert (len(answer.label) == 0) or answer.region.kind == kind  # a look was sent with no box, and left so
