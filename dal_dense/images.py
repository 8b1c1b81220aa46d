"""Reading images lazily: a header without pixels, pixels as float32 with channels first.

One entry for all formats; NIfTI is in `volumes.py`, PNG and JPEG in `frames.py`, DICOM in `sources/dicom.py`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from dal_dense.errors import DataError
from dal_dense.frames import frame_header, read_frame, stored_values
from dal_dense.masks import check_same_grid
from dal_dense.masks import read_mask as read_mask
from dal_dense.records import Header as Header
from dal_dense.records import ImageRecord
from dal_dense.records import anatomical_axes as anatomical_axes
from dal_dense.records import axial_axis as axial_axis
from dal_dense.sources.dicom import read_series, series_header
from dal_dense.volumes import is_nifti, read_volume, readable, volume_header


def read_header(record: ImageRecord) -> Header:
    """Grid of an image; reads no voxels. With several channel files, the first one speaks.

    Raises:
        DataError: if the file cannot be read, its grid is sheared, or a frame has not the size that its listing says.
    """
    path = record.paths[0]
    if record.ndim == 2:
        header = frame_header(path)
        if record.listed is not None and header.shape != record.listed:
            turned = header.shape == record.listed[::-1]
            remedy = "if an EXIF tag turns it, turn its pixels" if turned else "restore the image"
            raise DataError(
                f"{path}: has {header.shape[0]} rows and {header.shape[1]} columns, its listing says "
                f"{record.listed[0]} and {record.listed[1]}; {remedy}, or correct the listing and its annotations"
            )
        return header
    return volume_header(path) if is_nifti(path) else series_header(path)


def read_image(record: ImageRecord, *, channels: int | None = None) -> Float32[np.ndarray, "channels *grid"]:
    """Voxels or pixels, channels first, axes in the file's own order; CT in HU, frames RGB 0..255.

    Frames that come as several files have one grey channel a file instead of RGB.

    Args:
        record: the image.
        channels: how many it must have; None: any number.

    Raises:
        DataError: if a file is missing, locked, damaged, holds NaN or infinite voxels, if channel
            files differ in grid, or if there are not so many channels.
    """
    image = _read(record)
    if channels is not None and image.shape[0] != channels:
        raise DataError(
            f"{record.paths[0]}: {image.shape[0]} channels, but the first image of the pool has {channels}; "
            "convert the image, or keep it in a pool of its own kind"
        )
    return image


def _read(record: ImageRecord) -> Float32[np.ndarray, "channels *grid"]:
    if len(record.paths) == 1:
        path = record.paths[0]
        if record.ndim == 2:
            return read_frame(path)
        if is_nifti(path):
            volume_header(path)  # a sheared grid is told before anything is computed on it
            return read_volume(path)
        return read_series(path)
    first = read_header(record)
    for path in record.paths[1:]:
        _check_channel(path, first, record.ndim)
    parts = [_grey(p) if record.ndim == 2 else read_volume(p) for p in record.paths]
    return np.concatenate(parts)


def _check_channel(path: Path, first: Header, ndim: int) -> None:
    header = frame_header(path) if ndim == 2 else volume_header(path)
    check_same_grid(path, header, first, what="channel")


def _grey(path: Path) -> Float32[np.ndarray, "1 rows cols"]:
    values, mode = stored_values(path)
    if values.ndim != 2 or mode == "P":
        raise DataError(f"{path}: a channel file must be grey, this has mode {mode}; split its colours into files")
    return values.astype(np.float32)[None] * np.float32(1 / 257 if mode in ("I", "I;16") else 1.0)


def sha256_of(path: Path) -> str:
    """Fingerprint of a file, or of a folder (its files' names and bytes, by name).

    Raises:
        DataError: if something cannot be read.
    """
    with readable(path):
        if not path.is_dir():
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        total = hashlib.sha256()
        for part in sorted(p for p in path.iterdir() if p.is_file()):
            total.update(f"{part.name}\0{sha256_of(part)}\0".encode())
        return total.hexdigest()
