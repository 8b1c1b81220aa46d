"""Volumes to NIfTI and back, voxel for voxel.

A crop keeps the source's axes; only the affine's translation moves, so the crop overlays the full
scan in any viewer. On the way back the affine says how a viewer flipped or reordered the axes, and
the label is turned back without interpolation.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float, Shaped
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, HeaderTypeError
from nibabel.wrapstruct import WrapStructError

from dal_dense.errors import LabelError
from dal_dense.exchange.asked import Asked, Returned
from dal_dense.query import QueryRegion, SidecarRegion
from dal_dense.regions import Box, slices
from dal_dense.tasks.base import Proposal

SUFFIXES = (".nii.gz", ".nii")
LATTICE_TOLERANCE = 0.02
"""Voxels. Affines are stored in single precision and as quaternions; real shifts are larger."""

_DAMAGED = (
    ImageFileError, HeaderDataError, HeaderTypeError, WrapStructError,
    EOFError, zlib.error, OSError, ValueError, OverflowError,
)  # fmt: skip
_ALIGNED, _SCANNER = 2, 1  # NIfTI-1 form codes
_NIFTI2 = 540  # its header's length stands first
_WIDEST, _HEADER_ROOM = 8, 1 << 20  # bytes a voxel; bytes of header and extensions


def crop_affine(affine: Float[np.ndarray, "4 4"], start: Sequence[int]) -> Float[np.ndarray, "4 4"]:
    """The affine of a crop that begins at voxel `start`: the same axes, the origin moved."""
    moved = np.array(affine, dtype=np.float64)
    moved[:3, 3] += moved[:3, :3] @ np.asarray(start, dtype=np.float64)
    return moved


def save(path: Path, array: Shaped[np.ndarray, "i j k"], affine: Float[np.ndarray, "4 4"]) -> None:
    """Write one volume with sform and qform both set; the same bytes every time.

    Whole numbers that fit become int16: every viewer reads it, and ITK refuses bool and int64.
    """
    image = nib.Nifti1Image(_storable(array), affine)
    image.set_sform(affine, code=_ALIGNED)
    image.set_qform(affine, code=_SCANNER)
    image.header.set_xyzt_units("mm")
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=6, mtime=0))


def _storable(array: np.ndarray) -> np.ndarray:
    if array.dtype in (np.uint8, np.uint16, np.int16):
        return array
    small = np.iinfo(np.int16)
    if ((array >= small.min) & (array <= small.max) & (array == np.rint(array))).all():
        return array.astype(np.int16)
    return array.astype(np.float32)


def write_volume(
    folder: Path,
    image_id: str,
    image: Float[np.ndarray, "channels i j k"],
    affine: Float[np.ndarray, "4 4"],
    regions: Sequence[QueryRegion],
    proposals: Mapping[str, Proposal],
) -> dict[str, dict[str, str]]:
    """Write one scan's crops, proposals, whole-scan proposal and region mask.

    The whole-scan proposal is 0 outside the regions: the model was asked there only. The region
    mask numbers the regions in their order from 1.

    Returns:
        Region id to (role to file, relative to `folder`).
    """
    shape = image.shape[1:]
    scan = np.zeros(shape, np.uint8)
    mask = np.zeros(shape, np.uint8 if len(regions) < 256 else np.uint16)
    files: dict[str, dict[str, str]] = {}
    for number, region in enumerate(regions, 1):
        at = slices(region.box)
        mask[at] = number
        placed = crop_affine(affine, region.start)
        roles = files.setdefault(region.id, {})
        for channel, values in enumerate(image):
            suffix = f"_ch{channel}" if channel else ""
            roles[f"image{suffix}"] = f"images/{region.id}{suffix}.nii.gz"
            save(folder / roles[f"image{suffix}"], values[at], placed)
        if region.id in proposals:
            scan[at] = proposals[region.id].label
            roles["proposal"] = f"proposals/{region.id}.nii.gz"
            save(folder / roles["proposal"], proposals[region.id].label.astype(np.uint8), placed)
    shared = {"region_mask": f"scans/{image_id}_regions.nii.gz"}
    save(folder / shared["region_mask"], mask, affine)
    if any(r.id in proposals for r in regions):
        shared["scan_proposal"] = f"scans/{image_id}_proposal.nii.gz"
        save(folder / shared["scan_proposal"], scan, affine)
    for roles in files.values():
        roles |= shared
    return files


def read_label(path: Path, name: str, asked: Asked, file: str) -> list[Returned]:
    """The regions that one returned NIfTI label answers: a crop, or a whole scan cut into its regions.

    Args:
        path: the file.
        name: its name without the suffix: a region's or an image's id.
        asked: what was asked.
        file: how messages name it.

    Raises:
        LabelError: if it was not asked, cannot be read, lies on another grid, does not cover the
            region, or holds values that are no classes.
    """
    entries, own_name = asked.named(name, file)
    entries = entries if own_name else asked.finished(entries, file)
    source = entries[0].source
    if source.affine is None:
        raise LabelError(f"{file}: a NIfTI label for a frame; return a PNG of class numbers or a COCO json")
    try:
        image = _load(path, prod(source.shape), file)
        values = _three_axes(np.asarray(image.dataobj), file)
    except _DAMAGED as error:
        raise LabelError(f"{file}: cannot be read as NIfTI ({error}); save it again") from error
    found = []
    for entry in entries:
        cut = _on_grid(values, np.asarray(image.affine), entry, file)
        label = asked.checked(cut, entry.region.id, file)
        found.append(Returned(entry.region.id, label, None, file))
    return found


def _load(path: Path, most_voxels: int, file: str) -> Any:
    """The image, read to the end of the file so that gzip tests its checksum, and never more than a scan."""
    limit = most_voxels * _WIDEST + _HEADER_ROOM
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as stream:
        data = stream.read(limit + 1)
    second = _NIFTI2 in (int.from_bytes(data[:4], "little"), int.from_bytes(data[:4], "big"))
    image = None if len(data) > limit else (nib.Nifti2Image if second else nib.Nifti1Image).from_bytes(data)
    if image is None or prod(image.shape) > most_voxels:  # a header may promise more than the file holds
        raise LabelError(
            f"{file}: more voxels than the whole scan has; save one 3-D label on the grid of the crop or of the scan"
        )
    return image


def _three_axes(values: np.ndarray, file: str) -> np.ndarray:
    """Some tools drop a last axis of one slice, or add axes of length one behind the third."""
    if not (np.issubdtype(values.dtype, np.integer) or np.issubdtype(values.dtype, np.floating)):
        raise LabelError(f"{file}: voxels of type {values.dtype}; save the label as whole numbers (uint8)")
    shape = values.shape + (1,) * (3 - values.ndim)
    if prod(shape[3:]) != 1:
        raise LabelError(f"{file}: has {values.ndim} axes, {values.shape}; save one 3-D label")
    return values.reshape(shape[:3])


def _on_grid(
    values: Shaped[np.ndarray, "i j k"], affine: Float[np.ndarray, "4 4"], entry: SidecarRegion, file: str
) -> Shaped[np.ndarray, "a b c"]:
    """The part of a returned volume that lies on the region, in the region's own axes."""
    region = entry.region
    expected = crop_affine(np.array(entry.source.affine, dtype=np.float64), region.start)
    turn, shift = _lattice(expected, affine, values.shape, entry, file)
    order = np.abs(turn).argmax(1)
    turned = values.transpose(order)
    low = []
    for axis, source_axis in enumerate(order):
        if turn[axis, source_axis] < 0:
            turned = np.flip(turned, axis)
            low.append(int(shift[axis]) - values.shape[source_axis] + 1)
        else:
            low.append(int(shift[axis]))
    box: Box = tuple(-n for n in low), tuple(side - n for side, n in zip(region.shape, low, strict=True))
    if any(a < 0 or b > n for a, b, n in zip(*box, turned.shape, strict=True)):
        raise LabelError(
            f"{file}: covers only part of region {region.id} (shape {values.shape}, expected {region.shape}; "
            f"it begins at the region's voxel {tuple(low)}); "
            "export the label with the crop or the scan as its reference volume"
        )
    return turned[slices(box)]


