"""Gradients from ground that nobody labelled: exactly 0, and not so without the overrides."""

import numpy as np
import pytest
import torch
from detectron2_toys import NAMES, NEEDS, SIZE, detector, share, window
from torchvision.ops import box_iou

pytestmark = NEEDS

IGNORED = (20, 56, 60, 92)
ABSENT = (92.0, 8.0, 124.0, 40.0)


def ground():
    """Known: the left 72 columns, but for an ignored box; unknown: the rest, with a rejected prediction in it."""
    known = torch.zeros(SIZE, dtype=torch.bool)
    known[:, :72] = True
    x0, y0, x1, y1 = IGNORED
    known[y0:y1, x0:x1] = False
    known[:, :6] = False  # half of an anchor at the border lies outside; of its inner half this is most
    return known


def partly(**more):
    return window(ground(), [(10, 8, 42, 40), (40, 20, 70, 60)], [1, 3], [ABSENT], **more)


EDGE = 1e-4
"""Boxes of which a half is known, to this share, may go either way in float32."""


def background(anchors, known, absent, edge=-EDGE):
    """What may be background, by brute force."""
    boxes = anchors.numpy().astype(float)
    shares = np.array([share(box, known.numpy().astype(float)) for box in boxes])
    cut = anchors.clone()
    cut[:, 0::2] = cut[:, 0::2].clamp(0, SIZE[1])
    cut[:, 1::2] = cut[:, 1::2].clamp(0, SIZE[0])
    rejected = box_iou(cut, torch.tensor([absent])).amax(1) >= 0.5
    return torch.from_numpy(shares >= 0.5 + edge) | rejected


def listen(module):
    """Outputs of a module, with gradients kept."""
    caught = []

    def hook(module, inputs, output):
        for each in output if isinstance(output, tuple) else (output,):
            for tensor in each if isinstance(each, list) else [each]:
                tensor.retain_grad()
        caught.append(output)

    module.register_forward_hook(hook)
    return caught


def backward(found, samples):
    losses = found.losses(samples)
    torch.stack(list(losses.values())).sum().backward()


def rpn_gradients(found, samples):
    """Anchors, gradients of their objectness (image, anchor) and of their deltas."""
    rpn = found.module.proposal_generator
    rpn.batch_size_per_image = 10**6  # all that may be sampled
    caught = listen(rpn.rpn_head)
    backward(found, samples)
    logits, deltas = caught[0]
    anchors = torch.cat([b.tensor for b in rpn.anchor_generator(logits)])
    objectness = torch.cat([t.grad.permute(0, 2, 3, 1).flatten(1) for t in logits], 1)
    moves = torch.cat([t.grad.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3) for t in deltas], 1)
    return anchors, objectness, moves


def retina_gradients(found, samples):
    model = found.module
    caught = listen(model.head)
    backward(found, samples)
    logits, deltas = (
        torch.cat([t.grad.unflatten(1, (-1, n)).permute(0, 3, 4, 1, 2).flatten(1, 3) for t in part], 1)
        for part, n in zip(caught[0], (3, 4), strict=True)
    )
    anchors = torch.cat([b.tensor for b in model.anchor_generator(caught[0][0])])
    return anchors, logits, deltas


def roi_gradients(found, samples):
    """Sampled proposals of the first window, and the gradient of their logits (background last)."""
    heads = found.module.roi_heads
    heads.batch_size_per_image = 10**6
    sampled, sampler = [], heads.label_and_sample_proposals
    heads.label_and_sample_proposals = lambda p, t: sampled.extend(sampler(p, t)) or sampled
    caught = listen(heads.box_predictor)
    backward(found, samples)
    boxes = [each.proposal_boxes.tensor for each in sampled]
    return boxes[0], caught[0][0].grad[: len(boxes[0])]


def stock(found):
    """Take the overrides out again."""
    model = found.module
    if hasattr(model, "head"):
        del model.label_anchors
        model.anchor_matcher = model.anchor_matcher.inner
    else:
        del model.proposal_generator.label_and_sample_anchors, model.roi_heads.label_and_sample_proposals
        model.proposal_generator.anchor_matcher = model.proposal_generator.anchor_matcher.inner
    return found


def test_rpn_learns_nothing_from_unknown_ground():
    anchors, objectness, moves = rpn_gradients(detector("faster_rcnn"), [partly()])
    allowed = background(anchors, ground(), ABSENT)
    negative, positive = objectness[0] > 0, objectness[0] < 0
    assert not (negative & ~allowed).any()
    overlap = box_iou(anchors, torch.tensor([[10.0, 8, 42, 40], [40, 20, 70, 60]])).amax(1)
    assert bool((overlap[positive] > 0.3).all()) and positive.any()
    assert not moves[0][~positive].any()
    # and it does learn from all that is known: a clear negative, at the border too, inside the rejected box too
    assert bool(negative[background(anchors, ground(), ABSENT, EDGE) & (overlap < 0.25)].all())
    border = (anchors[:, 0] < 0) & allowed
    assert border.any() and ((anchors[:, 0] < 0) & ~allowed).any()


