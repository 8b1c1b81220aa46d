"""Rows against what torchvision's own forward pass finds."""

from dataclasses import replace

import pytest
import torch

from dal_dense.config import DetectionConfig, NetworkConfig
from dal_dense.tasks import detection_dropout, torchvision_rows
from dal_dense.tasks.detection_predict import suppressed
from dal_dense.tasks.torchvision_detection import TorchvisionDetector
from dal_dense.tasks.torchvision_rows import bernoulli_entropy

NETWORKS = ("faster_rcnn", "retinanet", "fcos")


def lively(
    network: str, classes: int, *, spread: float = 0.4, seed: int = 1, **more: object
) -> tuple[TorchvisionDetector, DetectionConfig]:
    """A detector with weights so large that its boxes differ in score and place."""
    torch.manual_seed(seed)
    detection = DetectionConfig(backbone="tiny", **more)
    detector = TorchvisionDetector(NetworkConfig(name=network, dropout=0.3), detection, classes)
    model = detector.module
    with torch.no_grad():
        if network == "faster_rcnn":
            model.roi_heads.box_predictor.cls_score.weight.normal_(0, spread)
            model.roi_heads.box_predictor.bbox_pred.weight.normal_(0, 0.3)
            model.rpn.head.bbox_pred.weight.normal_(0, 0.3)
        else:
            last = model.head.classification_head.cls_logits
            last.weight.normal_(0, 0.2)
            last.bias.fill_(-2)
            last.bias[::classes] = -50  # torchvision's class 0 is nobody's; training drives it there
    return detector, detection


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("size", [(64, 96), (70, 90)])
def test_kept_boxes_are_torchvisions_own(network: str, size: tuple[int, int]) -> None:
    detector, detection = lively(network, 2, min_score=0.2, max_boxes=2000)
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(3)) * 255
    rows = detector.rows(detector.look(image))
    kept = suppressed(rows.probs, rows.boxes, detection)
    model = detector.module.eval()
    model.transform.fixed_size = (size[1], size[0])  # its own transform would scale
    if network == "faster_rcnn":
        pool = model.roi_heads.box_roi_pool  # would guess its scales from the size before padding
        assert pool.scales == [0.25, 0.125, 0.0625, 0.03125]
    with torch.no_grad():
        (stock,) = model([image / 255])
    assert len(stock["boxes"]) > 5
    there = (stock["boxes"][:, 2:] - stock["boxes"][:, :2] >= 1e-2).all(1)  # RetinaNet's keeps empty boxes
    stock = {name: column[there] for name, column in stock.items()}
    mine = torch.cat([rows.boxes[kept], rows.probs[kept, 1:].amax(1, keepdim=True) * 10], 1)
    theirs = torch.cat([stock["boxes"], stock["scores"][:, None] * 10], 1)
    apart = (mine[:, None] - theirs[None]).abs().amax(2)  # equal scores may change places
    assert len(mine) == len(theirs) and apart.amin(0).max() < 1e-4 and apart.amin(1).max() < 1e-4


def test_of_several_classes_each_row_stands_for_its_likeliest() -> None:
    detector, detection = lively("faster_rcnn", 4, spread=3.0, min_score=0.5)  # above one half only one class can win
    image = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(3)) * 255
    rows = detector.rows(detector.look(image))
    kept = suppressed(rows.probs, rows.boxes, detection)
    model = detector.module.eval()
    model.transform.fixed_size = (96, 64)
    with torch.no_grad():
        (stock,) = model([image / 255])
    assert len(set(stock["labels"].tolist())) > 1
    assert torch.equal(rows.probs[kept, 1:].argmax(1) + 1, stock["labels"])
    assert torch.allclose(rows.boxes[kept], stock["boxes"], atol=1e-4)


