"""Faster R-CNN, RetinaNet and FCOS from torchvision's parts, with its names, so that its weights fit.

pyramid     strides from the anchor sizes: one level a size, finest first
tiny        a residual trunk of about 0.4 M parameters for small frames and CPUs
dropout     in training before the last layer of classification, and nowhere else
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.retinanet import (
    RetinaNetClassificationHead,
    RetinaNetHead,
    RetinaNetRegressionHead,
)
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import (
    ExtraFPNBlock,
    FeaturePyramidNetwork,
    LastLevelMaxPool,
    LastLevelP6P7,
)

from dal_dense.config import DetectionConfig, NetworkConfig
from dal_dense.tasks.torchvision_partial import PartialRPN

CANDIDATES = 300
"""Rows of an image: proposals of Faster R-CNN, or anchors a level of the others."""

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels in 0..1, as torchvision's own weights expect."""

RATIOS = (0.5, 1.0, 2.0)
OCTAVES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
"""Height over width of anchors; RetinaNet's sizes within an octave (Lin et al. 2017)."""

TINY = (16, 24, 48, 96, 128)

Norm = Callable[[int], nn.Module]


def build_network(network: NetworkConfig, detection: DetectionConfig, classes: int) -> Any:
    """A fresh network; weights come from the global generator. A module, of torchvision, which has no types.

    Args:
        network: name and dropout.
        detection: trunk, norm, anchors, what counts as a box.
        classes: with background.
    """
    trunk = _Pyramid(detection, first=detection.finest_level(network.name))
    if network.name == "faster_rcnn":
        return _faster_rcnn(trunk, network, detection, classes)
    make = {"retinanet": _retinanet, "fcos": _fcos}[network.name]
    return make(trunk, network, detection, classes)


class _Pyramid(nn.Module):
    """Trunk and feature pyramid; one level an anchor size, from stride 2**first on."""

    def __init__(self, detection: DetectionConfig, first: int) -> None:
        super().__init__()
        levels, inner = len(detection.anchor_sizes), 6 - first
        norm = _norm(detection)
        body, channels, self.out_channels = _trunk(detection.backbone, norm)
        taken = range(first, first + min(levels, inner))
        self.body = IntermediateLayerGetter(body, {f"layer{k - 1}": str(i) for i, k in enumerate(taken)})
        extra: ExtraFPNBlock | None = None
        if levels == inner + 1:
            extra = LastLevelMaxPool()
        elif levels == inner + 2:
            extra = LastLevelP6P7(self.out_channels, self.out_channels)
        self.fpn = FeaturePyramidNetwork(
            [channels[k - 2] for k in taken],
            self.out_channels,
            extra_blocks=extra,
            norm_layer=None if detection.norm == "frozen" else norm,
        )
        self.strides = tuple(2 ** (first + i) for i in range(levels))
        self.pooled = [str(i) for i in range(len(taken))]

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        found: OrderedDict[str, Tensor] = self.fpn(self.body(x))
        return found