def test_rpn_leaks_without_the_override():
    anchors, objectness, _ = rpn_gradients(stock(detector("faster_rcnn")), [partly()])
    leaks = (objectness[0] > 0) & ~background(anchors, ground(), ABSENT)
    assert leaks.sum() > 100


def test_roi_heads_learn_nothing_from_unknown_ground():
    boxes, logits = roi_gradients(detector("faster_rcnn"), [partly()])
    as_background = logits[:, -1] < 0
    allowed = background(boxes, ground(), ABSENT)
    assert as_background.any() and not (as_background & ~allowed).any()
    objects = box_iou(boxes, torch.tensor([[10.0, 8, 42, 40], [40, 20, 70, 60]]))
    assert bool((objects[~as_background].amax(1) >= 0.5).all()) and (~as_background).any()


def test_roi_heads_leak_without_the_override():
    boxes, logits = roi_gradients(stock(detector("faster_rcnn")), [partly()])
    assert ((logits[:, -1] < 0) & ~background(boxes, ground(), ABSENT)).sum() > 20


def test_retinanet_learns_nothing_from_unknown_ground():
    anchors, logits, deltas = retina_gradients(detector("retinanet"), [partly()])
    allowed = background(anchors, ground(), ABSENT)
    positive = (logits[0] < 0).any(1)
    negative = (logits[0] > 0).all(1)
    assert not (negative & ~allowed).any() and not (logits[0] != 0)[~allowed & ~positive].any()
    overlap = box_iou(anchors, torch.tensor([[10.0, 8, 42, 40], [40, 20, 70, 60]])).amax(1)
    assert positive.any() and bool((overlap[positive] > 0.3).all())
    assert not deltas[0][~positive].any()
    assert bool(negative[background(anchors, ground(), ABSENT, EDGE) & (overlap < 0.3)].all())


def test_retinanet_leaks_without_the_override():
    anchors, logits, _ = retina_gradients(stock(detector("retinanet")), [partly()])
    assert ((logits[0] > 0).all(1) & ~background(anchors, ground(), ABSENT)).sum() > 100


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_window_teaches_nothing_at_all(name):
    found = detector(name)
    nothing = window(torch.zeros(SIZE, dtype=torch.bool))
    losses = found.losses([nothing, nothing])
    total = torch.stack(list(losses.values())).sum()
    assert total.requires_grad and float(total.detach()) == 0
    total.backward()
    assert not any(p.grad.any() for p in found.module.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", NAMES)
def test_a_reviewed_empty_window_teaches(name):
    found = detector(name)
    backward(found, [window()])
    assert any(p.grad.any() for p in found.module.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", NAMES)
def test_windows_of_a_batch_do_not_mix(name):
    """Each image's anchors are judged by its own ground, and padding is unknown ground."""
    gradients = rpn_gradients if name == "faster_rcnn" else retina_gradients
    small = window(torch.ones((64, 64), dtype=torch.bool), size=(64, 64), seed=1)
    anchors, scores, _ = gradients(detector(name), [window(torch.zeros(SIZE, dtype=torch.bool)), small])
    scores = scores.reshape(*scores.shape[:2], -1)
    assert not scores[0].any() and scores[1].any()
    outside = (anchors[:, 0] >= 64) | (anchors[:, 1] >= 64)
    assert outside.any() and not scores[1][outside].any()


@pytest.mark.parametrize("name", NAMES)
def test_an_object_that_overlaps_no_anchor_makes_no_positives(name):
    """Detectron2's matcher calls every anchor positive whose overlap, 0, is the object's best."""
    found = detector(name, anchor_sizes=(1.5, 3.0))
    gradients = rpn_gradients if name == "faster_rcnn" else retina_gradients
    _, scores, moves = gradients(found, [window(boxes=[(7.8, 7.8, 8.2, 8.2)], classes=[2])])
    assert not moves.any() and (scores > 0).any()


def test_losses_of_retinanet_remember_no_earlier_batch():
    found = detector("retinanet", dropout=0.0)
    first = found.losses([partly()])
    found.losses([window(boxes=[(0, 0, 64, 64)], classes=[1])])
    assert all(torch.equal(first[k], v) for k, v in found.losses([partly()]).items())
