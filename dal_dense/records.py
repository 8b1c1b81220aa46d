"""What is known of an image without its pixels: its files, its group, its grid.

`pool.py` and `images.py` both build on this and re-export it; nothing here opens a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
from jaxtyping import Float

IGNORE = 255
"""Label value of ground that carries no label; the loss gradient there is exactly zero."""


@dataclass(frozen=True)
class ImageRecord:
    """One image of the pool, known by its files; nothing is read yet.

    Attributes:
        id: unique in the pool and safe in a file name (letters, digits, `.`, `_`, `-`).
        paths: absolute; one a channel file; a DICOM series is its folder.
        root: the data_root that the ledger and the sidecar name paths against.
        group: patient or drive; never split between train and test by a drawn split.
        mask: index mask, or the COCO json that holds the annotations, or None; held back by the oracle.
        ndim: 2 (frames) or 3 (volumes).
        mask_format: index: a file of label values; coco: annotations, rasterised when read.
        time: of the frame within its group (drive), in the unit of the data; None if nobody says.
        listed: rows, columns of the frame as its listing says, which its annotations are in; None without any.
    """

    id: str
    paths: tuple[Path, ...]
    root: Path
    group: str
    mask: Path | None
    ndim: int
    mask_format: Literal["index", "coco"] = "index"
    time: float | None = None
    listed: tuple[int, int] | None = None

    @property
    def relative(self) -> tuple[str, ...]:
        """The paths against `root`, with forward slashes, one a channel file."""
        return tuple(p.relative_to(self.root).as_posix() for p in self.paths)


@dataclass(frozen=True)
class Header:
    """The grid of an image.

    Attributes:
        shape: voxels or pixels an axis, in the file's own order (i, j, k; rows, columns).
        spacing: length of a step along each axis, mm; frames: pixels, so (1, 1).
        affine: 4x4, voxel to mm in RAS; None for frames.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    affine: np.ndarray | None


def anatomical_axes(affine: Float[np.ndarray, "4 4"]) -> tuple[int, int, int]:
    """Array axes that run right-left, back-front and feet-head (the nearest ones of an oblique grid)."""
    nearest = nib.io_orientation(affine)[:, 0]
    a, b, c = (int(np.flatnonzero(nearest == world)[0]) for world in range(3))
    return a, b, c


def axial_axis(header: Header) -> int:
    """The array axis along which axial slices are stacked.

    Raises:
        ValueError: for frames, which have none.
    """
    if header.affine is None:
        raise ValueError("frames have no axial axis; ask only for volumes")
    return anatomical_axes(header.affine)[2]
