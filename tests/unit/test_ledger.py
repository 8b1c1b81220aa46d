"""The ledger: what was recorded is there, whatever happens; what differs is refused, never overwritten."""

import json
import math
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dal_dense.errors import LabelError, LedgerError
from dal_dense.ledger import Ledger
from dal_dense.ledger_rows import figures, pack, to_json, unpack
from dal_dense.query import Query, QueryRegion
from dal_dense.tasks.base import IGNORE, FitReport, Measurement

CONFIG: dict[str, Any] = {"seed": 7, "device": "cpu", "query": {"stride": 1, "kind": "crop"}, "budget": {"rounds": 2}}
VERSIONS = {"torch": "2.15"}


def begin(run_dir: Path, **changes: Any) -> Ledger:
    given: dict[str, Any] = {"config": CONFIG, "versions": VERSIONS, "seed": 7, "clock": time.time} | changes
    return Ledger.open(run_dir, **given)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with begin(tmp_path) as opened:
        yield opened


def region(name: str, image: str = "a", start: tuple[int, ...] = (2, 3), **more: Any) -> QueryRegion:
    stop = tuple(a + 4 for a in start)
    values: dict[str, Any] = {"score": 0.1, "seconds": 10.0, "boundary": 5.5, "objects": 1.25} | more
    return QueryRegion(id=name, image_id=image, kind="crop", start=start, stop=stop, **values)


def asks(round: int, *regions: QueryRegion, strategy: str = "hybrid") -> Query:
    return Query(round=round, strategy=strategy, seed=2**62 + 1, regions=regions)


def filled(value: int) -> np.ndarray:
    return np.full((4, 4), value, np.uint8)


def report(run_dir: Path, sha: str = "0" * 64) -> FitReport:
    return FitReport(weights=run_dir / "models" / "r0", sha256=sha, figures={"loss": 0.25, "ece_before": math.nan})


MEASURED = Measurement(metric="dice", value=0.5, per_class={"liver": 0.5, "spleen": math.nan}, extra={"ece": 0.1})


def whole_round(ledger: Ledger, round: int, *regions: QueryRegion) -> None:
    ledger.record_query(asks(round, *regions))
    for each in regions:
        ledger.record_answer(each.id, filled(1), seconds=3.0, source="oracle")
    ledger.close_round(round)
    ledger.record_fit(round, report(ledger.run_dir))
    ledger.record_measurement(round, MEASURED)


# -- the run ---------------------------------------------------------------------------------------


def test_the_files_are_written_durably(ledger: Ledger) -> None:
    db = ledger._store.db
    assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert db.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
    assert db.execute("PRAGMA foreign_keys").fetchone()[0] == 1
    assert db.execute("PRAGMA user_version").fetchone()[0] == 1


def test_a_run_keeps_its_id_seed_and_settings(tmp_path: Path) -> None:
    with begin(tmp_path) as first:
        identity, child = first.run_id, first.seed_for("fit", 3)
    with begin(tmp_path) as again:
        assert (again.run_id, again.seed, again.config) == (identity, 7, CONFIG)
        assert again.seed_for("fit", 3) == child != again.seed_for("fit", 4)
        assert again.history() == [e for e in again.history() if e.kind == "versions"]
    with begin(tmp_path / "other") as other:
        assert other.run_id != identity


def test_before_anything_is_asked_all_settings_but_the_data_may_change(tmp_path: Path) -> None:
    begin(tmp_path).close()
    other = CONFIG | {"query": {"stride": 2, "kind": "slice"}}
    with begin(tmp_path, config=other) as ledger:
        assert ledger.config == other
    with pytest.raises(LedgerError, match=r"data\.format: "):
        begin(tmp_path, config=other | {"data": {"format": "msd"}})
    with begin(tmp_path, config=other) as ledger:
        ledger.record_query(asks(0, region("r0")))
    with pytest.raises(LedgerError, match=r"query\.stride: 2 -> 1"):
        begin(tmp_path)


