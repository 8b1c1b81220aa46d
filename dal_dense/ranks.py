"""Several processes share one run: the only place that knows `torch.distributed`.

    torchrun --nproc-per-node N tools/train_al.py --config CONFIG

The first process runs the loop and alone holds the ledger, the screen and the annotator. It leads
jobs: plain functions that run in every process with the same arguments (`lead`); where it needs
more than the others hold, it runs one of its own beside theirs. The others wait
for a job, run it beside the first, and wait for the next (`follow`). Inside a job they meet:
`agreed`, `gather`, `told`. All processes come to every meeting, in the same order. One that fails
says so at the next meeting, whichever it is; all then leave the job with that failure, and the
first decides what comes next. One that dies breaks the connection, and `RankError` ends the rest.
"""

from __future__ import annotations

import gc
import pickle
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from dal_dense.errors import ConfigError, DalDenseError, RankError, Stopped

PATIENCE = timedelta(days=365)
"""Followers wait for a job as long as the first process is busy by itself."""

STEP_PATIENCE = timedelta(minutes=10)
"""How long one process may wait for another's gradient."""

CPU = torch.device("cpu")

_GO, _STOP, _FAILED = range(3)

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run; by default there is no other.

    Attributes:
        rank: its number; 0 is the first.
        size: how many there are.
        device: where its networks run.
        training: the group that gradients are exchanged in, where there are several.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    training: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Does this process run the loop?"""
        return self.rank == 0

    def agreed(self, wish: bool) -> bool:
        """True in all processes if any of them wishes so."""
        return self._meet(_STOP if wish else _GO) == _STOP

    def gather(self, value: T, *, only_first: bool = False) -> list[T]:
        """Everyone's value, in order of rank; with `only_first` an empty list in all processes but the first."""
        if self.size == 1:
            return [value]
        packed = pickle.dumps(value)  # what cannot be sent fails before the meeting, and the others hear of it there
        self._meet(_GO)
        return [pickle.loads(each) for each in self._exchanged(packed, only_first)]

    def told(self, make: Callable[[], T]) -> T:
        """What the first process makes; the others make nothing and wait for it."""
        if self.size == 1:
            return make()
        packed = pickle.dumps(make()) if self.first else b""
        self._meet(_GO)
        told: T = pickle.loads(self._broadcast(packed))
        return told

    def lead(
        self,
        job: Callable[..., T],
        own: Sequence[object],
        given: Sequence[object],
        others: Callable[..., object] | None = None,
    ) -> T:
        """Run a job in all processes; the first one's result.

        Args:
            job: a function of a module, so that its name finds it in the other processes.
            own: its first arguments, of which every process has its own.
            given: the others, which are sent; tensors must lie on the CPU.
            others: what the other processes run beside it, if that is another function.

        Raises:
            Exception: whatever the job raises in any process.
            RankError: if a process died.
        """
        if self.size > 1:
            self.send((others or job, given))
        return self._together(job, own, given)

    def follow(self, *own: object) -> None:
        """Run the jobs that the first process leads, until it is done."""
        while (order := self.receive()) is not None:
            job, given = order
            try:
                self._together(job, own, given)
            except RankError:
                raise
            except Exception:  # the first process knows, and decides what comes next
                continue

    def send(self, value: object) -> None:
        """From the first process to all others; None ends them."""
        self._broadcast(pickle.dumps(value))

    def receive(self) -> Any:
        """What the first process sent."""
        return pickle.loads(self._broadcast(b""))

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """Around calls in which other processes are waited for.

        Raises:
            RankError: if they fail.
        """
        try:
            yield
        except RuntimeError as problem:
            if self.size == 1:
                raise
            said = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
            raise RankError(
                f"process {self.rank} of {self.size} cannot go on: another one has ended, or the connection to it "
                "broke; see what each of them says (one that says nothing was killed, often for lack of memory). All "
                "that was recorded is safe: run the same command again to go on, with one process or several (torch "
                f"says: {said})"
            ) from problem

    def _together(self, job: Callable[..., T], own: Sequence[object], given: Sequence[object]) -> T:
        if self.size == 1:
            return job(*own, *given)
        try:
            result = job(*own, *given)
            self._meet(_GO)
        except _Told as told:
            raise told.problem from None
        except RankError:
            raise
        except Exception as problem:  # of any kind: the others wait for this process at their next meeting
            self._meet(_FAILED, problem)
            raise
        return result

    def _meet(self, state: int, problem: Exception | None = None) -> int:
        """The largest state of all; where one has failed, all hear why."""
        if self.size == 1:
            return state
        largest = torch.tensor([state])
        with self.exchanging():
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        if int(largest) == _FAILED:
            failures = self._exchanged(None if problem is None else _portable(problem, self.rank))
            if problem is None:
                raise _Told(next(failure for failure in failures if failure is not None))
        return int(largest)

    def _exchanged(self, value: T, only_first: bool = False) -> list[T]:
        everyone: list[Any] = [None] * self.size
        with self.exchanging():
            if not only_first:
                dist.all_gather_object(everyone, value)
            elif self.first:
                dist.gather_object(value, everyone)
            else:
                dist.gather_object(value)
                return []
        return everyone

    def _broadcast(self, packed: bytes) -> bytes:
        if self.size == 1:
            return packed
        held = [packed]
        with self.exchanging():
            dist.broadcast_object_list(held, src=0)
        return held[0]


