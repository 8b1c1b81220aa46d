"""Run the loop in many short lives, each killed at its first write. A program of its own: see `test_resume.py`.

    python -m tests.e2e.lives DATA RUN_DIR whole|cut

It forks, which is safe only in a process where torch has started no threads; a test session has.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dal_dense import build, ledger_store
from dal_dense.config import Config
from dal_dense.costs import cost_model
from dal_dense.pool import Pool
from dal_dense.report import figures
from tests.toy import ToyTask
from tests.world import settings

SCRIPT = Path(__file__).parents[2] / "tools" / "train_al.py"


def train_al() -> Callable[[list[str]], int]:
    """`main` of the command, with the toy task in place of the network."""

    def toy(config: Config, pool: Pool, channels: int) -> ToyTask:
        costs = cost_model(config.costs)
        return ToyTask(query=config.query, costs=costs, classes=pool.classes, mask_of=pool.mask, seed=config.seed)

    build.build_task = toy
    figures._svg = lambda *given, **more: "<svg/>"  # no curves drawn
    spec = importlib.util.spec_from_file_location("train_al", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


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


def lives(root: Path, run_dir: Path) -> int:
    """Two deaths a write, one that loses it and one that keeps it, until a life finds nothing left to do."""
    main, deaths = train_al(), 0
    while killed_at_first_write(main, settings(root, run_dir), committed=deaths % 2 == 1):
        deaths += 1
    return deaths


if __name__ == "__main__":
    torch.set_num_threads(1)
    data, folder, how = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    if how == "whole":
        sys.exit(train_al()(settings(data, folder)))
    sys.stderr.write(f"deaths: {lives(data, folder)}\n")
