"""One network of Detectron2 behind the shape that every detection framework has here.

A built model is adapted in place: partial labels (`detectron2_partial`), dropout before its last layer,
full precision between its parts, and what counts as a detection from our settings.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import FCOS, GeneralizedRCNN, RetinaNet
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.meta_arch.fcos import FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as nnf

from dal_dense.config import DetectionConfig, NetworkConfig
from dal_dense.errors import ConfigError
from dal_dense.tasks import detectron2_rows as rows_of
from dal_dense.tasks.detection_backend import Look, Rows, Sample
from dal_dense.tasks.detectron2_configs import network_of_file, unsuited
from dal_dense.tasks.detectron2_networks import network_of_settings
from dal_dense.tasks.detectron2_partial import teach_partly

FORMATS = {"RGB": [0, 1, 2], "BGR": [2, 1, 0], None: [2, 1, 0]}
"""Order of channels that a model was made for; Detectron2's default is BGR, and FCOS does not say."""

ONE_STAGE = {"retinanet": (RetinaNet, RetinaNetHead), "fcos": (FCOS, FCOSHead)}
"""Networks whose rows are anchors or points, and the head that each must have."""


class Detectron2Detector:
    """One network; see `detection_backend.Detector`.

    Args:
        network: name and dropout.
        detection: trunk and anchors, or the user's config; what counts as a box.
        classes: with background.

    Raises:
        ConfigError: if the settings cannot be built.
    """

    def __init__(self, network: NetworkConfig, detection: DetectionConfig, classes: int) -> None:
        logging.getLogger("detectron2").addHandler(logging.NullHandler())
        if detection.config_file is None:
            model = network_of_settings(network, detection, classes)
        else:
            model = network_of_file(Path(detection.config_file), detection, classes)
            _suits(model, network.name, detection.config_file)
            _has_statistics(model, detection)
            model = _of_one_process(model)
        self._dropout = network.dropout
        self._teaching = teach_partly(model)
        _set_thresholds(model, detection)
        _keep_precise(model)
        _drop_before_last_layer(model, network.dropout)
        self._module: Any = model
        self._channels = FORMATS[_input_format(model)]

    @property
    def module(self) -> nn.Module:
        """All parameters and buffers."""
        module: nn.Module = self._module
        return module

    def losses(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Scalar losses by name; the gradient from unknown ground is exactly 0."""
        model = self._module.train()
        self._teaching.begin(samples, model.device)
        inputs = [{"image": s.image[self._channels], "instances": _instances(s)} for s in samples]
        with _quiet(), EventStorage():  # Detectron2 counts into it; nobody reads it
            losses: dict[str, Tensor] = model(inputs)
        return losses

    @torch.no_grad()
    def look(self, image: Float[Tensor, "3 h w"], *, like: Look | None = None, flip: bool = False) -> Look:
        """See one image in evaluation mode."""
        model = self._module.eval()
        image = image[self._channels].to(model.device)
        with _quiet():
            if isinstance(model, GeneralizedRCNN):
                return rows_of.rcnn_look(model, image, like, flip)  # type: ignore[arg-type]
            return rows_of.one_stage_look(model, image, like, flip)  # type: ignore[arg-type]

    def rows(self, look: Look) -> Rows:
        """The rows of a look."""
        if isinstance(look, rows_of.RcnnLook):
            rows_of.last_layer(self._module)[0].eval()  # all that is called
            return rows_of.rcnn_rows(self._module, look, look.hidden[None])[0]
        own = _own(look)
        return rows_of.one_stage_rows(own, own.logits[None])[0]

    def draws(self, look: Look, seeds: Sequence[int]) -> Iterator[Rows]:
        """The rows of a look, once a draw of last-layer dropout."""
        if isinstance(look, rows_of.RcnnLook):
            rows_of.last_layer(self._module)[0].eval()  # whose own dropout is for training
            yield from rows_of.rcnn_draws(self._module, look, self._dropout, seeds)
        else:
            yield from rows_of.one_stage_draws(_own(look), self._dropout, seeds)


def _own(look: Look) -> rows_of.OneStageLook:
    if not isinstance(look, rows_of.OneStageLook):
        raise TypeError(f"expected a look of Detectron2's, got {type(look).__name__}")
    return look


@contextmanager
def _quiet() -> Iterator[None]:
    """Detectron2 calls meshgrid without an order of axes, of which torch warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)
        yield


