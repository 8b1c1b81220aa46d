"""Shapes are checked in the first calls of each test; later calls of the same test are of the same functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import jaxtyping
from beartype import beartype

ENOUGH = 2_000
"""Checks in a test, two a call: all of most tests, the first examples of those with many."""

_left = ENOUGH


def begin() -> None:
    """For each test."""
    global _left
    _left = ENOUGH
    jaxtyping.config.update("jaxtyping_disable", False)


def counted(function: Callable[..., Any]) -> Callable[..., Any]:
    """`beartype`, made at the first call, until there were enough: checks take a third of tests with many examples."""
    checked: Callable[..., Any] | None = None

    @wraps(function)
    def check(*given: Any, **named: Any) -> Any:
        global _left
        nonlocal checked
        _left -= 1
        if _left <= 0:
            jaxtyping.config.update("jaxtyping_disable", True)
        checked = checked or beartype(function)
        return checked(*given, **named)

    return check
