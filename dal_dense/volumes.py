"""NIfTI volumes: header, voxels, and the geometry that the rest of the program may rely on.

The affine is the sform if its code is above 0, else the qform if its code is above 0, else what
nibabel derives from the voxel sizes. Whatever leaves this module has straight, orthogonal axes.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Float, Float32
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from dal_dense.errors import DataError
from dal_dense.records import Header
from dal_dense.report.words import count

NIFTI = (".nii.gz", ".nii")
STRAIGHT = 1e-3
"""Largest cosine between two axes of a grid that still counts as orthogonal (0.06 degrees)."""


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what a missing, locked or damaged file raises into one line that names it."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: the file is not there; restore it, or take it out of the pool") from None
    except PermissionError:
        raise DataError(f"{path}: not allowed to read it; correct its permissions") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise DataError(f"{path}: truncated or damaged; copy the file again") from None
    except ImageFileError as problem:
        raise DataError(f"{path}: not a NIfTI file ({_words(problem)}); convert it or copy it again") from None
    except (OSError, HeaderDataError) as problem:
        raise DataError(f"{path}: cannot be read ({_words(problem)}); copy the file again") from None


def _words(problem: Exception) -> str:
    return " ".join(str(problem).split())[:160]


def is_nifti(path: Path) -> bool:
    """By its name alone."""
    return path.name.lower().endswith(NIFTI)


def volume_header(path: Path) -> Header:
    """Grid of a NIfTI file; reads the header only.

    Raises:
        DataError: if the file cannot be read, is not a volume, or its axes are not straight.
    """
    with readable(path):
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty (0 bytes); copy it again")
        image = nib.load(path)
    shape, _ = grid_shape(path, image.shape)
    return straight_header(path, shape, np.asarray(image.affine, dtype=np.float64))


def grid_shape(path: Path, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Spatial shape and number of channels: (i, j, k), (i, j, k, channels) or (i, j, k, 1, channels)."""
    if len(shape) == 5 and shape[3] == 1:
        shape = (*shape[:3], shape[4])
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise DataError(f"{path}: a volume has 3 axes, or 4 with channels last, but this has shape {shape}; convert it")
    return tuple(int(n) for n in shape[:3]), int(shape[3]) if len(shape) == 4 else 1


def straight_header(path: Path, shape: tuple[int, ...], affine: Float[np.ndarray, "4 4"]) -> Header:
    """A header whose axes are known to be finite, of some length, and orthogonal.

    Raises:
        DataError: naming the pair of axes and their angle.
    """
    columns = affine[:3, :3]
    spacing = np.linalg.norm(columns, axis=0)
    if not np.isfinite(affine).all() or spacing.min() <= 0:
        raise DataError(f"{path}: its affine has a zero or non-finite axis; correct the header (sform, qform)")
    cosines = (columns / spacing).T @ (columns / spacing)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        if abs(cosines[a, b]) > STRAIGHT:
            angle = np.degrees(np.arccos(np.clip(cosines[a, b], -1, 1)))
            raise DataError(
                f"{path}: the grid is sheared: array axes {a} and {b} meet at {angle:.2f} degrees, not 90; "
                "resample it to a straight grid, or correct its sform"
            )
    return Header(shape, tuple(float(s) for s in spacing), affine)


def nifti_array(path: Path) -> np.ndarray:
    """Voxels of a NIfTI file as stored (scaled if the header says so), file axis order, any dtype.

    A compressed file is read to its end, so that its checksum is tested.

    Raises:
        DataError: if the file is truncated, damaged or of an unusable data type.
    """
    with readable(path):
        image = nib.load(path, mmap=False)
        if path.name.lower().endswith(".gz"):
            image = type(image).from_bytes(gzip.decompress(path.read_bytes()))
        kind = image.get_data_dtype().kind
        if kind not in "iufb":
            raise DataError(f"{path}: voxels are of type {image.get_data_dtype()}; convert them to int16 or float32")
        array: np.ndarray = np.asarray(image.dataobj)
    shape, channels = grid_shape(path, array.shape)
    return array.reshape(shape if channels == 1 else (*shape, channels))


def read_volume(path: Path) -> Float32[np.ndarray, "channels i j k"]:
    """All channels of a NIfTI file, channels first, every voxel finite.

    Raises:
        DataError: as above, or for NaN or infinite voxels: how many, and where the first is.
    """
    array = nifti_array(path)
    array = array[None] if array.ndim == 3 else np.moveaxis(array, -1, 0)
    with np.errstate(over="ignore"):  # what does not fit float32 becomes infinite and is told below
        image = np.ascontiguousarray(array, dtype=np.float32)
    check_finite(path, image)
    return image


def check_finite(path: Path, image: Float32[np.ndarray, "channels *grid"]) -> None:
    """Refuse NaN and infinite voxels."""
    finite = np.isfinite(image)
    if finite.all():
        return
    first = tuple(int(i) for i in np.argwhere(~finite)[0])
    where = first[1:] if image.shape[0] == 1 else first
    bad = int((~finite).sum())
    raise DataError(
        f"{path}: {count(bad, 'voxel')} {'is' if bad == 1 else 'are'} NaN or infinite, the first at {where}; "
        "fill them (air is -1000 HU in CT), or take the image out of the pool"
    )
