"""The command in several processes, one of which is killed. A program of its own: see `test_ranks.py`.

    python -m tests.processes N tests.e2e.rank_deaths RANK fit|choose NUMBER ARGUMENTS

Process RANK kills itself at its call NUMBER of an optimiser step, or when it is to hand over candidates. Offers go
to files.
"""

from __future__ import annotations

import itertools
import os
import signal

import torch.distributed as dist

from dal_dense import offer_store, rounds
from dal_dense.acquire.shards import LocalShard
from dal_dense.tasks import monai_segmentation
from dal_dense.tasks.parts import Parts
from tests.e2e.command import main_of_script

LOADED = (rounds, monai_segmentation)
"""Once, for all processes."""
STEPS = {"fit": (Parts, "gradient"), "choose": (LocalShard, "__call__")}


def deadly(rank: int, step: str, number: int) -> None:
    """Let this process die there, if it is the one."""
    owner, name = STEPS[step]
    whole, calls = getattr(owner, name), itertools.count(1)

    def method(self: object, *args: object) -> object:
        if dist.get_rank() == rank and next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, *args)

    setattr(owner, name, method)


def main(argv: list[str]) -> int:
    """The command, which this process may not survive."""
    offer_store.MANY = 1
    deadly(int(argv[0]), argv[1], int(argv[2]))
    return main_of_script()(argv[3:])