def test_other_settings_are_refused_and_all_named(tmp_path: Path) -> None:
    with begin(tmp_path) as ledger:
        ledger.record_query(asks(0, region("r0")))
    other = CONFIG | {"query": {"stride": 2, "kind": "slice"}}
    with pytest.raises(LedgerError) as refused:
        begin(tmp_path, config=other)
    text = str(refused.value)
    assert "query.stride: 1 -> 2" in text and 'query.kind: "crop" -> "slice"' in text
    assert "--query.stride=1" in text and "new run_dir" in text and str(tmp_path) in text
    with pytest.raises(LedgerError, match="device_count: "):  # a harmless name is not a prefix
        begin(tmp_path, config=CONFIG | {"device_count": 2})
    with pytest.raises(LedgerError, match="seed 7, not 8"):
        begin(tmp_path, seed=8)
    begin(tmp_path).close()  # a refusal lets go of the run


def test_harmless_settings_may_change_and_are_recorded(tmp_path: Path) -> None:
    begin(tmp_path).close()
    longer = CONFIG | {"device": "cuda", "budget": {"rounds": 9}, "annotator": {"name": "people"}}
    with begin(tmp_path, config=longer) as ledger:
        assert ledger.config == longer
        changed = ledger.events("settings")[0]["changed"]
        assert changed["budget.rounds"] == ["2", "9"] and len(changed) == 3
    with begin(tmp_path, config=longer) as ledger:
        assert len(ledger.events("settings")) == 1


def test_new_versions_are_recorded_once(tmp_path: Path) -> None:
    for torch in ("1", "1", "2", "1"):
        with begin(tmp_path, versions={"torch": torch}) as ledger:
            found = [v["torch"] for v in ledger.events("versions")]
    assert found == ["1", "2", "1"]


# -- rounds ----------------------------------------------------------------------------------------


def test_a_query_comes_back_bit_for_bit(ledger: Ledger) -> None:
    odd = region("r00-0", score=1 / 3, seconds=0.1 + 0.2, shares={"b": 0.25, "a": 1e-17})
    query = asks(0, odd, region("r00-1", "b"))
    assert ledger.record_query(query, seconds_to_choose=2.5)
    assert ledger.query(0) == query and ledger.queries() == [query] and ledger.query(1) is None
    assert not ledger.record_query(query, seconds_to_choose=9.0)
    assert ledger.seconds_to_choose(0) == 2.5
    for other in (asks(0, region("r00-0")), asks(0, *query.regions, strategy="random"), asks(0, *query.regions[::-1])):
        with pytest.raises(LedgerError, match="frozen"):
            ledger.record_query(other)
    assert ledger.query(0) == query


def test_a_score_may_be_nan_or_infinite(ledger: Ledger) -> None:
    query = asks(0, region("a", score=float("nan")), region("b", score=math.inf))  # not the object math.nan
    ledger.record_query(query)
    assert not ledger.record_query(query)
    back = ledger.queries()[0]
    assert math.isnan(back.regions[0].score) and back.regions[1].score == math.inf


def test_an_id_is_used_once(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="id x is taken"):
        ledger.record_query(asks(0, region("x"), region("x", "b")))
    assert ledger.query(0) is None
    whole_round(ledger, 0, region("x"))
    with pytest.raises(LedgerError, match="id x is taken"):
        ledger.record_query(asks(1, region("x", "b")))


def test_a_round_runs_in_order(ledger: Ledger, tmp_path: Path) -> None:
    steps: list[tuple[Callable[[], object], str]] = [
        (lambda: ledger.record_query(asks(0, region("r"))), "cannot be closed"),
        (lambda: ledger.close_round(0), "cannot be fitted"),
        (lambda: ledger.record_fit(0, report(tmp_path)), "cannot be measured"),
        (lambda: ledger.record_measurement(0, MEASURED), "round 1 cannot ask"),
    ]
    too_soon: list[Callable[[], object]] = [*(step for step, _ in steps[1:]), lambda: ledger.record_query(asks(1))]
    for (step, words), early in zip(steps, too_soon, strict=True):
        with pytest.raises(LedgerError, match=words):
            early()
        assert ledger.round == 0
        assert step() is not False and step() is False  # recorded once; again changes nothing
    assert ledger.round == 1 and ledger.closed(0) and not ledger.closed(1)
    ledger.record_query(asks(1))
    assert ledger.round == 1


