"""Candidate boxes with their whole class distribution, row for row, from torchvision's detectors.

Rows of Faster R-CNN are proposals; of RetinaNet and FCOS the best anchors or points of each level.
What comes before the last layer is kept, so that a draw of dropout costs one matrix product over
the rows. Rows of another look (`like`) are scored again on this one's features, so that the draws
of ensembles and flips line up without any matching of boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as nnf
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import clip_boxes_to_image

from dal_dense.tasks.detection_backend import Rows, with_offsets
from dal_dense.tasks.detection_dropout import LastLayer, around, masks, together
from dal_dense.tasks.torchvision_networks import CANDIDATES


@dataclass(frozen=True)
class Seen:
    """One image as the network takes it.

    Attributes:
        size: height and width before padding.
        padded: width after it; mirrored boxes are counted from there.
        flip: it was mirrored, padding included, so that cells fall on cells.
        levels: pyramid features, finest first, float32 (1, E, h, w).
        images: the batch of one.
    """

    size: tuple[int, int]
    padded: int
    flip: bool
    levels: list[Tensor]
    images: ImageList

    def turn(self, boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4"]:
        """To the mirrored image or back; as they are if it is not mirrored."""
        if not self.flip:
            return boxes
        x0, y0, x1, y1 = boxes.unbind(1)
        return torch.stack([self.padded - x1, y0, self.padded - x0, y1], 1)

    def evenly(self, grid: Float[Tensor, "c h w"], stride: int) -> Float[Tensor, "c r2 c2"]:
        """A padded map cut to the image, in cells that divide it evenly."""
        if self.flip:
            grid = grid.flip(-1)
        rows, cols = (-(-n // stride) for n in self.size)
        if self.size == (rows * stride, cols * stride):
            return grid[:, :rows, :cols].contiguous()
        share = [n / stride / g for n, g in zip(self.size, grid.shape[1:], strict=True)]
        y, x = ((torch.arange(n, device=grid.device) + 0.5) / n * 2 * s - 1 for n, s in zip((rows, cols), share))  # noqa: B905
        place = torch.stack([x.expand(rows, cols), y[:, None].expand(rows, cols)], -1)
        return nnf.grid_sample(grid[None], place[None], padding_mode="border", align_corners=False)[0]


@dataclass(frozen=True)
class TwoStageLook:
    """Faster R-CNN's view.

    Attributes:
        dense: see `Look`.
        features: see `Look`.
        seen: the image.
        proposals: not mirrored.
        hidden: what the last layer sees of each.
        kind: the class whose box is each one's, the likeliest without dropout; that of the first look.
    """

    dense: Float[Tensor, "r c"]
    features: Float[Tensor, "E r2 c2"]
    seen: Seen
    proposals: Float[Tensor, "R 4"]
    hidden: Float[Tensor, "R H"]
    kind: Int[Tensor, " R"]


@dataclass(frozen=True)
class OneStageLook:
    """RetinaNet's or FCOS's view of its best R anchors or points.

    Attributes:
        dense: see `Look`.
        features: see `Look`.
        seen: the image.
        rows: flat number of each anchor in the unmirrored image.
        last: the last convolution at these rows, object classes only.
        logits: without dropout, object classes only.
        centre: FCOS: centreness logit; RetinaNet: nothing, shape (R, 0).
        boxes: decoded, cut, not mirrored.
    """

    dense: Float[Tensor, "r c"]
    features: Float[Tensor, "E r2 c2"]
    seen: Seen
    rows: Int[Tensor, " R"]
    last: LastLayer
    logits: Float[Tensor, "R K"]
    centre: Float[Tensor, "R n"]
    boxes: Float[Tensor, "R 4"]


def bernoulli_entropy(logits: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Entropy of a sigmoid, nats: softplus(x) - x sigmoid(x)."""
    return (nnf.softplus(logits) - logits * logits.sigmoid()).clamp_min(0)


def dense_map(seen: Seen, entropies: Sequence[Tensor], stride: int) -> Float[Tensor, "r c"]:
    """The largest entropy over the levels, on the finest one's grid."""
    finest = entropies[0].shape
    spread = [nnf.interpolate(e[None, None], size=finest, mode="nearest")[0] for e in entropies]
    return seen.evenly(torch.stack(spread).amax(0), stride)[0]