ALONE = Ranks()
"""A process by itself."""


class _Told(Exception):  # noqa: N818 - the failure of another process, on its way out of the job
    def __init__(self, problem: Exception) -> None:
        super().__init__()
        self.problem = problem


def _portable(problem: Exception, rank: int) -> Exception:
    """What the first process is to raise: what a user can mend as it is, a bug with its traceback."""
    if isinstance(problem, (DalDenseError, Stopped, OSError)):
        return problem
    lines = "".join(traceback.format_exception(problem))
    return RuntimeError(f"process {rank} failed:\n{lines}")


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """The processes that `torchrun` started beside this one; this one alone if it was started by itself.

    Args:
        device: as in the settings; `auto` and `cuda` give each process a CUDA device of its own.

    Raises:
        ConfigError: if there is no such device, or not one for each.
    """
    if not dist.is_torchelastic_launched():
        yield Ranks(device=device_of(device))
        return
    dist.init_process_group("gloo", timeout=PATIENCE)
    several = dist.get_world_size() > 1
    here = device_of(device, dist.get_node_local_rank() if several else None)
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), here)
    if several:
        if here.type == "cuda":
            torch.cuda.set_device(here)
        group: Any = dist.new_group(backend="nccl" if here.type == "cuda" else "gloo", timeout=STEP_PATIENCE)
        ranks = replace(ranks, training=group)
    try:
        yield ranks
    except (RankError, KeyboardInterrupt):  # others may be in the midst of a job: they are not waited for
        raise
    except BaseException:
        _part(ranks)
        raise
    _part(ranks)


def _part(ranks: Ranks) -> None:
    """Leave the others.

    Cycles of objects that hold the group would keep its threads alive, and one that lets go of a tensor while the
    interpreter ends aborts the process.
    """
    if ranks.first:
        ranks.send(None)
    gc.collect()
    dist.destroy_process_group()


def device_of(name: str, place: int | None = None) -> torch.device:
    """The device of this process.

    Args:
        name: `auto` is CUDA where there is one, else the CPU (MPS lacks 3-D operations, so it must be named).
        place: number of this process on its machine, where there are several.

    Raises:
        ConfigError: if there is no such device, or not one for each process.
    """
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device: {name} was asked for, but torch sees no CUDA device; use --device cpu or auto")
    if place is None:
        if name == "mps" and not torch.backends.mps.is_available():
            raise ConfigError("device: mps was asked for, but torch sees none; use --device cpu or auto")
        return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else name.replace("auto", "cpu"))
    if name not in ("auto", "cuda", "cpu"):
        raise ConfigError(f"device: {name} is one device, and each process needs its own; use --device auto, or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if place >= torch.cuda.device_count():
        raise ConfigError(
            f"device: process {place} of this machine finds {torch.cuda.device_count()} CUDA devices, and each "
            "process needs its own; start fewer processes (--nproc-per-node), or use --device cpu"
        )
    return torch.device("cuda", place)
