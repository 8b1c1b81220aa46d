"""Two processes against one: the same queries, weights and figures; deaths and failures on the way."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dal_dense.ledger import Ledger
from tests.e2e.command import SCRIPT, main_of_script, story
from tests.processes import ROOT, together
from tests.world import box_settings, settings, write_box_frames, write_volumes

TINY = {
    "device": "cpu",
    "threads": "1",
    "task__train__parts": "2",
    "budget__rounds": "1",
    "strategy__name": "per_second",  # chosen from shards; see `test_shards.py` for others
}


def volume_settings(data: Path, run_dir: Path, **more: str) -> list[str]:
    tiny = {"task__train__iterations": "4", "task__network__channels": "[4, 8]", "budget__seconds_per_round": "700"}
    return settings(data, run_dir, **{**TINY, **tiny, **more})


def alone(argv: list[str]) -> None:
    assert main_of_script()(argv) == 0


def torchrun(*argv: str) -> subprocess.CompletedProcess[str]:
    """The command in two processes, as users start them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT), *argv]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500)


def quarantined(run_dir: Path) -> list[str]:
    with Ledger.read(run_dir) as ledger:
        return [event["image"] for event in ledger.events("quarantine")]


def losses(run_dir: Path) -> list[float]:
    with Ledger.read(run_dir) as ledger:
        return [fit.figures["loss"] for fit in ledger.fits()]


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dal_dense.report.figures._svg", lambda *given, **more: "<svg/>")


@pytest.mark.slow
def test_two_processes_segment_as_one_and_find_the_same_broken_files(tmp_path: Path) -> None:
    """The runs part after the start set, where two images break: each process meets one of them."""
    data, first = write_volumes(tmp_path / "data", train=5), tmp_path / "first"
    alone(volume_settings(data, first, budget__total_seconds="151"))
    images = [data / "imagesTr" / f"case_{number:02d}.nii.gz" for number in (1, 2)]
    contents = [image.read_bytes() for image in images]
    for image, content in zip(images, contents, strict=True):
        image.write_bytes(content[:-300])
    for name in ("one", "two", "strict"):
        shutil.copytree(first, tmp_path / name)
    alone(volume_settings(data, tmp_path / "one"))
    done = together(2, str(SCRIPT), *volume_settings(data, tmp_path / "two"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 processes share scoring, measuring and training" in done.stdout
    assert len(story(tmp_path / "one")[0]) == 2
    assert story(tmp_path / "two") == story(tmp_path / "one") and losses(tmp_path / "two") == losses(tmp_path / "one")
    assert quarantined(tmp_path / "two") == quarantined(tmp_path / "one") == ["case_01", "case_02"]

    images[1].write_bytes(contents[1])  # only the second process meets the other
    done = together(2, str(SCRIPT), *volume_settings(data, tmp_path / "strict", data__strict="true"))
    assert done.returncode != 0 and quarantined(tmp_path / "strict") == []
    (told,) = [line for line in done.stderr.splitlines() if "case_01.nii.gz" in line]
    assert told.startswith(str(data)) and "; " in told  # the file, the fact, the remedy


def test_two_processes_detect_as_one(tmp_path: Path) -> None:
    """By the strategy that has all candidates' objects sent to the first process."""
    data = write_box_frames(tmp_path / "data")
    more = {**TINY, "task__train__iterations": "12", "task__train__batch": "4", "strategy__name": "ppal"}
    alone(box_settings(data, tmp_path / "one", **more))
    done = torchrun(*box_settings(data, tmp_path / "two", **more))
    assert done.returncode == 0, done.stdout + done.stderr
    assert story(tmp_path / "two") == story(tmp_path / "one") and losses(tmp_path / "two") == losses(tmp_path / "one")


@pytest.mark.slow
def test_a_run_whose_processes_were_killed_ends_the_same(tmp_path: Path) -> None:
    """One dies in the first fit, then the first one while a query is chosen; a single process ends the run."""
    data = write_volumes(tmp_path / "data")
    often = {"task__train__checkpoint_seconds": "0.000001"}
    alone(volume_settings(data, tmp_path / "whole", **often))
    argv = volume_settings(data, tmp_path / "cut", **often)
    program = "tests.e2e.rank_deaths"
    done = together(2, program, "1", "fit", "3", *argv)
    assert done.returncode != 0 and "process 0 of 2 cannot go on" in done.stderr, done.stdout + done.stderr
    assert len(story(tmp_path / "cut")[0]) == 1 and not losses(tmp_path / "cut")
    assert (tmp_path / "cut" / "models" / "round_000" / "half_done" / "half_done.pt").exists()
    done = together(2, program, "0", "choose", "2", *argv)
    assert done.returncode != 0 and "process 1 of 2 cannot go on" in done.stderr, done.stdout + done.stderr
    assert len(losses(tmp_path / "cut")) == 1
    assert sorted(shard.name for shard in (tmp_path / "cut" / "offers").iterdir()) == ["0", "1"]
    alone(argv)
    assert story(tmp_path / "cut") == story(tmp_path / "whole") and not (tmp_path / "cut" / "offers").exists()


def test_parts_that_the_processes_cannot_share_are_told_at_the_door(tmp_path: Path) -> None:
    data = write_volumes(tmp_path / "data")
    argv = volume_settings(data, tmp_path / "run", task__train__parts="3", task__train__batch="3")
    done = together(2, str(SCRIPT), *argv)
    assert done.returncode != 0 and done.stderr.count("task.train.parts: 3 parts cannot be shared evenly by 2") == 1
    assert not (tmp_path / "run").exists()
