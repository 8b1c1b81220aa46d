"""What any annotator must do, whoever answers. A new one adds itself to `ANNOTATORS`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from dal_dense.annotators import Annotator, Oracle, Outcome, People
from dal_dense.config import DataConfig
from dal_dense.costs import PRESETS
from dal_dense.ledger import Ledger
from dal_dense.pool import Pool, open_pool
from dal_dense.query import Query, QueryRegion

COSTS = PRESETS["frame_polygon"]


@dataclass(frozen=True)
class Case:
    annotator: Annotator
    work: Callable[[], None]
    """What happens between two calls: nothing, or people label everything they were sent."""
    ledger: Ledger
    pool: Pool
    query: Query

    def annotate(self) -> Outcome:
        return self.annotator.annotate(self.query, pool=self.pool, ledger=self.ledger)

    def finish(self) -> Outcome:
        self.annotate()
        self.work()
        return self.annotate()


def frames(root: Path) -> Pool:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i in range(3):
        rng = np.random.default_rng(i)
        cv2.imwrite(str(root / "images" / f"f{i}.png"), rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        blobs = cv2.GaussianBlur(rng.random((24, 32)).astype(np.float32), (0, 0), 3)
        cv2.imwrite(str(root / "masks" / f"f{i}.png"), (blobs > 0.5).astype(np.uint8))
    return open_pool(DataConfig(format="folder", classes={0: "none", 1: "car"}, test_fraction=0), root, seed=0)


def regions() -> Iterator[QueryRegion]:
    for number, (image, start, stop) in enumerate(
        [("f0", (0, 0), (8, 8)), ("f2", (16, 0), (24, 32)), ("f0", (8, 8), (24, 30)), ("f1", (0, 0), (24, 32))]
    ):
        yield QueryRegion(
            id=f"r00-{number:03d}", image_id=image, kind="crop", start=start, stop=stop, score=1, seconds=20
        )


def oracle(run_dir: Path, pool: Pool) -> tuple[Annotator, Callable[[], None]]:
    return Oracle(COSTS), lambda: None


def people(run_dir: Path, pool: Pool) -> tuple[Annotator, Callable[[], None]]:
    def work() -> None:
        for region in regions():
            truth = pool.mask(pool[region.image_id])
            assert truth is not None
            (top, left), (bottom, right) = region.box
            path = run_dir / "queries" / "round_000" / "returned" / f"{region.id}.png"
            cv2.imwrite(str(path), truth[top:bottom, left:right])

    return People(COSTS, run_dir), work


ANNOTATORS = {"oracle": oracle, "people": people}


@pytest.fixture(params=ANNOTATORS)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    pool = frames(tmp_path / "data")
    query = Query(round=0, strategy="random", seed=5, regions=tuple(regions()))
    with Ledger.open(tmp_path / "run", config={}, versions={}, seed=5, clock=lambda: 0.0) as ledger:
        ledger.record_query(query)
        annotator, work = ANNOTATORS[request.param](tmp_path / "run", pool)
        yield Case(annotator, work, ledger, pool, query)


def test_every_region_is_answered_with_a_label_of_its_shape(case: Case) -> None:
    outcome = case.finish()
    assert (outcome.answered, outcome.open, outcome.problems) == (4, 0, []) and outcome.enough(1.0)
    answers = case.ledger.answered()
    assert [a.region.id for a in answers] == [r.id for r in case.query.regions]
    for answer in answers:
        truth = case.pool.mask(case.pool[answer.region.image_id])
        assert truth is not None
        (top, left), (bottom, right) = answer.region.box
        np.testing.assert_array_equal(answer.label, truth[top:bottom, left:right])


def test_every_answer_is_charged_and_an_image_is_opened_once(case: Case) -> None:
    case.finish()
    answers = case.ledger.answered()
    assert all(a.seconds >= COSTS.region_seconds for a in answers)
    opened = [a.region.image_id for a in answers if a.image_seconds]
    assert sorted(opened) == ["f0", "f1", "f2"]
    for a in answers:
        assert None not in (a.area, a.boundary, a.objects)
        assert a.seconds == pytest.approx(COSTS.seconds(a.area, a.boundary, a.objects))


def test_called_again_nothing_changes(case: Case) -> None:
    case.finish()
    before = case.ledger.spent(), [(a.region.id, a.seconds, a.note) for a in case.ledger.answered()]
    assert case.annotate().answered == 4
    assert (case.ledger.spent(), [(a.region.id, a.seconds, a.note) for a in case.ledger.answered()]) == before


def test_nothing_that_was_not_asked_is_recorded_and_the_message_says_something(case: Case) -> None:
    assert case.annotate().message
    case.finish()
    assert {a.region.id for a in case.ledger.answered()} <= {r.id for r in case.query.regions}
    assert case.ledger.open_regions() == []
