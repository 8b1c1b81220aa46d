"""Gradients from ground that nobody labelled: exactly 0, and not so without the overrides."""

import numpy as np
import pytest
import torch
from detectron2_toys import NAMES, NEEDS, ONE_STAGE, SIZE, detector, share, window
from torchvision.ops import box_iou, sigmoid_focal_loss

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


def in_rows(levels, width):
    """Maps of all levels, (image, kinds * width, h, w) each, as (image, anchor, width)."""
    return torch.cat([t.unflatten(1, (-1, width)).permute(0, 3, 4, 1, 2).flatten(1, 3) for t in levels], 1)


def dense_gradients(found, samples):
    """Anchors or points, gradients of their logits, and of their deltas (and FCOS's centreness, last)."""
    model = found.module
    caught = listen(model.head)
    backward(found, samples)
    logits, *more = (
        in_rows([torch.zeros_like(t) if t.grad is None else t.grad for t in part], n)
        for part, n in zip(caught[0], (3, 4, 1), strict=False)
    )
    anchors = torch.cat([b.tensor for b in model.anchor_generator(caught[0][0])])
    return anchors, logits, torch.cat(more, 2)


def responsible(points, boxes):
    """FCOS by brute force (Tian et al. 2020): is a point near the middle of a box of its level's range of sizes?"""
    strides = (points[:, 2] - points[:, 0]).tolist()
    result = []
    for (x, y), stride in zip(((points[:, :2] + points[:, 2:]) / 2).tolist(), strides, strict=True):
        low = 0 if stride == min(strides) else 4 * stride
        high = np.inf if stride == max(strides) else 8 * stride
        hits = []
        for x0, y0, x1, y1 in boxes:
            sides = (x - x0, y - y0, x1 - x, y1 - y)
            near = max(abs(x - (x0 + x1) / 2), abs(y - (y0 + y1) / 2)) < 1.5 * stride
            hits.append(near and min(sides) > 0 and low < max(sides) < high)
        result.append(any(hits))
    return torch.tensor(result)


def known_points(points, known):
    """Does the pixel under the middle of each square lie on known ground?"""
    middle = ((points[:, :2] + points[:, 2:]) / 2).floor().int().tolist()
    return torch.tensor([0 <= x < known.shape[1] and 0 <= y < known.shape[0] and bool(known[y, x]) for x, y in middle])


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
        if hasattr(model, "anchor_matcher"):
            model.anchor_matcher = model.anchor_matcher.inner
        else:
            del model.losses
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
    anchors, logits, deltas = dense_gradients(detector("retinanet"), [partly()])
    allowed = background(anchors, ground(), ABSENT)
    positive = (logits[0] < 0).any(1)
    negative = (logits[0] > 0).all(1)
    assert not (negative & ~allowed).any() and not (logits[0] != 0)[~allowed & ~positive].any()
    overlap = box_iou(anchors, torch.tensor([[10.0, 8, 42, 40], [40, 20, 70, 60]])).amax(1)
    assert positive.any() and bool((overlap[positive] > 0.3).all())
    assert not deltas[0][~positive].any()
    assert bool(negative[background(anchors, ground(), ABSENT, EDGE) & (overlap < 0.3)].all())


def test_retinanet_leaks_without_the_override():
    anchors, logits, _ = dense_gradients(stock(detector("retinanet")), [partly()])
    assert ((logits[0] > 0).all(1) & ~background(anchors, ground(), ABSENT)).sum() > 100


OBJECTS = [(10, 8, 42, 40), (40, 20, 70, 60)]


def test_fcos_learns_nothing_from_unknown_ground():
    points, logits, moves = dense_gradients(detector("fcos"), [partly()])
    positive = responsible(points, OBJECTS)
    allowed = known_points(points, ground()) | responsible(points, [ABSENT])
    assert positive.any() and (allowed & ~positive).any() and not allowed.all()
    assert (responsible(points, [ABSENT]) & ~known_points(points, ground())).any()
    assert not logits[0][~allowed & ~positive].any() and not moves[0][~positive].any()
    assert bool((logits[0][allowed & ~positive] > 0).all())  # all that is known is learnt as background
    assert bool((logits[0][positive] < 0).any(1).all()) and bool((moves[0][positive, 4] != 0).all())


def test_fcos_leaks_without_the_override():
    points, logits, _ = dense_gradients(stock(detector("fcos")), [partly()])
    allowed = known_points(points, ground()) | responsible(points, OBJECTS) | responsible(points, [ABSENT])
    assert (logits[0][~allowed] > 0).all(1).sum() > 100


def test_ignored_points_cost_nothing_and_count_for_nothing():
    """The loss of classes is the focal loss of the points that count, over the positives."""
    found = detector("fcos", dropout=0.0)
    caught = listen(found.module.head)
    loss = found.losses([partly()])["loss_fcos_cls"].detach()
    logits = in_rows(caught[0][0], 3)[0].detach()
    points = torch.cat([b.tensor for b in found.module.anchor_generator(caught[0][0])])
    first, second = (responsible(points, [box]) for box in OBJECTS)
    wanted = torch.stack([first, torch.zeros_like(first), second & ~first], 1).float()  # the smaller box wins
    used = first | second | known_points(points, ground()) | responsible(points, [ABSENT])
    expected = sigmoid_focal_loss(logits[used], wanted[used], reduction="sum") / (first | second).sum()
    assert not used.all() and float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_where_all_is_known_fcos_learns_as_detectron2s():
    sample = window(boxes=OBJECTS, classes=[1, 3])
    mine, theirs = (make(detector("fcos", dropout=0.0)).losses([sample]) for make in (lambda found: found, stock))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_boxes_that_are_nan_are_told_as_such():
    """Detectron2's loss of boxes asserts instead, which the fit would not know for a divergence."""
    found = detector("fcos")
    with torch.no_grad():
        found.module.head.bbox_pred.bias.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="NaN"):
        found.losses([window(boxes=OBJECTS, classes=[1, 3])])


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
    gradients = rpn_gradients if name == "faster_rcnn" else dense_gradients
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
    gradients = rpn_gradients if name == "faster_rcnn" else dense_gradients
    _, scores, moves = gradients(found, [window(boxes=[(7.8, 7.8, 8.2, 8.2)], classes=[2])])
    assert not moves.any() and (scores > 0).any()


@pytest.mark.parametrize("name", ONE_STAGE)
def test_one_stage_losses_remember_no_earlier_batch(name):
    found = detector(name, dropout=0.0)
    first = found.losses([partly()])
    found.losses([window(boxes=[(0, 0, 64, 64)], classes=[1])])
    assert all(torch.equal(first[k], v) for k, v in found.losses([partly()]).items())
