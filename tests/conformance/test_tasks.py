"""What any task adapter must do. A third party adds a row to `ADAPTERS`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dal_dense.config import (
    IntensityConfig,
    NetworkConfig,
    QueryConfig,
    TaskConfig,
    TrainConfig,
    UncertaintyConfig,
)
from dal_dense.costs import PRESETS
from dal_dense.errors import DataError, Stopped
from dal_dense.records import ImageRecord
from dal_dense.regions import Regions
from dal_dense.tasks.base import Hooks, LabelledImage, Task
from dal_dense.tasks.monai_segmentation import MonaiSegmentation

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from toy_pool import CLASSES, known, toy_record
from turns import watched_networks

SHAPES = {2: (40, 52), 3: (20, 18, 14)}
BOXES = {
    2: [((0, 0), (20, 26)), ((20, 0), (40, 26)), ((10, 26), (30, 52))],
    3: [((0, 0, 0), (20, 18, 5)), ((0, 0, 5), (20, 18, 9)), ((4, 4, 10), (14, 14, 14))],
}


def monai(ndim: int, mask_of: Callable[[ImageRecord], np.ndarray | None], iterations: int, draws: str) -> Task:
    """A MONAI adapter of a few thousand parameters."""
    task = TaskConfig(
        network=NetworkConfig(channels=(8, 16), dropout=0.1),
        intensity=IntensityConfig(kind="rgb" if ndim == 2 else "zscore"),
        train=TrainConfig(iterations=iterations, batch=2, patch=(16, 16, 8)[:ndim], flip_axes=("left_right",), lr=1e-2),
    )
    return MonaiSegmentation(
        task=task,
        uncertainty=UncertaintyConfig(draws=draws, count=2),  # type: ignore[arg-type]
        query=QueryConfig(sizes=((8, 6, 4)[:ndim],), per_image=4),
        costs=PRESETS["ct_contour"],
        classes=CLASSES,
        ndim=ndim,
        in_channels=1 if ndim == 3 else 3,
        device=torch.device("cpu"),
        mask_of=mask_of,
    )


ADAPTERS: dict[str, Callable[[Callable[[ImageRecord], np.ndarray | None], int, str], Task]] = {
    "monai-frames": lambda mask_of, n, draws: monai(2, mask_of, n, draws),
    "monai-volumes": lambda mask_of, n, draws: monai(3, mask_of, n, draws),
}


@dataclass
class Stage:
    """An adapter and a pool of three images, partly labelled."""

    make: Callable[..., Task]
    records: list[ImageRecord]
    truths: dict[str, np.ndarray]
    labelled: list[LabelledImage]

    def task(self, iterations: int = 6, draws: str = "single") -> Task:
        return self.make(lambda record: self.truths[record.id], iterations, draws)


@pytest.fixture(params=list(ADAPTERS))
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Stage:
    ndim = 2 if "frames" in request.param else 3
    pairs = [toy_record(tmp_path, f"img{i}", SHAPES[ndim], i) for i in range(3)]
    return Stage(
        ADAPTERS[request.param],
        [r for r, _ in pairs],
        {r.id: t for r, t in pairs},
        [known(r, t, BOXES[ndim]) for r, t in pairs[:2]],
    )


def weights_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.glob("*.safetensors")}


def fitted(stage: Stage, out: Path, *, seed: int = 1, **more) -> tuple[Task, object]:
    task = stage.task(**more)
    report = task.fit(stage.labelled, seed=seed, out=out, previous=None, hooks=Hooks())
    return task, task.load(report.weights)


def test_same_labels_and_seed_give_the_same_weights(stage: Stage, tmp_path: Path) -> None:
    reports = [
        stage.task().fit(stage.labelled, seed=s, out=tmp_path / f"fit{i}", previous=None, hooks=Hooks())
        for i, s in enumerate((1, 1, 2))
    ]
    a, b, c = (weights_of(r.weights) for r in reports)
    assert a == b != c
    assert reports[0].sha256 == reports[1].sha256 != reports[2].sha256
    assert {"loss", "temperature", "ece_before", "ece_after", "iterations"} <= reports[0].figures.keys()


@pytest.mark.parametrize("draws", ["single", "ensemble", "checkpoints"])
def test_a_stopped_fit_ends_with_the_very_same_weights(stage: Stage, tmp_path: Path, draws: str) -> None:
    whole = stage.task(draws=draws).fit(stage.labelled, seed=4, out=tmp_path / "whole", previous=None, hooks=Hooks())
    steps = 0

    def progress(what: str, done: int, total: int) -> None:
        nonlocal steps
        steps += what == "fit"

    stops = 0
    while True:
        before = steps
        try:
            pieces = stage.task(draws=draws).fit(
                stage.labelled, seed=4, out=tmp_path / "pieces", previous=None,
                hooks=Hooks(progress, lambda before=before: steps >= before + 4),
            )  # fmt: skip
            break
        except Stopped:
            stops += 1
            torch.rand(3)  # whatever else the process draws must not matter
    assert stops >= 1
    assert steps == 6 * (2 if draws == "ensemble" else 1)  # nothing was done twice
    assert weights_of(pieces.weights) == weights_of(whole.weights)
    assert pieces.sha256 == whole.sha256


def test_a_finished_fit_is_not_begun_anew_but_other_labels_are(stage: Stage, tmp_path: Path) -> None:
    first = stage.task().fit(stage.labelled, seed=1, out=tmp_path / "fit", previous=None, hooks=Hooks())
    calls: list[str] = []
    hooks = Hooks(lambda what, done, total: calls.append(what))
    assert stage.task().fit(stage.labelled, seed=1, out=tmp_path / "fit", previous=None, hooks=hooks) == first
    assert not calls
    again = stage.task().fit(stage.labelled[:1], seed=1, out=tmp_path / "fit", previous=None, hooks=hooks)
    assert "fit" in calls and again.sha256 != first.sha256


def test_unlabelled_ground_has_no_influence(stage: Stage, tmp_path: Path) -> None:
    """Ignored voxels of a labelled box weigh as much as voxels outside it: nothing, whatever box is named."""
    ndim = stage.records[0].ndim
    truth = stage.truths["img0"].copy()
    box = BOXES[ndim][1]
    whole = tuple((0,) * ndim), tuple(truth.shape)
    inside = np.full_like(truth, 255)
    cut = tuple(slice(a, b) for a, b in zip(*box, strict=True))
    inside[cut] = truth[cut]
    small = [replace(stage.labelled[0], regions=Regions.of([box], ndim), labels=(truth[cut].copy(),))]
    large = [replace(stage.labelled[0], regions=Regions.of([whole], ndim), labels=(inside,))]
    fits = []
    for name, labels in (("small", small), ("large", large)):
        out = tmp_path / name
        stage.task(iterations=3).fit(labels, seed=1, out=out, previous=None, hooks=Hooks())
        fits.append(weights_of(out))
    assert fits[0] == fits[1]


def test_learns_and_measures(stage: Stage, tmp_path: Path) -> None:
    untrained, trained = (fitted(stage, tmp_path / f"n{n}", iterations=n) for n in (1, 60))
    figures = [task.evaluate(model, stage.records, hooks=Hooks()) for task, model in (untrained, trained)]
    assert figures[1].value > figures[0].value
    assert figures[1].value > 0.6
    assert set(figures[1].per_class) == set(CLASSES)
    assert set(figures[1].per_group) == {r.group for r in stage.records}


def test_offers_keep_off_labelled_and_blocked_ground(stage: Stage, tmp_path: Path) -> None:
    task, model = fitted(stage, tmp_path / "fit")
    ndim = stage.records[0].ndim
    labelled, blocked = Regions.of(BOXES[ndim][:1], ndim), Regions.of(BOXES[ndim][1:2], ndim)
    offers = task.offers(model, stage.records[0], labelled, blocked, image=7, group=3)
    fresh = offers[~offers.labelled]
    assert len(fresh) > 0
    assert not fresh.regions.overlaps(labelled).any() and not fresh.regions.overlaps(blocked).any()
    assert (fresh.regions.stop <= torch.tensor(SHAPES[ndim])).all()
    assert offers.labelled.tolist() == [False] * len(fresh) + [True]
    assert offers.regions[offers.labelled].start.tolist() == labelled.start.tolist()
    assert (fresh.seconds > 0).all() and (fresh.score >= 0).all() and fresh.embedding.shape[1] > 0
    assert torch.allclose(fresh.shares.sum(1), torch.ones(len(fresh)), atol=1e-5)
    assert set(offers.image.tolist()) == {7} and set(offers.group.tolist()) == {3}


@pytest.mark.parametrize("draws", ["single", "mc_dropout", "flips", "ensemble", "checkpoints"])
def test_offers_do_not_depend_on_the_order_of_images_nor_on_threads(stage: Stage, tmp_path: Path, draws: str) -> None:
    task, model = fitted(stage, tmp_path / "fit", iterations=3, draws=draws)
    none = Regions.of([], stage.records[0].ndim)
    first = [task.offers(model, r, none, none, image=0, group=0) for r in stage.records]
    with watched_networks() as turns:
        looked = Hooks().share(
            "look", lambda r: task.offers(model, r, none, none, image=0, group=0), stage.records[::-1]
        )
        second = [*looked][::-1]
    assert len(turns.threads) == 2 and turns.most == 1
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.key, b.key) and torch.equal(a.score, b.score) and torch.equal(a.embedding, b.embedding)


def test_proposals_have_the_shape_of_their_boxes(stage: Stage, tmp_path: Path) -> None:
    task, model = fitted(stage, tmp_path / "fit")
    ndim = stage.records[0].ndim
    regions = Regions.of(BOXES[ndim], ndim)
    for proposal, (start, stop) in zip(task.propose(model, stage.records[2], regions), regions.boxes(), strict=True):
        shape = tuple(b - a for a, b in zip(start, stop, strict=True))
        assert proposal.label.shape == proposal.uncertainty.shape == shape
        assert proposal.label.dtype == np.uint8 and proposal.label.max() < len(CLASSES)
        assert np.isfinite(proposal.uncertainty).all() and proposal.uncertainty.min() >= 0


def test_the_identity_of_weights_is_theirs(stage: Stage, tmp_path: Path) -> None:
    task, one = fitted(stage, tmp_path / "one", iterations=1)
    _, two = fitted(stage, tmp_path / "two", iterations=1, seed=2)
    again = task.load(tmp_path / "one")
    assert task.parameters_sha256(one) == task.parameters_sha256(again) != task.parameters_sha256(two)


def test_the_person_can_stop_a_measurement(stage: Stage, tmp_path: Path) -> None:
    task, model = fitted(stage, tmp_path / "fit", iterations=1)
    with pytest.raises(Stopped):
        task.evaluate(model, stage.records, hooks=Hooks(stopping=lambda: True))


def test_a_folder_without_a_model_is_told(stage: Stage, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no finished model"):
        stage.task().load(tmp_path)
