"""Several processes: who hears of what, and gradients that add up in the order of the parts."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
import torch
from torch import nn

from dal_dense import ranks as ranks_module
from dal_dense.config import TrainConfig
from dal_dense.errors import ConfigError, DataError
from dal_dense.noise import derive_seed
from dal_dense.ranks import ALONE, device_of
from dal_dense.tasks.base import Hooks
from dal_dense.tasks.parts import Parts, part_seed
from tests.processes import together
from tests.unit.rank_jobs import PARTS, counted, trained


@pytest.fixture(scope="module", params=[2, 4])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any]]:
    """What the first of several processes saw."""
    size: int = request.param
    out = tmp_path_factory.mktemp("ranks") / "found.json"
    done = together(size, "tests.unit.rank_jobs", "all", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    return size, json.loads(out.read_text())


def test_any_number_of_processes_gives_the_same_weights(found: tuple[int, dict[str, Any]]) -> None:
    assert found[1]["trained"] == [*trained(Hooks())]


def test_steps_leave_neither_networks_nor_buckets_behind(found: tuple[int, dict[str, Any]]) -> None:
    """They would fill memory round by round, and keep threads alive that abort the process as it ends."""
    assert found[1]["left"] == []


def test_all_look_and_the_order_stays(found: tuple[int, dict[str, Any]]) -> None:
    size, seen = found
    assert seen["counted"] == [[i, i % size] for i in range(37)]
    assert counted(Hooks(), 37) == [(i, 0) for i in range(37)]


def test_two_items_are_looked_at_together_and_never_three() -> None:
    both, inside, most = threading.Barrier(2), [], []

    def look(item: int) -> int:
        inside.append(item)
        most.append(len(inside))
        both.wait(60)  # nobody leaves before a second one is here
        inside.remove(item)
        both.wait(60)
        return item

    assert list(Hooks().share("look", look, range(12))) == list(range(12))
    assert set(most) == {1, 2}


def test_the_first_bad_item_is_told_and_no_further_one_is_begun() -> None:
    begun = []

    def look(item: int) -> int:
        begun.append(item)
        if item >= 3:
            raise DataError(f"image {item} is bad")
        return item

    with pytest.raises(DataError, match="image 3 is bad"):
        list(Hooks().share("look", look, range(40)))
    assert max(begun) <= 4


def test_only_the_first_gets_what_only_the_first_needs(found: tuple[int, dict[str, Any]]) -> None:
    size, seen = found
    assert seen["kept"] == [[*range(37)], *[[]] * (size - 1)]


def test_what_cannot_be_sent_fails_everywhere_and_nobody_waits(found: tuple[int, dict[str, Any]]) -> None:
    size, seen = found
    mine = "TypeError: cannot pickle '_thread.lock' object"
    told, led, *gathered = seen["unsent"]
    assert [told, led, *gathered[::2]] == [mine] * 4
    assert all(text.startswith(f"RuntimeError: process {size - 1} failed") and mine in text for text in gathered[1::2])


def test_meetings(found: tuple[int, dict[str, Any]]) -> None:
    size, seen = found
    assert seen["told"] == [10, True, False, [*range(size)]]


def test_a_failure_anywhere_reaches_the_first_process_and_the_next_job_runs(found: tuple[int, dict[str, Any]]) -> None:
    image, part = "DataError: a.png: is no image; copy it again", "DataError: part 3: cannot be cut; label more"
    *first, by_first, by_last = found[1]["failures"][:4]
    assert first + found[1]["failures"][4:] == [image, image, part, part, "Stopped: ", "Stopped: "]
    assert by_first == "ZeroDivisionError: by me"
    assert by_last.startswith(f"RuntimeError: process {found[0] - 1} failed") and "ZeroDivisionError: by me" in by_last


def test_a_failure_that_others_wait_for_ends_all() -> None:
    done = together(2, "tests.unit.rank_jobs", "broken", "")
    assert done.returncode != 0
    assert "process 1 of 2 cannot go on" in done.stderr and "out of memory on purpose" in done.stderr
    assert "process 0 of 2 cannot go on" in done.stderr


def test_the_gradient_is_the_mean_over_the_parts() -> None:
    network = nn.Linear(3, 1)
    data = torch.randn(PARTS, 5, 3)
    loss = Parts(network, lambda iteration, part: network(data[part]).pow(2).mean(), PARTS, ALONE).gradient(0)
    gradient = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    whole = network(data.flatten(0, 1)).pow(2).mean()
    whole.backward()
    assert float(loss) == pytest.approx(float(whole.detach()), rel=1e-6)
    for ours, p in zip(gradient, network.parameters(), strict=True):
        assert torch.allclose(ours, p.grad, rtol=1e-5)


def test_the_first_part_draws_what_an_undivided_step_draws() -> None:
    seeds = [part_seed(5, "batch", i, part) for i in range(20) for part in range(20)]
    assert len(set(seeds)) == len(seeds)
    assert part_seed(5, "batch", 3, 0) == derive_seed(5, "batch", 3)


def test_what_parts_cannot_share_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"task\.train\.parts.*batch norm"):
        Parts(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)), lambda i, p: torch.zeros(()), 2, ALONE)
    with pytest.raises(ValueError, match="batch 4 does not go into 3 equal parts"):
        TrainConfig(batch=4, parts=3)


def test_each_process_takes_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.backends.mps.is_available():
        with pytest.raises(ConfigError, match="device: mps was asked for, but torch sees none"):
            device_of("mps")
    monkeypatch.setattr(ranks_module.torch.cuda, "is_available", lambda: False)
    assert device_of("auto", 1) == device_of("cpu", 1) == torch.device("cpu")
    with pytest.raises(ConfigError, match="device: mps is one device"):
        device_of("mps", 0)
    monkeypatch.setattr(ranks_module.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(ranks_module.torch.cuda, "device_count", lambda: 2)
    assert device_of("auto") == torch.device("cuda") and device_of("cuda:1") == torch.device("cuda:1")
    assert [device_of("auto", i) for i in range(2)] == [torch.device("cuda:0"), torch.device("cuda:1")]
    assert device_of("cpu", 1) == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"process 2 of this machine finds 2 CUDA devices.*--nproc-per-node"):
        device_of("auto", 2)
    with pytest.raises(ConfigError, match="device: cuda:1 is one device"):
        device_of("cuda:1", 1)