def _norm(detection: DetectionConfig) -> Norm:
    if detection.norm == "group":
        return lambda channels: nn.GroupNorm(math.gcd(32, channels // 4), channels)
    if detection.norm == "batch":
        return nn.BatchNorm2d
    frozen: Norm = FrozenBatchNorm2d
    return frozen


def _trunk(name: str, norm: Norm) -> tuple[nn.Module, tuple[int, ...], int]:
    """The trunk, the channels of its stages at strides 4, 8, 16, 32, and the pyramid's channels."""
    if name == "tiny":
        return _TinyTrunk(norm), TINY[1:], 32
    body: nn.Module = getattr(resnet, name)(weights=None, norm_layer=norm)
    wide = name in ("resnet50", "resnet101")
    return body, ((256, 512, 1024, 2048) if wide else (64, 128, 256, 512)), 256 if wide else 128


class _TinyTrunk(nn.Sequential):
    """A stem at stride 2 and four stages of one residual block at strides 4 to 32."""

    def __init__(self, norm: Norm) -> None:
        stem = nn.Sequential(nn.Conv2d(3, TINY[0], 3, 2, 1, bias=False), norm(TINY[0]), nn.ReLU())
        stages = [(f"layer{i + 1}", _Stage(TINY[i], TINY[i + 1], norm)) for i in range(4)]
        super().__init__(OrderedDict([("stem", stem), *stages]))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


class _Stage(nn.Module):
    """Halve the grid, then one residual step."""

    def __init__(self, before: int, after: int, norm: Norm) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(before, after, 3, 2, 1, bias=False), norm(after), nn.ReLU())
        self.step = nn.Sequential(nn.Conv2d(after, after, 3, 1, 1, bias=False), norm(after))

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return torch.relu(x + self.step(x))


def _transform() -> GeneralizedRCNNTransform:
    return GeneralizedRCNNTransform(800, 1333, list(MEAN), list(DEVIATION))


def _anchors(sizes: tuple[float, ...], octaves: tuple[float, ...]) -> AnchorGenerator:
    return AnchorGenerator(tuple(tuple(s * o for o in octaves) for s in sizes), (RATIOS,) * len(sizes))


class _FloatRPNHead(RPNHead):  # type: ignore[misc]
    """Outputs in full precision: bfloat16 cannot tell pixels apart."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [t.float() for t in logits], [t.float() for t in deltas]


class _DroppingPredictor(FastRCNNPredictor):  # type: ignore[misc]
    """Dropout before the last layer."""

    def __init__(self, channels: int, classes: int, dropout: float) -> None:
        super().__init__(channels, classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = super().forward(self.dropout(x))
        return logits.float(), deltas.float()


def _faster_rcnn(trunk: _Pyramid, network: NetworkConfig, detection: DetectionConfig, classes: int) -> Any:
    """Ren et al. 2015, with the feature pyramid of Lin et al. 2017."""
    anchors = _anchors(detection.anchor_sizes, (1.0,))
    hidden = {32: 128, 128: 512, 256: 1024}[trunk.out_channels]
    rpn = PartialRPN(
        anchors,
        _FloatRPNHead(trunk.out_channels, len(RATIOS)),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": 1000, "testing": 1000},
        post_nms_top_n={"training": 500, "testing": CANDIDATES},
        nms_thresh=0.7,
    )
    heads = RoIHeads(
        MultiScaleRoIAlign(trunk.pooled, 7, 2, canonical_scale=round(7 * detection.anchor_sizes[0])),
        TwoMLPHead(trunk.out_channels * 49, hidden),
        _DroppingPredictor(hidden, classes, network.dropout),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=64 if detection.backbone == "tiny" else 256,  # RoIAlign's backward pass is slow on CPUs
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=detection.min_score,
        nms_thresh=detection.nms_iou,
        detections_per_img=detection.max_boxes,
    )
    return GeneralizedRCNN(trunk, rpn, heads, _transform())


def _head_norm(detection: DetectionConfig) -> Norm | None:
    return None if detection.norm == "frozen" else _norm(detection)


def _retinanet(trunk: _Pyramid, network: NetworkConfig, detection: DetectionConfig, classes: int) -> Any:
    """Lin et al. 2017 (focal loss)."""
    generator = _anchors(detection.anchor_sizes, OCTAVES)
    width, each, norm = trunk.out_channels, len(RATIOS) * len(OCTAVES), _head_norm(detection)
    head = RetinaNetHead(width, each, classes)
    head.classification_head = RetinaNetClassificationHead(width, each, classes, norm_layer=norm)
    head.regression_head = RetinaNetRegressionHead(width, each, norm_layer=norm)
    for tower in (head.classification_head, head.regression_head):
        if detection.backbone == "tiny":
            tower.conv = tower.conv[:2]
        _init_tower(tower.conv, scratch=norm is not None)
    head.classification_head.conv.append(nn.Dropout2d(network.dropout))
    return RetinaNet(
        trunk,
        classes,
        anchor_generator=generator,
        head=head,
        score_thresh=detection.min_score,
        nms_thresh=detection.nms_iou,
        detections_per_img=detection.max_boxes,
        topk_candidates=CANDIDATES,
    )


def _fcos(trunk: _Pyramid, network: NetworkConfig, detection: DetectionConfig, classes: int) -> Any:
    """Tian et al. 2019. Points, so of the anchor sizes only the number and the smallest count."""
    convs = 2 if detection.backbone == "tiny" else 4
    width, norm = trunk.out_channels, _norm(detection if detection.norm != "frozen" else DetectionConfig())
    head = FCOSHead(width, 1, classes, convs)
    head.classification_head = FCOSClassificationHead(width, 1, classes, convs, norm_layer=norm)
    head.regression_head = FCOSRegressionHead(width, 1, convs, norm_layer=norm)
    for tower in (head.classification_head, head.regression_head):
        _init_tower(tower.conv, scratch=True)
    head.classification_head.conv.append(nn.Dropout2d(network.dropout))
    return FCOS(
        trunk,
        classes,
        anchor_generator=AnchorGenerator(tuple((s,) for s in trunk.strides), ((1.0,),) * len(trunk.strides)),
        head=head,
        score_thresh=detection.min_score,
        nms_thresh=detection.nms_iou,
        detections_per_img=detection.max_boxes,
        topk_candidates=CANDIDATES,
    )


def _init_tower(tower: nn.Module, *, scratch: bool) -> None:
    """Normalised towers start at full variance; the stock deviation of 0.01 is for trained trunks."""
    for layer in tower.modules():
        if scratch and isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