def test_a_fit_and_a_measurement_come_back(ledger: Ledger, tmp_path: Path) -> None:
    whole_round(ledger, 0)
    fitted = ledger.fit(0)
    assert fitted is not None and fitted.folder == "models/r0" and fitted.weights == (tmp_path / "models/r0").resolve()
    assert fitted.figures["loss"] == 0.25 and math.isnan(fitted.figures["ece_before"])
    measured = ledger.measurement(0)
    assert measured is not None and list(ledger.measurements()) == [0] and ledger.measurement(1) is None
    assert (measured.metric, measured.value, measured.extra) == ("dice", 0.5, {"ece": 0.1})
    assert measured.per_class["liver"] == 0.5 and math.isnan(measured.per_class["spleen"])
    with pytest.raises(LedgerError, match="other weights"):
        ledger.record_fit(0, report(tmp_path, "1" * 64))
    with pytest.raises(LedgerError, match="other figures"):
        ledger.record_measurement(0, Measurement("dice", 0.6, {}))


def test_weights_lie_inside_the_run(ledger: Ledger, tmp_path: Path) -> None:
    ledger.record_query(asks(0))
    ledger.close_round(0)
    with pytest.raises(LedgerError, match="inside run_dir"):
        ledger.record_fit(0, report(tmp_path.parent))


# -- answers ---------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=3, max_side=9)), st.booleans())
def test_any_label_comes_back_as_it_was(label: np.ndarray, transposed: bool) -> None:
    label = label.T if transposed else label  # memory order must not matter
    db = sqlite3.connect(":memory:")
    db.row_factory = sqlite3.Row
    row = db.execute("SELECT ? AS shape, ? AS dtype, ? AS label", pack(label)).fetchone()
    db.close()
    back = unpack(row, "test")
    assert back.dtype == np.uint8 and back.shape == label.shape and (back == label).all() and back.flags.writeable


def test_an_answer_keeps_label_and_cost(ledger: Ledger) -> None:
    ledger.record_query(asks(0, region("r0"), region("r1", "b")))
    label = np.arange(16, dtype=np.int64).reshape(4, 4).T
    label[0, 0] = IGNORE
    assert ledger.record_answer(
        "r0",
        label,
        seconds=12.0,
        image_seconds=4.0,
        source="people",
        boundary=8.0,
        objects=2.0,
        area=16.0,
        note="hi",
        n_classes=16,
    )
    assert [r.id for r in ledger.open_regions()] == ["r1"]
    assert [r.id for r in ledger.answered_regions()] == ["r0"]
    (answer,) = ledger.answered()
    assert (answer.label == label).all() and answer.label.dtype == np.uint8 and answer.region.id == "r0"
    assert (answer.round, answer.arrived, answer.source, answer.note, answer.area) == (0, 0, "people", "hi", 16.0)
    (cost,) = ledger.cost_log()
    assert (cost.predicted_seconds, cost.charged_seconds, cost.image_seconds) == (10.0, 16.0, 4.0)
    assert (cost.predicted_boundary, cost.boundary, cost.predicted_objects, cost.objects) == (5.5, 8.0, 1.25, 2.0)
    assert ledger.spent() == 16.0


def test_the_same_return_twice_changes_nothing(ledger: Ledger) -> None:
    ledger.record_query(asks(0, region("r0")))
    assert ledger.record_answer("r0", filled(1), seconds=5.0, source="people")
    assert not ledger.record_answer("r0", filled(1).astype(np.int16), seconds=50.0, source="people")
    assert ledger.spent() == 5.0 and len(ledger.answered()) == 1 and ledger.conflicts() == []


def test_a_different_return_is_kept_apart_and_refused(ledger: Ledger) -> None:
    ledger.record_query(asks(0, region("r0")))
    ledger.record_answer("r0", filled(1), seconds=5.0, source="people")
    other = filled(1)
    other[1, 2] = 3
    for _ in range(2):
        with pytest.raises(LabelError, match=r"r0.* 1 of 16 voxels differ, first at \(3, 5\).*recorded 1, returned 3"):
            ledger.record_answer("r0", other, seconds=6.0, source="people", note="Ann")
    (conflict,) = ledger.conflicts()
    assert (conflict.label == other).all() and conflict.note == "Ann"
    assert (ledger.answered()[0].label == 1).all() and ledger.spent() == 5.0


