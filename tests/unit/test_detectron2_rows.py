"""Rows of Detectron2's detectors: exact, aligned, and background first."""

from dataclasses import replace

import pytest
import torch
from detectron2_toys import NAMES, NEEDS, ONE_STAGE, detector, picture, sharp, window

from dal_dense.config import DetectionConfig
from dal_dense.tasks import detection_dropout
from dal_dense.tasks.detection_backend import Rows
from dal_dense.tasks.detection_partial import cut_to_image
from dal_dense.tasks.detection_predict import suppressed
from dal_dense.tasks.training import mixed_precision

pytestmark = NEEDS

ODD = (70, 90)
"""No multiple of any stride."""


def own_inference(found, image):
    """What the model finds by itself: boxes cut to the image, scores, class numbers from 1."""
    with torch.no_grad():
        (result,) = found.module.eval()([{"image": image}])
    result = result["instances"]
    return result.pred_boxes.tensor, result.scores, result.pred_classes + 1


def mirrored(boxes, width):
    return torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)


@pytest.mark.parametrize("size", [(96, 128), ODD])
def test_kept_boxes_are_those_of_the_models_own_inference(size):
    """From a score of one half on a row can be of one class only, so that the lists are the same."""
    detection = DetectionConfig(min_score=0.5, nms_iou=0.5, max_boxes=50)
    found = sharp(detector("faster_rcnn", min_score=0.5, nms_iou=0.5, max_boxes=50))
    image = picture(size=size)
    rows = found.rows(found.look(image))
    kept = suppressed(rows.probs, rows.boxes, detection)
    boxes, scores, classes = own_inference(found, image)
    assert len(kept) == len(boxes) > 5
    assert torch.allclose(rows.boxes[kept], boxes, atol=1e-4)
    assert torch.allclose(rows.probs[kept, 1:].amax(1), scores, atol=1e-4)
    assert torch.equal(rows.probs[kept, 1:].argmax(1) + 1, classes) and len(classes.unique()) > 1


def test_every_detection_of_faster_rcnn_is_an_entry_of_its_row():
    found = sharp(detector("faster_rcnn", min_score=0.05, nms_iou=1.0, max_boxes=1000))
    image = picture()
    rows = found.rows(found.look(image))
    boxes, scores, classes = own_inference(found, image)
    best = rows.probs[:, 1:].argmax(1) + 1
    seconds = 0
    for box, score, kind in zip(boxes, scores, classes, strict=True):
        same = ((rows.probs[:, kind] - score).abs() < 1e-4) & (
            ((rows.boxes - box).abs().amax(1) < 1e-3) | (best != kind)  # a row has the box of its likeliest class
        )
        assert same.any()
        seconds += int((best[same] != kind).any())
    assert len(boxes) > 100 and seconds > 0


@pytest.mark.parametrize("name", ONE_STAGE)
@pytest.mark.parametrize("classes", [2, 4])
def test_one_stage_rows_are_the_models_own_inference_without_suppression(name, classes):
    found = sharp(detector(name, classes=classes, min_score=0.3, nms_iou=1.0, max_boxes=300), spread=0.1)
    image = picture()
    rows = found.rows(found.look(image))
    boxes, scores, kinds = own_inference(found, image)
    objects = rows.probs[:, 1:]
    most = objects.amax(1, keepdim=True)
    single = objects / most * (most / (most + rows.probs[:, :1]))  # undo: background is 1 - max, then sum 1
    assert len(boxes) > 100
    for box, score, kind in zip(boxes[:100], scores[:100], kinds[:100], strict=True):
        close = ((single[:, kind - 1] - score).abs() < 1e-4) & ((rows.boxes - box).abs().amax(1) < 1e-3)
        assert close.any()
    if classes == 2:  # one object class: the distribution is the score itself
        assert torch.allclose(rows.probs[:, 1:], single, atol=1e-6)


