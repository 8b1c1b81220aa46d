"""Gradients of a Detectron2 detector's loss at its heads' outputs, row for row with their boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dal_dense.tasks.detection_backend import Detector, Sample


def probe(detector: Detector, samples: Sequence[Sample]) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """Head name to (boxes an image, largest absolute gradient a row an image)."""
    model: Any = detector.module
    kept: dict[str, Any] = {}
    handles = []

    def keep(name: str, module: torch.nn.Module) -> None:
        def hook(_: object, inputs: Any, output: Any) -> None:
            for value in _tensors(output):
                if value.requires_grad:
                    value.retain_grad()
            kept[name] = (inputs, output)

        handles.append(module.register_forward_hook(hook))

    two = hasattr(model, "roi_heads")
    dense = model.proposal_generator if two else model
    keep("anchors", dense.anchor_generator)
    keep("dense", dense.rpn_head if two else dense.head)
    if two:
        keep("pool", model.roi_heads.box_pooler)
        keep("predictor", model.roi_heads.box_predictor)
    sum(detector.losses(samples).values()).backward()
    for handle in handles:
        handle.remove()
    anchors = torch.cat([boxes.tensor for boxes in kept["anchors"][1]])
    widths = (1 if two else model.num_classes, 4, 1)  # FCOS has centreness too
    levels = zip(*kept["dense"][1], strict=True)
    rows = torch.cat([_rows([_kinds(_grad(v), n) for v, n in zip(level, widths, strict=False)]) for level in levels], 1)
    found = {"rpn" if two else "head": ([anchors] * len(samples), list(rows))}
    if two:
        boxes = [each.tensor for each in kept["pool"][0][1]]
        both = torch.cat([_grad(v) for v in kept["predictor"][1]], 1).abs().amax(1)
        found["roi"] = (boxes, list(both.split([len(b) for b in boxes])))
    return found


def _kinds(value: Tensor, each: int) -> Tensor:
    """(images, anchors * each, h, w) to (images, anchors, each, h, w)."""
    return value.unflatten(1, (-1, each))


def _rows(parts: list[Tensor]) -> Tensor:
    """(images, anchors, each, h, w) to the largest absolute value a row, in the order of the anchors."""
    return torch.cat(parts, 2).abs().amax(2).permute(0, 2, 3, 1).flatten(1)


def _grad(value: Tensor) -> Tensor:
    return torch.zeros_like(value) if value.grad is None else value.grad


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [t for part in output for t in _tensors(part)] if isinstance(output, list | tuple) else []
