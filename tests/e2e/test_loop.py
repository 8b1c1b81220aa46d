"""The whole program on tiny pools: budget, order, repetition, stopping, people, growth, changed settings."""

from __future__ import annotations

import itertools
import json
import math
import os
import shlex
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dal_dense.acquire import shard_of
from dal_dense.config import StrategyName
from dal_dense.ledger import Ledger
from dal_dense.ledger_rows import Answer
from dal_dense.offer_store import OfferStore
from dal_dense.offers import Offers
from dal_dense.query import Query, QueryRegion
from dal_dense.report.words import figure
from dal_dense.results import load
from tests.e2e.command import Ended, TrainAl, batch, build_toy, draw, draw_frames, labels, main_of_script, story
from tests.toy import ToyTask
from tests.world import frame_settings, settings, write_frame, write_frames, write_volume, write_volumes

STRATEGIES = [n for n in StrategyName.__args__ if n != "ppal"]  # type: ignore[attr-defined]  # it needs objects


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Volumes that no test writes to."""
    return write_volumes(tmp_path_factory.mktemp("volumes"))


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames that no test writes to."""
    return write_frames(tmp_path_factory.mktemp("frames"))


@pytest.fixture(scope="module")
def expected(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """What an uninterrupted run of the default settings tells."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dal_dense.build.build_task", build_toy)
        patch.setattr("dal_dense.report.figures._svg", lambda *given, **more: "<svg/>")
        assert main_of_script()(settings(data, run_dir)) == 0
    return story(run_dir)


def queries(run_dir: Path) -> list[Query]:
    with Ledger.read(run_dir) as ledger:
        return ledger.queries()


def answers(run_dir: Path) -> list[Answer]:
    with Ledger.read(run_dir) as ledger:
        return ledger.answered()


def fine(ended: Ended) -> Ended:
    assert (ended.status, ended.err) == (0, ""), ended.err
    return ended


# one run


def test_a_run_records_every_round_and_the_report_agrees(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dal_dense.build.build_task", build_toy)  # here the curves are drawn too
    assert main_of_script()(settings(data, tmp_path / "run")) == 0
    assert f"report: {tmp_path / 'run' / 'report.html'}" in capsys.readouterr().out
    with Ledger.read(tmp_path / "run") as ledger:
        assert [q.round for q in ledger.queries()] == [0, 1, 2] == [f.round for f in ledger.fits()]
        assert sorted(ledger.measurements()) == [0, 1, 2] and ledger.open_regions() == []
        assert all(ledger.closed(n) for n in range(3))
        results, page = load(tmp_path / "run"), (tmp_path / "run" / "report.html").read_text()
        for told in results.rounds:
            query, measured = ledger.query(told.round), ledger.measurement(told.round)
            assert query is not None and measured is not None
            mine = ledger.answered(told.round)
            assert told.asked == len(query.regions) == told.answered == len(mine) > 0
            assert told.seconds_predicted == pytest.approx(sum(r.seconds for r in query.regions))
            assert told.seconds_charged == pytest.approx(sum(a.seconds + a.image_seconds for a in mine))
            assert told.seconds_charged_total == pytest.approx(ledger.spent(upto=told.round))
            assert told.metric == measured.value and told.per_class == measured.per_class
            assert f">{figure(told.metric)}<" in page
        assert results.seconds_charged == pytest.approx(ledger.spent()) and results.run == ledger.run_id
        last = ledger.queries()[-1]
        assert all(f"Region {r.id} of {r.image_id}" in page for r in last.regions)
        assert page.count("data:image/png;base64") == len(last.regions) and "https://" not in page


def test_the_same_seed_asks_the_same_and_another_seed_does_not(
    train_al: TrainAl, data: Path, tmp_path: Path, expected: list[object]
) -> None:
    fine(train_al(settings(data, tmp_path / "again")))
    assert story(tmp_path / "again") == expected
    fine(train_al(settings(data, tmp_path / "other", seed="1", budget__rounds="1")))
    here, there = expected[0], queries(tmp_path / "other")
    assert isinstance(here, list) and len(there) == 2
    assert all([r.box for r in a.regions] != [r.box for r in b.regions] for a, b in zip(here[:2], there, strict=True))


def test_offers_that_go_over_the_disk_ask_the_same(
    train_al: TrainAl, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: list[object]
) -> None:
    monkeypatch.setattr("dal_dense.offer_store.MANY", 7)
    stored: list[int] = []

    def seen(store: OfferStore, offers: Offers) -> None:
        stored.append(len(offers))
        append(store, offers)

    append = OfferStore.append
    monkeypatch.setattr(OfferStore, "append", seen)
    fine(train_al(settings(data, tmp_path / "run")))
    assert story(tmp_path / "run") == expected
    assert len(stored) > 3 and not (tmp_path / "run" / "offers").exists()


def test_called_again_a_finished_run_changes_nothing(
    train_al: TrainAl, data: Path, tmp_path: Path, expected: list[object]
) -> None:
    argv = settings(data, tmp_path / "run")
    fine(train_al(argv))
    fine(train_al(argv))
    assert story(tmp_path / "run") == expected


def overlap(a: QueryRegion, b: QueryRegion) -> bool:
    sides = zip(a.start, a.stop, b.start, b.stop, strict=True)
    return a.image_id == b.image_id and all(p < t and r < q for p, q, r, t in sides)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_keeps_to_its_budget_and_off_what_is_asked(
    train_al: TrainAl, data: Path, tmp_path: Path, name: str
) -> None:
    fine(train_al(settings(data, tmp_path / "run", strategy__name=name, query__max_per_image="2")))
    asked = queries(tmp_path / "run")
    assert [q.strategy for q in asked] == ["uniform", name, name]
    for query in asked:
        assert 0 < query.seconds <= 150
        assert max(sum(s.image_id == r.image_id for s in query.regions) for r in query.regions) <= 2
    every = [r for q in asked for r in q.regions]
    assert not any(overlap(a, b) for a, b in itertools.combinations(every, 2))
    assert all(tuple(b - a for a, b in zip(*r.box, strict=True)) == (6, 6, 4) for r in every)
    assert {r.image_id for r in every} <= {f"case_{i:02d}" for i in range(4)}  # none of the test images


def test_labelled_images_are_never_asked(train_al: TrainAl, data: Path, tmp_path: Path) -> None:
    known = {"annotator__initial_masks": "[case_00, case_02]", "budget__start_seconds": "0"}
    ended = fine(train_al(settings(data, tmp_path / "run", **known)))
    assert "masks from the start: 2 images" in ended.out
    asked = queries(tmp_path / "run")
    assert [len(q.regions) > 0 for q in asked] == [False, True, True]
    assert {r.image_id for q in asked for r in q.regions} <= {"case_01", "case_03"}
    with Ledger.read(tmp_path / "run") as ledger:
        assert ledger.spent(upto=0) == 0 and ledger.fit(0) is not None


@pytest.mark.parametrize("name", ["uniform", "hybrid"])
def test_labelled_images_outside_the_sample_still_count_as_labelled(
    train_al: TrainAl, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    seen: list[tuple[int, int, int]] = []  # labelled rows, and images that may be asked and that are known

    def spy(choose: Callable[..., object], offers: Offers, *args: object, **options: object) -> object:
        mine, known = offers.image[~offers.labelled].unique(), offers.image[offers.labelled].unique()
        seen.append((int(offers.labelled.sum()), len(mine), len(known)))
        return choose(offers, *args, **options)

    monkeypatch.setattr("dal_dense.pool_shards.shard_of", partial(spy, shard_of))
    fine(train_al(settings(data, tmp_path / "run", strategy__name=name, query__scan_images="1")))
    asked = queries(tmp_path / "run")
    for number, (rows, open_images, known_images) in enumerate(seen):
        before = [r for q in asked[:number] for r in q.regions]
        assert rows == len(before) and known_images == len({r.image_id for r in before})
        assert open_images == 1  # the sample
    assert len(seen) == 3 and len({r.image_id for q in asked for r in q.regions}) > 1


def test_all_masks_that_are_there_start_a_run_of_people(train_al: TrainAl, tmp_path: Path) -> None:
    root = write_volumes(tmp_path / "data")
    listing = json.loads((root / "dataset.json").read_text())
    for pair in listing["training"][2:]:
        del pair["label"]
    (root / "dataset.json").write_text(json.dumps(listing))
    start = {"annotator__initial_masks": "all", "budget__start_seconds": "0", "annotator__name": "people"}
    ended = fine(train_al(settings(root, tmp_path / "run", **start)))
    with Ledger.read(tmp_path / "run") as ledger:
        assert [i.image_id for i in ledger.initial()] == ["case_00", "case_01"]
        assert sorted(ledger.measurements()) == [0] and ledger.spent() == 0
        assert set() < {r.image_id for r in ledger.open_regions()} <= {"case_02", "case_03"}
    assert str(batch(tmp_path / "run", 1)) in ended.out


@pytest.mark.parametrize(("kind", "side"), [("crop", (6, 6, 4)), ("slice", (14, 12, 1)), ("image", (14, 12, 10))])
def test_kinds_of_regions_in_volumes(
    train_al: TrainAl, data: Path, tmp_path: Path, kind: str, side: tuple[int, ...]
) -> None:
    wide = {"budget__start_seconds": "60", "budget__seconds_per_round": "300", "budget__rounds": "1"}
    fine(train_al(settings(data, tmp_path / "run", query__kind=kind, **wide)))
    every = [r for q in queries(tmp_path / "run") for r in q.regions]
    assert {r.kind for r in every} == {kind} and {r.shape for r in every} == {side}
    assert not any(overlap(a, b) for a, b in itertools.combinations(every, 2))


@pytest.mark.parametrize(("kind", "side"), [("crop", (8, 10)), ("image", (24, 32))])
def test_kinds_of_regions_in_frames(
    train_al: TrainAl, frames: Path, tmp_path: Path, kind: str, side: tuple[int, ...]
) -> None:
    wide = {"budget__start_seconds": "40", "budget__seconds_per_round": "400", "budget__rounds": "1"}
    fine(train_al(frame_settings(frames, tmp_path / "run", query__kind=kind, **wide)))
    every = [r for q in queries(tmp_path / "run") for r in q.regions]
    assert {r.kind for r in every} == {kind} and {r.shape for r in every} == {side}
    assert load(tmp_path / "run").measured[-1].metric is not None


def test_slices_of_frames_are_refused(train_al: TrainAl, frames: Path, tmp_path: Path) -> None:
    ended = train_al(frame_settings(frames, tmp_path / "run", query__kind="slice"))
    assert ended.status == 2 and ended.err.startswith("query.kind slice needs volumes") and ended.err.count("\n") == 1


# the charge


def pieces(drawn: np.ndarray) -> int:
    """Connected pieces of a 2-D mask, corners touch; by flood fill."""
    left, found = set(map(tuple, np.argwhere(drawn).tolist())), 0
    while left:
        found, waiting = found + 1, [left.pop()]
        while waiting:
            i, j = waiting.pop()
            for near in itertools.product((i - 1, i, i + 1), (j - 1, j, j + 1)):
                if near in left:
                    left.remove(near)
                    waiting.append(near)
    return found


def true_seconds(label: np.ndarray) -> float:
    """The preset ct_contour on a crop of voxels of 2 x 2 x 3 mm, counted edge by edge."""
    edges = objects = 0
    for k in range(label.shape[2]):
        plane = label[:, :, k]
        edges += int((plane[1:] != plane[:-1]).sum() + (plane[:, 1:] != plane[:, :-1]).sum())
        objects += sum(pieces(plane == c) for c in (1, 2))
    return 5 + 0.05 * (label.size * 4 / 1000) + 0.23 * (edges * 2 * math.pi / 4) + 5 * objects


def test_the_ledger_is_charged_for_the_truth(train_al: TrainAl, data: Path, tmp_path: Path) -> None:
    fine(train_al(settings(data, tmp_path / "run")))
    opened: set[tuple[int, str]] = set()
    empty = drawn = 0
    for answer in answers(tmp_path / "run"):
        image = answer.region.image_id
        mask = np.asarray(nib.load(data / "labelsTr" / f"{image}.nii.gz").dataobj)
        truth = mask[tuple(slice(a, b) for a, b in zip(*answer.region.box, strict=True))]
        np.testing.assert_array_equal(answer.label, truth)
        assert answer.seconds == pytest.approx(true_seconds(truth), rel=1e-5)
        assert answer.image_seconds == (0 if (answer.round, image) in opened else 15)
        opened.add((answer.round, image))
        empty, drawn = empty + (not truth.any()), drawn + bool(truth.any())
    assert empty and drawn


def test_the_truth_moves_no_choice_of_the_start_set(train_al: TrainAl, tmp_path: Path) -> None:
    root = write_volumes(tmp_path / "data")
    fine(train_al(settings(root, tmp_path / "one", budget__rounds="1")))
    for i in range(4):  # other truth: everything is ball
        path = root / "labelsTr" / f"case_{i:02d}.nii.gz"
        mask = nib.load(path)
        nib.save(nib.Nifti1Image(np.ones(mask.shape, np.uint8), mask.affine), path)
    fine(train_al(settings(root, tmp_path / "two", budget__rounds="1")))
    one, two = queries(tmp_path / "one"), queries(tmp_path / "two")
    assert one[0] == two[0] and one[1] != two[1]
    assert [a.seconds for a in answers(tmp_path / "one")] != [a.seconds for a in answers(tmp_path / "two")]


@pytest.mark.parametrize("total", [330.0, 400.0])
def test_the_budget_of_the_run_ends_it(train_al: TrainAl, data: Path, tmp_path: Path, total: float) -> None:
    """Also when what is left (of 330: some seconds) buys no region any more."""
    argv = settings(data, tmp_path / "run", budget__rounds="9", budget__total_seconds=str(total))
    ended = fine(train_al(argv))
    assert "the budget is spent" in ended.out
    with Ledger.read(tmp_path / "run") as ledger:
        rounds, spent = len(ledger.queries()), ledger.spent()
        assert 1 <= rounds < 9 and sorted(ledger.measurements()) == list(range(rounds)) and spent > total - 30
        for query in ledger.queries()[1:]:
            assert query.seconds <= total - ledger.spent(upto=query.round - 1)
    fine(train_al(settings(data, tmp_path / "run", budget__rounds="9", budget__total_seconds=str(total + 150))))
    assert len(queries(tmp_path / "run")) > rounds


# stopping, and two at once


def at_once(monkeypatch: pytest.MonkeyPatch, step: str, number: int, *signals: signal.Signals) -> None:
    """Send signals to this process at the `number`-th call of one of the task's methods."""
    whole, calls = getattr(ToyTask, step), itertools.count(1)

    def method(self: ToyTask, *args: object, **kwargs: object) -> object:
        if next(calls) == number:
            for which in signals:
                os.kill(os.getpid(), which)
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(ToyTask, step, method)


@pytest.mark.parametrize(
    ("step", "number", "signals"),
    [
        ("fit", 1, [signal.SIGINT]),
        ("fit", 2, [signal.SIGTERM]),
        ("evaluate", 1, [signal.SIGINT]),
        ("offers", 6, [signal.SIGINT]),
        ("propose", 1, [signal.SIGTERM]),
        ("evaluate", 2, [signal.SIGINT, signal.SIGINT]),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_end(
    train_al: TrainAl,
    data: Path,
    tmp_path: Path,
    expected: list[object],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    number: int,
    signals: list[signal.Signals],
) -> None:
    argv, before = settings(data, tmp_path / "run"), signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        at_once(patch, step, number, *signals)
        ended = train_al(argv)
    assert ended.status == 130
    assert ended.err == "stopped; all that was recorded is safe. Run the same command to go on.\n"
    assert "stopping at the next safe point" in ended.out
    assert signal.getsignal(signal.SIGINT) is before
    kept = labels(tmp_path / "run")
    assert kept and story(tmp_path / "run") != expected
    fine(train_al(argv))
    assert story(tmp_path / "run") == expected
    assert kept.items() <= labels(tmp_path / "run").items()


def test_a_second_process_on_the_run_is_refused(
    train_al: TrainAl, data: Path, tmp_path: Path, expected: list[object]
) -> None:
    argv = settings(data, tmp_path / "run")
    fine(train_al([*argv, "--budget.rounds=1"]))
    before = story(tmp_path / "run")
    with Ledger.read(tmp_path / "run") as ledger:
        config, seed = ledger.config, ledger.seed
        versions = ledger.events("versions")[-1]
    with Ledger.open(tmp_path / "run", config=config, versions=versions, seed=seed, clock=lambda: 0.0):
        ended = train_al(argv)
    assert ended.status == 1 and ended.err.count("\n") == 1
    assert f"{tmp_path / 'run'}: another process (pid {os.getpid()} on " in ended.err
    assert "is running this run; wait for it, stop it, or use another run_dir" in ended.err
    assert story(tmp_path / "run") == before
    fine(train_al(argv))
    assert story(tmp_path / "run") == expected


# settings that change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": "4"}, "seed: 0 -> 4"),
        ({"strategy__name": "random"}, 'strategy.name: "hybrid" -> "random"'),
        ({"query__sizes": "[[5, 5, 4]]"}, "query.sizes: [[6, 6, 4]] -> [[5, 5, 4]]"),
        ({"costs__image_seconds": "1"}, "costs.image_seconds: null -> 1.0"),
    ],
)
def test_changed_settings_are_refused_and_named(
    train_al: TrainAl, data: Path, tmp_path: Path, change: dict[str, str], named: str
) -> None:
    fine(train_al(settings(data, tmp_path / "run", budget__rounds="1")))
    before = story(tmp_path / "run")
    ended = train_al(settings(data, tmp_path / "run", **change))
    assert ended.status == 1 and named in ended.err.replace(", ", ", ")
    assert "use a new run_dir for the new settings, or go on with the old ones: " in ended.err
    assert story(tmp_path / "run") == before
    back = shlex.split(ended.err.split("go on with the old ones: ")[1])
    fine(train_al([*settings(data, tmp_path / "run", budget__rounds="1", **change), *back]))


def test_harmless_changes_are_accepted_and_recorded(train_al: TrainAl, data: Path, tmp_path: Path) -> None:
    fine(train_al(settings(data, tmp_path / "run", budget__rounds="1")))
    moved = tmp_path / "elsewhere"
    moved.symlink_to(data)
    more = {"budget__rounds": "2", "device": "cpu", "annotator__proceed_at": "0.5", "budget__seconds_per_round": "120"}
    fine(train_al(settings(moved, tmp_path / "run", **more)))
    with Ledger.read(tmp_path / "run") as ledger:
        changed = ledger.events("settings")[-1]["changed"]
        assert set(changed) == {"data_root", *(k.replace("__", ".") for k in more)}
        assert ledger.round == 3 and ledger.queries()[2].seconds <= 120


@pytest.mark.parametrize("rounds", ["1", "2"])  # with a round left to ask, and with nothing left to do
def test_other_volumes_under_the_same_ids_are_refused_and_leave_no_trace(
    train_al: TrainAl, data: Path, tmp_path: Path, expected: list[object], rounds: str
) -> None:
    argv = settings(data, tmp_path / "run")
    fine(train_al([*argv, f"--budget.rounds={rounds}"]))
    other = write_volumes(tmp_path / "other", shape=(15, 12, 10))  # larger: every region lies inside
    with Ledger.read(tmp_path / "run") as ledger:
        before, asked = ledger.history(), {r.image_id for q in ledger.queries() for r in q.regions}
    ended = train_al([*argv, f"--data_root={other}"])
    assert ended.status == 1 and len(asked) == 4
    lines = [
        f"{other}/imagesTr/case_{i:02d}.nii.gz: holds 15 x 12 x 10 voxels, but this run asked it at 14 x 12 x 10"
        for i in range(3)
    ]
    remedy = "and 1 other image; give the data the run was begun with (data_root), or begin a new run_dir"
    assert ended.err.splitlines() == [*lines, remedy]
    with Ledger.read(tmp_path / "run") as ledger:
        assert ledger.history() == before
    fine(train_al(argv))
    assert story(tmp_path / "run") == expected


def test_other_frames_under_the_same_ids_are_refused(train_al: TrainAl, frames: Path, tmp_path: Path) -> None:
    fine(train_al(frame_settings(frames, tmp_path / "run", budget__rounds="1")))
    before = story(tmp_path / "run")
    other = write_frames(tmp_path / "other", shape=(32, 24))
    ended = train_al(frame_settings(other, tmp_path / "run"))
    assert ended.status == 1 and "holds 32 x 24 pixels, but this run asked it at 24 x 32" in ended.err
    assert story(tmp_path / "run") == before


# a pool that grows


def test_new_files_join_between_rounds_and_are_recorded(train_al: TrainAl, tmp_path: Path) -> None:
    root = write_frames(tmp_path / "data")
    argv = frame_settings(root, tmp_path / "run", strategy__name="greedy", query__max_per_image="1")
    rich = ["--budget.start_seconds=2000", "--budget.seconds_per_round=2000"]
    fine(train_al([*argv, *rich, "--budget.rounds=1"]))
    with Ledger.read(tmp_path / "run") as ledger:
        begun = ledger.events("pool")[0]
    open_drive = next(i for i in begun["train"])[:6]
    for i in (90, 91):
        write_frame(root, f"{open_drive}_{i}", i)
    held_out = next(iter(begun["test"]))[:6]
    write_frame(root, f"{held_out}_92", 92)  # of a drive that measures: it must stay out
    ended = fine(train_al([*argv, *rich]))
    joined = [f"{open_drive}_90", f"{open_drive}_91"]
    with Ledger.read(tmp_path / "run") as ledger:
        assert [e["images"] for e in ledger.events("grown")] == [joined]
        asked = {r.image_id for r in ledger.queries()[2].regions}
        assert set(joined) <= asked and f"{held_out}_92" not in asked
    assert "2 new images joined the pool" in ended.out
    fine(train_al([*argv, *rich, "--budget.rounds=3"]))
    with Ledger.read(tmp_path / "run") as ledger:
        assert [e["images"] for e in ledger.events("grown")] == [joined]  # once


def test_new_files_join_while_it_runs(train_al: TrainAl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_volumes(tmp_path / "data")
    whole = ToyTask.evaluate

    def evaluate(self: ToyTask, *args: object, **kwargs: object) -> object:
        if not (root / "imagesTr" / "case_77.nii.gz").exists():
            write_volume(root, "case_77", 77, (14, 12, 10))
            listing = json.loads((root / "dataset.json").read_text())
            new = {"image": "imagesTr/case_77.nii.gz", "label": "labelsTr/case_77.nii.gz"}
            listing["training"].append(new)
            (root / "dataset.json").write_text(json.dumps(listing))
        return whole(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(ToyTask, "evaluate", evaluate)
    fair = {"query__max_per_image": "1", "strategy__name": "uniform"}  # a new image is asked at once
    ended = fine(train_al(settings(root, tmp_path / "run", **fair)))
    assert "1 new images joined the pool" in ended.out
    with Ledger.read(tmp_path / "run") as ledger:
        assert ledger.events("grown") == [{"images": ["case_77"]}]
        assert "case_77" in {r.image_id for r in ledger.queries()[1].regions}


# people


@pytest.fixture
def people(data: Path, tmp_path: Path) -> Iterator[list[str]]:
    yield settings(data, tmp_path / "run", annotator__name="people")


def test_people_are_waited_for_and_believed_once(
    train_al: TrainAl, people: list[str], data: Path, tmp_path: Path
) -> None:
    run_dir, folder = tmp_path / "run", batch(tmp_path / "run", 0)
    asked = fine(train_al(people))
    assert f"the batch lies in {folder}; its README.txt says how" in asked.out
    assert f"put the labels into {folder / 'returned'} and call the same command again" in asked.out
    assert (folder / "README.txt").is_file() and (run_dir / "report.html").is_file() and labels(run_dir) == {}
    count = len(queries(run_dir)[0].regions)

    first = draw(data, folder, [0, 2])  # a part of it
    partly = fine(train_al(people))
    assert f"2 new labels taken, {count - 2} of {count} regions still open" in partly.out
    kept = labels(run_dir)
    assert list(kept) == first

    before = story(run_dir)
    assert "0 new labels taken" in fine(train_al(people)).out  # the same return again
    assert story(run_dir) == before

    draw(data, folder, [0], wrong=True)  # a conflict
    clash = fine(train_al(people))
    assert f"warning: {folder / 'returned' / first[0]}.nii.gz: region {first[0]} is answered already" in clash.out
    assert "The first answer stays" in clash.out and labels(run_dir) == kept
    with Ledger.read(run_dir) as ledger:
        assert [c.region_id for c in ledger.conflicts()] == [first[0]]
        assert ledger.fits() == [] and not ledger.closed(0)

    draw(data, folder)  # everything
    assert "returned" in fine(train_al(people)).out
    with Ledger.read(run_dir) as ledger:
        assert ledger.closed(0) and len(ledger.answered(0)) == count and ledger.round == 1
        assert len(ledger.open_regions(1)) == len(ledger.queries()[1].regions) > 0
    assert kept.items() <= labels(run_dir).items()
    proposals = json.loads((batch(run_dir, 1) / "query.json").read_text())
    assert proposals["model_sha256"] and all("proposal" in r["files"] for r in proposals["regions"])
    for number in (1, 2):
        draw(data, batch(run_dir, number))
        done = fine(train_al(people))
    with Ledger.read(run_dir) as ledger:
        assert sorted(ledger.measurements()) == [0, 1, 2] and ledger.open_regions() == []
        assert {a.source for a in ledger.answered()} == {"people"}
    assert f"report: {run_dir / 'report.html'}" in done.out


def test_people_and_oracle_who_agree_teach_the_same(
    train_al: TrainAl, people: list[str], data: Path, tmp_path: Path, expected: list[object]
) -> None:
    """Exported, drawn in another program and read back: the very labels that the oracle gives, and their charge."""
    fine(train_al(people))
    for number in range(3):
        draw(data, batch(tmp_path / "run", number))
        fine(train_al(people))
    *told, spent = story(tmp_path / "run")
    assert told == expected[:-1] and spent == pytest.approx(expected[-1])  # summed in another order


def test_frames_go_out_and_come_back(train_al: TrainAl, frames: Path, tmp_path: Path) -> None:
    argv = frame_settings(frames, tmp_path / "run", annotator__name="people", budget__rounds="1")
    fine(train_al(argv))
    for number in range(2):
        draw_frames(frames, batch(tmp_path / "run", number))
        fine(train_al(argv))
    fine(train_al(frame_settings(frames, tmp_path / "oracle", budget__rounds="1")))
    *here, spent = story(tmp_path / "run")
    *there, charged = story(tmp_path / "oracle")
    assert here == there and spent == pytest.approx(charged)  # summed in another order


def test_with_a_part_of_the_round_it_proceeds_and_takes_late_labels(
    train_al: TrainAl, people: list[str], data: Path, tmp_path: Path
) -> None:
    argv, run_dir = [*people, "--annotator.proceed_at=0.5"], tmp_path / "run"
    fine(train_al(argv))
    count = len(queries(run_dir)[0].regions)
    draw(data, batch(run_dir, 0), range(-(-count // 2)))
    went_on = fine(train_al(argv))
    late = count - -(-count // 2)
    assert f"{late} regions of earlier rounds still open; labels for them are welcome" in went_on.out
    with Ledger.read(run_dir) as ledger:
        assert ledger.closed(0) and len(ledger.open_regions(0)) == late and ledger.round == 1
        blocked, now = ledger.open_regions(0), ledger.queries()[1].regions
        assert not any(overlap(a, b) for a in blocked for b in now)  # what is still out is not asked again
    draw(data, batch(run_dir, 0))
    taken = fine(train_al(argv))
    assert f"{late} new labels taken" in taken.out
    with Ledger.read(run_dir) as ledger:
        assert ledger.open_regions(0) == [] and {a.arrived for a in ledger.answered(0)} == {0, 1}
        assert ledger.round == 1  # late labels of round 0 do not answer round 1
    draw(data, batch(run_dir, 1))
    fine(train_al(argv))
    with Ledger.read(run_dir) as ledger:
        assert ledger.round == 2 and ledger.spent(upto=1) > ledger.spent(upto=0)


def test_labels_that_come_after_the_last_round_are_kept(
    train_al: TrainAl, people: list[str], data: Path, tmp_path: Path
) -> None:
    argv, run_dir = [*people, "--annotator.proceed_at=0.5", "--budget.rounds=1"], tmp_path / "run"
    for number in range(2):
        fine(train_al(argv))
        draw(data, batch(run_dir, number), range(-(-len(queries(run_dir)[number].regions) // 2)))
    fine(train_al(argv))
    before = load(run_dir)
    with Ledger.read(run_dir) as ledger:
        assert ledger.round == 2 and len(ledger.open_regions()) > 0
    for number in range(2):
        draw(data, batch(run_dir, number))
    fine(train_al(argv))
    with Ledger.read(run_dir) as ledger:
        assert ledger.open_regions() == [] and len(ledger.answered()) == sum(len(q.regions) for q in ledger.queries())
        assert len(ledger.fits()) == 2
    assert load(run_dir).seconds_charged > before.seconds_charged
    fine(train_al(argv))


def test_a_pool_that_is_used_up_ends_the_run_well(train_al: TrainAl, data: Path, tmp_path: Path) -> None:
    argv = settings(data, tmp_path / "run", budget__rounds="9", budget__seconds_per_round="100000", query__kind="image")
    ended = fine(train_al(argv))
    assert "nothing is left to ask: of " in ended.out and "choose smaller query.sizes" in ended.out


def test_what_a_person_may_take_for_a_mistake_is_explained(train_al: TrainAl, data: Path, tmp_path: Path) -> None:
    argv = settings(
        data, tmp_path / "run", budget__rounds="1", budget__seconds_per_round="100000", query__sizes="[[99, 4, 4]]"
    )
    ended = fine(train_al(argv))
    told = "no other region on offer fits beside those chosen and the labelled ground (query.sizes, query.per_image)"
    assert told in ended.out
    assert "query.sizes: [99, 4, 4] is larger than " in ended.out
    with Ledger.read(tmp_path / "run") as ledger:
        assert {r.image_id for q in ledger.queries() for r in q.regions} == {f"case_{i:02d}" for i in range(4)}
        assert len(ledger.measurements()) == len(ledger.queries())
