"""What any detection adapter must do. A further backend adds a row to `ADAPTERS`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou

from dal_dense.boxes import ABSENT, IGNORED, Boxes
from dal_dense.config import (
    DetectionConfig,
    NetworkConfig,
    QueryConfig,
    TaskConfig,
    TrainConfig,
    UncertaintyConfig,
)
from dal_dense.costs import PRESETS
from dal_dense.errors import ConfigError, DataError, Stopped
from dal_dense.offers import KINDS as QUERY_KINDS
from dal_dense.records import ImageRecord
from dal_dense.regions import Regions
from dal_dense.tasks import detection_dropout
from dal_dense.tasks.base import Hooks, Judged, LabelledImage, Task
from dal_dense.tasks.detection_backend import Detector, Sample
from dal_dense.tasks.detection_partial import KNOWN, area_table, cut_to_image, known_share

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from toy_frames import FRAME, OBJECTS, labelled, toy_frame
from turns import watched_networks

BOXES = [((0, 0), (36, 48)), ((36, 0), (72, 48)), ((0, 48), (72, 96))]
KINDS = ("crop", "crop", "crop")

LAST = {"cls_score", "cls_logits", "objectness_logits"} | {
    "bbox_pred",
    "bbox_reg",
    "anchor_deltas",
    "bbox_ctrness",
    "ctrness",
}
"""Last layers of heads, by the names that torchvision and Detectron2 give them."""

Probe = Callable[[Any, Sequence[Sample]], Mapping[str, tuple[list[Tensor], list[Tensor]]]]
"""Runs `losses` and its backward pass: head to (boxes an image, largest absolute gradient a row an image)."""


@dataclass(frozen=True)
class Adapter:
    """A backend and one of its networks.

    Attributes:
        name: of `task.name`.
        network: of `task.network.name`.
        task: the adapter's class.
        detector: one network of the backend: (network, detection, number of classes).
        probe: gradients at the heads' outputs.
        points: heads whose rows are judged by the pixel at their centre (FCOS) and not by their box.
    """

    name: str
    network: str
    task: Callable[..., Task]
    detector: Callable[[NetworkConfig, DetectionConfig, int], Detector]
    probe: Probe
    points: bool = False


def torchvision(network: str) -> Adapter:
    from torchvision_probe import probe

    from dal_dense.tasks.torchvision_detection import TorchvisionDetection, TorchvisionDetector

    return Adapter(
        "torchvision_detection", network, TorchvisionDetection, TorchvisionDetector, probe, points=network == "fcos"
    )


def detectron2(network: str) -> Adapter:
    from detectron2_probe import probe

    from dal_dense.tasks.detectron2_detection import Detectron2Detection, make_detector

    return Adapter("detectron2_detection", network, Detectron2Detection, make_detector, probe, points=network == "fcos")


WITH_DETECTRON2 = [
    pytest.mark.detectron2,
    pytest.mark.skipif(find_spec("detectron2") is None, reason="Detectron2 is not on the path"),
]

ADAPTERS = [
    pytest.param(lambda: torchvision("faster_rcnn"), id="torchvision-faster_rcnn"),
    pytest.param(lambda: torchvision("retinanet"), id="torchvision-retinanet"),
    pytest.param(lambda: torchvision("fcos"), id="torchvision-fcos"),
    pytest.param(lambda: detectron2("faster_rcnn"), id="detectron2-faster_rcnn", marks=WITH_DETECTRON2),
    pytest.param(lambda: detectron2("retinanet"), id="detectron2-retinanet", marks=WITH_DETECTRON2),
    pytest.param(lambda: detectron2("fcos"), id="detectron2-fcos", marks=WITH_DETECTRON2),
]


@dataclass
class Stage:
    """An adapter and a pool of three frames, partly labelled."""

    adapter: Adapter
    records: list[ImageRecord]
    truths: dict[str, Boxes]
    labelled: list[LabelledImage]

    def task(self, iterations: int = 6, draws: str = "single", **more: Any) -> Task:
        query = more.pop("query", QueryConfig(sizes=((24, 32),), per_image=4))
        train = {"batch": 2, "patch": (64, 64), "flip_axes": ("left_right",), "lr": 3e-3} | more.pop("train", {})
        task = TaskConfig(
            name=self.adapter.name,
            network=NetworkConfig(name=self.adapter.network, dropout=0.1),
            detection=DetectionConfig(backbone="tiny", **more.pop("detection", {})),
            train=TrainConfig(iterations=iterations, **train),
            metric="ap50",
        )
        return self.adapter.task(
            task=task,
            uncertainty=UncertaintyConfig(draws=draws, count=2),
            query=query,
            costs=PRESETS["box_clicks"],
            classes=OBJECTS,
            ndim=more.pop("ndim", 2),
            in_channels=more.pop("in_channels", 3),
            device=torch.device("cpu"),
            boxes_of=lambda record: self.truths.get(record.id),
        )

    def detector(self) -> Detector:
        torch.manual_seed(0)
        network = NetworkConfig(name=self.adapter.network, dropout=0.2)
        return self.adapter.detector(network, DetectionConfig(backbone="tiny"), len(OBJECTS))


@pytest.fixture(params=ADAPTERS)
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Stage:
    pairs = [toy_frame(tmp_path, f"img{i}", i) for i in range(3)]
    return Stage(
        request.param(),
        [r for r, _ in pairs],
        {r.id: t for r, t in pairs},
        [labelled(r, t, BOXES[:2], KINDS[:2]) for r, t in pairs[:2]],
    )


def weights_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.glob("*.safetensors")}


def fit(task: Task, labels: Sequence[LabelledImage], out: Path, *, seed: int = 1, hooks: Hooks | None = None) -> Any:
    return task.fit(labels, seed=seed, out=out, previous=None, hooks=hooks or Hooks())


def fitted(stage: Stage, out: Path, *, seed: int = 1, **more: Any) -> tuple[Task, object]:
    task = stage.task(**more)
    return task, task.load(fit(task, stage.labelled, out, seed=seed).weights)


# fit


def test_same_labels_and_seed_give_the_same_weights(stage: Stage, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    reports = [fit(stage.task(), stage.labelled, tmp_path / f"fit{i}", seed=s) for i, s in enumerate((1, 1, 2))]
    a, b, c = (weights_of(r.weights) for r in reports)
    assert a == b != c
    assert reports[0].sha256 == reports[1].sha256 != reports[2].sha256
    assert {"loss", "train_seconds", "iterations"} <= reports[0].figures.keys()
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("draws", ["single", "ensemble", "checkpoints"])
def test_a_stopped_fit_ends_with_the_very_same_weights(stage: Stage, tmp_path: Path, draws: str) -> None:
    whole = fit(stage.task(draws=draws), stage.labelled, tmp_path / "whole", seed=4)
    steps = 0

    def progress(what: str, done: int, total: int) -> None:
        nonlocal steps
        steps += what == "fit"

    stops = 0
    while True:
        before = steps
        hooks = Hooks(progress, lambda before=before: steps >= before + 4)
        try:
            pieces = fit(stage.task(draws=draws), stage.labelled, tmp_path / "pieces", seed=4, hooks=hooks)
            break
        except Stopped:
            stops += 1
            torch.rand(3)  # whatever else the process draws must not matter
    assert stops >= 1
    assert steps == 6 * (2 if draws == "ensemble" else 1)  # nothing was done twice
    assert weights_of(pieces.weights) == weights_of(whole.weights)
    assert pieces.sha256 == whole.sha256


def test_a_finished_fit_is_not_begun_anew_but_other_labels_are(stage: Stage, tmp_path: Path) -> None:
    first = fit(stage.task(), stage.labelled, tmp_path / "fit")
    calls: list[str] = []
    hooks = Hooks(lambda what, done, total: calls.append(what))
    assert fit(stage.task(), stage.labelled, tmp_path / "fit", hooks=hooks) == first
    assert not calls
    again = fit(stage.task(), stage.labelled[:1], tmp_path / "fit", hooks=hooks)
    assert "fit" in calls and again.sha256 != first.sha256


def test_pixels_beyond_labelled_crops_have_no_influence(stage: Stage, tmp_path: Path) -> None:
    fit(stage.task(iterations=3, detection={"long_side": 80}), stage.labelled, tmp_path / "a")
    for record in stage.records[:2]:
        pixels = np.asarray(Image.open(record.paths[0])).copy()
        pixels[:, 48:] = 255 - pixels[:, 48:]  # the third region is not labelled
        Image.fromarray(pixels).save(record.paths[0])
    fit(stage.task(iterations=3, detection={"long_side": 80}), stage.labelled, tmp_path / "b")
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b")
    pixels[:10, :10] = 255
    Image.fromarray(pixels).save(record.paths[0])
    fit(stage.task(iterations=3, detection={"long_side": 80}), stage.labelled, tmp_path / "c")
    assert weights_of(tmp_path / "a") != weights_of(tmp_path / "c")


def test_a_warm_start_goes_on_from_the_last_weights(stage: Stage, tmp_path: Path) -> None:
    first = fit(stage.task(), stage.labelled, tmp_path / "first")
    for start in ("warm", "shrink_perturb"):
        reports = []
        for previous in (first.weights, None):
            out = tmp_path / f"{start}-{previous is None}"
            task = stage.task(iterations=1, train={"start": start, "lr": 1e-9})
            reports.append(task.fit(stage.labelled, seed=9, out=out, previous=previous, hooks=Hooks()))
        assert reports[0].sha256 != reports[1].sha256
        assert reports[0].figures["weights_matched"] > 0 == reports[1].figures["weights_matched"]


def test_mixed_kinds_empty_frames_and_rejected_boxes_train(stage: Stage, tmp_path: Path) -> None:
    record, truth = stage.records[0], stage.truths["img0"]
    empty = LabelledImage(stage.records[1], Regions.of([((0, 0), FRAME)], 2), (np.zeros((0, 6)),), ("image",))
    r0, c0, r1, c1 = truth.corners[0].astype(int).tolist()
    tables = (
        truth[:1].table(),
        Boxes.of([(0.0, 0.0, 9.0, 12.0)], [1], [ABSENT]).table(),
        Boxes.of([(60.0, 80.0, 72.0, 96.0)], [0], [IGNORED]).table(),
    )
    regions = Regions.of([((r0, c0), (r1, c1)), ((0, 0), (9, 12)), ((60, 80), (72, 96))], 2)
    single = LabelledImage(record, regions, tables, ("box", "box", "box"))
    report = fit(stage.task(iterations=4), [single, empty], tmp_path / "fit")
    assert np.isfinite(report.figures["loss"])


def test_a_frame_with_two_thousand_boxes_trains(stage: Stage, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (128, 128, 3), dtype=np.uint8)).save(tmp_path / "many.png")
    record = ImageRecord("many", (tmp_path / "many.png",), tmp_path, "g", None, 2)
    start = rng.uniform(0, 112, (2000, 2))
    corners = np.concatenate([start, start + rng.uniform(3, 15, (2000, 2))], 1)
    boxes = Boxes(corners, rng.integers(1, 3, 2000), np.zeros(2000, np.uint8))
    known = LabelledImage(record, Regions.of([((0, 0), (128, 128))], 2), (boxes.table(),), ("crop",))
    report = fit(stage.task(iterations=1, train={"batch": 1}), [known], tmp_path / "fit")
    assert np.isfinite(report.figures["loss"])


def test_nothing_labelled_is_told(stage: Stage, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no labelled region"):
        fit(stage.task(), [], tmp_path)


def test_learns_and_measures(stage: Stage, tmp_path: Path) -> None:
    labels = [labelled(r, stage.truths[r.id], [((0, 0), FRAME)], ("image",)) for r in stage.records]
    train = {"batch": 3, "patch": FRAME, "lr": 5e-3, "scale": 0.0}
    figures = []
    for n in (1, 60):
        task = stage.task(iterations=n, train=train)
        model = task.load(fit(task, labels, tmp_path / f"n{n}").weights)
        figures.append(task.evaluate(model, stage.records, hooks=Hooks()))
    assert figures[1].value > max(0.5, figures[0].value)
    assert set(figures[1].per_class) == set(OBJECTS[1:])
    assert set(figures[1].per_group) == {r.group for r in stage.records}
    assert {"ap", "ap50", "ap_small", "ap_medium", "ap_large"} <= figures[1].extra.keys()


# predict


def test_offers_keep_off_labelled_and_blocked_ground(stage: Stage, tmp_path: Path) -> None:
    task, model = fitted(stage, tmp_path / "fit")
    ground, blocked = Regions.of(BOXES[:1], 2), Regions.of(BOXES[1:2], 2)
    offers = task.offers(model, stage.records[0], ground, blocked, image=7, group=3)
    fresh = offers[~offers.labelled]
    assert len(fresh) > 0
    assert not fresh.regions.overlaps(ground).any() and not fresh.regions.overlaps(blocked).any()
    assert (fresh.regions.stop <= torch.tensor(FRAME)).all() and (fresh.regions.start >= 0).all()
    assert offers.labelled.tolist() == [False] * len(fresh) + [True]
    assert offers.regions[offers.labelled].start.tolist() == ground.start.tolist()
    assert (fresh.seconds > 0).all() and (fresh.score >= 0).all() and fresh.embedding.shape[1] > 0
    assert torch.allclose(fresh.shares.sum(1), torch.ones(len(fresh)), atol=1e-5)
    assert set(offers.image.tolist()) == {7} and set(offers.group.tolist()) == {3}


def test_beside_single_boxes_stand_looks_on_ground_that_nobody_knows(stage: Stage, tmp_path: Path) -> None:
    query = QueryConfig(kind="box", sizes=((24, 32), (12, 16)), per_image=4)
    task, model = fitted(stage, tmp_path / "fit", query=query, detection={"min_score": 0.0, "max_boxes": 2})
    ground, blocked = Regions.of([((0, 0), (20, 20))], 2), Regions.of([((60, 80), (72, 96))], 2)
    judged = Judged(Regions.of([((30, 10), (40, 22))], 2), Regions.of([((50, 40), (56, 50))], 2))
    offers = task.offers(model, stage.records[0], ground, blocked, image=0, group=0, judged=judged)  # type: ignore[call-arg]
    fresh = offers[~offers.labelled]
    looks = fresh[fresh.kind == QUERY_KINDS.index("crop")]
    assert 1 <= len(looks) == len(fresh) - int((fresh.kind == QUERY_KINDS.index("box")).sum())
    for places in (ground, blocked, judged.answered, judged.open):
        assert not looks.regions.overlaps(places).any()
    assert (looks.objects > 0).all() and (looks.score > 0).all() and (looks.regions.stop <= torch.tensor(FRAME)).all()
    expected = 1 + 0.03 / 1000 * looks.area + 7 * looks.objects
    assert torch.allclose(looks.seconds, expected) and torch.equal(looks.area, looks.regions.volume().float())
    assert all(len(p.label) == 0 for p in task.propose(model, stage.records[0], looks.regions))
    assert [QUERY_KINDS[k] for k in offers.kind[offers.labelled].tolist()] == ["crop", "box"]


@pytest.mark.parametrize("draws", ["single", "mc_dropout", "flips", "ensemble", "checkpoints"])
def test_predictions_do_not_depend_on_the_order_of_images_nor_on_threads(
    stage: Stage, tmp_path: Path, draws: str
) -> None:
    task, model = fitted(stage, tmp_path / "fit", iterations=4, draws=draws, detection={"min_score": 0.0})
    none = Regions.of([], 2)
    first = [task.offers(model, r, none, none, image=0, group=0) for r in stage.records]
    with watched_networks() as turns:
        looked = Hooks().share(
            "look", lambda r: task.offers(model, r, none, none, image=0, group=0), stage.records[::-1]
        )
        second = [*looked][::-1]
    assert len(turns.threads) == 2 and turns.most == 1
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.key, b.key) and torch.equal(a.score, b.score) and torch.equal(a.embedding, b.embedding)
    pred = task.predict(model, stage.records[0])  # type: ignore[attr-defined]
    found = pred.found
    assert 0 < len(found) <= 100
    assert torch.allclose(found.probs.sum(1), torch.ones(len(found)), atol=1e-5)
    assert (found.scores.diff() <= 1e-6).all()
    assert (found.corners >= 0).all() and (found.corners <= torch.tensor([*FRAME, *FRAME])).all()
    assert (found.corners[:, 2:] > found.corners[:, :2]).all()
    assert (found.spread >= 0).all() and (found.expected_entropy >= 0).all()
    moving = draws in ("flips", "ensemble", "checkpoints")
    assert (found.spread > 0).any() == (moving or (draws == "mc_dropout" and stage.adapter.network == "faster_rcnn"))
    assert (found.consistency != 1).any() == (draws == "flips")
    assert torch.isfinite(pred.dense).all() and (pred.dense >= 0).all() and (pred.dense <= np.log(2) + 1e-5).all()
    assert pred.difficulty.shape == (len(OBJECTS),) and ((pred.difficulty >= 0) & (pred.difficulty <= 1)).all()


def test_proposals_lie_in_their_regions(stage: Stage, tmp_path: Path) -> None:
    task, model = fitted(stage, tmp_path / "fit", detection={"min_score": 0.0})
    regions = Regions.of(BOXES, 2)
    for proposal, (start, stop) in zip(task.propose(model, stage.records[2], regions), regions.boxes(), strict=True):
        assert proposal.uncertainty.shape == tuple(b - a for a, b in zip(start, stop, strict=True))
        assert proposal.label.dtype == np.float64 and proposal.label.shape[1] == 6
        assert proposal.scores is not None and len(proposal.scores) == len(proposal.label)
        low, high = proposal.label[:, :2], proposal.label[:, 2:4]
        assert (low >= start).all() and (high <= stop).all() and (high > low).all()


def test_a_model_of_other_settings_is_refused(stage: Stage, tmp_path: Path) -> None:
    fitted(stage, tmp_path / "fit", iterations=1)
    with pytest.raises(DataError, match="other settings"):
        stage.task(detection={"anchor_sizes": (8, 16, 32)}).load(tmp_path / "fit")
    with pytest.raises(DataError, match="holds no finished model"):
        stage.task().load(tmp_path)


def test_the_identity_of_weights_is_theirs(stage: Stage, tmp_path: Path) -> None:
    task, one = fitted(stage, tmp_path / "one", iterations=1)
    _, two = fitted(stage, tmp_path / "two", iterations=1, seed=2)
    again = task.load(tmp_path / "one")
    assert task.parameters_sha256(one) == task.parameters_sha256(again) != task.parameters_sha256(two)


def test_the_person_can_stop_a_measurement(stage: Stage, tmp_path: Path) -> None:
    task, model = fitted(stage, tmp_path / "fit", iterations=1)
    with pytest.raises(Stopped):
        task.evaluate(model, stage.records, hooks=Hooks(stopping=lambda: True))


def test_a_network_that_gives_no_numbers_is_told_and_not_one_that_finds_nothing(stage: Stage, tmp_path: Path) -> None:
    """Whichever last layer is broken: NaN passes no threshold, so that nothing would be found."""
    task, model = fitted(stage, tmp_path)
    record = stage.records[0]
    assert task.evaluate(model, [record], hooks=Hooks()).value >= 0
    last = {n: p for n, p in model.detectors[0].module.named_parameters() if n.split(".")[-2] in LAST and "bias" in n}
    assert len(last) == (4 if stage.adapter.network == "faster_rcnn" else 3 if stage.adapter.points else 2)
    for name, parameter in last.items():
        whole = parameter.clone()
        parameter.fill_(float("nan"))
        broken = replace(model, sha256=name)  # predictions are kept by it
        with pytest.raises(DataError, match=f"{record.id}: the detector's .* hold NaN"):
            task.predict(broken, record)
        with pytest.raises(DataError, match=f"{record.id}: the detector's .* hold NaN"):
            task.evaluate(broken, [record], hooks=Hooks())
        parameter.copy_(whole)
    task.predict(model, record)


def test_volumes_and_grey_stacks_are_refused(stage: Stage) -> None:
    with pytest.raises(ConfigError, match="frames"):
        stage.task(ndim=3)
    with pytest.raises(ConfigError, match="channels"):
        stage.task(in_channels=2)


# backend


def sample_with_unknown_ground(seed: int, shape: tuple[int, int]) -> Sample:
    """Objects left, unlabelled ground right of column 56, an ignored box bottom left."""
    torch.manual_seed(seed)
    known = torch.zeros(shape, dtype=torch.bool)
    known[:, :56] = True
    ignored = torch.zeros(shape, dtype=torch.bool)
    ignored[44:64, 8:28] = True
    known &= ~ignored
    objects = torch.tensor([[4.0, 5, 22, 20], [28, 24, 52, 44]])
    return Sample(
        torch.rand(3, *shape) * 255,
        objects,
        torch.tensor([1, 2]),
        torch.zeros(0, 4),
        area_table(known),
        area_table(ignored),
    )


def test_no_gradient_from_unlabelled_ground(stage: Stage) -> None:
    """At the outputs of every head, border anchors included: exactly 0 where nothing is known."""
    samples = [sample_with_unknown_ground(0, (72, 96)), sample_with_unknown_ground(1, (68, 120))]
    found = stage.adapter.probe(stage.detector(), samples)
    for head, (boxes, grads) in found.items():
        outside = 0
        for sample, each, grad in zip(samples, boxes, grads, strict=True):
            unknown = rows_unknown(sample, each, stage.adapter.points)
            outside += int(unknown.sum())
            assert (grad[unknown] == 0).all(), f"{head}: {int((grad[unknown] != 0).sum())} rows leak"
        assert sum(float(g.abs().sum()) for g in grads) > 0, f"{head} learns nothing at all"
        assert outside > 0 or head == "roi"  # such proposals are not even sampled


def rows_unknown(sample: Sample, boxes: Tensor, points: bool) -> Tensor:
    """Rows on unknown ground that no object claims."""
    height, width = sample.image.shape[1:]
    if points:
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        pixel = torch.cat([centre.floor(), centre.floor() + 1], 1)
        inside = ((centre[:, None] > sample.boxes[:, :2]) & (centre[:, None] < sample.boxes[:, 2:])).all(2).any(1)
        return (known_share(pixel, sample.known) < 1) & ~inside
    cut = cut_to_image(boxes, height, width)
    return (known_share(cut, sample.known) < KNOWN) & (box_iou(boxes, sample.boxes) < 0.3).all(1)


def test_a_rejected_prediction_teaches_background(stage: Stage) -> None:
    """Nothing is known but one rejected box: only rows on it get a gradient."""
    shape = (64, 96)
    rejected = torch.tensor([[32.0, 16, 64, 48]])
    nothing = area_table(torch.zeros(shape, dtype=torch.bool))
    image = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0)) * 255
    sample = Sample(image, rejected[:0], torch.zeros(0, dtype=torch.int64), rejected, nothing, nothing)
    head, (boxes, grads) = next(iter(stage.adapter.probe(stage.detector(), [sample]).items()))
    taught = grads[0] > 0
    assert taught.any(), head
    if not stage.adapter.points:
        assert (box_iou(cut_to_image(boxes[0][taught], *shape), rejected) >= 0.5).all()


@pytest.mark.parametrize("edge", [64, 48])
def test_a_rejected_prediction_teaches_nothing_on_ignored_ground(stage: Stage, edge: int) -> None:
    """Its left part, or all of it, is a crowd: rows that lie there by half get a gradient of exactly 0."""
    shape = (64, 96)
    rejected = torch.tensor([[32.0, 16, 64, 48]])
    ignored = torch.zeros(shape, dtype=torch.bool)
    ignored[:, :edge] = True
    image = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0)) * 255
    sample = Sample(
        image, rejected[:0], torch.zeros(0, dtype=torch.int64), rejected, area_table(ignored & False),
        area_table(ignored),
    )  # fmt: skip
    head, (boxes, grads) = next(iter(stage.adapter.probe(stage.detector(), [sample]).items()))
    each = boxes[0]
    if stage.adapter.points:
        centre = (each[:, :2] + each[:, 2:]) / 2
        each = torch.cat([centre.floor(), centre.floor() + 1], 1)
    hidden = known_share(cut_to_image(each, *shape), sample.ignored) >= 0.5
    assert hidden.any() and (grads[0][hidden] == 0).all(), head
    assert edge == 64 or not stage.adapter.points or (grads[0] > 0).any()  # beside the crowd it still teaches


def test_nothing_known_costs_nothing(stage: Stage) -> None:
    shape = (64, 64)
    nothing = area_table(torch.zeros(shape, dtype=torch.bool))
    sample = Sample(
        torch.rand(3, *shape) * 255, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4),
        nothing, nothing,
    )  # fmt: skip
    detector = stage.detector()
    total = sum(detector.losses([sample]).values())
    total.backward()
    assert float(total.detach()) == 0
    assert all(p.grad is None or (p.grad == 0).all() for p in detector.module.parameters())


def test_rows_line_up_between_draws_flips_and_networks(stage: Stage) -> None:
    image = torch.rand(3, 70, 90, generator=torch.Generator().manual_seed(1)) * 255
    one, two = stage.detector(), stage.detector()
    with torch.no_grad():
        for p in two.module.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
    look = one.look(image)
    plain = one.rows(look)
    assert torch.allclose(plain.probs.sum(1), torch.ones(len(plain.probs)), atol=1e-5)
    assert (plain.boxes >= 0).all() and (plain.boxes <= torch.tensor([90, 70, 90, 70])).all()
    others = {
        "dropout": next(one.draws(look, [3])),
        "flip": one.rows(one.look(image, like=look, flip=True)),
        "network": two.rows(two.look(image, like=look)),
    }
    centre = (plain.boxes[:, :2] + plain.boxes[:, 2:]) / 2
    for name, rows in others.items():
        assert rows.probs.shape == plain.probs.shape and not torch.equal(rows.probs, plain.probs), name
        moved = ((rows.boxes[:, :2] + rows.boxes[:, 2:]) / 2 - centre).abs()
        assert moved.median() < 4, f"{name}: rows are elsewhere"
    assert torch.equal(next(one.draws(look, [3])).probs, others["dropout"].probs)
    assert not torch.equal(next(one.draws(look, [4])).probs, others["dropout"].probs)
    assert torch.equal(one.rows(look).probs, plain.probs)


def test_draws_are_the_same_alone_and_together(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.rand(3, 70, 90, generator=torch.Generator().manual_seed(1)) * 255
    detector = stage.detector()
    look = detector.look(image)
    together = list(detector.draws(look, range(5)))
    monkeypatch.setattr(detection_dropout, "AT_ONCE", 1)  # one draw at a time, and one row of a convolution's
    alone = list(detector.draws(look, range(5)))
    assert len(alone) == len(together) == 5 and not list(detector.draws(look, []))
    for one, other in zip(alone, together, strict=True):
        assert torch.allclose(one.probs, other.probs, atol=1e-6)
        assert torch.allclose(one.boxes, other.boxes, atol=1e-3)
        assert torch.equal(one.embedding, other.embedding)
    assert len({rows.probs.sum(0).numpy().tobytes() for rows in together}) == 5
    assert not any(rows.probs.requires_grad for rows in together)


def test_a_mirrored_image_gives_mirrored_looks(stage: Stage) -> None:
    """Looking at the mirrored image with `flip` is looking at the image: dense map and features come back."""
    image = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(1)) * 255
    detector = stage.detector()
    straight, turned = detector.look(image), detector.look(image.flip(2), flip=True)
    assert straight.dense.shape == turned.dense.shape
    assert torch.allclose(straight.features.flip(2), turned.features, atol=1e-4)
    assert torch.allclose(straight.dense.flip(1), turned.dense, atol=1e-4)
