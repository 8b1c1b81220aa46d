"""Detection by Detectron2: GeneralizedRCNN and RetinaNet behind the shared detection task.

networks   detectron2_networks   Detectron2's parts, put together by the settings
configs    detectron2_configs    a user's own yaml or LazyConfig
partial    detectron2_partial    targets where only part of a window is labelled
rows       detectron2_rows       class distributions row for row; detectron2_view: mirrored and back
detector   detectron2_detector   one network

Detectron2 is on no package registry, so it is imported only once this adapter is asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module

import torch

from dal_dense.boxes import Boxes
from dal_dense.config import DetectionConfig, NetworkConfig, QueryConfig, TaskConfig, UncertaintyConfig
from dal_dense.costs import CostModel
from dal_dense.errors import ConfigError, MissingPackageError
from dal_dense.records import ImageRecord
from dal_dense.tasks.detection_backend import Detector
from dal_dense.tasks.detection_task import Detection

GUIDE = "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"

PREFIXES = ("", "backbone.bottom_up.", "backbone.")
"""Where a user's weights may go: a whole detector, or a classifier as trunk."""

CONVERT = (
    'if you trust the file, convert it once: python -c "import pickle, sys, torch; '
    "d = pickle.load(open(sys.argv[1], 'rb'), encoding='latin1'); d = d.get('model', d); "
    "torch.save({k: torch.as_tensor(v) for k, v in d.items() if hasattr(v, 'shape')}, sys.argv[2])\" IN.pkl OUT.pth"
)


def require_detectron2() -> None:
    """Import Detectron2.

    Raises:
        MissingPackageError: if it, or what it needs at run time, is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # it scripts functions when it is imported
            warnings.simplefilter("ignore", DeprecationWarning)
            import_module("detectron2.modeling")
    except ImportError as problem:
        lacking = (problem.name or "detectron2").split(".")[0]
        remedy = (
            f"install it by {GUIDE}"
            if lacking == "detectron2"
            else "run: pip install 'dal-dense[detectron2]', which brings what Detectron2 needs at run time"
        )
        raise MissingPackageError(
            f"task.name: detectron2_detection needs Detectron2, but {lacking} cannot be imported ({problem}); "
            f"{remedy}, or set task.name to torchvision_detection, which needs nothing more"
        ) from problem


def check_settings(task: TaskConfig) -> None:
    """What can be told before anything is built.

    Raises:
        ConfigError: for a network that Detectron2 does not have here, or pickled weights.
    """
    if task.network.name == "fcos":
        raise ConfigError(
            "task.network.name: fcos has no Detectron2 adapter here; take retinanet, "
            "or set task.name to torchvision_detection, which has fcos"
        )
    if task.network.name not in ("faster_rcnn", "retinanet"):
        raise ConfigError(
            f"task.network.name: {task.network.name} is no detector of Detectron2; take faster_rcnn or retinanet"
        )
    weights = task.detection.weights
    if weights is not None and weights.endswith((".pkl", ".pickle")):
        raise ConfigError(
            f"task.detection.weights: {weights} is a pickle, which can run any code when it is opened; expected "
            f".safetensors or .pth; {CONVERT}"
        )


def make_detector(network: NetworkConfig, detection: DetectionConfig, classes: int) -> Detector:
    """A fresh network of Detectron2, weights from the global generator."""
    require_detectron2()
    module = import_module("dal_dense.tasks.detectron2_detector")
    detector: Detector = module.Detectron2Detector(network, detection, classes)
    return detector


class Detectron2Detection(Detection):
    """Detectron2's detectors as a `Task`; takes the same arguments as every detection adapter.

    Args:
        task: network, geometry, training.
        uncertainty: where draws come from.
        query: what is asked.
        costs: seconds an action.
        classes: names; the position is the class number, 0 is background.
        ndim: must be 2.
        in_channels: must be 3.
        device: where networks run.
        boxes_of: the truth of a test image.
        seed: of blindly drawn candidates.
        matching: offers carry each object's embedding (`ppal`); costs memory.

    Raises:
        ConfigError: if settings contradict each other, the data, or the user's config file.
        MissingPackageError: if Detectron2 is not installed.
    """

    def __init__(
        self,
        *,
        task: TaskConfig,
        uncertainty: UncertaintyConfig,
        query: QueryConfig,
        costs: CostModel,
        classes: Sequence[str],
        ndim: int,
        in_channels: int,
        device: torch.device,
        boxes_of: Callable[[ImageRecord], Boxes | None],
        seed: int = 0,
        matching: bool = False,
    ) -> None:
        check_settings(task)
        require_detectron2()
        super().__init__(
            make_detector=partial(make_detector, task.network, task.detection, len(classes)),
            prefixes=PREFIXES,
            task=task,
            uncertainty=uncertainty,
            query=query,
            costs=costs,
            classes=classes,
            ndim=ndim,
            in_channels=in_channels,
            device=device,
            boxes_of=boxes_of,
            seed=seed,
            matching=matching,
        )