@contextmanager
def heard(module: nn.Module, take: Callable[[Any], None]) -> Iterator[None]:
    """Listen to a module's outputs while it works inside torchvision's own forward."""
    handle = module.register_forward_hook(lambda module, inputs, output: take(output))
    try:
        yield
    finally:
        handle.remove()


def two_stage_look(model: Any, seen: Seen, strides: Sequence[int], like: TwoStageLook | None) -> TwoStageLook:
    """Proposals (or those of `like`) and their features."""
    named = {str(i): level for i, level in enumerate(seen.levels)}
    outputs: list[tuple[Tensor, Tensor]] = []  # logits and offsets of each level
    with heard(model.rpn.head, lambda out: outputs.extend(zip(*out, strict=True))):
        if like is None:
            boxes = model.rpn(seen.images, named)[0][0]
        else:
            model.rpn.head(seen.levels)
            boxes = seen.turn(like.proposals)
    heads = model.roi_heads
    pooled = heads.box_roi_pool(named, [boxes], [tuple(seen.images.tensors.shape[-2:])])
    hidden = heads.box_head(pooled).float()
    return TwoStageLook(
        dense=dense_map(seen, [bernoulli_entropy(with_offsets(*o)).amax(0) for o in outputs], strides[0]),
        features=coarse_features(seen, strides),
        seen=seen,
        proposals=seen.turn(boxes) if like is None else like.proposals,
        hidden=hidden,
        kind=heads.box_predictor(hidden)[0][:, 1:].argmax(1) + 1 if like is None else like.kind,
    )


@torch.no_grad()
def two_stage_rows(model: Any, look: TwoStageLook, hidden: Float[Tensor, "T R H"]) -> list[Rows]:
    """Class distribution and box of every proposal, for some versions of what the last layer sees."""
    heads, each = model.roi_heads, hidden.shape[:2]
    logits, deltas = heads.box_predictor(hidden.flatten(0, 1))
    row = torch.arange(len(deltas), device=deltas.device)
    own = deltas.reshape(*logits.shape, 4)[row, look.kind.repeat(each[0])]
    proposals = look.seen.turn(look.proposals).repeat(each[0], 1)
    boxes = clip_boxes_to_image(look.seen.turn(heads.box_coder.decode_single(own, proposals)), look.seen.size)
    both = zip(logits.softmax(1).unflatten(0, each), boxes.unflatten(0, each), strict=True)
    return [Rows(probs, corners, look.hidden) for probs, corners in both]


def two_stage_draws(model: Any, look: TwoStageLook, seeds: Sequence[int]) -> Iterator[Rows]:
    """Draws of dropout; one drops the same features of all rows: it is one network."""
    rate, (rows, width) = model.roi_heads.box_predictor.dropout.p, look.hidden.shape
    outputs = model.roi_heads.box_predictor.bbox_pred.out_features
    for some in together(seeds, rows * (width + outputs)):
        drawn = masks((width,), rate, some, look.hidden.device)
        yield from two_stage_rows(model, look, look.hidden * drawn[:, None])


