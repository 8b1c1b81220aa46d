"""Candidate boxes with their whole class distribution, row for row, from Detectron2's detectors.

Rows of GeneralizedRCNN are proposals, of RetinaNet and FCOS the best anchors or points of each level. What
the last layer sees is kept, so that a draw of dropout costs one matrix product over the rows. Rows of another
look (`like`) are scored again on this one's features, so that the draws of ensembles and flips line up
without any matching of boxes. Detectron2 puts background last; here it comes first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.structures import Boxes, ImageList, Instances
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as nnf

from dal_dense.tasks.detection_backend import Rows, with_offsets
from dal_dense.tasks.detection_dropout import LastLayer, around, masks, together
from dal_dense.tasks.detection_partial import cut_to_image
from dal_dense.tasks.detectron2_view import View, coarse_features, dense_map, heard

Features = dict[str, Tensor]


@dataclass(frozen=True)
class RcnnLook:
    """GeneralizedRCNN's view.

    Attributes:
        dense: see `detection_backend.Look`.
        features: see there.
        view: the image.
        proposals: not mirrored.
        hidden: what the last layer sees of each.
        kind: the object class, from 0, whose box is each one's, the likeliest without dropout; that of the first look.
    """

    dense: Float[Tensor, "r c"]
    features: Float[Tensor, "E r2 c2"]
    view: View
    proposals: Float[Tensor, "R 4"]
    hidden: Float[Tensor, "R H"]
    kind: Int[Tensor, " R"]


@dataclass(frozen=True)
class OneStageLook:
    """RetinaNet's or FCOS's view of its best anchors or points.

    Attributes:
        dense: see `detection_backend.Look`.
        features: see there.
        view: the image.
        places: level, row, column and kind of each anchor in the image that is not mirrored.
        last: the last convolution at these places.
        logits: without dropout.
        centre: FCOS: centreness logit; RetinaNet: nothing, shape (R, 0).
        boxes: decoded, cut, not mirrored.
    """

    dense: Float[Tensor, "r c"]
    features: Float[Tensor, "E r2 c2"]
    view: View
    places: Int[Tensor, "R 4"]
    last: LastLayer
    logits: Float[Tensor, "R K"]
    centre: Float[Tensor, "R n"]
    boxes: Float[Tensor, "R 4"]


def see(model: Any, image: Float[Tensor, "3 h w"], *, flip: bool, coarsest: int) -> tuple[View, ImageList, Features]:
    """Normalise, pad, mirror if wanted, and run the trunk.

    Args:
        model: GeneralizedRCNN, RetinaNet or FCOS.
        image: channels in the model's own order.
        flip: mirror left to right.
        coarsest: stride of the last level; a mirrored image is padded to a multiple of it.
    """
    images = model.preprocess_image([{"image": image}])
    size = (image.shape[1], image.shape[2])
    if flip:
        rest = [-n % coarsest for n in images.tensor.shape[-2:]]
        tensor = nnf.pad(images.tensor, (0, rest[1], 0, rest[0])).flip(-1)
        images = ImageList(tensor, [(size[0], tensor.shape[-1])])
    return View(size, images.tensor.shape[-1], flip), images, model.backbone(images.tensor)


def rcnn_look(model: Any, image: Float[Tensor, "3 h w"], like: RcnnLook | None, flip: bool) -> RcnnLook:
    """Proposals (or those of `like`) and what the last layer sees of them."""
    rpn, heads = model.proposal_generator, model.roi_heads
    strides = rpn.anchor_generator.strides
    view, images, features = see(model, image, flip=flip, coarsest=strides[-1])
    levels = [features[name] for name in rpn.in_features]
    outputs: list[tuple[Tensor, Tensor]] = []  # logits and offsets of each level
    with heard(rpn.rpn_head, lambda output: outputs.extend(zip(*output, strict=True))):
        if like is None:
            boxes = rpn(images, features, None)[0][0].proposal_boxes.tensor
        else:
            rpn.rpn_head(levels)
            boxes = view.turn(like.proposals)
    pooled = heads.box_pooler([features[name] for name in heads.box_in_features], [Boxes(boxes)])
    hidden = heads.box_head(pooled).flatten(1).float()
    return RcnnLook(
        dense=dense_map(view, [with_offsets(*each) for each in outputs], strides),
        features=coarse_features(view, levels, strides),
        view=view,
        proposals=view.turn(boxes) if like is None else like.proposals,
        hidden=hidden,
        kind=heads.box_predictor(hidden)[0][:, :-1].argmax(1) if like is None else like.kind,
    )


@torch.no_grad()
def rcnn_rows(model: Any, look: RcnnLook, hidden: Float[Tensor, "T R H"]) -> list[Rows]:
    """Class distribution and box of every proposal, for some versions of what the last layer sees."""
    predictor, each = model.roi_heads.box_predictor, hidden.shape[:2]
    found = predictor(hidden.flatten(0, 1))
    some = Instances(look.view.size)
    some.proposal_boxes = Boxes(look.view.turn(look.proposals).repeat(each[0], 1))
    scores = predictor.predict_probs(found, [some])[0]
    objects = scores[:, :-1]
    probs = with_background(objects) if predictor.use_sigmoid_ce else torch.cat([scores[:, -1:], objects], 1)
    deltas = found[1].unflatten(1, (-1, 4))
    of_class = look.kind.clamp_max(deltas.shape[1] - 1).repeat(each[0])  # all classes may share one box
    own = deltas[torch.arange(len(deltas), device=deltas.device), of_class]
    turned = look.view.turn(predictor.box2box_transform.apply_deltas(own, some.proposal_boxes.tensor))
    boxes = cut_to_image(turned, *look.view.size)
    both = zip(probs.reshape(*each, probs.shape[1]), boxes.reshape(*each, 4), strict=True)
    return [Rows(distribution, corners, look.hidden) for distribution, corners in both]


def rcnn_draws(model: Any, look: RcnnLook, rate: float, seeds: Sequence[int]) -> Iterator[Rows]:
    """Draws of dropout; one drops the same features of all rows: it is one network."""
    (rows, width), outputs = look.hidden.shape, 5 * model.roi_heads.num_classes
    for some in together(seeds, rows * (width + outputs)):
        drawn = masks((width,), rate, some, look.hidden.device)
        yield from rcnn_rows(model, look, look.hidden * drawn[:, None])


def with_background(scores: Float[Tensor, "*n K"]) -> Float[Tensor, "*n C"]:
    """Independent sigmoids as a distribution: background takes 1 - max, then rows sum to 1."""
    probs = torch.cat([1 - scores.amax(-1, keepdim=True), scores], -1)
    return probs / probs.sum(-1, keepdim=True)


def scores(logits: Float[Tensor, "*n K"], centre: Float[Tensor, "R n"]) -> Float[Tensor, "*n K"]:
    """Sigmoid; FCOS takes the geometric mean with its centreness."""
    found = logits.sigmoid()
    return (found * centre.sigmoid()).sqrt() if centre.shape[1] else found


def one_stage_look(model: Any, image: Float[Tensor, "3 h w"], like: OneStageLook | None, flip: bool) -> OneStageLook:
    """The best anchors of each level (or those of `like`), their boxes and what the last layer sees."""
    strides, offset = model.anchor_generator.strides, model.anchor_generator.offset
    view, _, features = see(model, image, flip=flip, coarsest=strides[-1])
    levels = [features[name] for name in model.head_in_features]
    towers: list[Tensor] = []
    with heard(model.head.cls_subnet, towers.append):
        found = model.head(levels)
    logits, moves, *more = (
        torch.cat(each, 1)[0].float()
        for each in model._transpose_dense_predictions(found, [model.num_classes, 4, 1][: len(found)])
    )
    centre = more[0] if more else logits.new_zeros(len(logits), 0)
    grids = [(level.shape[-2], level.shape[-1]) for level in levels]
    kinds = len(logits) // sum(h * w for h, w in grids)
    if like is None:
        best = nnf.logsigmoid(logits.amax(1)) + nnf.logsigmoid(centre).sum(1)  # sure ones do not tie in logarithms
        seen = _best_places(best, grids, kinds, model.test_topk_candidates)
        places = _turned(seen, view, strides, offset)
    else:
        places, seen = like.places, _inside(_turned(like.places, view, strides, offset), grids)
    here, last = _flat(seen, grids, kinds), model.head.cls_score
    anchors = Boxes.cat(model.anchor_generator(levels)).tensor
    boxes = view.turn(model.box2box_transform.apply_deltas(moves[here], anchors[here]))
    return OneStageLook(
        dense=dense_map(view, [each[0].unflatten(0, (kinds, -1)).amax(1) for each in found[0]], strides),
        features=coarse_features(view, levels, strides),
        view=view,
        places=places,
        last=LastLayer(
            _patches(towers, seen),
            tuple(torch.bincount(places[:, 0], minlength=len(levels)).tolist()),
            places[:, 3],
            last.weight.float().reshape(kinds, -1, last.in_channels, 9),
            last.bias.float().reshape(kinds, -1),
        ),
        logits=logits[here],
        centre=centre[here],
        boxes=cut_to_image(boxes, *view.size),
    )


def one_stage_rows(look: OneStageLook, logits: Float[Tensor, "T R K"]) -> list[Rows]:
    """Class distribution and box of every anchor or point that was chosen, for some versions of the logits."""
    return [
        Rows(probs, look.boxes, look.last.patches[:, :, 4]) for probs in with_background(scores(logits, look.centre))
    ]


def one_stage_draws(look: OneStageLook, rate: float, seeds: Sequence[int]) -> Iterator[Rows]:
    """Draws of dropout; the boxes' branch has none."""
    for some in together(seeds, look.logits.numel()):
        yield from one_stage_rows(look, look.last.logits(rate, some))