def _instances(sample: Sample) -> Instances:
    """Objects as Detectron2 takes them: classes count from 0, background is last."""
    found = Instances((sample.image.shape[1], sample.image.shape[2]))
    found.gt_boxes = Boxes(sample.boxes)
    found.gt_classes = sample.classes.long() - 1
    return found


def _input_format(model: nn.Module) -> Any:
    return getattr(model, "input_format", None)


def _suits(model: nn.Module, name: str, file: str) -> None:
    """Can this model give rows, and does it teach partly labelled windows rightly?"""
    own = next((each for each, (kind, _) in ONE_STAGE.items() if isinstance(model, kind)), "faster_rcnn")
    if isinstance(model, GeneralizedRCNN):
        rpn, heads = model.proposal_generator, model.roi_heads
        plain = isinstance(heads, StandardROIHeads) and not isinstance(heads, CascadeROIHeads)
        if not plain or not isinstance(rpn, RPN) or not isinstance(rpn.anchor_generator, DefaultAnchorGenerator):
            raise unsuited(file, f"GeneralizedRCNN with {type(rpn).__name__} and {type(heads).__name__}")
    elif own in ONE_STAGE:
        kind, head = ONE_STAGE[own]
        if not isinstance(model.head, head) or not isinstance(model.anchor_generator, DefaultAnchorGenerator):
            raise unsuited(file, f"{kind.__name__} with {type(model.head).__name__}")
    else:
        raise unsuited(file, type(model).__name__)
    if name != own:
        raise ConfigError(
            f"task.network.name: {name}, but task.detection.config_file {file} describes {type(model).__name__}; "
            f"write {own}"
        )
    if _input_format(model) not in FORMATS:
        raise ConfigError(
            f"task.detection.config_file: {file} has the input format {_input_format(model)}; expected RGB or BGR"
        )


def _has_statistics(model: nn.Module, detection: DetectionConfig) -> None:
    """Frozen batch norm of a trunk that nobody trained lets a fit diverge."""
    if detection.weights is None and any(isinstance(m, FrozenBatchNorm2d) for m in model.modules()):
        raise ConfigError(
            f"task.detection.weights: null, but {detection.config_file} freezes batch norm, which keeps the statistics "
            "of trained weights; name a file, or write another norm there (MODEL.RESNETS.NORM: GN or BN, FREEZE_AT: 0)"
        )


def _of_one_process(module: nn.Module) -> nn.Module:
    """Batch norm over processes becomes plain batch norm of the same names: it does not run on a CPU."""
    if isinstance(module, nn.SyncBatchNorm):
        plain = nn.BatchNorm2d(module.num_features, module.eps, module.momentum, module.affine)
        plain.load_state_dict(module.state_dict())
        return plain
    for name, child in module.named_children():
        setattr(module, name, _of_one_process(child))
    return module


def _set_thresholds(model: Any, detection: DetectionConfig) -> None:
    """The model's own `inference` then finds what ours finds."""
    if not isinstance(model, GeneralizedRCNN):
        model.test_score_thresh, model.test_nms_thresh = detection.min_score, detection.nms_iou
        model.max_detections_per_image = detection.max_boxes
        return
    predictor = model.roi_heads.box_predictor
    predictor.test_score_thresh, predictor.test_nms_thresh = detection.min_score, detection.nms_iou
    predictor.test_topk_per_image = detection.max_boxes


def _keep_precise(model: Any) -> None:
    """Features, scores and deltas in float32: in bfloat16 a pooled box would be off by pixels."""
    two_stage = isinstance(model, GeneralizedRCNN)
    heads = [model.proposal_generator.rpn_head, model.roi_heads.box_predictor] if two_stage else [model.head]
    for part in (model.backbone, *heads):
        part.register_forward_hook(_as_float)


def _as_float(module: nn.Module, inputs: Any, output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, dict):
        return {name: _as_float(module, inputs, each) for name, each in output.items()}
    return type(output)(_as_float(module, inputs, each) for each in output)


def _drop_before_last_layer(model: nn.Module, rate: float) -> None:
    """Dropout in training, before the last layer of classification; in `rows` it is drawn by seed."""
    layer, channels = rows_of.last_layer(model)
    drop = nnf.dropout2d if channels else nnf.dropout

    def before(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        return (drop(inputs[0], rate),) if module.training and rate > 0 else None

    layer.register_forward_pre_hook(before)
