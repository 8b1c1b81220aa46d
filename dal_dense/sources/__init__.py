"""Sources: each turns one layout on disk into a `Listing`, without opening an image.

The layouts are drawn in `datasets/README.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dal_dense.config import DataConfig
from dal_dense.sources import coco, dicom, folder, msd, nnunet
from dal_dense.sources.base import Listing

SOURCES: dict[str, Callable[[DataConfig, Path], Listing]] = {
    "msd": msd.listing,
    "nnunet": nnunet.listing,
    "folder": folder.listing,
    "coco": coco.listing,
    "dicom": dicom.listing,
}
"""`data.format` to the function that lists it."""
