"""The oracle on a detection pool: what it writes to the ledger, what it charges, and that it does so once."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from toy_predictions import boxed

from dal_dense.acquire import Budget, Round, acquire
from dal_dense.annotators import Oracle
from dal_dense.box_answers import BoxRules
from dal_dense.box_offers import box_spec, frame_offers
from dal_dense.boxes import ABSENT, IGNORED, OBJECT
from dal_dense.choosing import query_of
from dal_dense.config import CostConfig, DataConfig, QueryConfig, StrategyConfig, UncertaintyConfig
from dal_dense.costs import PRESETS, CostPrior
from dal_dense.errors import DataError
from dal_dense.labels import classes_in, ground, know_initial, labelled_images
from dal_dense.ledger import Ledger
from dal_dense.pool import Pool, open_pool
from dal_dense.query import Query, QueryRegion
from dal_dense.records import Header
from dal_dense.regions import Regions
from dal_dense.tasks.base import FitReport, Measurement

COSTS = PRESETS["box_clicks"]
LOOK = COSTS.region_seconds + COSTS.verify_seconds


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    """Two frames of 40 x 60 with three boxes and a crowd, one reviewed and empty, one that nobody has looked at."""
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    for name in "abcd":
        cv2.imwrite(str(root / "images" / f"{name}.png"), np.full((40, 60, 3), 90, np.uint8))
    images = [
        {"id": i, "file_name": f"{n}.png", **({"reviewed": True} if n == "c" else {})} for i, n in enumerate("abcd")
    ]
    boxes = [
        (0, 1, [4, 2, 10, 8], 0),
        (0, 2, [30, 20, 20, 10], 0),
        (0, 1, [0, 30, 20, 10], 1),
        (1, 2, [50, 30, 10, 10], 0),
        (1, 2, [20, 10, 10, 10], 0),  # two vans, one before the other
        (1, 2, [26, 10, 10, 10], 0),
    ]
    annotations = [
        {"id": i, "image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd}
        for i, (image, category, box, crowd) in enumerate(boxes)
    ]
    # "zebra" sorts behind "van", and the ledger keeps shares by name
    categories = [{"id": 1, "name": "zebra"}, {"id": 2, "name": "van"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "all.json").write_text(json.dumps(content))
    return open_pool(DataConfig(format="coco", listing="all.json", test_fraction=0), root, seed=0, boxes=True)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "run", config={}, versions={}, seed=1, clock=lambda: 0.0) as opened:
        yield opened


def region(
    number: int, kind: str, image: str, start: tuple[int, int], stop: tuple[int, int], likely: str = "zebra"
) -> QueryRegion:
    shares = {name: 0.8 if name == likely else 0.1 for name in ("background", "zebra", "van")}
    return QueryRegion(
        id=f"r00-{number:03d}", image_id=image, kind=kind, start=start, stop=stop, score=1, seconds=9, shares=shares
    )  # fmt: skip


ASKED = (
    region(0, "box", "a", (2, 4), (10, 14)),  # a zebra, exactly
    region(1, "box", "a", (20, 30), (30, 44), "van"),  # a van, IoU 0.7
    region(2, "box", "a", (20, 34), (30, 40), "van"),  # a part of it, IoU 0.3: a second box of one object
    region(3, "box", "b", (0, 0), (9, 9)),  # nothing
    region(4, "box", "a", (31, 1), (39, 19)),  # in the crowd
    region(5, "crop", "b", (20, 40), (40, 60)),  # one van
    region(6, "image", "c", (0, 0), (40, 60)),  # nothing
    region(7, "crop", "a", (8, 0), (32, 30)),  # a quarter of the zebra, a sliver of the crowd
)
EXPECTED = [
    ([[2, 4, 10, 14, 1, OBJECT]], LOOK),
    ([[20, 30, 30, 44, 2, OBJECT]], LOOK),
    ([[20, 34, 30, 40, 2, ABSENT]], LOOK),
    ([[0, 0, 9, 9, 1, ABSENT]], LOOK),
    ([[31, 1, 39, 19, 1, IGNORED]], LOOK),
    ([[30, 50, 40, 60, 2, OBJECT]], 1 + 0.03 * 0.4 + 7),
    ([], 1 + 0.03 * 2.4),
    ([[8, 4, 10, 14, 1, OBJECT], [30, 0, 32, 20, 0, IGNORED]], 1 + 0.03 * 0.72 + 7),
]


def annotate(pool: Pool, ledger: Ledger, *asked: QueryRegion) -> None:
    query = Query(round=0, strategy="greedy", seed=1, regions=asked)
    if ledger.query(0) is None:
        ledger.record_query(query)
    again = ledger.query(0)  # as the loop does: what is asked comes from the ledger
    assert again is not None
    outcome = Oracle(COSTS, boxes=BoxRules()).annotate(again, pool=pool, ledger=ledger)
    assert (outcome.answered, outcome.open, outcome.problems) == (len(asked), 0, [])


def test_every_kind_of_answer_and_its_charge(pool: Pool, ledger: Ledger) -> None:
    annotate(pool, ledger, *ASKED)
    answers = ledger.answered()
    assert [a.region.id for a in answers] == [r.id for r in ASKED]
    for answer, (table, seconds) in zip(answers, EXPECTED, strict=True):
        assert answer.label.dtype == np.float64 and answer.label.tolist() == table, answer.region.id
        assert answer.seconds == pytest.approx(seconds), answer.region.id
        single = answer.region.kind == "box"
        drawn = None if single else sum(row[5] == OBJECT for row in table)
        assert (answer.objects, answer.boundary) == (drawn, None if single else 0)
        assert answer.area == (None if single else np.prod(answer.region.shape))
    assert [a.image_seconds for a in answers] == [5, 0, 0, 5, 0, 0, 5, 0]
    assert ledger.spent() == pytest.approx(sum(s for _, s in EXPECTED) + 15)


def test_a_look_draws_what_was_missed_and_an_empty_one_is_charged_its_search(pool: Pool, ledger: Ledger) -> None:
    """Of three vans one was predicted, and the map is high on another."""
    dense = torch.full((6, 9), 0.1)
    dense[5, 8] = 0.6
    pred = replace(boxed([10.0, 26, 20, 36], shape=(40, 60)), dense=dense)
    spec = box_spec(
        QueryConfig(kind="box", sizes=((12, 16),), per_image=12, stride=2), Header((40, 60), (1.0, 1.0), None), COSTS,
        uncertainty=UncertaintyConfig(), classes=3,
    )  # fmt: skip
    on_offer = partial(frame_offers, pred, spec, image_id="b", image=0, group=0)
    free = Regions.of([], 2)
    made = on_offer(labelled=free, blocked=free)
    chosen = acquire(made, Budget(900.0), StrategyConfig(name="greedy"), Round(0, 1, 0), quota_classes=())
    empty = Query(round=0, strategy="greedy", seed=1, regions=())
    query = query_of(empty, made[chosen.rows], chosen, ["b"] * len(chosen), pool.classes)
    assert len(query.regions) == len(made) > 3 and {r.kind for r in query.regions} == {"box", "crop"}
    annotate(pool, ledger, *query.regions)
    looked = ledger.answered(kind="crop")
    assert looked[0].region.box == ((28, 44), (40, 60)) and looked[0].label.tolist() == [[30, 50, 40, 60, 2, OBJECT]]
    assert looked[0].seconds == pytest.approx(1 + 0.03 * 0.192 + 7) and looked[0].objects == 1
    nothing = [a for a in looked if not len(a.label)]
    assert nothing and all(a.seconds == pytest.approx(1 + 0.03 * 0.192) and a.objects == 0 for a in nothing)
    labelled, blocked, judged = ground(ledger, pool)
    assert blocked == {} and set(labelled["b"]) == {r.box for r in query.regions if r.kind == "crop"}
    again = on_offer(labelled=Regions.of(labelled["b"], 2), blocked=free, judged=judged["b"])
    fresh = again.regions[~again.labelled]
    assert not fresh.overlaps(Regions.of([r.box for r in query.regions], 2)).any()
    known = labelled_images(ledger, pool)[0]
    assert set(known.kinds) == {"box", "crop"} and len(known.labels) == len(query.regions)


def test_called_again_nothing_changes(pool: Pool, ledger: Ledger) -> None:
    annotate(pool, ledger, *ASKED)
    before = ledger.spent(), [(a.region.id, a.label.tolist(), a.seconds) for a in ledger.answered()]
    annotate(pool, ledger, *ASKED)
    assert (ledger.spent(), [(a.region.id, a.label.tolist(), a.seconds) for a in ledger.answered()]) == before


def test_cut_between_two_answers_of_one_frame_nothing_changes(pool: Pool, ledger: Ledger, tmp_path: Path) -> None:
    asked = (
        region(0, "box", "b", (10, 21), (20, 31), "van"),  # the first van, IoU 9 / 11; the second, 1 / 3
        region(1, "box", "b", (10, 33), (20, 36), "van"),  # the second van, IoU 0.3
        region(2, "box", "b", (10, 20), (20, 24), "van"),  # the first van again, IoU 0.4
    )
    annotate(pool, ledger, *asked)
    whole = {a.region.id: a.label.tolist() for a in ledger.answered()}
    assert [table[0][5] for table in whole.values()] == [OBJECT, OBJECT, ABSENT]
    for done in asked:
        with Ledger.open(tmp_path / done.id, config={}, versions={}, seed=1, clock=lambda: 0.0) as other:
            other.record_query(Query(round=0, strategy="greedy", seed=1, regions=asked))
            other.record_answer(done.id, np.array(whole[done.id], np.float64), seconds=1.0, source="oracle")
            annotate(pool, other, *asked)
            assert {a.region.id: a.label.tolist() for a in other.answered()} == whole


def test_an_object_of_an_earlier_round_is_not_labelled_again(pool: Pool, ledger: Ledger, tmp_path: Path) -> None:
    part = region(0, "box", "a", (20, 34), (30, 40), "van")
    crop = region(1, "crop", "a", (0, 0), (20, 20))  # the zebra, wholly
    annotate(pool, ledger, part, crop)
    ledger.close_round(0)
    ledger.record_fit(0, FitReport(tmp_path / "run" / "w", "0" * 64, {}))
    ledger.record_measurement(0, Measurement("ap50", 0.5, {}))
    later = [
        region(0, "box", "a", (20, 30), (30, 50), "van"),
        region(1, "box", "a", (2, 4), (10, 14)),
        region(2, "box", "b", (30, 50), (40, 60), "van"),  # at its place in another frame
    ]
    later = [r.model_copy(update={"id": f"r01-{i:03d}"}) for i, r in enumerate(later)]
    query = Query(round=1, strategy="greedy", seed=1, regions=tuple(later))
    ledger.record_query(query)
    Oracle(COSTS, boxes=BoxRules()).annotate(query, pool=pool, ledger=ledger)
    first, *second = ledger.answered(kind="box")
    assert (first.label.tolist(), first.seconds) == ([[20, 30, 30, 50, 2, OBJECT]], LOOK + 7)
    assert [a.label[0, 5] for a in second] == [ABSENT, ABSENT, OBJECT] and [a.seconds for a in second] == [LOOK] * 3


def test_what_was_answered_is_what_is_learnt_from(pool: Pool, ledger: Ledger) -> None:
    know_initial(ledger, pool, [pool["c"]])
    annotate(pool, ledger, *(r for r in ASKED if r.image_id != "c"))
    found = {known.record.id: known for known in labelled_images(ledger, pool)}
    assert found["a"].kinds == ("box", "box", "box", "box", "crop") and found["b"].kinds == ("box", "crop")
    assert found["c"].kinds == ("image",) and found["c"].labels[0].shape == (0, 6)
    labelled, blocked, judged = ground(ledger, pool)
    assert labelled == {"a": [((8, 0), (32, 30))], "b": [((20, 40), (40, 60))], "c": [((0, 0), (40, 60))]}
    assert blocked == {} and {name: len(j.answered) for name, j in judged.items()} == {"a": 4, "b": 1}


def test_coordinates_are_no_classes(pool: Pool, ledger: Ledger) -> None:
    annotate(pool, ledger, *ASKED)
    assert [classes_in(a.label) for a in ledger.answered()] == [{0, 1}, {0, 2}, {0}, {0}, {0}, {0, 2}, {0}, {0, 1}]
    assert classes_in(np.array([[0, 255], [3, 3]], np.uint8)) == {0, 3}


def test_single_boxes_say_nothing_of_what_other_ground_holds(pool: Pool, ledger: Ledger) -> None:
    config = CostConfig(preset="box_clicks")
    before = CostPrior.of(config)
    annotate(pool, ledger, *ASKED[:5])
    assert CostPrior.of(config, ledger.cost_log()) == before


def test_an_image_that_nobody_has_labelled_cannot_be_answered(pool: Pool, ledger: Ledger) -> None:
    with pytest.raises(DataError, match="was asked about d, which has no labels"):
        annotate(pool, ledger, region(0, "crop", "d", (0, 0), (10, 10)))
