from __future__ import annotations

import json
import math
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_run import fake_run
from hypothesis import given
from hypothesis import strategies as st

from dal_dense import benchmark_runs, benchmarking
from dal_dense.errors import ConfigError, DataError
from dal_dense.ledger import Ledger
from dal_dense.results import Results, area_under_curve, bootstrap, collect, finite, load


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "demo"
    fake_run(folder, rounds=4, unfinished=True, size=4, regions=6)
    return folder


def read(folder: Path) -> Results:
    with Ledger.read(folder) as ledger:
        return collect(ledger)


def test_numbers_of_a_run_agree_with_its_ledger(run: Path) -> None:
    results = read(run)
    with Ledger.read(run) as ledger:
        answers = ledger.answered()
        assert results.seconds_charged == pytest.approx(ledger.spent())
        assert [r.metric for r in results.measured] == [m.value for m in ledger.measurements().values()]
        assert results.rounds[1].seconds_predicted == pytest.approx(ledger.query(1).seconds)  # type: ignore[union-attr]
    assert results.strategy == "hybrid" and results.metric == "dice"
    for r in results.rounds:
        charged = sum(a.seconds + a.image_seconds for a in answers if a.round == r.round)
        assert r.seconds_charged == pytest.approx(charged)
        assert r.asked == r.answered + r.open + r.rejected
    last = results.rounds[-1]
    assert (last.round, last.answered, last.open, last.metric, last.fit) == (4, 3, 3, None, {})
    assert len(results.costs) == len(answers)
    assert results.quarantined == {"ct_19": "images/ct_19.nii.gz: truncated; copy it again"}


def test_late_answers_are_charged_when_they_come(run: Path) -> None:
    """The last region of round 1 came in round 2: only later models could learn from it."""
    rounds = read(run).rounds
    late = next(c for c in read(run).costs if c.region == "r01-005")
    assert rounds[1].open == 0  # answered by now
    assert rounds[1].seconds_charged_total == pytest.approx(
        rounds[0].seconds_charged + rounds[1].seconds_charged - late.charged
    )
    assert rounds[2].seconds_charged_total == pytest.approx(sum(r.seconds_charged for r in rounds[:3]))


def test_json_has_no_nan_and_comes_back(run: Path, tmp_path: Path) -> None:
    results = read(run)
    text = results.model_dump_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert results.rounds[0].per_class["gallbladder"] is None
    (tmp_path / "results.json").write_text(text)
    assert load(tmp_path) == results