@pytest.mark.parametrize(
    ("name", "label", "words"),
    [
        ("r9", filled(0), "never asked"),
        ("../r0", filled(0), "never asked"),
        ("r0", np.zeros((4, 5), np.uint8), r"shape \(4, 5\), the region \(4, 4\)"),
        ("r0", np.zeros((4, 4), np.float32), "type float32"),
        ("r0", filled(3), r"16 voxels hold \[3\], outside the classes 0..2 and 255"),
        ("r0", np.full((4, 4), -1, np.int16), "outside the classes"),
        ("r0", np.full((4, 4), 256, np.uint16), "outside the classes"),
    ],
)
def test_a_label_that_does_not_fit_is_refused(ledger: Ledger, name: str, label: np.ndarray, words: str) -> None:
    ledger.record_query(asks(0, region("r0")))
    with pytest.raises(LabelError, match=words):
        ledger.record_answer(name, label, seconds=1.0, source="people", n_classes=3)
    assert ledger.answered() == [] and len(ledger.open_regions()) == 1


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf])
def test_time_is_a_number(ledger: Ledger, seconds: float) -> None:
    ledger.record_query(asks(0, region("r0")))
    with pytest.raises(LabelError, match="s of work"):
        ledger.record_answer("r0", filled(0), seconds=seconds, source="people")
    with pytest.raises(LabelError, match="s of work"):
        ledger.record_rejected("r0", "too dark", seconds=seconds)


def test_rejected_regions_are_neither_open_nor_answered(ledger: Ledger) -> None:
    ledger.record_query(asks(0, region("r0"), region("r1", "b")))
    assert ledger.record_rejected("r0", "too dark", seconds=2.0) and not ledger.record_rejected("r0", "too dark")
    assert [r.id for r in ledger.open_regions()] == ["r1"] and ledger.answered() == []
    assert [(j.region.id, j.reason) for j in ledger.rejected()] == [("r0", "too dark")]
    ledger.record_answer("r1", filled(0), seconds=3.0, source="people")
    with pytest.raises(LabelError, match="answered already"):
        ledger.record_rejected("r1", "changed my mind")
    assert ledger.record_answer("r0", filled(0), seconds=4.0, source="people")  # a label is worth more than a refusal
    assert ledger.rejected() == [] and ledger.spent() == 9.0


def test_late_answers_count_for_the_round_they_arrive_in(ledger: Ledger, tmp_path: Path) -> None:
    ledger.record_query(asks(0, region("r0"), region("r1", "b"), region("r2", "c")))
    ledger.record_answer("r1", filled(1), seconds=1.0, source="people")
    ledger.close_round(0)
    ledger.record_answer("r0", filled(2), seconds=2.0, source="people")  # after the close: the fit must not see it
    assert [a.region.id for a in ledger.answered(upto=0)] == ["r1"]
    ledger.record_fit(0, report(tmp_path))
    ledger.record_measurement(0, MEASURED)
    ledger.record_query(asks(1, region("r3", "d")))
    ledger.record_answer("r3", filled(3), seconds=4.0, source="people")
    assert [(a.region.id, a.round, a.arrived) for a in ledger.answered()] == [("r0", 0, 1), ("r1", 0, 0), ("r3", 1, 1)]
    assert [a.region.id for a in ledger.answered(0)] == ["r0", "r1"]
    assert ledger.spent_by_round() == {0: 1.0, 1: 6.0} and ledger.spent(upto=0) == 1.0
    assert [r.id for r in ledger.open_regions()] == ["r2"] and ledger.open_regions(1) == []


# -- initial masks, events -------------------------------------------------------------------------


def test_initial_masks(ledger: Ledger) -> None:
    assert ledger.record_initial("b", Path("m") / "b.nii.gz", "1" * 64) and ledger.record_initial("a", "m/a", "2" * 64)
    assert not ledger.record_initial("a", "m/a", "2" * 64)
    assert [(i.image_id, i.path) for i in ledger.initial()] == [("a", "m/a"), ("b", str(Path("m/b.nii.gz")))]
    with pytest.raises(LabelError, match="changed since"):
        ledger.record_initial("a", "m/a", "3" * 64)
    with pytest.raises(LedgerError, match="whole mask of a is known"):
        ledger.record_query(asks(0, region("r0", "a")))
    ledger.record_query(asks(0, region("r0", "c")))
    with pytest.raises(LabelError, match="asked already"):
        ledger.record_initial("c", "m/c", "3" * 64)


