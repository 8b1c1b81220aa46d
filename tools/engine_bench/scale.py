"""Cases."""

from __future__ import annotations

from engine_bench.case import Case

CASES: tuple[Case, ...] = ()
