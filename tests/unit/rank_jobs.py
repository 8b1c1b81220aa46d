"""Jobs for several processes, and a program that leads them: see `test_parts.py`.

python -m tests.processes N tests.unit.rank_jobs all|broken OUT
"""

from __future__ import annotations

import gc
import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dal_dense.cli import command
from dal_dense.errors import DataError, Stopped
from dal_dense.ranks import Ranks, joined
from dal_dense.tasks.base import Hooks
from dal_dense.tasks.parts import Parts

PARTS, STEPS = 4, 3


class Net(nn.Module):
    """A bent layout, a layer that only some parts use, and one that none uses."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Conv3d(1, 5, 3).to(memory_format=torch.channels_last_3d)
        self.sometimes = nn.Linear(5, 5)
        self.never = nn.Linear(2, 2)
        self.last = nn.Linear(5, 1)

    def loss(self, iteration: int, part: int) -> Tensor:
        image = torch.randn(2, 1, 5, 6, 7, generator=torch.Generator().manual_seed(100 * iteration + part))
        x = torch.tanh(self.deep(image)).mean((2, 3, 4))
        x = self.sometimes(x) if part % 3 == 0 else x
        return (self.last(x) - part).pow(2).mean()


def sha256(network: nn.Module) -> str:
    return hashlib.sha256(b"".join(p.detach().contiguous().numpy().tobytes() for p in network.parameters())).hexdigest()


def trained(hooks: Hooks) -> tuple[str, list[float]]:
    """A few steps: what the weights become, and the losses."""
    torch.manual_seed(0)
    network = Net()
    steps = Parts(network, network.loss, PARTS, hooks.ranks)
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.1)
    losses = []
    for i in range(STEPS):
        losses.append(float(steps.gradient(i)))
        nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimiser.step()
    return sha256(network), losses


def left(hooks: Hooks) -> list[str]:
    """What steps that were taken before have left behind, in any process."""
    gc.collect()
    kinds = (DistributedDataParallel, Net)
    mine = [type(o).__name__ for o in gc.get_objects() if type(o) in kinds]
    return [name for names in hooks.ranks.gather(mine) for name in names]


def counted(hooks: Hooks, many: int) -> list[tuple[int, int]]:
    """Each item once and in order, with who looked at it."""
    return list(hooks.share("count", lambda item: (item, hooks.ranks.rank), range(many)))


def kept(hooks: Hooks, many: int) -> list[list[int]]:
    """What each process gets where only the first one gets anything."""
    return hooks.ranks.gather(list(hooks.share("keep", lambda item: item, range(many), only_first=True)))


def unsent(hooks: Hooks, rank: int, how: str) -> None:
    """One process has what cannot be sent."""
    value = threading.Lock() if hooks.ranks.rank == rank else 0
    if how == "told":
        hooks.ranks.told(lambda: value)
    else:
        hooks.ranks.gather(value, only_first=how == "first")


def told(hooks: Hooks) -> tuple[int, bool, bool, list[int]]:
    ranks = hooks.ranks
    last = ranks.rank == ranks.size - 1
    return ranks.told(lambda: 10 + ranks.rank), ranks.agreed(last), ranks.agreed(False), ranks.gather(ranks.rank)


def bad(hooks: Hooks, rank: int, how: str) -> None:
    """Something goes wrong in one process."""
    if hooks.ranks.rank == rank:
        if how == "data":
            raise DataError("a.png: is no image; copy it again")
        if how == "bug":
            raise ZeroDivisionError("by me")
    stopping = how == "stop" and hooks.ranks.rank == rank

    def loss(iteration: int, part: int) -> Tensor:
        if how == "loss" and part == PARTS - 1:
            raise DataError(f"part {part}: cannot be cut; label more")
        return network.loss(iteration, part)

    network = Net()
    list(Hooks(stopping=lambda: stopping, ranks=hooks.ranks).share("look", lambda item: item, range(40)))
    Parts(network, loss, PARTS, hooks.ranks).gradient(0)


def broken(hooks: Hooks) -> None:
    """The second process fails while the first waits for its gradient."""

    def burst(gradient: Tensor) -> None:
        raise torch.OutOfMemoryError("out of memory on purpose")

    def loss(iteration: int, part: int) -> Tensor:
        found = network.loss(iteration, part)
        if hooks.ranks.rank == 1 and iteration == 1:
            found.register_hook(burst)
        return found

    network = Net()
    steps = Parts(network, loss, hooks.ranks.size, hooks.ranks)
    for i in range(2):
        steps.gradient(i)


def failure(ranks: Ranks, job: Callable[..., object], *given: object) -> str:
    try:
        ranks.lead(job, (Hooks(ranks=ranks),), given)
    except (DataError, ArithmeticError, RuntimeError, Stopped, TypeError) as problem:
        return f"{type(problem).__name__}: {problem}"
    return "nothing went wrong"


@command
def main(argv: list[str]) -> int:
    torch.set_num_threads(1)
    with joined("cpu") as ranks:
        own = (Hooks(ranks=ranks),)
        if not ranks.first:
            ranks.follow(*own)
            return 0
        if argv[0] == "broken":
            ranks.lead(broken, own, ())
        last = ranks.size - 1
        found = {
            "failures": [failure(ranks, bad, who, how) for how in ("data", "bug", "loss", "stop") for who in (0, last)],
            "unsent": [
                failure(ranks, unsent, 0, "told"),
                failure(ranks, counted, threading.Lock()),
                *(failure(ranks, unsent, who, how) for how in ("all", "first") for who in (0, last)),
            ],
            "trained": ranks.lead(trained, own, ()),
            "left": ranks.lead(left, own, ()),
            "counted": ranks.lead(counted, own, (37,)),
            "kept": ranks.lead(kept, own, (37,)),
            "told": ranks.lead(told, own, ()),
        }
    Path(argv[1]).write_text(json.dumps(found))
    return 0
