"""Threads that wait for each other sleep soon, in every command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dal_dense.cli import SPINS, share_cores

TOOLS = Path(__file__).parents[2] / "tools"

LOAD = """
import runpy, sys
from dal_dense.cli import command

@command
def main(tools):
    for tool in tools:
        runpy.run_path(tool)
        assert "torch" not in sys.modules, f"{tool} loads torch before threads are told how to wait"
    import torch
    return 0

sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp's own setting")
def test_every_command_says_how_threads_wait_before_torch_loads():
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    tools = sorted(map(str, TOOLS.glob("*.py")))
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *tools],
        env={**env, "OMP_DISPLAY_ENV": "verbose", "PYTHONPATH": str(TOOLS)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"GOMP_SPINCOUNT = '{SPINS}'" in done.stderr


@pytest.mark.parametrize("said", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}])
def test_what_the_user_said_of_it_holds(monkeypatch, said):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    share_cores()
    assert {k: v for k, v in os.environ.items() if k in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")} == said