def test_load_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not there; make it with `python tools/report.py"):
        load(tmp_path)
    (tmp_path / "results.json").write_text('{"format": "other"}')
    with pytest.raises(DataError, match="not a results file"):
        load(tmp_path)


def test_area_by_hand() -> None:
    assert area_under_curve([10.0, 20.0, 40.0], [0.0, 1.0, 1.0]) == pytest.approx((5 + 20) / 30)
    assert area_under_curve([10.0], [0.5]) is None
    assert area_under_curve([10.0, 10.0], [0.5, 0.6]) is None


@given(
    st.lists(st.floats(0.1, 100), min_size=2, max_size=8),
    st.floats(0, 1),
    st.floats(0.1, 50),
)
def test_area_of_a_flat_curve_is_its_height_in_any_unit(steps: list[float], height: float, unit: float) -> None:
    seconds = np.cumsum(steps) * unit
    area = area_under_curve(seconds.tolist(), [height] * len(steps))
    assert area == pytest.approx(height)


def test_bootstrap_covers_the_mean_and_matches_theory() -> None:
    values = np.random.default_rng(0).normal(0.7, 0.1, 100)
    found = bootstrap(values.tolist(), seed=1)
    assert found is not None and found.groups == 100
    half = 1.96 * values.std() / math.sqrt(100)
    assert found.low == pytest.approx(values.mean() - half, abs=0.004)
    assert found.high == pytest.approx(values.mean() + half, abs=0.004)
    assert found == bootstrap(values.tolist(), seed=1) != bootstrap(values.tolist(), seed=2)
    assert bootstrap([0.5], seed=1) is None


def test_an_interval_that_the_task_has_drawn_itself_is_kept(tmp_path: Path) -> None:
    """AP is no mean over groups: nothing is drawn again here, and the bar is not centred on another figure."""
    fake_run(tmp_path, rounds=2, size=2, regions=3, detection=True)
    for r in read(tmp_path).rounds:
        assert r.metric is not None and r.interval is not None and len(r.per_group) == 12
        assert (r.interval.low, r.interval.mean, r.interval.high) == pytest.approx(
            (r.metric - 0.07, r.metric, r.metric + 0.02)
        )
        assert r.interval.groups == 12
        assert {"ap", "ap50", "ap_small", "ap50_small", "ap_medium", "ap_large"} <= r.extra.keys()


def test_finite() -> None:
    assert finite({"a": 1.0, "b": math.nan, "c": math.inf}) == {"a": 1.0, "b": None, "c": None}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> benchmarking.Runs:
    tmp_path = tmp_path_factory.mktemp("compared")
    found: dict[str, dict[int, Results]] = {}
    for strategy, gain in (("hybrid", 0.08), ("random", 0.04)):
        for seed in (0, 1):
            folder = tmp_path / f"{strategy}{seed}"
            fake_run(folder, rounds=3, size=2, regions=4, seed=seed, gain=gain, strategy=strategy)
            found.setdefault(strategy, {})[seed] = read(folder)
    return found


def test_common_axis_lies_within_every_run(runs: benchmarking.Runs) -> None:
    curves = benchmarking.common_curves(runs)
    for strategy, by_seed in runs.items():
        assert curves.values[strategy].shape == (2, benchmarking.POINTS)
        for row, (_, results) in enumerate(sorted(by_seed.items())):
            seconds, values = results.curve
            assert seconds[0] <= curves.seconds[0] and curves.seconds[-1] <= seconds[-1]
            assert curves.values[strategy][row, 50] == pytest.approx(np.interp(curves.seconds[50], seconds, values))


def test_table_tells_the_better_strategy_and_pairs_seeds(runs: benchmarking.Runs) -> None:
    hybrid, random = benchmarking.table(runs, "random")
    curves = benchmarking.common_curves(runs)
    gaps = curves.areas("hybrid") - curves.areas("random")
    assert random.difference is None and hybrid.difference == pytest.approx((gaps.mean(), gaps.std(ddof=1)))
    assert hybrid.area[0] > random.area[0]
    only = {"hybrid": {0: runs["hybrid"][0]}, "random": {1: runs["random"][1]}}
    assert benchmarking.table(only, "random")[0].difference is None
    assert math.isnan(benchmarking.table(only, "random")[0].area[1])


def test_benchmark_page(runs: benchmarking.Runs, tmp_path: Path) -> None:
    out = tmp_path / "docs" / "camvid"
    facts = {"date": "2025-11-23", "machine": "2 cores"}
    page, picture = benchmarking.write(runs, out, title="camvid", facts=facts, baseline="random")
    text = page.read_text()
    for expected in ("- machine: 2 cores", "| hybrid | 2 |", "(camvid.svg)", "prove nothing"):
        assert expected in text
    assert picture.read_text().startswith("<?xml") and "nan" not in text


def test_runs_that_cannot_be_compared(tmp_path: Path) -> None:
    fake_run(tmp_path / "short", rounds=1, size=2, regions=2)
    with pytest.raises(DataError, match="1 measurements, two are needed"):
        benchmarking.common_curves({"hybrid": {0: read(tmp_path / "short")}})


def test_jobs_run_once_and_failures_are_told(tmp_path: Path) -> None:
    program = tmp_path / "train.py"
    program.write_text("import sys, pathlib\nprint(sys.argv)\nsys.exit('--fail' in sys.argv)\n")
    config = tmp_path / "x.yaml"
    config.write_text("seed: 0")
    names, extra = ["hybrid", "random", "hybrid"], ["--task.train.lr", "1"]
    jobs = benchmark_runs.planned(config, names, [0, 1], tmp_path / "runs", extra)
    assert [(j.strategy, j.seed) for j in jobs] == [("hybrid", 0), ("random", 0), ("hybrid", 1), ("random", 1)]
    assert len({j.run_dir for j in jobs}) == 4
    said: list[str] = []
    with pytest.raises(ConfigError, match="data_root"):
        benchmark_runs.check(jobs)
    for _ in range(2):
        benchmark_runs.run_all(jobs, at_once=2, say=said.append, train=program)
    benchmark_runs.check(jobs)  # of runs that are done nothing is asked, such as data that is gone
    assert sum(s.endswith("done") for s in said) == 4 and sum(s.endswith("finished before") for s in said) == 4
    config.write_text("seed: 1")  # other settings in the file
    benchmark_runs.run_all(jobs[:1], at_once=1, say=said.append, train=program)
    assert said[-1].endswith("done")
    wrong = benchmark_runs.planned(config, ["hybrid"], [0], tmp_path / "runs", ["--fail"])  # other settings: run again
    with pytest.raises(DataError, match="hybrid, seed 0: ended with status 1"):
        benchmark_runs.run_all(wrong, at_once=1, say=said.append, train=program)
    assert "--fail" in (wrong[0].run_dir / "output.txt").read_text()


def test_a_failure_shows_what_this_call_wrote_last(tmp_path: Path) -> None:
    program, config = tmp_path / "train.py", tmp_path / "x.yaml"
    config.write_text("seed: 0")
    jobs = benchmark_runs.planned(config, ["hybrid"], [0], tmp_path / "runs", [])
    shown = []
    for number in (12, 5, 0):  # the second call wrote less than is shown at most
        program.write_text(f"import sys\nfor i in range({number}):\n    print('{number}:', i)\nsys.exit(3)\n")
        with pytest.raises(DataError, match="hybrid, seed 0: ended with status 3") as told:
            benchmark_runs.run_all(jobs, at_once=1, say=lambda text: None, train=program)
        head, *lines, remedy = str(told.value).splitlines()
        assert str(jobs[0].run_dir / "output.txt") in head and remedy.startswith("mend the cause")
        shown.append([line.strip() for line in lines])
    assert shown == [[f"12: {i}" for i in range(4, 12)], [f"5: {i}" for i in range(5)], ["nothing"]]


def benchmark_tool() -> Callable[[list[str]], int]:
    """`main` of `tools/benchmark.py`."""
    script = Path(__file__).parents[2] / "tools" / "benchmark.py"
    main: Callable[[list[str]], int] = runpy.run_path(str(script))["main"]
    return main


def test_mistakes_are_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*given: object, **more: object) -> None:
        raise AssertionError("something runs")

    monkeypatch.setattr(benchmark_runs, "run_all", refuse)
    tool, config = benchmark_tool(), tmp_path / "x.yaml"
    config.write_text(f"data_root: {tmp_path}\ndata: {{format: msd}}\n")
    (tmp_path / "dataset.json").write_text("{}")
    given = [f"--config={config}", f"--out={tmp_path / 'page'}", f"--runs={tmp_path / 'runs'}"]
    cases = {
        "--strategies=hybird,random": ["strategy.name: got 'hybird'; expected"],
        "--strategies=hybird": ["strategy.name: got 'hybird'; expected"],  # not that the baseline is missing
        "--strategies=hybrid": ["--baseline random: not among --strategies"],
        "--strategies=hybird,badgr,random": ["strategy.name: got 'hybird'", "strategy.name: got 'badgr'"],
        "--seeds=0,-1": ["seed: got '-1'; expected"],
        "--budget.round=3": ["budget.round: no such setting; did you mean budget.rounds?"],  # once, of four runs
        "--data_root=/nowhere": ["data_root: no folder at /nowhere"],
    }
    for argument, expected in cases.items():
        assert tool([*given, argument]) == 2, argument
        told = capsys.readouterr().err.splitlines()
        assert len(told) == len(expected) and all(map(str.startswith, told, expected)), told
    assert not (tmp_path / "runs").exists() and not list(tmp_path.glob("page*"))
