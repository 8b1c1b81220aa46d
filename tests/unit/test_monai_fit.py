import json
import math
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dal_dense.config import NetworkConfig, QueryConfig, TaskConfig, TrainConfig, UncertaintyConfig
from dal_dense.costs import PRESETS
from dal_dense.errors import ConfigError, DataError
from dal_dense.noise import region_keys
from dal_dense.records import Header
from dal_dense.regions import Regions
from dal_dense.tasks.base import Hooks
from dal_dense.tasks.monai_fit import start_from
from dal_dense.tasks.monai_ground import gather, held_out, paste
from dal_dense.tasks.monai_networks import build_network
from dal_dense.tasks.monai_segmentation import MonaiSegmentation
from dal_dense.tasks.training import PERTURB, deterministic, late_snapshots, learning_rate
from dal_dense.tasks.weights import folder_sha256, load_state

sys.path.insert(0, str(Path(__file__).parent))
from toy_pool import CLASSES, known, toy_record

TILES = [((r, c), (r + 10, c + 13)) for r in (0, 10, 20, 30) for c in (0, 13, 26, 39)]


def task_of(**more) -> MonaiSegmentation:
    train = {"iterations": 3, "batch": 2, "patch": (16, 16), "lr": 1e-2, **more.pop("train", {})}
    arguments = {
        "task": TaskConfig(network=NetworkConfig(channels=(4, 8)), train=TrainConfig(**train), **more.pop("task", {})),
        "uncertainty": UncertaintyConfig(**more.pop("uncertainty", {})),
        "query": QueryConfig(sizes=((8, 8),)),
        "costs": PRESETS["frame_polygon"],
        "classes": CLASSES,
        "ndim": 2,
        "in_channels": 3,
        "device": torch.device("cpu"),
        "mask_of": lambda record: None,
    }
    return MonaiSegmentation(**{**arguments, **more})


@pytest.fixture
def image(tmp_path):
    return toy_record(tmp_path, "one", (40, 52), 0)


def fit(task, labelled, out, previous=None, seed=0, hooks=None):
    return task.fit(labelled, seed=seed, out=out, previous=previous, hooks=hooks or Hooks())


def test_the_learning_rate_rises_then_falls():
    train = TrainConfig(iterations=100, lr=1.0)
    rates = [learning_rate(train, i) for i in range(100)]
    assert np.argmax(rates) in (9, 10) and max(rates) == pytest.approx(1.0)
    assert rates[0] == pytest.approx(0.1) and rates[-1] < 0.02
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert learning_rate(TrainConfig(iterations=1, lr=1.0), 0) == 1.0


def test_the_deterministic_setting_leaves_everything_else_as_it_is():
    """cudnn.flags() resets what it is not told: unnamed, `enabled` would become False on CUDA."""
    cudnn = torch.backends.cudnn
    before = cudnn.enabled, cudnn.allow_tf32, cudnn.deterministic
    with deterministic(torch.device("cuda")):
        assert (cudnn.enabled, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark) == (*before[:2], True, False)
    assert (cudnn.enabled, cudnn.allow_tf32, cudnn.deterministic) == before


@pytest.mark.parametrize("iterations,count,expected", [(90, 3, [90, 80, 70]), (3, 5, [3, 2]), (1, 4, [1])])
def test_snapshots_lie_in_the_last_third_the_end_first(iterations, count, expected):
    assert late_snapshots(iterations, count) == expected


def test_held_out_regions(image):
    record, truth = image
    labelled = [known(record, truth, TILES)]
    held = held_out(labelled, 0.3)
    assert 1 <= len(held) <= math.ceil(0.3 * 16)
    assert held == held_out(labelled, 0.3)
    shuffled = [known(record, truth, TILES[::-1])]
    boxes = {TILES[n] for _, n in held}
    assert boxes == {TILES[::-1][n] for _, n in held_out(shuffled, 0.3)}
    assert held_out(labelled, 0.0) == frozenset()
    assert held_out([known(record, truth, TILES[:4])], 0.3) == frozenset()


def test_the_only_region_with_a_class_is_never_held_out(image):
    record, truth = image
    truth[:] = 0
    for rare in range(16):
        marked = truth.copy()
        start, _ = TILES[rare]
        marked[start] = 1
        assert (record.id, rare) not in held_out([known(record, marked, TILES)], 0.49)


def test_held_out_ground_is_not_trained_on(image):
    record, truth = image
    labelled = [known(record, truth, TILES)]
    task = task_of()
    held = held_out(labelled, 0.3)
    ground = gather(
        labelled, task._geometry, held=held, train=task._task.train, classes=3, in_channels=3, seed=0, hooks=Hooks()
    )
    pixels = [sum(int(p.counts.sum()) for p in part) for part in (ground.train, ground.held)]
    assert pixels == [(16 - len(held)) * 130, len(held) * 130]


def test_training_sees_the_very_voxels_that_inference_sees(tmp_path):
    """One recipe: a piece is a cut-out of what `predict` feeds the network, bit for bit."""
    record, truth = toy_record(tmp_path, "vol", (20, 18, 14), 1)
    task = task_of(
        ndim=3, in_channels=1, train={"patch": (8, 8, 8)}, query=QueryConfig(), task={"spacing": (2.5, 2.0, 2.0)}
    )
    known_image = known(record, truth, [((0, 0, 0), truth.shape)])
    (piece,) = gather(
        [known_image],
        task._geometry,
        held=frozenset(),
        train=task._task.train,
        classes=3,
        in_channels=1,
        seed=0,
        hooks=Hooks(),
    ).train
    seen, grid, _ = task._read(record)
    assert tuple(grid.shape) != truth.shape
    assert torch.equal(piece.image, seen)


