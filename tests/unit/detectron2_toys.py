"""Tiny networks and windows for the tests of the Detectron2 adapter."""

import importlib.util

import numpy as np
import pytest
import torch

from dal_dense.config import DetectionConfig, NetworkConfig
from dal_dense.tasks.detection_backend import Sample
from dal_dense.tasks.detection_partial import area_table
from dal_dense.tasks.detectron2_detection import make_detector

NEEDS = [
    pytest.mark.detectron2,
    pytest.mark.skipif(importlib.util.find_spec("detectron2") is None, reason="Detectron2 is not on the path"),
]
NAMES = ("faster_rcnn", "retinanet", "fcos")
ONE_STAGE = NAMES[1:]
SIZE = (96, 128)


def detector(name, *, classes=4, dropout=0.3, seed=0, **more):
    """A network of some hundred thousand parameters."""
    torch.manual_seed(seed)
    return make_detector(
        NetworkConfig(name=name, dropout=dropout), DetectionConfig(**{"backbone": "tiny", **more}), classes
    )


def sharp(found, spread=0.3):
    """Heads that are sure of something, each place of something else."""
    model = found.module
    last = model.head if hasattr(model, "head") else model.roi_heads.box_predictor
    with torch.no_grad():
        for layer in (last.cls_score, last.bbox_pred, *([last.ctrness] if hasattr(last, "ctrness") else [])):
            layer.weight.normal_(std=spread)
            layer.bias.zero_()
        if hasattr(last, "ctrness"):
            last.bbox_pred.bias.fill_(1.0)  # FCOS cuts distances at 0: most boxes would be empty
    return found


def picture(seed=0, size=SIZE):
    """Noise in blocks."""
    rng = np.random.default_rng(seed)
    small = rng.uniform(0, 255, (3, -(-size[0] // 8), -(-size[1] // 8)))
    return torch.from_numpy(small.repeat(8, 1).repeat(8, 2)[:, : size[0], : size[1]]).float()


def window(known=None, boxes=(), classes=(), absent=(), seed=0, size=SIZE):
    """A training window; all of it known unless said otherwise."""
    ground = torch.ones(size, dtype=torch.bool) if known is None else known
    return Sample(
        picture(seed, size),
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(classes, dtype=torch.int64),
        torch.tensor(absent, dtype=torch.float32).reshape(-1, 4),
        area_table(ground),
        area_table(ground & False),
    )


def share(box, known):
    """Share of a box, cut to the image, on known ground, pixel by pixel."""
    height, width = known.shape
    x0, x1 = np.clip(box[[0, 2]], 0, width)
    y0, y1 = np.clip(box[[1, 3]], 0, height)
    cols = np.clip(np.minimum(np.arange(width) + 1, x1) - np.maximum(np.arange(width), x0), 0, None)
    rows = np.clip(np.minimum(np.arange(height) + 1, y1) - np.maximum(np.arange(height), y0), 0, None)
    area = (x1 - x0) * (y1 - y0)
    return 0.0 if area <= 0 else float(rows @ known @ cols / area)
