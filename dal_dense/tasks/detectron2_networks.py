"""Faster R-CNN with a feature pyramid, RetinaNet and FCOS from the settings, of Detectron2's own parts.

Sizes follow `torchvision_networks`, so that one config makes like networks of both frameworks:
one pyramid level an anchor size, finest first; `tiny` is a residual trunk for small frames and CPUs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import FCOS, FPN, GeneralizedRCNN, ResNet, RetinaNet
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import BasicStem
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.fcos import FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, FastRCNNOutputLayers, StandardROIHeads
from torch import nn

from dal_dense.config import DetectionConfig, NetworkConfig

CANDIDATES = 300
"""Rows of an image: proposals of Faster R-CNN, or anchors a level of the others."""

PIXELS: dict[str, Any] = {
    "pixel_mean": (123.675, 116.28, 103.53),
    "pixel_std": (58.395, 57.12, 57.375),
    "input_format": "RGB",
}
"""Of ImageNet's pixels in 0..255."""

RATIOS = [0.5, 1.0, 2.0]
OCTAVES = 3
"""Height over width of anchors; RetinaNet's sizes within an octave (Lin et al. 2017)."""

TINY = (16, 24, 48, 96, 128)
DEPTHS = {"resnet18": 18, "resnet34": 34, "resnet50": 50, "resnet101": 101}

Norm = Callable[[int], nn.Module]


def network_of_settings(network: NetworkConfig, detection: DetectionConfig, classes: int) -> nn.Module:
    """A fresh network; weights come from the global generator.

    Args:
        network: name.
        detection: trunk, norm, anchors.
        classes: with background.
    """
    make = {"faster_rcnn": _faster_rcnn, "retinanet": _retinanet, "fcos": _fcos}[network.name]
    return make(_pyramid(detection, detection.finest_level(network.name)), detection, classes - 1)