def test_events_keep_their_order(ledger: Ledger) -> None:
    bad = {"image": "a", "reason": "truncated"}
    assert ledger.record_event("quarantine", bad, once=True) and not ledger.record_event("quarantine", bad, once=True)
    ledger.record_event("stop", {})
    ledger.record_event("stop", {})
    assert ledger.events("quarantine") == [bad] and len(ledger.events("stop")) == 2
    assert [e.kind for e in ledger.history()] == ["versions", "quarantine", "stop", "stop"]


def test_numbers_survive_json() -> None:
    values = {"nan": math.nan, "inf": math.inf, "third": 1 / 3, "np": np.float64(0.1)}
    text = to_json(values)
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    back = figures(text)
    assert math.isnan(back.pop("nan")) and back == {"inf": math.inf, "third": 1 / 3, "np": 0.1}


# -- one writer, many readers ----------------------------------------------------------------------


def test_reading_while_a_run_writes(ledger: Ledger, tmp_path: Path) -> None:
    ledger.record_query(asks(0, region("r0")))
    with Ledger.read(tmp_path) as reader, ledger._store.recording():  # in the middle of a transaction
        assert (reader.run_id, reader.config) == (ledger.run_id, CONFIG)
        assert reader.queries() == [asks(0, region("r0"))]
        with pytest.raises(LedgerError, match="read only"):
            reader.record_event("x", {})
        with pytest.raises(sqlite3.OperationalError, match="readonly"):  # not by our word alone
            reader._store.db.execute("DELETE FROM queries")


def test_reading_an_archive_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path).close()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with Ledger.read(tmp_path) as reader:
        assert reader.seed == 7 and not (tmp_path / "ledger.sqlite-shm").exists()


def test_reading_nothing(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"ledger\.sqlite: there is no ledger"):
        Ledger.read(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "ledger.sqlite").touch()
    with pytest.raises(LedgerError, match="has not begun"):
        Ledger.read(tmp_path)


def test_a_second_process_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from dal_dense.ledger import Ledger\n"
        "try: Ledger.open(pathlib.Path(sys.argv[1]), config={}, versions={}, seed=7, clock=lambda: 0.0)\n"
        "except Exception as e: print(type(e).__name__, e)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("LedgerError") and f"pid {os.getpid()} on" in done.stdout
    with pytest.raises(LedgerError, match="another process"):
        begin(tmp_path)
    ledger.close()
    begin(tmp_path).close()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_worker_does_not_keep_the_run(tmp_path: Path) -> None:
    ledger = begin(tmp_path)
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
    worker.start()  # as a data loader's worker does
    try:
        time.sleep(0.2)
        with pytest.raises(LedgerError):
            begin(tmp_path)
        ledger.close()
        begin(tmp_path).close()
    finally:
        worker.kill()
        worker.join()


# -- accidents -------------------------------------------------------------------------------------


def write_until_killed(run_dir: Path, told: int) -> None:
    """Rounds without end; each record is told to the pipe only after it was made."""

    def say(kind: str, name: object) -> None:
        os.write(told, f"{kind} {name}\n".encode())

    ledger = begin(run_dir)
    for r in range(ledger.round, 10**6):
        ledger.record_query(asks(r, *(region(f"r{r}-{i}", f"image{i}") for i in range(3))))
        say("query", r)
        for i in range(3):
            ledger.record_answer(f"r{r}-{i}", filled((r + i) % 7), seconds=1.0, source="oracle")
            say("answer", f"r{r}-{i}")
        ledger.close_round(r)
        say("close", r)
        ledger.record_fit(r, report(run_dir))
        say("fit", r)
        ledger.record_measurement(r, MEASURED)
        say("measure", r)


