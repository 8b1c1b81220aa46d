"""DICOM series, a folder each, read as volumes; needs the optional package pydicom.

Axes are ordered as in NIfTI: array axis 0 runs along a row of the slice, axis 1 down its columns,
axis 2 from slice to slice along the normal; the affine goes from DICOM's LPS to RAS. Values are
slope and intercept applied (HU in CT). Patient plane: DICOM PS3.3, C.7.6.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from dal_dense.config import DataConfig
from dal_dense.errors import DataError, MissingPackageError
from dal_dense.records import Header
from dal_dense.sources.base import Entry, Listing, image_id, inside, walk
from dal_dense.volumes import NIFTI, check_finite, readable, straight_header

EVEN = 0.02
"""Largest deviation of a slice distance from the median, as a share of it."""
_NO_SLICE = (*NIFTI, ".json", ".txt", ".csv", ".xml", ".png", ".jpg", ".jpeg", ".pdf", ".md")


def listing(data: DataConfig, root: Path) -> Listing:
    """Each folder below `data.images` that holds files is one series; masks are NIfTI named by its id.

    Raises:
        DataError: if a folder is missing or locked.
    """
    images = inside(root, root, data.images, Path("data.images"))
    masks = None if data.masks is None else inside(root, root, data.masks, Path("data.masks"))
    known: dict[str, Path] = {}
    if masks is not None and masks.is_dir():
        known = {
            image_id(n).removesuffix(data.mask_suffix): masks / n
            for n in next(walk(masks))[1]
            if n.lower().endswith(NIFTI) and image_id(n).endswith(data.mask_suffix)
        }
    entries = []
    for relative, names in walk(images, skip=() if masks is None else (masks,)):
        if any(_may_be_slice(n) for n in names):
            folder = images / relative
            name = image_id((relative or folder.name).rstrip("/"))
            entries.append(Entry(name, (folder,), known.get(name)))
    return Listing(entries)


def _may_be_slice(name: str) -> bool:
    return name.upper() != "DICOMDIR" and not name.lower().endswith(_NO_SLICE)


@dataclass(frozen=True)
class _Slice:
    file: Path
    at: float
    data: Any


def series_header(folder: Path) -> Header:
    """Grid of a series; reads the slices' headers, no pixels.

    Raises:
        DataError: if slices are missing, doubled or of several series, or the gantry was tilted.
        MissingPackageError: without pydicom.
    """
    return _header(folder, _slices(folder, pixels=False))


def read_series(folder: Path) -> Float32[np.ndarray, "1 i j k"]:
    """Voxels of a series, slope and intercept applied, one channel.

    Raises:
        DataError: as for the header, or if pixels cannot be decoded.
        MissingPackageError: without pydicom.
    """
    slices = _slices(folder, pixels=True)
    header = _header(folder, slices)
    volume = np.empty((1, *header.shape), np.float32)
    for k, one in enumerate(slices):
        try:
            pixels = one.data.pixel_array
        except (AttributeError, NotImplementedError, RuntimeError, ValueError) as problem:
            words = " ".join(str(problem).split())[:160]
            raise DataError(f"{one.file}: cannot be decoded ({words}); convert the series with dcm2niix") from None
        slope, offset = getattr(one.data, "RescaleSlope", 1), getattr(one.data, "RescaleIntercept", 0)
        volume[0, :, :, k] = pixels.T * np.float32(slope) + np.float32(offset)
    check_finite(folder, volume)
    return volume


def _slices(folder: Path, *, pixels: bool) -> list[_Slice]:
    """The folder's slices in order along their common normal."""
    pydicom = _pydicom()
    found: list[tuple[Path, Any]] = []
    _, names = next(walk(folder))
    for name in filter(_may_be_slice, names):
        with readable(folder / name):
            try:
                data = pydicom.dcmread(folder / name, stop_before_pixels=not pixels)
            except pydicom.errors.InvalidDicomError:
                raise DataError(f"{folder / name}: not a DICOM file; take it out, or copy it again") from None
        if "Rows" in data:  # reports, structure sets and the like have no pixels
            found.append((folder / name, data))
    if not found:
        raise DataError(f"{folder}: no DICOM slice in it; restore the series or take the folder out")
    series = sorted({str(d.get("SeriesInstanceUID", "")) for _, d in found})
    if len(series) > 1:
        raise DataError(f"{folder}: holds {len(series)} series ({', '.join(series)[:120]}); give each its own folder")
    _check_alike(found)
    normal = np.cross(*_directions(found[0][1]))
    slices = [_Slice(f, float(np.dot(normal, np.array(d.ImagePositionPatient, float))), d) for f, d in found]
    return sorted(slices, key=lambda s: (s.at, s.file.name))


