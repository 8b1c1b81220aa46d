"""Detection by Detectron2: GeneralizedRCNN, RetinaNet and FCOS behind the shared detection task.

networks   detectron2_networks   Detectron2's parts, put together by the settings
configs    detectron2_configs    a user's own yaml or LazyConfig
partial    detectron2_partial    targets where only part of a window is labelled
rows       detectron2_rows       class distributions row for row; detectron2_view: mirrored and back
detector   detectron2_detector   one network

Detectron2 is on no package registry, so it is imported only once this adapter is asked for.
"""

from __future__ import annotations

import warnings
from functools import partial
from importlib import import_module
from pathlib import Path

from dal_dense.config import DetectionConfig, NetworkConfig, TaskConfig
from dal_dense.errors import MissingPackageError
from dal_dense.tasks.detection_backend import Backend, Detector
from dal_dense.tasks.detection_task import Detection

GUIDE = "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"

PREFIXES = ("", "backbone.bottom_up.", "backbone.")
"""Where a user's weights may go: a whole detector, or a classifier as trunk."""


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


def make_detector(network: NetworkConfig, detection: DetectionConfig, classes: int) -> Detector:
    """A fresh network of Detectron2, weights from the global generator."""
    require_detectron2()
    module = import_module("dal_dense.tasks.detectron2_detector")
    detector: Detector = module.Detectron2Detector(network, detection, classes)
    return detector


def backend(task: TaskConfig, classes: int) -> Backend:
    """Detectron2 for `Detection`.

    Raises:
        ConfigError: if the user's config file cannot be built.
        MissingPackageError: if Detectron2 is not installed.
    """
    require_detectron2()
    files: tuple[Path, ...] = ()
    if task.detection.config_file is not None:
        files = import_module("dal_dense.tasks.detectron2_configs").files_of(Path(task.detection.config_file))
    return Backend(partial(make_detector, task.network, task.detection, classes), PREFIXES, files)


Detectron2Detection = partial(Detection, backend=backend)
"""The Detectron2 adapter; takes the arguments of `Detection`."""
