"""The table of `tools/bench_engine.py`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch

from engine_bench.case import Case, Measured

MIB = 2**20
COLUMNS = (
    "case", "way", "s", "CPU s", "peak MiB", "CPU, times ours", "memory, times ours", "of copy bandwidth", "shown by",
)  # fmt: skip


def bandwidth(device: str, threads: int, size: int = 1 << 28) -> float:
    """Bytes a second of a plain copy, read and write counted; the best of a few."""
    torch.set_num_threads(threads)
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(5):
        target.copy_(source)
        if device != "cpu":
            torch.cuda.synchronize()
        began = time.perf_counter()
        target.copy_(source)
        if device != "cpu":
            torch.cuda.synchronize()
        best = max(best, 2 * size / (time.perf_counter() - began))
    return best


def markdown(rows: Sequence[tuple[Case, Sequence[Measured]]], facts: Mapping[str, str], copied: float) -> str:
    """Facts, the table, and each case's work and goal."""
    lines = ["# The engine beside plain code and other packages", "", *(f"- {k}: {v}" for k, v in facts.items()), ""]
    lines += [f"| {' | '.join(COLUMNS)} |", "|---|---|--:|--:|--:|--:|--:|--:|---|"]
    lines += [_row(m, found[0], copied) for _, found in rows for m in found]
    lines += ["", *(f"- **{case.name}**: {case.work}. Goal: {case.goal}." for case, _ in rows)]
    lines += [
        "",
        "Each way in a process of its own, up to three times; time is of the call that took "
        "the least CPU, memory the rise of the peak during the first.",
    ]
    return "\n".join(lines) + "\n"


def _row(m: Measured, ours: Measured, copied: float) -> str:
    if m.error is not None:
        return f"| {m.case} | {m.way} | – | – | – | – | – | – | {m.error} |"
    known = ours.error is None
    cpu = f"{m.cpu / max(ours.cpu, 1e-9):.1f}" if known and m is not ours else "1" if m is ours else "–"
    memory = f"{m.memory / max(ours.memory, MIB):.1f}" if known and m is not ours else "1" if m is ours else "–"
    share = f"{100 * m.moved / max(m.wall, 1e-9) / copied:.0f} %" if m.moved and m is ours else "–"
    figures = ", ".join(f"{name} {value:.6g}" for name, value in m.figures.items())
    return (
        f"| {m.case} | {m.way} | {m.wall:.2f} | {m.cpu:.2f} | {m.memory / MIB:.0f} | {cpu} | {memory} | {share} "
        f"| {figures} |"
    )
