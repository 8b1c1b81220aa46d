"""Several processes of one program, without `torchrun`: it ends all as soon as one fails, often before they speak.

    python -m tests.processes SIZE SCRIPT|MODULE ARGUMENTS

One process loads the libraries, and forks the others. A module loads its own, and has a `main(argv)`.
"""

from __future__ import annotations

import importlib
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARIES = ("dal_dense.rounds", "dal_dense.tasks.monai_segmentation")


def together(size: int, *argv: str) -> subprocess.CompletedProcess[str]:
    """A script, or a module, in so many processes that find each other as `torchrun` lets them.

    Returns:
        The first exit status that is not 0, if any, and what all of them said.
    """
    command = [sys.executable, "-m", "tests.processes", str(size), *argv]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, start_new_session=True, **pipes) as parent:
        try:
            out, err = parent.communicate(timeout=500)
        except subprocess.TimeoutExpired:
            os.killpg(parent.pid, signal.SIGKILL)  # nobody else ends those who wait for a dead one
            raise
    return subprocess.CompletedProcess(command, parent.returncode, out, err)


def loaded(program: str) -> Callable[[list[str]], int]:
    """What to run, with all that it needs in memory."""
    if not program.endswith(".py"):
        run: Callable[[list[str]], int] = importlib.import_module(program).main
        return run
    for name in LIBRARIES:
        importlib.import_module(name)
    run = runpy.run_path(program)["main"]
    return run


def child(rank: int, run: Callable[[list[str]], int], argv: list[str]) -> int:
    """Exit status of the program in this process."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    try:
        return run(argv)
    except BaseException:
        traceback.print_exc()
        return 1


def main(size: int, program: str, *argv: str) -> int:
    """Fork, and wait for all."""
    run = loaded(program)
    with socket.create_server(("localhost", 0)) as free:
        port = str(free.getsockname()[1])
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=port, TORCHELASTIC_RUN_ID="tests")
    os.environ.update(WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size))
    children = []
    for rank in range(size):
        if (forked := os.fork()) == 0:
            status = child(rank, run, [*argv])
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        children.append(forked)
    ends = [os.waitstatus_to_exitcode(os.waitpid(each, 0)[1]) for each in children]
    return next((status for status in ends if status), 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), *sys.argv[2:]))