def _best_places(
    best: Float[Tensor, " n"], grids: Sequence[tuple[int, int]], kinds: int, most: int
) -> Int[Tensor, "R 4"]:
    """Level, row, column and kind of the best anchors of each level."""
    places = []
    for level, part in enumerate(torch.split(best, [h * w * kinds for h, w in grids])):
        chosen = part.topk(min(most, len(part))).indices
        cell, width = chosen // kinds, grids[level][1]
        places.append(torch.stack([torch.full_like(chosen, level), cell // width, cell % width, chosen % kinds], 1))
    return torch.cat(places)


def _turned(places: Int[Tensor, "R 4"], view: View, strides: Sequence[int], offset: float) -> Int[Tensor, "R 4"]:
    """The mirrored anchors: x = (column + offset) * stride falls on the padded width minus x.

    With an offset of 0 that is one column too many at the very border; the nearest is taken.
    """
    if not view.flip:
        return places
    widths = torch.tensor([view.padded // s for s in strides], device=places.device)[places[:, 0]]
    column = (widths - places[:, 2] - round(2 * offset)).clamp_min(0).minimum(widths - 1)
    return torch.stack([places[:, 0], places[:, 1], column, places[:, 3]], 1)


def _inside(places: Int[Tensor, "R 4"], grids: Sequence[tuple[int, int]]) -> Int[Tensor, "R 4"]:
    """The nearest anchor of these grids: a mirrored image has more padding."""
    last = torch.tensor(grids, device=places.device)[places[:, 0]] - 1
    return torch.cat([places[:, :1], places[:, 1:3].minimum(last), places[:, 3:]], 1)


def _flat(places: Int[Tensor, "R 4"], grids: Sequence[tuple[int, int]], kinds: int) -> Int[Tensor, " R"]:
    """Number of an anchor in the levels laid end to end."""
    cells = torch.tensor([h * w for h, w in grids], device=places.device)
    widths = torch.tensor([w for _, w in grids], device=places.device)
    level, row, column, kind = places.unbind(1)
    return ((cells.cumsum(0) - cells)[level] + row * widths[level] + column) * kinds + kind


def _patches(towers: Sequence[Float[Tensor, "1 E _ _"]], places: Int[Tensor, "R 4"]) -> Float[Tensor, "R E 9"]:
    """The 3 x 3 neighbourhood of each place in its level's tower output."""
    result = towers[0].new_zeros(len(places), towers[0].shape[1], 9, dtype=torch.float32)
    for level, tower in enumerate(towers):
        chosen = places[:, 0] == level
        result[chosen] = around(tower[0].float(), places[chosen, 1], places[chosen, 2])
    return result


def last_layer(model: nn.Module) -> tuple[nn.Module, bool]:
    """The layer that dropout comes before, and whether whole channels are dropped."""
    if hasattr(model, "roi_heads"):
        return model.roi_heads.box_predictor, False  # type: ignore[return-value,union-attr]
    return model.head.cls_score, True  # type: ignore[return-value,union-attr]
