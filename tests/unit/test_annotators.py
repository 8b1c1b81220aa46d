"""The oracle is charged for the truth; people are waited for, believed once, and never overwritten."""

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pytest

from dal_dense.annotators import Oracle, Outcome, People, Proposed, nothing_proposed
from dal_dense.config import DataConfig
from dal_dense.costs import CostModel
from dal_dense.errors import DataError
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
    with pytest.raises(DataError, match=r"a\.png.*has no mask.*people"):
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
    assert "2 regions of earlier rounds are open too" in annotate(people, pool, ledger, SECOND).message
    give_back(people, "r00-001", np.zeros((5, 5), np.uint8))
    give_back(people, "r01-000", np.zeros((2, 2), np.uint8), number=1)
    outcome = annotate(people, pool, ledger, SECOND)
    assert (outcome.answered, outcome.open, outcome.problems) == (1, 0, [])
    assert {a.region.id for a in ledger.answered()} == {"r00-000", "r00-001", "r01-000"}


def test_one_folder_may_take_the_labels_of_all_rounds(tmp_path: Path, pool: Pool, ledger: Ledger) -> None:
    people = People(costs=COSTS, run_dir=tmp_path / "run", returns=tmp_path / "inbox")
    ledger.record_query(FIRST)
    assert str(tmp_path / "inbox") in annotate(people, pool, ledger).message  # not there yet: no error
    (tmp_path / "inbox").mkdir()
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
