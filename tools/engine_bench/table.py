"""The table of `tools/bench_engine.py`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from dal_dense.benchmark_page import page
from engine_bench.case import Case, Measured, wait_for

MIB = 2**20


def bandwidth(device: str, threads: int, size: int = 1 << 28) -> tuple[float, str]:
    """Bytes a second of a plain copy, read and write counted, the best of a few; and the device's name.

    In a process of its own, so that this one holds nothing on a GPU while others are measured.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:
        return child.submit(_bandwidth, device, threads, size).result()


def _bandwidth(device: str, threads: int, size: int) -> tuple[float, str]:
    torch.set_num_threads(threads)
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(5):
        target.copy_(source)
        wait_for(device)
        began = time.perf_counter()
        target.copy_(source)
        wait_for(device)
        best = max(best, 2 * size / (time.perf_counter() - began))
    return best, device if device == "cpu" else torch.cuda.get_device_name()


def markdown(rows: Sequence[tuple[Case, Sequence[Measured]]], facts: Mapping[str, str], copied: float) -> str:
    """Facts, the table, and each case's work and goal."""
    gpu = any(m.device != "cpu" for _, found in rows for m in found)
    by = "s" if gpu else "CPU"
    lines = [
        f"| case | way | s | CPU s | peak MiB | {by}, times ours | memory, times ours | of copy bandwidth | shown by |",
        "|---|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    lines += [_row(m, found[0], copied) for _, found in rows for m in found]
    lines += ["", *(f"- **{case.name}**: {case.work}. Goal: {case.goal}." for case, _ in rows)]
    lines += [
        "",
        "Each way in a process of its own, up to three times; time is of the call that took "
        "the least CPU, memory the rise of the peak during the first.",
    ]
    if gpu:
        lines.append(
            "On a GPU: after a call that does not count, the call that took the least time; memory of the GPU."
        )
    return page("The engine beside plain code and other packages", facts, lines)


def _row(m: Measured, ours: Measured, copied: float) -> str:
    if m.error is not None:
        return f"| {m.case} | {m.way} | – | – | – | – | – | – | {m.error} |"
    known = ours.error is None
    spent, least = (m.cpu, ours.cpu) if ours.device == "cpu" else (m.wall, ours.wall)
    times = f"{spent / max(least, 1e-9):.1f}" if known and m is not ours else "1" if m is ours else "–"
    alike = known and m.device == ours.device
    memory = f"{m.memory / max(ours.memory, MIB):.1f}" if alike and m is not ours else "1" if m is ours else "–"
    share = f"{100 * m.moved / max(m.wall, 1e-9) / copied:.0f} %" if m.moved and m.device == ours.device else "–"
    way = m.way if m.device == ours.device else f"{m.way} ({m.device})"
    figures = ", ".join(f"{name} {value:.6g}" for name, value in m.figures.items())
    cost = f"{_seconds(m.wall)} | {_seconds(m.cpu)} | {m.memory / MIB:.0f}"
    return f"| {m.case} | {way} | {cost} | {times} | {memory} | {share} | {figures} |"


def _seconds(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"
