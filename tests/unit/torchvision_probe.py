"""Gradients of a torchvision detector's loss at its heads' outputs, row for row with their boxes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dal_dense.tasks.detection_backend import Sample
from dal_dense.tasks.torchvision_detection import TorchvisionDetector


def probe(detector: TorchvisionDetector, samples: Sequence[Sample]) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """Head name to (boxes an image, largest absolute gradient a row an image)."""
    model = detector.module
    kept: dict[str, object] = {}
    handles = []

    def keep(name: str, module: torch.nn.Module) -> None:
        def hook(_: object, inputs: object, output: object) -> None:
            for value in output.values() if isinstance(output, dict) else _flat(output):
                if value.requires_grad:
                    value.retain_grad()
            kept[name] = (inputs, output)

        handles.append(module.register_forward_hook(hook))

    two = hasattr(model, "rpn")
    if two:
        keep("anchors", model.rpn.anchor_generator)
        keep("rpn", model.rpn.head)
        keep("pool", model.roi_heads.box_roi_pool)
        keep("predictor", model.roi_heads.box_predictor)
    else:
        keep("anchors", model.anchor_generator)
        keep("head", model.head)
    sum(detector.losses(samples).values()).backward()
    for handle in handles:
        handle.remove()
    anchors = kept["anchors"][1]
    if not two:
        grads = torch.cat([_grad(v) for v in kept["head"][1].values()], 2)
        return {"head": (anchors, list(grads.abs().amax(2)))}
    logits, deltas = kept["rpn"][1]
    rows = []
    for a, b in zip(logits, deltas, strict=True):
        n, each, h, w = a.shape
        both = torch.cat([_grad(a).reshape(n, each, 1, h, w), _grad(b).reshape(n, each, 4, h, w)], 2)
        rows.append(both.permute(0, 3, 4, 1, 2).reshape(n, -1, 5))
    found = {"rpn": (anchors, list(torch.cat(rows, 1).abs().amax(2)))}
    if "predictor" in kept:
        boxes = kept["pool"][0][1]
        both = torch.cat([_grad(v) for v in kept["predictor"][1]], 1).abs().amax(1)
        found["roi"] = (boxes, list(both.split([len(b) for b in boxes])))
    return found


def _grad(value: Tensor) -> Tensor:
    return torch.zeros_like(value) if value.grad is None else value.grad


def _flat(output: object) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [t for part in output for t in _flat(part)]
