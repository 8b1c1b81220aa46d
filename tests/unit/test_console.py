import io

import pytest
from rich.console import Console

from dal_dense import console
from dal_dense.console import Screen


def test_without_a_terminal_progress_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    screen = Screen(Console(file=out, force_terminal=False))
    with screen.running():
        for done in range(1, 51):
            now[0] += 1.0
            screen.hooks().progress("fit", done, 50)
    assert [line for line in out.getvalue().splitlines() if line] == ["fit: 20 of 50", "fit: 40 of 50"]
