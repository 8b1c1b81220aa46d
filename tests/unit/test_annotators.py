"""The oracle is charged for the truth; people are waited for, believed once, and never overwritten."""

import errno
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pytest

from dal_dense.annotators import Oracle, Outcome, People, Proposed, nothing_proposed
from dal_dense.config import DataConfig
from dal_dense.costs import CostModel
from dal_dense.errors import DataError
from dal_dense.exchange import inbox as exchange_inbox
from dal_dense.exchange.inbox import OWNER
from dal_dense.ledger import Ledger
from dal_dense.pool import Pool, open_pool
from dal_dense.query import Query, QueryRegion, Sidecar
from dal_dense.tasks.base import FitReport, Measurement, Proposal

COSTS = CostModel(
    image_seconds=10.0, region_seconds=2.0, search_seconds=1000.0, boundary_seconds=0.0, object_seconds=100.0,
    unit="pixel", source="test",
)  # fmt: skip
SCHEMA = Path(__file__).parents[2] / "docs" / "query.schema.json"


def ledger_in(folder: Path) -> Ledger:
    return Ledger.open(folder / "run", config={}, versions={}, seed=1, clock=lambda: 0.0)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with ledger_in(tmp_path) as opened:
        yield opened


def frames_pool(root: Path, masks: bool = True) -> Pool:
    """Two frames of 20 x 30; in the first, two cars of 4 x 4."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for name in ("a", "b"):
        cv2.imwrite(str(root / "images" / f"{name}.png"), np.full((20, 30, 3), 90, np.uint8))
        truth = np.zeros((20, 30), np.uint8)
        if name == "a":
            truth[2:6, 2:6], truth[10:14, 20:24] = 1, 1
        cv2.imwrite(str(root / "masks" / f"{name}.png"), truth)
    data = DataConfig(format="folder", masks="masks" if masks else None, classes={0: "void", 1: "car"}, test_fraction=0)
    return open_pool(data, root, seed=0)


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return frames_pool(tmp_path / "data")


def region(name: str, image: str, start: tuple[int, int], stop: tuple[int, int]) -> QueryRegion:
    return QueryRegion(id=name, image_id=image, kind="crop", start=start, stop=stop, score=1, seconds=30)


FIRST = Query(
    round=0,
    strategy="random",
    seed=1,
    regions=(
        region("r00-000", "a", (0, 0), (10, 10)),
        region("r00-001", "b", (0, 0), (5, 5)),
        region("r00-002", "a", (10, 10), (20, 30)),
    ),
)
SECOND = Query(round=1, strategy="random", seed=1, regions=(region("r01-000", "b", (10, 10), (12, 12)),))


@pytest.fixture
def people(tmp_path: Path, ledger: Ledger) -> People:
    ledger.record_query(FIRST)
    return People(costs=COSTS, run_dir=tmp_path / "run")


def finish_round(ledger: Ledger) -> None:
    ledger.close_round(0)
    ledger.record_fit(0, FitReport(ledger.run_dir / "models", "0" * 64, {}))
    ledger.record_measurement(0, Measurement("miou", 0.5, {}))


def batch_of(people: People, number: int = 0) -> Path:
    return people.run_dir / "queries" / f"round_{number:03d}"


def give_back(people: People, name: str, label: np.ndarray, number: int = 0) -> None:
    cv2.imwrite(str(batch_of(people, number) / "returned" / f"{name}.png"), label)


def test_the_oracle_is_charged_for_the_truth_and_opens_an_image_once(ledger: Ledger, pool: Pool) -> None:
    ledger.record_query(FIRST)
    outcome = Oracle(COSTS).annotate(FIRST, pool=pool, ledger=ledger)
    assert (outcome.answered, outcome.open, outcome.problems) == (3, 0, []) and outcome.enough(1.0)
    answers = {a.region.id: a for a in ledger.answered()}
    assert [answers[f"r00-00{i}"].image_seconds for i in range(3)] == [10, 10, 0]
    assert [answers[f"r00-00{i}"].objects for i in range(3)] == [1, 0, 1]
    assert answers["r00-000"].seconds == 2 + 100 + 100  # go there, search 100 pixels, one object
    assert answers["r00-001"].seconds == 2 + 25  # empty: its search is paid for
    np.testing.assert_array_equal(answers["r00-000"].label[2:6, 2:6], 1)
    assert answers["r00-000"].label.sum() == 16 and {a.source for a in answers.values()} == {"oracle"}
    spent = ledger.spent()
    Oracle(COSTS).annotate(FIRST, pool=pool, ledger=ledger)
    assert ledger.spent() == spent == 10 + 202 + 10 + 27 + 2 + 200 + 100


def test_a_charge_in_volumes_is_in_mm_and_slice_by_slice(tmp_path: Path, ledger: Ledger) -> None:
    truth = np.zeros((8, 9, 4), np.uint8)
    truth[2:6, 3:7, 1:3] = 1
    for name, values in (("images", truth.astype(np.int16) * 50), ("masks", truth)):
        (tmp_path / "ct" / name).mkdir(parents=True)
        nib.save(nib.Nifti1Image(values, np.diag([2.0, 2.0, 5.0, 1.0])), tmp_path / "ct" / name / "ct.nii.gz")
    data = DataConfig(format="folder", classes={0: "background", 1: "organ"}, test_fraction=0)
    pool = open_pool(data, tmp_path / "ct", seed=0)
    asked = QueryRegion(id="r00-000", image_id="ct", kind="crop", start=(0, 0, 0), stop=(8, 9, 4), score=1, seconds=1)
    query = Query(round=0, strategy="random", seed=1, regions=(asked,))
    ledger.record_query(query)
    Oracle(COSTS).annotate(query, pool=pool, ledger=ledger)
    answer = ledger.answered()[0]
    assert answer.objects == 2 and answer.area == 8 * 9 * 4 * 4
    assert answer.boundary == pytest.approx(2 * 16 * 2 * np.pi / 4)  # two slices, 16 voxel edges of 2 mm


def test_an_oracle_without_a_mask_says_which_image_and_what_to_do(tmp_path: Path, ledger: Ledger) -> None:
    pool = frames_pool(tmp_path / "bare", masks=False)
    ledger.record_query(FIRST)
    with pytest.raises(DataError, match=r"a\.png.*has no labels.*people"):
        Oracle(COSTS).annotate(FIRST, pool=pool, ledger=ledger)


def test_people_get_a_batch_once_and_are_told_what_to_do(people: People, pool: Pool, ledger: Ledger) -> None:
    calls = []

    def propose() -> Proposed:
        calls.append(1)
        labels = {r.id: Proposal(np.ones(r.shape, np.uint8), np.zeros(r.shape, np.float32)) for r in FIRST.regions}
        return Proposed(labels, "abc")

    for _ in range(2):
        outcome = people.annotate(FIRST, pool=pool, ledger=ledger, propose=propose)
    assert calls == [1]
    assert (outcome.answered, outcome.open) == (0, 3) and not outcome.enough(0.1)
    assert str(batch_of(people)) in outcome.message and "call the same command again" in outcome.message
    assert (batch_of(people) / "proposals" / "r00-000.png").is_file()
    sidecar = Sidecar.model_validate_json((batch_of(people) / "query.json").read_bytes())
    assert sidecar.model_sha256 == "abc" and sidecar.run == ledger.run_id and sidecar.background == 0


def annotate(people: People, pool: Pool, ledger: Ledger, query: Query = FIRST) -> Outcome:
    return people.annotate(query, pool=pool, ledger=ledger, propose=nothing_proposed)


def test_partial_returns_are_taken_and_the_same_return_twice_changes_nothing(
    people: People, pool: Pool, ledger: Ledger
) -> None:
    annotate(people, pool, ledger)
    car = np.zeros((10, 20), np.uint8)
    car[3:5, 3:5] = 1
    give_back(people, "r00-002", car)
    outcome = annotate(people, pool, ledger)
    assert (outcome.answered, outcome.open, outcome.problems) == (1, 2, []) and outcome.enough(0.3)
    before = ledger.spent(), ledger.answered()[0].time, len(ledger.cost_log())
    assert before[0] == 10 + 2 + 200 + 100
    again = annotate(people, pool, ledger)
    assert again.answered == 1 and again.problems == [] and "0 new labels" in again.message
    assert (ledger.spent(), ledger.answered()[0].time, len(ledger.cost_log())) == before
    assert "no time logged" in ledger.answered()[0].note
    give_back(people, "r00-000", np.zeros((10, 10), np.uint8))
    annotate(people, pool, ledger)
    assert {a.region.id: a.image_seconds for a in ledger.answered()} == {"r00-000": 0, "r00-002": 10}  # opened once


def test_logged_time_is_charged_as_it_was_logged(people: People, pool: Pool, ledger: Ledger) -> None:
    annotate(people, pool, ledger)
    give_back(people, "r00-001", np.zeros((5, 5), np.uint8))
    (batch_of(people) / "returned" / "times.csv").write_text("region_id,seconds\nr00-001,77.5\n")
    annotate(people, pool, ledger)
    answer = ledger.answered()[0]
    assert (answer.seconds, answer.image_seconds, answer.area) == (77.5, 0, 25) and "as logged" in answer.note


def test_a_time_that_was_logged_after_its_label_replaces_the_modelled_one_once(
    people: People, pool: Pool, ledger: Ledger
) -> None:
    annotate(people, pool, ledger)
    give_back(people, "r00-001", np.zeros((5, 5), np.uint8))
    annotate(people, pool, ledger)
    assert "no time logged" in ledger.answered()[0].note
    for logged in ("77.5", "12"):  # the first log stands
        (batch_of(people) / "returned" / "times.csv").write_text(f"region_id,seconds\nr00-001,{logged}\n")
        annotate(people, pool, ledger)
        answer = ledger.answered()[0]
        assert (answer.seconds, answer.image_seconds) == (77.5, 0) and "as logged" in answer.note
        assert ledger.spent() == 77.5 and [e.charged_seconds for e in ledger.cost_log()] == [77.5]
    assert ledger.events("time") == [
        {"region": "r00-001", "was": {"seconds": 27.0, "image_seconds": 10.0}, "seconds": 77.5}
    ]


def log_times(people: People, text: str, number: int = 0) -> None:
    (batch_of(people, number) / "returned" / "times.csv").write_text(text)


def test_a_time_that_is_not_charged_is_told_once(people: People, pool: Pool, ledger: Ledger) -> None:
    annotate(people, pool, ledger)
    give_back(people, "r00-001", np.zeros((5, 5), np.uint8))
    log_times(people, "region_id;seconds\nr00-001;75\n")
    assert annotate(people, pool, ledger).problems == []
    log_times(people, "region_id,seconds\nr00-001,100\n")
    told = annotate(people, pool, ledger).problems
    assert len(told) == 1 and str(batch_of(people) / "returned") in told[0]
    assert "region r00-001 is charged 75 s already, as logged; 100 s came later and is not used" in told[0]
    assert annotate(people, pool, ledger).problems == [] and ledger.spent() == 75


def test_times_that_could_not_be_read_are_charged_once_the_file_is_mended(
    people: People, pool: Pool, ledger: Ledger
) -> None:
    annotate(people, pool, ledger)
    give_back(people, "r00-001", np.zeros((5, 5), np.uint8))
    log_times(people, "region|seconds\nr00-001|75\n")
    assert str(batch_of(people) / "returned" / "times.csv") in annotate(people, pool, ledger).problems[0]
    log_times(people, "region_id,seconds\nr00-001,75\n")
    told = annotate(people, pool, ledger).problems
    assert told == ["logged times came after their labels and replace what the cost model charged: r00-001"]
    assert ledger.spent() == 75 and annotate(people, pool, ledger).problems == []


def test_every_problem_names_its_file_in_full(people: People, pool: Pool, ledger: Ledger) -> None:
    annotate(people, pool, ledger)
    give_back(people, "r00-001", np.zeros((6, 5), np.uint8))
    give_back(people, "r09-001", np.zeros((6, 5), np.uint8))
    log_times(people, "region_id,seconds\nr00-077,100\n")
    place = batch_of(people) / "returned"
    told = annotate(people, pool, ledger).problems
    assert [line.partition(": ")[0] for line in told] == [
        *map(str, (place / "r00-001.png", place / "r09-001.png", place))
    ]
    assert annotate(people, pool, ledger).problems == told  # the round waits: all of it, every time


def test_of_a_closed_round_one_line_is_left(people: People, pool: Pool, ledger: Ledger) -> None:
    annotate(people, pool, ledger)
    for asked in FIRST.regions:
        give_back(people, asked.id, np.zeros(asked.shape, np.uint8))
    log_times(people, "region_id,seconds\nr00-077,100\nr00-078,1\n")
    assert len(annotate(people, pool, ledger).problems) == 2
    finish_round(ledger)
    ledger.record_query(SECOND)
    again = annotate(people, pool, ledger, SECOND).problems
    assert len(again) == 1 and "round 0 is closed, and 2 warnings of earlier calls" in again[0]
    log_times(people, "region_id,seconds\nr00-077,100\nr00-079,1\n")
    again = annotate(people, pool, ledger, SECOND).problems
    assert len(again) == 2 and "'r00-079' in times.csv was not asked" in again[0] and "1 warning" in again[1]


def test_two_files_for_an_answered_region_leave_the_first_answer(people: People, pool: Pool, ledger: Ledger) -> None:
    annotate(people, pool, ledger)
    give_back(people, "r00-001", np.zeros((5, 5), np.uint8))
    annotate(people, pool, ledger)
    (batch_of(people) / "returned" / "later").mkdir()
    give_back(people, "later/r00-001", np.ones((5, 5), np.uint8))
    told = annotate(people, pool, ledger).problems
    assert len(told) == 1 and "later/r00-001.png: region r00-001 is answered already" in told[0]
    assert "The first answer stays" in told[0] and len(ledger.conflicts()) == 1


def test_what_a_star_takes_is_told(people: People, pool: Pool, ledger: Ledger) -> None:
    annotate(people, pool, ledger)
    sent = json.loads((batch_of(people) / "coco_crops.json").read_text())
    for name, kept in (("old.json", sent["images"][:1]), ("new.json", sent["images"][1:])):
        images = {"images": [image | {"reviewed": False} for image in kept]}
        (batch_of(people) / "returned" / name).write_text(json.dumps(sent | {"annotations": []} | images))
    (batch_of(people) / "returned" / "reviewed.txt").write_text("*")
    outcome = annotate(people, pool, ledger)
    assert outcome.problems == [
        f"{batch_of(people) / 'returned'}: '*' in reviewed.txt marked 3 regions as finished: "
        "2 of new.json, 1 of old.json"
    ]
    assert annotate(people, pool, ledger).problems == []


def test_a_conflict_is_reported_and_nothing_is_overwritten(people: People, pool: Pool, ledger: Ledger) -> None:
    annotate(people, pool, ledger)
    give_back(people, "r00-001", np.zeros((5, 5), np.uint8))
    annotate(people, pool, ledger)
    give_back(people, "r00-001", np.ones((5, 5), np.uint8))
    give_back(people, "r00-000", np.ones((10, 10), np.uint8))
    outcome = annotate(people, pool, ledger)
    assert outcome.answered == 2 and len(outcome.problems) == 1 and "r00-001.png" in outcome.problems[0]
    assert {a.region.id: int(a.label.max()) for a in ledger.answered()} == {"r00-000": 1, "r00-001": 0}


def test_labels_that_were_not_asked_or_do_not_fit_are_reported(people: People, pool: Pool, ledger: Ledger) -> None:
    annotate(people, pool, ledger)
    give_back(people, "r07-123", np.zeros((5, 5), np.uint8))
    give_back(people, "r00-001", np.zeros((6, 5), np.uint8))
    give_back(people, "r00-000", np.zeros((10, 10), np.uint8))
    outcome = annotate(people, pool, ledger)
    assert outcome.answered == 1 and len(outcome.problems) == 2
    assert any("r07-123" in p and "not asked" in p for p in outcome.problems)


def test_late_labels_of_an_earlier_round_are_still_taken(people: People, pool: Pool, ledger: Ledger) -> None:
    annotate(people, pool, ledger)
    give_back(people, "r00-000", np.zeros((10, 10), np.uint8))
    annotate(people, pool, ledger)
    finish_round(ledger)
    ledger.record_query(SECOND)
    assert "2 regions of earlier rounds still open" in annotate(people, pool, ledger, SECOND).message
    give_back(people, "r00-001", np.zeros((5, 5), np.uint8))
    give_back(people, "r01-000", np.zeros((2, 2), np.uint8), number=1)
    outcome = annotate(people, pool, ledger, SECOND)
    assert (outcome.answered, outcome.open, outcome.problems) == (1, 0, [])
    assert {a.region.id for a in ledger.answered()} == {"r00-000", "r00-001", "r01-000"}


def test_one_folder_may_take_the_labels_of_all_rounds(tmp_path: Path, pool: Pool, ledger: Ledger) -> None:
    people = People(costs=COSTS, run_dir=tmp_path / "run", returns=tmp_path / "inbox")
    ledger.record_query(FIRST)
    assert str(tmp_path / "inbox") in annotate(people, pool, ledger).message  # not there yet: it is made
    cv2.imwrite(str(tmp_path / "inbox" / "r00-000.png"), np.zeros((10, 10), np.uint8))
    annotate(people, pool, ledger)
    finish_round(ledger)
    ledger.record_query(SECOND)
    cv2.imwrite(str(tmp_path / "inbox" / "r01-000.png"), np.zeros((2, 2), np.uint8))
    cv2.imwrite(str(tmp_path / "inbox" / "r00-001.png"), np.zeros((5, 5), np.uint8))
    outcome = annotate(people, pool, ledger, SECOND)
    assert outcome.problems == [] and len(ledger.answered()) == 3


def test_an_empty_query_is_answered_without_a_batch(people: People, pool: Pool, ledger: Ledger) -> None:
    nothing = Query(round=1, strategy="random", seed=1, regions=())
    outcome = annotate(people, pool, ledger, nothing)
    assert outcome.enough(1.0) and not batch_of(people, 1).exists()


def test_the_published_schema_is_the_sidecars_own() -> None:
    expected = Sidecar.model_json_schema()
    assert json.loads(SCHEMA.read_text()) == expected, (
        "write docs/query.schema.json anew: json.dumps(Sidecar.model_json_schema(), indent=2)"
    )


def test_a_batch_of_another_run_is_not_taken_for_ours(people: People, pool: Pool, ledger: Ledger) -> None:
    people.annotate(FIRST, pool=pool, ledger=ledger)
    sidecar = batch_of(people) / "query.json"
    sidecar.write_text(sidecar.read_text().replace(ledger.run_id, "another"))
    with pytest.raises(DataError, match="of another run; move the folder away"):
        people.annotate(FIRST, pool=pool, ledger=ledger)


# one folder of returns, several runs


@pytest.fixture
def inbox(tmp_path: Path, ledger: Ledger) -> People:
    ledger.record_query(FIRST)
    return People(costs=COSTS, run_dir=tmp_path / "run", returns=tmp_path / "inbox")


def test_a_folder_of_returns_belongs_to_the_run_that_came_first(
    inbox: People, tmp_path: Path, pool: Pool, ledger: Ledger
) -> None:
    annotate(inbox, pool, ledger)
    assert (tmp_path / "inbox" / OWNER).read_text().strip() == ledger.run_id
    with Ledger.open(tmp_path / "other", config={}, versions={}, seed=2, clock=lambda: 0.0) as second:
        second.record_query(FIRST)
        cv2.imwrite(str(tmp_path / "inbox" / "r00-000.png"), np.zeros((10, 10), np.uint8))
        other = People(costs=COSTS, run_dir=tmp_path / "other", returns=tmp_path / "inbox")
        with pytest.raises(DataError, match=f"inbox: .*{ledger.run_id}.*{second.run_id}.*its own annotator.returns"):
            annotate(other, pool, second)
        assert second.answered() == []
    assert annotate(inbox, pool, ledger).answered == 1


def test_a_signature_that_a_killed_process_left_empty_is_written_anew(
    inbox: People, tmp_path: Path, pool: Pool, ledger: Ledger
) -> None:
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox" / OWNER).touch()
    assert annotate(inbox, pool, ledger).problems == []
    assert (tmp_path / "inbox" / OWNER).read_text().strip() == ledger.run_id


def test_a_folder_of_returns_that_cannot_be_signed_is_told_and_read(
    inbox: People, tmp_path: Path, pool: Pool, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, run_id: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    (tmp_path / "inbox").mkdir()
    monkeypatch.setattr(exchange_inbox, "_sign", refuse)  # root may write anywhere, so permissions would not do
    annotate(inbox, pool, ledger)
    cv2.imwrite(str(tmp_path / "inbox" / "r00-000.png"), np.zeros((10, 10), np.uint8))
    outcome = annotate(inbox, pool, ledger)
    assert outcome.answered == 1 and len(outcome.problems) == 1
    assert "Read-only file system" in outcome.problems[0] and f"write {ledger.run_id}" in outcome.problems[0]


def test_a_file_is_no_folder_of_returns(inbox: People, tmp_path: Path, pool: Pool, ledger: Ledger) -> None:
    (tmp_path / "inbox").write_text("")
    with pytest.raises(DataError, match=r"inbox: not a folder; name another one in annotator.returns"):
        annotate(inbox, pool, ledger)


@pytest.mark.parametrize("place", ["run", "run/queries/round_000", "data", "data/masks"])
def test_returns_may_not_hold_proposals_or_masks(place: str, tmp_path: Path, pool: Pool, ledger: Ledger) -> None:
    ledger.record_query(FIRST)
    people = People(costs=COSTS, run_dir=tmp_path / "run", returns=tmp_path / place)
    with pytest.raises(DataError, match=r"for returned labels alone"):
        annotate(people, pool, ledger)
    assert not (tmp_path / place / OWNER).exists()


# what a batch must agree with, and what comes back late


@pytest.mark.parametrize("change", [{"stop": [9, 10]}, {"image_id": "b"}, {"id": "r00-009"}])
def test_a_batch_that_differs_from_what_was_asked_is_refused(
    people: People, pool: Pool, ledger: Ledger, change: dict[str, object]
) -> None:
    annotate(people, pool, ledger)
    sidecar = batch_of(people) / "query.json"
    content = json.loads(sidecar.read_text())
    content["regions"][0]["region"] |= change
    sidecar.write_text(json.dumps(content))
    give_back(people, "r00-000", np.zeros((9, 10), np.uint8))
    with pytest.raises(DataError, match=r"round_000: holds another query.*differ in r00-000.*restore its query.json"):
        annotate(people, pool, ledger)
    assert ledger.answered() == []


@pytest.mark.parametrize("change", [{"classes": {"0": "car", "1": "void"}}, {"ignore_index": 1}])
def test_a_batch_with_other_classes_is_refused(
    people: People, pool: Pool, ledger: Ledger, change: dict[str, object]
) -> None:
    annotate(people, pool, ledger)
    sidecar = batch_of(people) / "query.json"
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | change))
    with pytest.raises(DataError, match=r"round_000: its query.json has the classes"):
        annotate(people, pool, ledger)


def test_a_label_of_a_finished_round_that_changed_is_a_conflict(people: People, pool: Pool, ledger: Ledger) -> None:
    annotate(people, pool, ledger)
    for asked in FIRST.regions:
        give_back(people, asked.id, np.zeros(asked.shape, np.uint8))
    assert annotate(people, pool, ledger).open == 0
    finish_round(ledger)
    ledger.record_query(SECOND)
    before = ledger.spent()
    for _ in range(2):
        assert annotate(people, pool, ledger, SECOND).problems == []
    assert (ledger.spent(), ledger.conflicts()) == (before, [])
    give_back(people, "r00-001", np.ones((5, 5), np.uint8))
    told = annotate(people, pool, ledger, SECOND).problems
    assert len(told) == 1 and "r00-001.png: region r00-001 is answered already" in told[0]
    again = annotate(people, pool, ledger, SECOND).problems
    assert len(again) == 1 and "round 0 is closed, and 1 warning of earlier calls" in again[0]
    assert [(c.region_id, c.note) for c in ledger.conflicts()] == [("r00-001", "r00-001.png")]
    assert {int(a.label.max()) for a in ledger.answered()} == {0} and ledger.spent() == before


# images that are lost between asking and answering


def test_the_oracle_rejects_regions_of_an_image_that_is_set_aside(ledger: Ledger, pool: Pool) -> None:
    ledger.record_query(FIRST)
    for _ in range(2):
        outcome = Oracle(COSTS).annotate(FIRST, pool=pool.quarantine("a", "a.png: truncated"), ledger=ledger)
        assert (outcome.answered, outcome.open) == (3, 0)
    assert {j.region.id: j.reason for j in ledger.rejected()} == {
        "r00-000": "a.png: truncated", "r00-002": "a.png: truncated",
    }  # fmt: skip
    assert [a.region.id for a in ledger.answered()] == ["r00-001"] and ledger.spent() == 10 + 27


def test_what_was_rejected_is_told_by_image(ledger: Ledger, pool: Pool) -> None:
    ledger.record_query(FIRST)
    outcome = Oracle(COSTS).annotate(FIRST, pool=pool.quarantine("a", "a.png: truncated"), ledger=ledger)
    assert len(outcome.problems) == 1
    assert all(word in outcome.problems[0] for word in ("a.png: truncated", "r00-000, r00-002"))


def test_nobody_waits_for_an_image_that_left_the_pool(
    people: People, tmp_path: Path, pool: Pool, ledger: Ledger
) -> None:
    annotate(people, pool, ledger)
    gone = replace(pool, members=tuple(r for r in pool.members if r.id != "b"))
    outcome = annotate(people, gone, ledger)
    assert (outcome.answered, outcome.open) == (1, 2) and "r00-001" in outcome.problems[0]
    assert "not in the pool" in ledger.rejected()[0].reason


def test_a_label_that_is_back_is_taken_before_its_image_is_given_up(people: People, pool: Pool, ledger: Ledger) -> None:
    annotate(people, pool, ledger)
    give_back(people, "r00-000", np.zeros((10, 10), np.uint8))
    annotate(people, pool.quarantine("a", "a.png: NaN"), ledger)
    assert [a.region.id for a in ledger.answered()] == ["r00-000"]
    assert [j.region.id for j in ledger.rejected()] == ["r00-002"]


def test_a_label_for_a_rejected_region_waits_until_its_image_is_back(
    people: People, tmp_path: Path, pool: Pool, ledger: Ledger
) -> None:
    annotate(people, pool, ledger)
    image = tmp_path / "data" / "images" / "b.png"
    image.rename(tmp_path / "b.png")
    annotate(people, pool.quarantine("b", "b.png: no such file"), ledger)
    give_back(people, "r00-001", np.zeros((5, 5), np.uint8))
    for _ in range(2):
        told = annotate(people, pool.quarantine("b", "b.png: no such file"), ledger).problems
        assert len(told) == 1
        assert str(batch_of(people) / "returned" / "r00-001.png") in told[0]
        assert "r00-001 was rejected (b.png: no such file)" in told[0] and "once the image is back" in told[0]
    assert ledger.answered() == []
    (tmp_path / "b.png").rename(image)
    assert annotate(people, pool, ledger).problems == []
    assert [(a.region.id, a.seconds, a.image_seconds) for a in ledger.answered()] == [("r00-001", 2 + 25, 10)]


def test_what_is_lost_before_the_export_is_not_sent(people: People, pool: Pool, ledger: Ledger) -> None:
    broken = pool.quarantine("a", "a.png: truncated")
    outcome = annotate(people, broken, ledger)
    assert (outcome.answered, outcome.open) == (2, 1)
    sidecar = Sidecar.model_validate_json((batch_of(people) / "query.json").read_bytes())
    assert [e.region.id for e in sidecar.regions] == ["r00-001"]
    give_back(people, "r00-001", np.zeros((5, 5), np.uint8))
    assert annotate(people, broken, ledger).open == 0


def test_a_label_on_an_image_that_changed_since_is_not_taken(
    people: People, tmp_path: Path, pool: Pool, ledger: Ledger
) -> None:
    annotate(people, pool, ledger)
    give_back(people, "r00-001", np.zeros((5, 5), np.uint8))
    give_back(people, "r00-000", np.zeros((10, 10), np.uint8))
    cv2.imwrite(str(tmp_path / "data" / "images" / "b.png"), np.full((20, 30, 3), 40, np.uint8))
    outcome = annotate(people, pool, ledger)
    assert len(outcome.problems) == 1 and "b.png: changed since round 0 was sent out" in outcome.problems[0]
    assert [a.region.id for a in ledger.answered()] == ["r00-000"] and outcome.open == 2