@pytest.mark.parametrize("network", NETWORKS[1:])
def test_patches_under_the_last_layer_give_its_logits(network: str) -> None:
    detector, _ = lively(network, 3)
    look = detector.look(torch.rand(3, 70, 90) * 255)
    assert torch.allclose(look.last.logits(0.0, [1])[0], look.logits, atol=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
def test_draws_under_bfloat16_are_float32(network: str) -> None:
    detector, _ = lively(network, 3)
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(5)) * 255
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as predict_frame does on CUDA
        look = detector.look(image)
        probs = [next(detector.draws(look, [k])).probs for k in (1, 2)]
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in probs)
    assert not torch.equal(*probs)
    if network != "faster_rcnn":  # its last layer is a product of the framework's own
        assert torch.equal(probs[0], next(detector.draws(look, [1])).probs)


def test_a_draw_of_dropout_is_one_network_for_all_proposals() -> None:
    detector, _ = lively("faster_rcnn", 3)
    look = detector.look(torch.rand(3, 64, 64) * 255)
    assert isinstance(look, torchvision_rows.TwoStageLook)
    alike = replace(look, hidden=look.hidden[:1].expand_as(look.hidden))
    probs = next(detector.draws(alike, [1])).probs
    assert torch.allclose(probs, probs[:1].expand_as(probs), atol=1e-6)
    assert not torch.allclose(probs, next(detector.draws(alike, [2])).probs, atol=1e-3)


@pytest.mark.parametrize("network", NETWORKS[1:])
@pytest.mark.parametrize("flip", [False, True])
def test_a_draw_of_dropout_drops_channels_of_each_level_as_the_whole_network_would(
    network: str, flip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector, _ = lively(network, 3)
    image = torch.rand(3, 70, 90, generator=torch.Generator().manual_seed(3)) * 255
    first = detector.look(image)
    look = detector.look(image, like=first, flip=flip)
    masks = (torch.rand(4, 32, generator=torch.Generator().manual_seed(7)) < 0.7) / 0.7
    monkeypatch.setattr(detection_dropout, "masks", lambda shape, rate, seeds, device: masks[None])
    rows = next(detector.draws(look, [1]))
    level = iter(masks)
    drop = detector.module.head.classification_head.conv[-1]
    drop.register_forward_hook(lambda module, x, out: out * next(level)[:, None, None])
    whole = detector.rows(detector.look(image, like=first, flip=flip))
    assert torch.allclose(rows.probs, whole.probs, atol=1e-5)
    assert not torch.allclose(rows.probs, detector.rows(look).probs, atol=1e-2)


@pytest.mark.parametrize("network", NETWORKS)
def test_draws_of_dropout_surround_the_plain_pass(network: str) -> None:
    detector, _ = lively(network, 3)
    look = detector.look(torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(5)) * 255)
    plain = detector.rows(look).probs
    draws = torch.stack([rows.probs for rows in detector.draws(look, range(60))])
    error = (draws.mean(0) - plain).abs().mean()
    assert 0 < error < draws.std(0).mean()
    assert not detector.module.training


def test_a_tie_of_classes_is_no_spread_of_place() -> None:
    """Two classes nearly tie and have boxes of unlike height, but no draw moves a box."""
    one, two = (lively("faster_rcnn", 4, seed=seed)[0] for seed in (1, 2))
    for net in (one, two):
        predictor = net.module.roi_heads.box_predictor
        with torch.no_grad():
            predictor.cls_score.weight.mul_(0.1)
            predictor.bbox_pred.weight.zero_()
            predictor.bbox_pred.bias.zero_()[3::4] = torch.linspace(-2, 2, len(predictor.bbox_pred.bias) // 4)
    image = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(3)) * 255
    look = one.look(image)
    plain = one.rows(look)
    others = list(one.draws(look, range(3)))
    others += [one.rows(one.look(image, like=look, flip=True)), two.rows(two.look(image, like=look))]
    kinds = plain.probs[:, 1:].argmax(1)
    assert len(kinds.unique()) > 1
    for rows in others:
        assert (rows.probs[:, 1:].argmax(1) != kinds).any()
        assert torch.allclose(rows.boxes, plain.boxes, atol=1e-3)


def test_entropy_of_a_sigmoid() -> None:
    logits = torch.linspace(-30, 30, 41)
    p = logits.double().sigmoid()
    expected = torch.special.entr(p) + torch.special.entr((-logits.double()).sigmoid())
    assert torch.allclose(bernoulli_entropy(logits).double(), expected, atol=1e-6)