def one_stage_look(model: Any, seen: Seen, strides: Sequence[int], like: OneStageLook | None) -> OneStageLook:
    """The best anchors of each level (or those of `like`), their boxes and what the last layer sees."""
    towers: list[Tensor] = []
    with heard(model.head.classification_head.conv, towers.append):
        outputs = {name: value[0].float() for name, value in model.head(seen.levels).items()}
    logits = outputs["cls_logits"][:, 1:]  # torchvision's class 0 is nobody's
    centre = outputs.get("bbox_ctrness", logits.new_zeros(len(logits), 0))
    grids = [tuple(level.shape[-2:]) for level in seen.levels]
    each = len(logits) // sum(h * w for h, w in grids)
    chosen = _best_rows(scores(logits, centre).amax(1), grids, each) if like is None else like.rows
    here, kind = _turned(chosen, grids, each) if seen.flip else chosen, chosen % each
    anchors = model.anchor_generator(seen.images, seen.levels)[0]
    decode = getattr(model.box_coder, "decode_single", model.box_coder.decode)
    boxes = seen.turn(decode(outputs["bbox_regression"][here], anchors[here]))
    parts = logits.amax(1).split([h * w * each for h, w in grids])
    last = model.head.classification_head.cls_logits
    entropies = [bernoulli_entropy(p).reshape(h, w, each).amax(2) for p, (h, w) in zip(parts, grids, strict=True)]
    return OneStageLook(
        dense=dense_map(seen, entropies, strides[0]),
        features=coarse_features(seen, strides),
        seen=seen,
        rows=chosen,
        last=LastLayer(
            _patches(towers, here // each, grids),
            tuple(min(CANDIDATES, h * w * each) for h, w in grids),
            kind,
            last.weight.float().reshape(each, -1, last.in_channels, 9)[:, 1:],
            last.bias.float().reshape(each, -1)[:, 1:],
        ),
        logits=logits[here],
        centre=centre[here],
        boxes=clip_boxes_to_image(boxes, seen.size),
    )


def one_stage_rows(look: OneStageLook, logits: Float[Tensor, "T R K"]) -> list[Rows]:
    """Class distribution and box of every anchor or point that was chosen, for some versions of the logits."""
    found = scores(logits, look.centre)
    probs = torch.cat([1 - found.amax(-1, keepdim=True), found], -1)
    return [Rows(each, look.boxes, look.last.patches[:, :, 4]) for each in probs / probs.sum(-1, keepdim=True)]


def one_stage_draws(model: Any, look: OneStageLook, seeds: Sequence[int]) -> Iterator[Rows]:
    """Draws of dropout; the boxes' branch has none."""
    rate = model.head.classification_head.conv[-1].p
    for some in together(seeds, look.logits.numel()):
        yield from one_stage_rows(look, look.last.logits(rate, some))


def scores(logits: Float[Tensor, "*n K"], centre: Float[Tensor, "n m"]) -> Float[Tensor, "*n K"]:
    """Sigmoid; FCOS takes the geometric mean with its centreness."""
    found = logits.sigmoid()
    return (found * centre.sigmoid()).sqrt() if centre.shape[1] else found


def coarse_features(seen: Seen, strides: Sequence[int]) -> Float[Tensor, "E r2 c2"]:
    """Features of the third level, or of the last one."""
    level = min(2, len(strides) - 1)
    return seen.evenly(seen.levels[level][0], strides[level])


def _best_rows(best: Tensor, grids: Sequence[tuple[int, ...]], each: int) -> Tensor:
    """Flat numbers of the best anchors of each level."""
    found, first = [], 0
    for part in torch.split(best, [h * w * each for h, w in grids]):
        found.append(part.topk(min(CANDIDATES, len(part))).indices + first)
        first += len(part)
    return torch.cat(found)


def _turned(rows: Tensor, grids: Sequence[tuple[int, ...]], each: int) -> Tensor:
    """Numbers of the same anchors in the mirrored image.

    Centres lie at multiples of the stride from the left border, so column x falls on column w - x;
    column 0 has no counterpart and takes the nearest.
    """
    result, first = rows.clone(), 0
    for h, w in grids:
        inside = (rows >= first) & (rows < first + h * w * each)
        place, kind = (rows[inside] - first) // each, (rows[inside] - first) % each
        column = (w - place % w).clamp_max(w - 1)
        result[inside] = first + ((place // w) * w + column) * each + kind
        first += h * w * each
    return result


def _patches(towers: Sequence[Tensor], places: Tensor, grids: Sequence[tuple[int, ...]]) -> Tensor:
    """The 3 x 3 neighbourhood of each place in its level's tower output (R, channels, 9)."""
    result = towers[0].new_zeros(len(places), towers[0].shape[1], 9, dtype=torch.float32)
    first = 0
    for tower, (h, w) in zip(towers, grids, strict=True):
        inside = (places >= first) & (places < first + h * w)
        place = places[inside] - first
        result[inside] = around(tower[0].float(), place // w, place % w)
        first += h * w
    return result
