"""How the report writes times, counts and figures."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Expert time for a reader: seconds, minutes or hours, three figures at most."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.2f} h"


def round_name(number: int) -> str:
    """Round 0 is the start set."""
    return "start set" if number == 0 else f"round {number}"


def count(number: int, noun: str) -> str:
    """A number with its noun, which takes an s beyond one."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def figure(value: float | None, digits: int = 3) -> str:
    """A number with so many decimals; a dash for what is not there."""
    return "–" if value is None else f"{value:.{digits}f}"
