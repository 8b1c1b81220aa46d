"""`kill -9` before and after every write of the ledger; the resumed run asks what an uninterrupted one asks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.e2e.command import SCRIPT, story
from tests.world import write_volumes

ROOT = SCRIPT.parents[1]


def test_killed_at_every_write_the_run_ends_the_same(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = [sys.executable, "-m", "tests.e2e.lives", str(write_volumes(tmp_path / "data")), str(whole), str(cut)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = story(whole)
    assert len(expected[0]) == 3 and len(expected[1]) > 6
    assert int(done.stderr.split("deaths: ")[1]) > 2 * 15
    assert story(cut) == expected