def _pydicom() -> Any:
    try:
        import pydicom
    except ModuleNotFoundError:
        raise MissingPackageError("DICOM series need pydicom; install it: pip install 'dal-dense[dicom]'") from None
    return pydicom


def _check_alike(found: list[tuple[Path, Any]]) -> None:
    """Every slice has a place, one grey frame, and the first one's orientation and pixel grid."""
    first = None
    for file, data in found:
        lacking = [n for n in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing") if not data.get(n)]
        if lacking:
            raise DataError(f"{file}: has no {lacking[0]}, so its place is unknown; take it out of the folder")
        if int(data.get("NumberOfFrames", 1) or 1) > 1 or int(data.get("SamplesPerPixel", 1)) != 1:
            raise DataError(f"{file}: several frames or colours in one file; convert the series with dcm2niix")
        grid = (data.Rows, data.Columns)
        place = np.array([*data.ImageOrientationPatient, *data.PixelSpacing], dtype=float)
        if first is None:
            first = (grid, place)
        elif grid != first[0] or not np.allclose(place, first[1], atol=1e-3):
            raise DataError(
                f"{file}: orientation, pixel spacing or size differ from {found[0][0].name}; "
                "give each series its own folder (localizers often lie beside)"
            )


def _directions(data: Any) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors along a row and down a column, LPS."""
    cosines = np.array(data.ImageOrientationPatient, dtype=float)
    return cosines[:3], cosines[3:]


def _header(folder: Path, slices: list[_Slice]) -> Header:
    first, last = slices[0].data, slices[-1].data
    along_row, down_column = _directions(first)
    row_step, column_step = (float(v) for v in first.PixelSpacing)  # between rows, between columns
    origin = np.array(first.ImagePositionPatient, dtype=float)
    if len(slices) > 1:
        _check_even(folder, slices)
        step = (np.array(last.ImagePositionPatient, dtype=float) - origin) / (len(slices) - 1)
    else:
        step = np.cross(along_row, down_column) * float(first.get("SliceThickness") or 1)
    affine = np.eye(4)
    affine[:3] = np.stack([along_row * column_step, down_column * row_step, step, origin], axis=1)
    affine[:2] *= -1  # LPS to RAS
    return straight_header(folder, (int(first.Columns), int(first.Rows), len(slices)), affine)


def _check_even(folder: Path, slices: list[_Slice]) -> None:
    gaps = np.diff([s.at for s in slices])
    usual = float(np.median(gaps))
    k = int(np.argmax(np.abs(gaps - usual)))
    if gaps.min() < 1e-3:
        k = int(np.argmin(gaps))
        raise DataError(
            f"{folder}: {slices[k].file.name} and {slices[k + 1].file.name} lie in one place; "
            "take out doubles, give each phase its own folder"
        )
    if abs(gaps[k] - usual) > EVEN * usual:
        raise DataError(
            f"{folder}: {gaps[k]:.3g} mm between {slices[k].file.name} and {slices[k + 1].file.name}, {usual:.3g} mm "
            "elsewhere: a slice is missing or the spacing is uneven; restore the slices or resample the series"
        )
