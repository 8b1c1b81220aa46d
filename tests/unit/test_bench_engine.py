"""tools/bench_engine.py: a small case measured in this process, and what the table makes of figures."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).parents[2] / "tools"
FACTS = {"device": "here"}


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("engine_bench.case"), importlib.import_module("engine_bench.table")


def small(case, made: list[str], calls: list[str]):
    """Sums of squares; ours can use a GPU."""

    def make(device: str) -> torch.Tensor:
        made.append(device)
        return torch.arange(1000.0)

    def counted(name: str, result):
        return lambda x: (calls.append(name), result(x))[1]

    return case.Case(
        name="squares",
        work="1,000 numbers",
        goal="none",
        make=make,
        ways={
            "ours": case.Way(counted("ours", lambda x: float(x @ x)), cuda=True),
            "loop": case.Way(counted("loop", lambda x: sum(v * v for v in x.tolist()))),
        },
        judge=lambda x, result: {"sum": result},
        moved=lambda x: 4.0 * len(x),
    )


def cells(text: str, way: str) -> list[str]:
    return re.search(rf"^\| squares \| ({re.escape(way)}.*) \|$", text, re.MULTILINE)[1].split(" | ")


def test_a_small_case_and_its_table(bench):
    case, table = bench
    calls: list[str] = []
    squares = small(case, [], calls)
    found = [case.measure(squares, way, "cpu") for way in squares.ways]
    assert calls == ["ours"] * case.CALLS + ["loop"] * case.CALLS
    assert all(m.error is None and m.wall > 0 and m.moved == 4000 for m in found)
    assert [m.figures["sum"] for m in found] == pytest.approx([332_833_500.0] * 2, rel=1e-5)
    text = table.markdown([(squares, found)], FACTS, 1e9)
    assert "| CPU, times ours |" in text and "On a GPU" not in text and "- device: here" in text
    assert len(cells(text, "ours")) == len(cells(text, "loop")) == 8
    assert cells(text, "ours")[4:6] == ["1", "1"] and cells(text, "loop")[-1] == "sum 3.32834e+08"


def test_beside_a_gpu_the_others_run_on_the_cpu(bench, monkeypatch):
    case, table = bench
    waits: list[int] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(1))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 350)
    made: list[str] = []
    calls: list[str] = []
    squares = small(case, made, calls)
    ours, loop = (case.measure(squares, way, "cuda") for way in squares.ways)
    assert made == ["cuda", "cpu"] and [ours.device, loop.device] == ["cuda", "cpu"]
    assert calls == ["ours"] * (1 + case.CALLS) + ["loop"] * case.CALLS  # one more, which does not count
    assert len(waits) == 2 * case.CALLS and ours.memory == 250
    times = iter([(1.0, 3.0), (9.0, 2.0), (2.0, 4.0)])
    monkeypatch.setattr(case, "_timed", lambda run, inputs, device: (run(inputs), *next(times)))
    ours = case.measure(squares, "ours", "cuda")
    assert (ours.cpu, ours.wall) == (9.0, 2.0)  # the least time, not the least CPU

    loop = case.Measured("squares", "loop", "cpu", 8.0, 1.0, 5e6, {}, 4000)
    text = table.markdown([(squares, [ours, loop])], FACTS, 1e9)
    assert "| s, times ours |" in text and "On a GPU" in text
    assert cells(text, "loop (cpu)")[4:6] == ["4.0", "–"]
    assert cells(text, "ours")[0] == "ours"
    failed = case.Measured("squares", "ours", error="no memory")
    assert "| squares | loop | 8.00 | 1.00 | 5 | – | – | 0 % |" in table.markdown(
        [(squares, [failed, loop])], FACTS, 1e9
    )


def test_the_plain_rival_buys_the_same_regions_and_takes_each_once(bench, monkeypatch):
    scale = importlib.import_module("engine_bench.scale")
    offers = scale.driving_pool(36 * 20, 0)
    taken: list[int] = []
    take = scale.Basket.take
    monkeypatch.setattr(scale.Basket, "take", lambda self, row, value: (taken.append(row), take(self, row, value))[1])
    plain = scale.every_row(offers)
    assert len(taken) == len(plain) > 0
    assert set(plain.rows.tolist()) == set(scale.ours(offers).rows.tolist())


def test_the_copy_is_measured_in_another_process(bench):
    _, table = bench
    speed, name = table.bandwidth("cpu", 1, 1 << 20)
    assert speed > 0 and name == "cpu"
