"""The clock of tools/bench_round.py: what counts as fit, forward pass and the rest."""

from __future__ import annotations

import importlib.util
import re
import time
from pathlib import Path

import pytest
import torch
from torch import nn

SCRIPT = Path(__file__).parents[2] / "tools" / "bench_round.py"


@pytest.fixture
def clock(monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_round", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    hooks = nn.modules.module
    for name in ("_global_forward_pre_hooks", "_global_forward_hooks", "_global_forward_hooks_always_called"):
        monkeypatch.setattr(hooks, name, type(getattr(hooks, name))())
    from dal_dense.tasks import monai_infer

    monkeypatch.setattr(monai_infer, "pass_logits", monai_infer.pass_logits)
    made = module.Clock()
    made.watch_networks()
    return made


class Slow(nn.Module):
    def __init__(self, inner=None):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        time.sleep(0.05)
        return x if self.inner is None else self.inner(x)


def test_a_forward_pass_is_the_outermost_network_outside_the_fit(clock):
    network, x = Slow(Slow()), torch.zeros(1)

    def step(run, number):
        time.sleep(0.1)
        network(x)

    for name in ("ask", "fit"):
        clock.watch(name, step)(None, 0)
    network(x)  # between the steps: nobody's
    assert clock.whole[0, "ask"] >= 0.2
    assert 0.1 <= clock.forward[0, "ask"] <= clock.whole[0, "ask"] - 0.1

    rest = float(re.search(r"\| ([\d.]+) s, ", clock.table()[2])[1])
    assert 0.05 <= rest <= clock.whole[0, "ask"] - 0.05  # of the fit nothing, of asking what is no forward pass


def test_the_report_belongs_to_the_round_before_it(clock):
    clock.watch("ask", lambda run, number: None)(None, 3)
    clock.watch("report", lambda run: time.sleep(0.01))(None)
    assert clock.whole[3, "report"] >= 0.01


def test_a_network_that_fails_ends_its_pass(clock):
    class Broken(nn.Module):
        def forward(self, x):
            raise ValueError("no")

    def step(run, number):
        with pytest.raises(ValueError, match="no"):
            Broken()(torch.zeros(1))
        time.sleep(0.1)

    clock.watch("ask", step)(None, 0)
    assert clock.forward[0, "ask"] <= clock.whole[0, "ask"] - 0.1
