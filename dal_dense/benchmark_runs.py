"""The runs of a benchmark: one process of `tools/train_al.py` each, resumable, a few at once."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dal_dense.cli import load_config
from dal_dense.errors import ConfigError, DataError
from dal_dense.ledger import Ledger
from dal_dense.results import Results, collect

TRAIN = Path("tools") / "train_al.py"
REFIT = Path("tools") / "refit.py"
"""The programs that are run, from the root of the checkout."""
LAST_LINES = 8
"""Of a run that failed, at most so many are shown."""


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        config: its settings file.
        strategy: its name.
        seed: its seed.
        run_dir: its folder.
        arguments: those of `tools/train_al.py`.
    """

    config: Path
    strategy: str
    seed: int
    run_dir: Path
    arguments: tuple[str, ...]

    @property
    def finished(self) -> Path:
        """Written once the program has ended well; a run is skipped only when this is there."""
        return self.run_dir / "finished.txt"

    @property
    def done(self) -> bool:
        """Has this very run ended well before?"""
        return self.finished.is_file() and self.finished.read_text(encoding="utf-8") == self.identity()

    def identity(self) -> str:
        """What was asked for: the arguments and the settings file's content."""
        return " ".join((*self.arguments, hashlib.sha256(self.config.read_bytes()).hexdigest()))


def planned(
    config: Path, strategies: Iterable[str], seeds: Sequence[int], runs: Path, passed_on: Sequence[str]
) -> list[Job]:
    """A job for each strategy and seed; seeds outermost, so that a cut benchmark has whole comparisons."""
    names = list(dict.fromkeys(strategies))
    jobs = []
    for seed in dict.fromkeys(seeds):
        for name in names:
            folder = runs / f"{config.stem}_{name}_seed{seed}"
            own = ("--config", str(config), *passed_on, "--run_dir", str(folder))
            jobs.append(Job(config, name, seed, folder, (*own, "--seed", str(seed), "--strategy.name", name)))
    return jobs


def check(jobs: Iterable[Job]) -> None:
    """Are the settings of all runs sound that are not done? A mistake in one would else be told after the others.

    Raises:
        ConfigError: with each mistake once, in the words of `tools/train_al.py`.
    """
    told: list[str] = []
    for job in (job for job in jobs if not job.done):
        try:
            load_config(job.arguments)
        except ConfigError as problem:
            told += str(problem).splitlines()
    if told:
        raise ConfigError("\n".join(dict.fromkeys(told)))


def run_all(
    jobs: Sequence[Job], *, at_once: int, say: Callable[[str], None], refits: int = 0, train: Path = TRAIN
) -> None:
    """Run what is not finished, `at_once` processes at a time; their output goes to `run_dir/output.txt`.

    Raises:
        DataError: if a run failed, with the last lines it wrote. Runs that had begun are waited for.
    """

    def one(job: Job) -> str | None:
        if job.done:
            say(f"{job.strategy}, seed {job.seed}: finished before")
        else:
            say(f"{job.strategy}, seed {job.seed}: runs")
            asked_for = job.identity()
            if problem := _call(job, train):
                return problem
            job.finished.write_text(asked_for, encoding="utf-8")
            say(f"{job.strategy}, seed {job.seed}: done")
        return _call(job, REFIT, "--repeats", str(refits)) if refits else None

    with ThreadPoolExecutor(max(1, at_once)) as pool:
        problems = [p for p in pool.map(one, jobs) if p is not None]
    if problems:
        raise DataError("\n".join([*problems, "mend the cause and run the same command again; finished runs are kept"]))


def _call(job: Job, program: Path, *first: str) -> str | None:
    """Run a program with the job's arguments; what went wrong, if anything."""
    job.run_dir.mkdir(parents=True, exist_ok=True)
    output = job.run_dir / "output.txt"
    with output.open("ab") as file:
        begin = file.tell()  # behind what earlier calls wrote
        command = [sys.executable, str(program), *first, *job.arguments]
        done = subprocess.run(command, stdout=file, stderr=file, check=False)
    if not done.returncode:
        return None
    lines = output.read_bytes()[begin:].decode("utf-8", errors="replace").splitlines()[-LAST_LINES:]
    fact = f"{job.strategy}, seed {job.seed}: ended with status {done.returncode}"
    return "\n  ".join([f"{fact}; the last it wrote (all of it: {output}):", *(lines or ["nothing"])])


def gather(jobs: Sequence[Job]) -> dict[str, dict[int, Results]]:
    """Strategy to seed to results, read from the ledgers."""
    runs: dict[str, dict[int, Results]] = {}
    for job in jobs:
        with Ledger.read(job.run_dir) as ledger:
            runs.setdefault(job.strategy, {})[job.seed] = collect(ledger)
    return runs