@pytest.mark.parametrize("name", ONE_STAGE)
def test_rows_are_the_best_of_each_level_by_score(name):
    """Few a level, so that FCOS's centreness decides which."""
    found = sharp(detector(name, classes=2, min_score=0.0, nms_iou=1.0, max_boxes=1000), spread=0.1)
    found.module.test_topk_candidates = 20
    image = picture()
    rows = found.rows(found.look(image))
    _, scores, _ = own_inference(found, image)
    assert len(scores) > 20
    assert bool(((scores[:, None] - rows.probs[:, 1]).abs().amin(1) < 1e-5).all())


def test_background_comes_first():
    found = detector("faster_rcnn")
    predictor = found.module.roi_heads.box_predictor
    with torch.no_grad():
        predictor.cls_score.bias.copy_(torch.tensor([0.0, 2.0, 0.0, 9.0]))  # Detectron2's order: background last
    probs = found.rows(found.look(picture())).probs
    assert bool((probs.argmax(1) == 0).all()) and bool((probs[:, 1:].argmax(1) == 1).all())


def test_classes_reach_detectron2_counted_from_nought():
    found = detector("faster_rcnn", dropout=0.0)
    seen, stock = [], found.module.roi_heads.label_and_sample_proposals
    found.module.roi_heads.label_and_sample_proposals = lambda p, t: seen.extend(t) or stock(p, t)
    found.losses([window(boxes=[(0, 0, 30, 30), (40, 40, 80, 80)], classes=[1, 3])])
    assert seen[0].gt_classes.tolist() == [0, 2]


@pytest.mark.parametrize("name", NAMES)
def test_dropout_is_drawn_by_seed_and_leaves_everything_as_it_was(name):
    found = sharp(detector(name), spread=0.05)
    look, state = found.look(picture()), torch.get_rng_state()
    plain, one, two = found.rows(look), next(found.draws(look, [1])), next(found.draws(look, [2]))
    assert torch.equal(one.probs, next(found.draws(look, [1])).probs)
    assert not torch.equal(one.probs, two.probs) and not torch.equal(one.probs, plain.probs)
    assert torch.equal(plain.probs, found.rows(look).probs)
    assert torch.equal(one.embedding, plain.embedding)
    assert torch.equal(state, torch.get_rng_state())
    many = torch.stack([rows.probs for rows in found.draws(look, range(60))])
    assert (many.mean(0) - plain.probs).abs().mean() < many.std(0).mean()


