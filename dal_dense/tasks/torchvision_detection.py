"""Detection by torchvision: Faster R-CNN, RetinaNet and FCOS behind the shared detection task.

networks   torchvision_networks   torchvision's parts, put together by the settings
partial    torchvision_partial    targets where only part of a window is labelled
rows       torchvision_rows       class distributions row for row, dropout on kept features
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss

from dal_dense.config import DetectionConfig, NetworkConfig, TaskConfig
from dal_dense.tasks import torchvision_partial as partial_labels
from dal_dense.tasks import torchvision_rows as rows_of
from dal_dense.tasks.detection_backend import Backend, Look, Rows, Sample
from dal_dense.tasks.detection_task import Detection
from dal_dense.tasks.torchvision_networks import build_network

PREFIXES = ("", "backbone.body.", "backbone.")
"""Where a user's weights may go: a whole detector, or a classifier as trunk."""


class TorchvisionDetector:
    """One network of torchvision; see `detection_backend.Detector`.

    Args:
        network: name and dropout.
        detection: trunk, anchors, what counts as a box.
        classes: with background.
    """

    def __init__(self, network: NetworkConfig, detection: DetectionConfig, classes: int) -> None:
        self._name = network.name
        self._module = build_network(network, detection, classes)
        self._strides: tuple[int, ...] = self._module.backbone.strides

    @property
    def module(self) -> nn.Module:
        """All parameters and buffers."""
        module: nn.Module = self._module
        return module

    def losses(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Scalar losses by name; the gradient from unknown ground is exactly 0."""
        model = self._module.train()
        device = next(model.parameters()).device
        targets = [
            {
                "boxes": s.boxes.to(device), "labels": s.classes.to(device),
                "absent": s.absent.to(device), "known": s.known.to(device), "ignored": s.ignored.to(device),
            }
            for s in samples
        ]  # fmt: skip
        images = self._batch([s.image.to(device) for s in samples])
        levels = self._levels(images)
        if self._name == "faster_rcnn":
            return self._two_stage_losses(images, levels, targets)
        outputs = {name: value.float() for name, value in model.head(levels).items()}
        anchors = model.anchor_generator(images, levels)
        if self._name == "fcos":
            per_level = [level.shape[-2] * level.shape[-1] for level in levels]
            match = partial(partial_labels.match_points, per_level=per_level)
            return partial_labels.batch_losses(model.head, targets, outputs, anchors, match)
        matcher = model.proposal_matcher
        match = partial(partial_labels.match_anchors, high=matcher.high_threshold, low=matcher.low_threshold)
        return partial_labels.batch_losses(model.head, targets, outputs, anchors, match)

    def _two_stage_losses(
        self, images: ImageList, levels: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        model = self._module
        named = {str(i): level for i, level in enumerate(levels)}
        proposals, losses = model.rpn(images, named, targets)
        usable = partial_labels.usable_proposals(proposals, targets)
        heads = model.roi_heads
        chosen, _, labels, deltas = heads.select_training_samples(usable, targets)
        if sum(map(len, labels)) > 0:
            pooled = heads.box_roi_pool(named, chosen, [tuple(images.tensors.shape[-2:])] * len(chosen))
            logits, moves = heads.box_predictor(heads.box_head(pooled))
            losses["loss_classifier"], losses["loss_box_reg"] = fastrcnn_loss(logits, moves, labels, deltas)
        return dict(losses)

    @torch.no_grad()
    def look(self, image: Float[Tensor, "3 h w"], *, like: Look | None = None, flip: bool = False) -> Look:
        """See one image in evaluation mode."""
        model = self._module.eval()
        device = next(model.parameters()).device
        images = self._batch([image.to(device)])
        if flip:
            images = ImageList(images.tensors.flip(-1), images.image_sizes)
            images.image_sizes = [tuple(images.tensors.shape[-2:])]
        size = (image.shape[1], image.shape[2])
        seen = rows_of.Seen(size, images.tensors.shape[-1], flip, self._levels(images), images)
        if self._name == "faster_rcnn":
            return rows_of.two_stage_look(model, seen, self._strides, like)  # type: ignore[arg-type]
        return rows_of.one_stage_look(model, seen, self._strides, like)  # type: ignore[arg-type]

    def rows(self, look: Look) -> Rows:
        """The rows of a look."""
        if isinstance(look, rows_of.TwoStageLook):
            return rows_of.two_stage_rows(self._module, look, look.hidden[None])[0]
        own = _own(look)
        return rows_of.one_stage_rows(own, own.logits[None])[0]

    def draws(self, look: Look, seeds: Sequence[int]) -> Iterator[Rows]:
        """The rows of a look, once a draw of last-layer dropout."""
        if isinstance(look, rows_of.TwoStageLook):
            yield from rows_of.two_stage_draws(self._module, look, seeds)
        else:
            yield from rows_of.one_stage_draws(self._module, _own(look), seeds)

    def _batch(self, images: list[Tensor]) -> ImageList:
        """Normalised, padded at the far ends to one size that all strides divide."""
        transform = self._module.transform
        normal = [transform.normalize(image / 255) for image in images]
        batch = transform.batch_images(normal, size_divisible=max(32, self._strides[-1]))
        return ImageList(batch, [(i.shape[1], i.shape[2]) for i in images])

    def _levels(self, images: ImageList) -> list[Tensor]:
        """Pyramid features in full precision, since anchors take their type from them."""
        tensors = images.tensors.contiguous(memory_format=torch.channels_last)
        return [level.float() for level in self._module.backbone(tensors).values()]


def _own(look: Look) -> rows_of.OneStageLook:
    if not isinstance(look, rows_of.OneStageLook):
        raise TypeError(f"expected a look of torchvision's, got {type(look).__name__}")
    return look


def backend(task: TaskConfig, classes: int) -> Backend:
    """torchvision for `Detection`."""
    return Backend(partial(TorchvisionDetector, task.network, task.detection, classes), PREFIXES)


TorchvisionDetection = partial(Detection, backend=backend)
"""The torchvision adapter; takes the arguments of `Detection`."""
