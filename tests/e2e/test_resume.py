"""`kill -9` before and after every write of the ledger; the resumed run asks what an uninterrupted one asks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from dal_dense.ledger import Ledger
from tests.world import write_volumes

ROOT = Path(__file__).parents[2]


def run(data: Path, run_dir: Path, how: str) -> str:
    command = [sys.executable, "-m", "tests.e2e.lives", str(data), str(run_dir), how]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


def story(run_dir: Path) -> list[object]:
    """All that must not depend on when the run was killed."""
    with Ledger.read(run_dir) as ledger:
        answers = [(a.region.id, a.label.tobytes(), a.seconds, a.image_seconds, a.arrived) for a in ledger.answered()]
        fits = [(f.round, f.sha256) for f in ledger.fits()]
        return [ledger.queries(), answers, fits, ledger.measurements(), ledger.spent()]


def test_killed_at_every_write_the_run_ends_the_same(tmp_path: Path) -> None:
    data = write_volumes(tmp_path / "data")
    run(data, tmp_path / "whole", "whole")
    expected = story(tmp_path / "whole")
    assert len(expected[0]) == 3 and len(expected[1]) > 6
    deaths = int(run(data, tmp_path / "cut", "cut").split("deaths: ")[1])
    assert deaths > 2 * 15
    assert story(tmp_path / "cut") == expected
