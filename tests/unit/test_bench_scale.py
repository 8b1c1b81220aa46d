"""tools/bench_scale.py on a small image and a small pool: every table is there, and what the fleet divides by."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    spec = importlib.util.spec_from_file_location("bench_scale", TOOLS / "bench_scale.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_scale", module)
    spec.loader.exec_module(module)
    return module


def test_all_tables_of_a_small_pool(script, monkeypatch, tmp_path):
    image = script.Image("small", (32, 32), (32, 32), (8, 16), 1, 2, (8, 8))
    monkeypatch.setattr(script, "IMAGES", (image,))
    monkeypatch.setattr(script, "POOLS", (360, 36_000))
    monkeypatch.setattr(script, "ENOUGH", 720)
    assert script.main(["--rows", "720", "--threads", "1", "--out", str(tmp_path / "scale.md")]) == 0
    text = (tmp_path / "scale.md").read_text()

    image_row = re.search(r"\| small \| ([\d.]+) \| [\d.]+ \| [\d.]+ \| [\d.]+ \| (\d+) \|", text)
    assert int(image_row[2]) > 0
    chosen = re.findall(r"\| (\w+) \| ([\d,]+) \| [\d.]+ \| (\d+) \| [\d.]+ \|", text)
    names = ("random", "power", "per_second")
    assert [row[:2] for row in chosen] == [
        *((name, rows) for rows in ("360", "720") for name in names),
        *(("hybrid", rows) for rows in ("360", "720")),
    ]
    assert all(int(regions) > 0 for _, _, regions in chosen)
    assert "s x rows / 720 |" in text
    few = script.fleet(script.ImageCost(image, 1.0, 1.0, 1.0, 1.0, 9), 0.5, 360, "cpu")[-1]
    assert "give --rows 720" in few and "CPU s" not in few  # their time goes with the regions bought


@pytest.mark.parametrize("tool", ["bench_scale", "bench_engine"])
def test_without_a_gpu_the_tools_say_what_to_leave_out(script, monkeypatch, capsys, tool):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert importlib.import_module(tool).main(["--device", "cuda"]) != 0
    assert "--device cuda: torch sees no CUDA device; leave it out" in capsys.readouterr().err


def test_the_fleet_divides_by_the_rows_that_were_chosen_from(script, monkeypatch):
    monkeypatch.setattr(script, "POOLS", (180, 360))
    _, rows, seconds = script.selection_costs(3600, "cpu", "CPU s")
    assert rows == 360
    assert seconds > 0


def test_maps_are_timed_without_the_draw_that_fills_the_sums(script, monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr(script.time, "process_time", lambda: next(ticks))
    order: list[str] = []

    def log(what: str) -> None:
        order.append(what)
        if what == "before":
            next(ticks)

    assert script.timed(lambda: log("do"), "cpu", 2, before=lambda: log("before")) == 1
    assert order == ["before", "do"] * 3