def killed_after(run_dir: Path, seconds: float) -> set[tuple[str, str]]:
    """What a writer had told when SIGKILL hit it, `seconds` after its first word."""
    read_end, write_end = os.pipe()
    writer = multiprocessing.get_context("fork").Process(target=write_until_killed, args=(run_dir, write_end))
    writer.start()
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        lines = [pipe.readline()]
        time.sleep(seconds)
        writer.kill()
        lines += pipe.readlines()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    words = [line.split() for line in lines if line.endswith("\n")]
    return {(kind, name) for kind, name in words}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_kill_9_loses_nothing_that_was_recorded(tmp_path: Path) -> None:
    told: set[tuple[str, str]] = set()
    chance = random.Random(5)
    for _ in range(12):
        told |= killed_after(tmp_path, chance.uniform(0.0, 0.2))
        with begin(tmp_path) as ledger:  # the lock died with its holder
            assert ledger._store.db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
            assert ledger._store.db.execute("PRAGMA foreign_key_check").fetchall() == []
            labels = {a.region.id: a.label for a in ledger.answered()}
            assert {n for kind, n in told if kind == "answer"} <= labels.keys()
            for name, label in labels.items():
                r, i = map(int, name[1:].split("-"))
                assert (label == (r + i) % 7).all()
            assert {int(n) for kind, n in told if kind == "query"} <= {q.round for q in ledger.queries()}
            assert all(len(q.regions) == 3 for q in ledger.queries())  # a query is there as a whole
            assert all(ledger.closed(int(n)) for kind, n in told if kind == "close")
            assert {int(n) for kind, n in told if kind == "fit"} <= {f.round for f in ledger.fits()}
            assert {int(n) for kind, n in told if kind == "measure"} <= set(ledger.measurements())
    assert len(told) > 20


def test_a_full_disk_is_told_and_survived(ledger: Ledger) -> None:
    db = ledger._store.db
    big = region("r0").model_copy(update={"stop": (502, 503)})
    ledger.record_query(asks(0, big))
    label = np.random.default_rng(0).integers(0, 255, (500, 500), np.uint8)
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(LedgerError, match=r"ledger\.sqlite: the disk is full .*run the command again"):
        ledger.record_answer("r0", label, seconds=1.0, source="oracle")
    assert ledger.answered() == [] and [r.id for r in ledger.open_regions()] == ["r0"]
    db.execute(f"PRAGMA max_page_count = {pages + 1000}")
    assert ledger.record_answer("r0", label, seconds=1.0, source="oracle")
    assert (ledger.answered()[0].label == label).all()


def test_an_interrupt_leaves_no_half_record(ledger: Ledger) -> None:
    with pytest.raises(KeyboardInterrupt), ledger._store.recording() as now:
        ledger._store.insert("events", (None, "half", "{}", now))
        raise KeyboardInterrupt
    assert ledger.events("half") == [] and ledger.record_event("whole", {})


@pytest.mark.parametrize("damage", ["header", "pages"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    with begin(tmp_path) as ledger:
        for i in range(200):
            ledger.record_event("filler", {"i": i, "text": "x" * 200})
    path = tmp_path / "ledger.sqlite"
    data = bytearray(path.read_bytes())
    first = 0 if damage == "header" else 100
    data[first:] = b"\xa5" * (len(data) - first)
    path.write_bytes(data)
    for opening in (begin, Ledger.read):
        with pytest.raises(LedgerError, match=r"ledger\.sqlite: the file is damaged"):
            opening(tmp_path)


def test_a_damaged_label_is_named(ledger: Ledger) -> None:
    ledger.record_query(asks(0, region("r0")))
    ledger.record_answer("r0", filled(1), seconds=1.0, source="oracle")
    ledger._store.db.execute("UPDATE answers SET label = zeroblob(20)")
    with pytest.raises(LedgerError, match="label of region r0 is damaged"):
        ledger.answered()


def test_a_newer_ledger_and_a_foreign_database_are_refused(tmp_path: Path) -> None:
    begin(tmp_path).close()
    path = tmp_path / "ledger.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    for opening in (begin, Ledger.read):
        with pytest.raises(LedgerError, match=r"newer dal_dense .*version 99"):
            opening(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    with sqlite3.connect(other / "ledger.sqlite") as db:
        db.execute("CREATE TABLE notes (text)")
    db.close()
    with pytest.raises(LedgerError, match="no ledger of dal_dense"):
        begin(other)


def test_a_run_dir_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot be made"):
        begin(tmp_path / "file" / "run")
