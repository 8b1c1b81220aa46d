"""What a case of the engine's benchmark is, and how one way of doing it is measured."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

CALLS = 3
"""Of a way, at most; the first touch of memory that a virtual machine does not hold yet costs it several times."""

SHORT = 45.0
"""Seconds after which a way is not called again."""

Inputs = Any
"""What a case's `make` returns: made from a fixed seed, in every process anew."""


@dataclass(frozen=True)
class Way:
    """One way of doing a case's work.

    Attributes:
        run: takes the inputs, returns anything; this call is measured.
        needs: a package of the extra `[peers]`; the way is left out where it is not installed.
        peer: done only with --peers.
        cuda: can be run on a GPU (the inputs are made there).
        cpu: can be run on a CPU in bearable time.
    """

    run: Callable[[Inputs], object]
    needs: str | None = None
    peer: bool = False
    cuda: bool = False
    cpu: bool = True

    @property
    def missing(self) -> bool:
        """Is its package absent?"""
        return self.needs is not None and importlib.util.find_spec(self.needs) is None


@dataclass(frozen=True)
class Case:
    """A piece of the engine's work, done in several ways; the first way is ours.

    Attributes:
        name: short, for --only.
        work: what is done, with its size.
        goal: what is to be reached, in words.
        make: device ("cpu" or "cuda") to inputs; not measured.
        ways: name to way.
        judge: result to figures that show that the work was done right ("objective", "cover radius", "largest error").
        moved: inputs to bytes that must at least be read and written, for the share of the copy bandwidth.
        once: called once, which counts: it takes so long that a first call's extra does not show.
    """

    name: str
    work: str
    goal: str
    make: Callable[[str], Inputs]
    ways: Mapping[str, Way]
    judge: Callable[[Inputs, Any], Mapping[str, float]] = lambda inputs, result: {}
    moved: Callable[[Inputs], float] | None = None
    once: bool = False


@dataclass(frozen=True)
class Measured:
    """One way, measured in a process of its own.

    Attributes:
        case, way: which.
        device: where it ran; beside a GPU, ways that have no use for one run on the CPU.
        wall, cpu: seconds of the best of up to `CALLS` calls, by `cpu` (over all threads), on a GPU by `wall`.
        memory: bytes by which the peak rose during the first call (host memory, or the GPU's on cuda).
        figures: the case's judgement of the result.
        moved: bytes that must be moved at least.
        error: why there are no figures.
    """

    case: str
    way: str
    device: str = "cpu"
    wall: float = 0.0
    cpu: float = 0.0
    memory: float = 0.0
    figures: Mapping[str, float] = field(default_factory=dict)
    moved: float | None = None
    error: str | None = None


def measure(case: Case, way: str, device: str) -> Measured:
    """Make the inputs, run one way, judge the result. Call it in a fresh process."""
    how = case.ways[way]
    device = device if how.cuda else "cpu"
    inputs = case.make(device)
    if device != "cpu" and not case.once:
        how.run(inputs)  # kernels are compiled and libraries loaded
    floor = _reset_peak(device)
    result, cpu, wall = _timed(how.run, inputs, device)
    memory = _peak(device) - floor
    figures = dict(case.judge(inputs, result))
    del result
    moved = case.moved(inputs) if case.moved else None
    taken = [(cpu, wall)]
    while not case.once and len(taken) < CALLS and sum(w for _, w in taken) < SHORT:
        taken.append(_timed(how.run, inputs, device)[1:])
    cpu, wall = min(taken, key=lambda t: t if device == "cpu" else t[::-1])
    return Measured(case.name, way, device, wall, cpu, memory, figures, moved)


def _timed(run: Callable[[Inputs], object], inputs: Inputs, device: str) -> tuple[object, float, float]:
    """The result, CPU seconds, seconds; until the GPU is done."""
    wait_for(device)
    wall, cpu = time.perf_counter(), time.process_time()
    result = run(inputs)
    wait_for(device)
    return result, time.process_time() - cpu, time.perf_counter() - wall


def wait_for(device: str) -> None:
    """Until a GPU has done what it was given."""
    if device != "cpu":
        import torch

        torch.cuda.synchronize()


def _reset_peak(device: str) -> float:
    """Bytes held now, on a GPU by tensors; the peak starts from here (on the CPU where Linux allows that)."""
    if device != "cpu":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return float(torch.cuda.memory_allocated())
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024


def _peak(device: str) -> float:
    if device != "cpu":
        import torch

        return float(torch.cuda.max_memory_allocated())
    try:
        return _status("VmHWM")
    except OSError:
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return float(line.split()[1]) * 1024
    raise OSError(f"no {name} in /proc/self/status")


def in_own_process(case: str, way: str, device: str, threads: int, limit: float) -> Measured:
    """`measure` in a process of its own, so that no way inherits another's memory or warm caches."""
    command = [sys.executable, "-m", "engine_bench.case", case, way, device, str(threads)]
    here = Path(__file__).resolve().parent.parent
    paths = [str(here), str(here.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    try:
        done = subprocess.run(
            command, cwd=here.parent, env=settings, capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return Measured(case, way, error=f"not done in {limit:.0f} s")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        died = f"ended by signal {-done.returncode}" if done.returncode < 0 else last
        return Measured(case, way, error=died)
    return Measured(**json.loads(done.stdout.strip().splitlines()[-1]))


def main(argv: Sequence[str]) -> None:
    """CASE WAY DEVICE THREADS: measure, print one line of JSON."""
    name, way, device, threads = argv
    import torch

    from engine_bench import cases  # type: ignore[attr-defined]

    torch.set_num_threads(int(threads))
    sys.stdout.write(json.dumps(asdict(measure(cases()[name], way, device))) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
