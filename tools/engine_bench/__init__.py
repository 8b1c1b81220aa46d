"""The cases of `tools/bench_engine.py`: one file a topic, each with a tuple `CASES`."""

from __future__ import annotations

from importlib import import_module

from engine_bench.case import Case

TOPICS = ("maps", "selection", "scale", "hybrid", "strategies")
"""Files of cases, in the order of the table."""


def cases() -> dict[str, Case]:
    """Every case by name."""
    found = [case for topic in TOPICS for case in import_module(f"engine_bench.{topic}").CASES]
    return {case.name: case for case in found}