def test_a_tie_of_classes_is_no_spread_of_place():
    """Two classes nearly tie and have boxes of unlike height, but no draw moves a box."""
    one, two = (sharp(detector("faster_rcnn", seed=seed)) for seed in (0, 1))
    for net in (one, two):
        predictor = net.module.roi_heads.box_predictor
        with torch.no_grad():
            predictor.cls_score.weight.mul_(0.1)
            predictor.bbox_pred.weight.zero_()
            predictor.bbox_pred.bias.zero_()[3::4] = torch.linspace(-2, 2, len(predictor.bbox_pred.bias) // 4)
    image = picture()
    look = one.look(image)
    plain = one.rows(look)
    others = list(one.draws(look, range(3)))
    others += [one.rows(one.look(image, like=look, flip=True)), two.rows(two.look(image, like=look))]
    kinds = plain.probs[:, 1:].argmax(1)
    assert len(kinds.unique()) > 1
    for rows in others:
        assert (rows.probs[:, 1:].argmax(1) != kinds).any()
        assert torch.allclose(rows.boxes, plain.boxes, atol=1e-3)


@pytest.mark.parametrize("name", ONE_STAGE)
def test_dropout_rows_are_those_of_the_whole_map(name, monkeypatch):
    """The last convolution under the kept rows only, against the whole map with the same channels dropped."""
    found = sharp(detector(name))
    model, image = found.module, picture(size=ODD)
    look = found.look(image)
    generator = torch.Generator().manual_seed(7)
    masks = (torch.rand(4, 32, generator=generator) < 0.7) / 0.7
    monkeypatch.setattr(detection_dropout, "masks", lambda shape, rate, seeds, device: masks[None])
    rows = next(found.draws(look, [1]))
    level = iter(masks)
    model.head.cls_score.register_forward_pre_hook(lambda module, x: (x[0] * next(level)[None, :, None, None],))
    whole = found.rows(found.look(image, like=look))
    assert torch.allclose(rows.probs, whole.probs, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_draws_under_bfloat16_are_float32(name):
    found = sharp(detector(name))
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as predict_frame does on CUDA
        look = found.look(picture(size=ODD))
        probs = [next(found.draws(look, [k])).probs for k in (1, 2)]
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in probs)
    assert not torch.equal(*probs)


def test_a_draw_of_dropout_is_one_network_for_all_proposals():
    found = sharp(detector("faster_rcnn"))
    look = found.look(picture(size=ODD))
    alike = replace(look, hidden=look.hidden[:1].expand_as(look.hidden))
    probs = next(found.draws(alike, [1])).probs
    assert torch.allclose(probs, probs[:1].expand_as(probs), atol=1e-6)
    assert not torch.allclose(probs, next(found.draws(alike, [2])).probs, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_dropout_acts_in_training_only_before_the_last_layer(name):
    found = detector(name, dropout=0.5)
    sample = window(boxes=[(10, 10, 50, 50)], classes=[1])

    def classification(seed):
        torch.manual_seed(seed)
        return {k: float(v.detach()) for k, v in found.losses([sample]).items()}

    one, again, other = classification(0), classification(0), classification(1)
    key = next(k for k in one if k.endswith("_cls"))
    assert one == again and one[key] != other[key]
    without = detector(name, dropout=0.0)
    torch.manual_seed(0)
    quiet = without.losses([sample])[key]
    assert float(quiet.detach()) != one[key]
    assert found.module.state_dict().keys() == without.module.state_dict().keys()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(64, 96), ODD])
def test_rows_of_a_mirrored_look_can_be_scored_again(name, size):
    found = sharp(detector(name))
    turned = picture(size=size).flip(2)
    look = found.look(turned, flip=True)
    rows, again = found.rows(look), found.rows(found.look(turned, like=look, flip=True))
    assert torch.allclose(rows.probs, again.probs, atol=1e-5) and torch.allclose(rows.boxes, again.boxes, atol=1e-3)
    if size == (64, 96):  # without padding the mirrored image's rows are the image's own, mirrored
        plain = found.rows(found.look(picture(size=size)))
        assert torch.allclose(mirrored(plain.boxes, 96), rows.boxes, atol=1e-3)
        assert torch.allclose(plain.probs, rows.probs, atol=1e-5)


@pytest.mark.parametrize("name", ONE_STAGE)
@pytest.mark.parametrize("size", [(64, 96), ODD])
def test_mirrored_anchors_fall_on_the_anchors(name, size):
    """With offsets of nought boxes are the anchors (or points), which a flip must give back exactly."""
    found = detector(name)
    with torch.no_grad():
        found.module.head.bbox_pred.weight.zero_()
    image = picture(size=size)
    look = found.look(image)
    flipped = found.rows(found.look(image, like=look, flip=True)).boxes
    assert torch.allclose(found.rows(look).boxes, flipped, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_mixed_precision_and_channels_last(name):
    found = detector(name)
    found.module.to(memory_format=torch.channels_last)
    image = picture()
    plain: Rows = found.rows(found.look(image))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = found.losses([window(boxes=[(10, 10, 50, 50)], classes=[1])])
        look = found.look(image)
        rows = found.rows(look)
    sum(losses.values()).backward()
    assert all(torch.isfinite(v.detach()) for v in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in found.module.parameters() if p.grad is not None)
    assert rows.probs.dtype == rows.boxes.dtype == torch.float32 and look.dense.dtype == torch.float32
    assert torch.allclose(rows.boxes, cut_to_image(rows.boxes, 96, 128)) and rows.boxes.shape == plain.boxes.shape
    with mixed_precision(torch.device("cpu")):
        assert torch.equal(found.rows(found.look(image)).probs, plain.probs)
