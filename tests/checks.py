"""Shapes are checked in the first calls of each test; later calls of the same test are of the same functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import jaxtyping
from beartype import beartype

ENOUGH = 10_000
"""Checks in a test, two a call: all of most tests, the first examples of those with many."""

_left = ENOUGH


def begin() -> None:
    """For each test."""
    global _left
    _left = ENOUGH
    jaxtyping.config.update("jaxtyping_disable", False)


def counted(function: Callable[..., Any]) -> Callable[..., Any]:
    """`beartype`, until there were enough: checks would take half the time of tests with many examples."""
    checked = beartype(function)

    @wraps(checked)
    def check(*given: Any, **named: Any) -> Any:
        global _left
        _left -= 1
        if _left <= 0:
            jaxtyping.config.update("jaxtyping_disable", True)
        return checked(*given, **named)

    return check