def _lattice(
    expected: Float[np.ndarray, "4 4"],
    affine: Float[np.ndarray, "4 4"],
    shape: tuple[int, ...],
    entry: SidecarRegion,
    file: str,
) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, " 3"]]:
    """Returned voxel index to the region's: a signed permutation and a whole shift, or an error."""
    if not np.isfinite(affine).all():
        raise LabelError(f"{file}: its affine holds NaN or infinity; save the label with the crop's geometry")
    exact = np.linalg.solve(expected, affine)
    turn, shift = np.rint(exact[:3, :3]), np.rint(exact[:3, 3])
    signed = (np.abs(turn).sum(0) == 1).all() and (np.abs(turn).sum(1) == 1).all()
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij"), -1).reshape(-1, 3)
    bent = np.abs(corners @ (exact[:3, :3] - turn).T).max()
    drift = np.abs(corners @ (exact[:3, :3] - turn).T + exact[:3, 3] - shift).max()
    if not signed or drift > LATTICE_TOLERANCE:
        if signed and bent <= LATTICE_TOLERANCE:
            found = f"moved by {_move(turn, exact[:3, 3], shape, entry)} voxels"
        else:
            found = f"its axes or voxel size differ, by up to {bent:.3g} voxels across it"
        raise LabelError(
            f"{file}: lies on another voxel grid than region {entry.region.id} ({found}); "
            "save the label on the crop's grid, without resampling or moving it"
        )
    return turn, shift


def _move(
    turn: Float[np.ndarray, "3 3"], shift: Float[np.ndarray, " 3"], shape: tuple[int, ...], entry: SidecarRegion
) -> str:
    """How far a label lies from where it was sent, along the region's axes: from the scan if it has its shape."""
    far = turn @ (np.array(shape) - 1)
    low = shift + np.minimum(far, 0)
    is_scan = tuple((np.abs(far) + 1).astype(int)) == tuple(entry.source.shape)
    home = -np.array(entry.region.start) if is_scan else 0
    return " x ".join(f"{round(step, 2) + 0.0:g}" for step in (low - home).tolist())
