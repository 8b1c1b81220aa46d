"""Run the loop in one life, then in many short ones, each killed at its first write: see `test_resume.py`.

    python -m tests.e2e.lives DATA WHOLE_RUN_DIR CUT_RUN_DIR

A program of its own: it forks, which is safe only in a process where no library keeps threads; a test session does.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import torch

from dal_dense import build, ledger_store
from dal_dense.report import figures
from tests.e2e.command import build_toy, main_of_script
from tests.world import settings


def killed_at_first_write(main: Callable[[list[str]], int], argv: list[str], *, committed: bool) -> bool:
    """One life, ended just before or just after its first commit; false if it wrote nothing and came to the end."""
    child = os.fork()
    if child == 0:
        transaction = ledger_store.transaction

        @contextmanager
        def deadly(db: sqlite3.Connection, path: Path) -> Iterator[None]:
            with transaction(db, path):
                yield
                if not committed:
                    os.kill(os.getpid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)

        ledger_store.transaction = deadly
        os._exit(main(argv))
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    if os.WEXITSTATUS(status):
        sys.exit(f"a life ended with status {os.WEXITSTATUS(status)}")
    return False


def lives(main: Callable[[list[str]], int], argv: list[str]) -> int:
    """Two deaths a write, one that loses it and one that keeps it, until a life finds nothing left to do."""
    deaths = 0
    while killed_at_first_write(main, argv, committed=deaths % 2 == 1):
        deaths += 1
    return deaths


if __name__ == "__main__":
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    build.build_task = build_toy
    figures._svg = lambda *given, **more: "<svg/>"  # no curves drawn
    data, whole, cut = (Path(folder) for folder in sys.argv[1:])
    train_al = main_of_script()
    if status := train_al(settings(data, whole)):  # loads, once for all lives, what a life needs
        sys.exit(status)
    sys.stderr.write(f"deaths: {lives(train_al, settings(data, cut))}\n")