def test_temperature_and_figures_of_a_fit(image, tmp_path):
    labelled = [known(*image, TILES)]
    report = fit(task_of(train={"iterations": 5}), labelled, tmp_path / "fit")
    assert 0.25 <= report.figures["temperature"] <= 8
    assert report.figures["held_out_voxels"] > 0 and report.figures["iterations"] == 5
    assert report.figures["train_seconds"] > 0
    card = json.loads((tmp_path / "fit" / "model.json").read_text())
    assert card["temperature"] == report.figures["temperature"]
    assert not (tmp_path / "fit" / "half_done").exists()
    (tmp_path / "fit" / "model.json").write_text(json.dumps({**card, "temperature": 9.0}))
    assert folder_sha256(tmp_path / "fit") != report.sha256  # the temperature is part of the model
    plain = fit(task_of(uncertainty={"temperature": False}), labelled, tmp_path / "plain")
    assert plain.figures["temperature"] == 1.0


def test_members_of_an_ensemble_differ(image, tmp_path):
    fit(task_of(uncertainty={"draws": "ensemble", "count": 2}), [known(*image, TILES[:3])], tmp_path)
    one, two = (load_state(tmp_path / f"member_0{m}.safetensors") for m in range(2))
    assert not any(torch.equal(one[name], two[name]) for name in one if one[name].ndim > 1)


def test_warm_and_shrunk_starts(image, tmp_path):
    labelled = [known(*image, TILES[:3])]
    first = fit(task_of(), labelled, tmp_path / "first")
    last = load_state(tmp_path / "first" / "member_00.safetensors")
    settings = NetworkConfig(channels=(4, 8))
    fresh = build_network(settings, ndim=2, in_channels=3, classes=3, seed=7)
    before = {k: p.detach().clone() for k, p in fresh.named_parameters()}
    start_from(fresh, last, tmp_path, TrainConfig(start="shrink_perturb", shrink=0.4))
    for name, p in fresh.named_parameters():
        assert torch.allclose(p, 0.4 * last[name] + PERTURB * before[name])
    ends = {}
    for start in ("scratch", "warm", "shrink_perturb"):
        task = task_of(train={"start": start})
        ends[start] = fit(task, labelled, tmp_path / start, previous=first.weights).sha256
    assert len(set(ends.values())) == 3


def test_an_interrupted_save_is_begun_anew(image, tmp_path):
    """A damaged half-done state costs time, never the fit."""
    labelled = [known(*image, TILES[:3])]
    whole = fit(task_of(), labelled, tmp_path / "whole")
    work = tmp_path / "cut" / "half_done"
    work.mkdir(parents=True)
    card = json.loads((tmp_path / "whole" / "model.json").read_text())
    (work / "inputs.txt").write_text(card["inputs"])
    (work / "half_done.pt").write_bytes(b"PK\x03\x04 not a checkpoint")
    assert fit(task_of(), labelled, tmp_path / "cut").sha256 == whole.sha256


def test_bad_weights_are_told(image, tmp_path):
    task = task_of()
    fit(task, [known(*image, TILES[:3])], tmp_path / "fit")
    path = tmp_path / "fit" / "member_00.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(DataError, match=r"cannot be read.*run again to refit"):
        task.load(tmp_path / "fit")
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(DataError, match="another network"):
        task.load(tmp_path / "fit")
    path.write_bytes(good)
    with pytest.raises(DataError, match="was fitted on 2-D images"):
        task_of(classes=("background", "liver", "spleen")).load(tmp_path / "fit")


def test_the_global_generator_is_left_alone(image, tmp_path):
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    fit(task_of(), [known(*image, TILES[:3])], tmp_path / "fit")
    assert torch.equal(before, torch.get_rng_state())
    assert (numpy_before == np.random.get_state()[1]).all()


def test_a_loss_that_is_no_number_names_the_setting(image, tmp_path):
    with pytest.raises(ConfigError, match=r"task\.train\.lr.*lower task\.train\.lr"):
        fit(task_of(train={"lr": 1e30}), [known(*image, TILES[:3])], tmp_path / "fit")


def test_labels_that_do_not_fit_the_image(image, tmp_path):
    record, truth = image
    late = replace(known(record, truth, TILES[:1]), regions=Regions.of([((35, 0), (45, 13))], 2))
    with pytest.raises(DataError, match=r"lies outside the image's grid.*Put the old file back"):
        fit(task_of(), [late], tmp_path / "fit")
    with pytest.raises(DataError, match="3 channels, but the first image of the pool has 1"):
        fit(task_of(in_channels=1), [known(record, truth, TILES[:1])], tmp_path / "fit")


def test_pasting_keeps_everything_else_ignored(image):
    record, truth = image
    both = paste(known(record, truth, TILES[:2]), Header((40, 52), (1.0, 1.0), None))
    assert (both[0] != 255).sum() == 260 and (both[1] == 2).sum() == 130
    assert (both[0][both[1] > 0] == truth[both[1] > 0]).all()


@pytest.mark.parametrize(
    "more,message",
    [
        ({"train": {"flip_axes": ("front_back",)}}, "task.train.flip_axes: frames have no axis front_back"),
        ({"task": {"spacing": (1.0, 1.0, 1.0)}}, "task.spacing: is for volumes"),
        ({"uncertainty": {"draws": "flips"}}, "needs at least one axis in task.train.flip_axes"),
        ({"train": {"patch": (16, 16, 16)}}, "task.train.patch: 3 numbers found, 2 expected for frames"),
    ],
)
def test_settings_that_cannot_work_together(more, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        task_of(**more)


def test_region_keys_are_what_decides():
    """The rule above draws by region, not by order: two regions of one image differ in their key."""
    keys = region_keys("one", Regions.of(TILES, 2))
    assert len(set(keys.tolist())) == len(TILES)