def _group(channels: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(32, channels // 4), channels)


def _norm(detection: DetectionConfig) -> Norm:
    if detection.norm == "group":
        return _group
    if detection.norm == "batch":
        return nn.BatchNorm2d
    frozen: Norm = FrozenBatchNorm2d
    return frozen


def _pyramid(detection: DetectionConfig, first: int) -> Any:
    """Trunk and feature pyramid; one level an anchor size, from stride 2**first on."""
    levels, inner = len(detection.anchor_sizes), 6 - first
    norm = _norm(detection)
    taken = [f"res{k}" for k in range(first, first + min(levels, inner))]
    width = {"tiny": 32, "resnet18": 128, "resnet34": 128}.get(detection.backbone, 256)
    top: nn.Module | None = None
    if levels == inner + 1:
        top = LastLevelMaxPool()
    elif levels == inner + 2:
        top = LastLevelP6P7(width, width, in_feature="p5")
    return FPN(
        bottom_up=_trunk(detection.backbone, norm, taken),
        in_features=taken,
        out_channels=width,
        norm="" if detection.norm == "frozen" else norm,
        top_block=top,
    )


def _trunk(name: str, norm: Norm, taken: list[str]) -> Any:
    """Stages res2 to res5 at strides 4 to 32."""
    if name == "tiny":
        stem = BasicStem(in_channels=3, out_channels=TINY[0], norm=norm)
        stages = [
            ResNet.make_stage(
                BasicBlock, 1, in_channels=TINY[i], out_channels=TINY[i + 1], stride=min(i, 1) + 1, norm=norm
            )
            for i in range(4)
        ]
        return ResNet(stem, stages, out_features=taken)
    depth, wide = DEPTHS[name], DEPTHS[name] >= 50
    stem = BasicStem(in_channels=3, out_channels=64, norm=norm)
    # the stride lies in the 3 x 3 convolution, as in torchvision's and most later weights
    more = {"stride_in_1x1": False} if wide else {}
    return ResNet(stem, ResNet.make_default_stages(depth=depth, norm=norm, **more), out_features=taken)


def _anchors(pyramid: Any, sizes: tuple[float, ...], octaves: int) -> Any:
    """Anchors about the middle of each cell, so that a mirrored image has the mirrored anchors."""
    shapes = pyramid.output_shape()
    return DefaultAnchorGenerator(
        sizes=[[s * 2 ** (i / octaves) for i in range(octaves)] for s in sizes],
        aspect_ratios=[RATIOS],
        strides=[shape.stride for shape in list(shapes.values())[: len(sizes)]],
        offset=0.5,
    )


def _faster_rcnn(pyramid: Any, detection: DetectionConfig, objects: int) -> nn.Module:
    """Ren et al. 2015, with the feature pyramid of Lin et al. 2017."""
    shapes = pyramid.output_shape()
    names, width = list(shapes), next(iter(shapes.values())).channels
    pooled = [name for name in names if shapes[name].stride <= 32]
    hidden = {32: 128, 128: 512, 256: 1024}[width]
    rpn = RPN(
        in_features=names,
        head=StandardRPNHead(in_channels=width, num_anchors=len(RATIOS)),
        anchor_generator=_anchors(pyramid, detection.anchor_sizes, 1),
        anchor_matcher=Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_topk=(1000, 1000),
        post_nms_topk=(500, CANDIDATES),
        nms_thresh=0.7,
    )
    heads = StandardROIHeads(
        num_classes=objects,
        batch_size_per_image=64 if detection.backbone == "tiny" else 256,  # RoIAlign's backward pass is slow on CPUs
        positive_fraction=0.25,
        proposal_matcher=Matcher([0.5], [0, 1], allow_low_quality_matches=False),
        box_in_features=pooled,
        box_pooler=ROIPooler(
            output_size=7,
            scales=tuple(1 / shapes[name].stride for name in pooled),
            sampling_ratio=2,
            pooler_type="ROIAlignV2",
            canonical_box_size=round(7 * detection.anchor_sizes[0]),
        ),
        box_head=FastRCNNConvFCHead(
            ShapeSpec(channels=width, height=7, width=7), conv_dims=[], fc_dims=[hidden, hidden]
        ),
        box_predictor=FastRCNNOutputLayers(
            ShapeSpec(channels=hidden),
            box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
            num_classes=objects,
        ),
    )
    network: nn.Module = GeneralizedRCNN(backbone=pyramid, proposal_generator=rpn, roi_heads=heads, **PIXELS)
    return network


def _retinanet(pyramid: Any, detection: DetectionConfig, objects: int) -> nn.Module:
    """Lin et al. 2017 (focal loss)."""
    shapes = list(pyramid.output_shape().values())
    width = shapes[0].channels
    head = RetinaNetHead(
        input_shape=shapes,
        num_classes=objects,
        num_anchors=len(RATIOS) * OCTAVES,
        conv_dims=[width] * (2 if detection.backbone == "tiny" else 4),
        norm={"group": _group, "batch": "BN", "frozen": ""}[detection.norm],
    )
    if detection.norm != "frozen":
        _init_towers(head)
    network: nn.Module = RetinaNet(
        backbone=pyramid,
        head=head,
        head_in_features=list(pyramid.output_shape()),
        anchor_generator=_anchors(pyramid, detection.anchor_sizes, OCTAVES),
        box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        anchor_matcher=Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True),
        num_classes=objects,
        test_topk_candidates=CANDIDATES,
        **PIXELS,
    )
    return network


def _fcos(pyramid: Any, detection: DetectionConfig, objects: int) -> nn.Module:
    """Tian et al. 2019. Points, so of the anchor sizes only the number and the smallest count."""
    shapes = list(pyramid.output_shape().values())
    width = shapes[0].channels
    head = FCOSHead(
        input_shape=shapes,
        num_classes=objects,
        conv_dims=[width] * (2 if detection.backbone == "tiny" else 4),
        norm="BN" if detection.norm == "batch" else _group,  # its towers are normalised over any trunk
    )
    _init_towers(head)
    network: Any = FCOS(
        backbone=pyramid,
        head=head,
        head_in_features=list(pyramid.output_shape()),
        num_classes=objects,
        test_topk_candidates=CANDIDATES,
        pixel_mean=PIXELS["pixel_mean"],
        pixel_std=PIXELS["pixel_std"],
    )
    network.input_format = PIXELS["input_format"]  # which FCOS does not ask for
    module: nn.Module = network
    return module


def _init_towers(head: RetinaNetHead) -> None:
    """Normalised towers start at full variance; the stock deviation of 0.01 is for trained trunks."""
    for layer in (*head.cls_subnet, *head.bbox_subnet):
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
