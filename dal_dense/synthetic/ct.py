"""A CT phantom of the upper abdomen: seeded, in an MSD-style folder.

Organs are unions of ellipsoids in millimetres, bent by a smooth warp of its own for every patient,
painted on a grid twice as fine and averaged down, so edges show partial volume. What makes it
hard: three contrast phases that shift the organs' HU, correlated noise and streaks, look-alikes
without a label (stomach, bowel, gall bladder, muscle, vessels), patients without spleen, with one
kidney or a large liver, and liver lesions of about 15 to 50 mm, some of them faint, not in every patient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float, Int16, UInt8
from scipy import ndimage

from dal_dense.errors import DataError
from dal_dense.synthetic.anatomy import LESION, Canvas, Patient, paint_lookalikes, paint_organs, paint_trunk
from dal_dense.synthetic.store import Progress, begin, finish, is_complete, silent, write_json

CT_CLASSES = ("background", "liver", "kidney", "spleen", "lesion")

_VERSION = 1  # raise when the same parameters make other voxels
_FIELD_OF_VIEW = (330.0, 248.0, 180.0)  # mm, before the patient's own variation
_FINE = 2  # fine voxels a voxel and axis
_TEST_STREAM = 1
_ORIENTATIONS = ("LPS",) * 7 + ("RAS", "LPI", "SPL")  # most scans come as DICOM stores them


@dataclass(frozen=True)
class Phantom:
    """One patient, in the orientation the file is written in.

    Attributes:
        image: HU.
        label: class numbers, positions in `CT_CLASSES`.
        affine: voxel index to world (RAS, mm), as NIfTI has it.
        phase: contrast phase.
    """

    image: Int16[np.ndarray, "i j k"]
    label: UInt8[np.ndarray, "i j k"]
    affine: Float[np.ndarray, "4 4"]
    phase: str


def _averaged(fine: Float[np.ndarray, "fi fj fk"]) -> Float[np.ndarray, "i j k"]:
    """Mean over blocks of fine voxels: partial volume."""
    a, b, c = (n // _FINE for n in fine.shape)
    return np.asarray(fine.reshape(a, _FINE, b, _FINE, c, _FINE).mean((1, 3, 5)), np.float32)


def _scan(canvas: Canvas, patient: Patient) -> Float[np.ndarray, "i j k"]:
    """What the scanner makes of the body: table, blur, streaks from bone, correlated noise. HU."""
    rng = patient.rng
    x, y = (axis.astype(np.float32) for axis in canvas.axes[:2])
    under = y[None, :] - (118 * patient.size - (x[:, None] / 60) ** 2 * 5)
    canvas.hu[(under > 0) & (under < 4)] = 60.0
    canvas.hu[(under >= 4) & (under < 14)] = -880.0
    hu = ndimage.gaussian_filter(_averaged(canvas.hu), (0.45, 0.45, 0.3))
    shape = hu.shape
    grain = ndimage.gaussian_filter(rng.standard_normal(shape).astype(np.float32), (0.6, 0.6, 0.3))
    cloud = ndimage.gaussian_filter(rng.standard_normal(shape).astype(np.float32), (3, 3, 2))
    hu += grain / grain.std() * np.float32(rng.uniform(7, 14)) + cloud / cloud.std() * np.float32(5)
    coarse_x, coarse_y = (_coarse(axis) for axis in (x, y))
    around = np.arctan2(coarse_y[None, :] - 46, coarse_x[:, None])
    for _ in range(10):  # starved of photons behind the spine and the flanks
        fan = np.sin(rng.integers(9, 34) * around + rng.uniform(0, 6))
        along_z = np.sin(np.arange(shape[2]) * rng.uniform(0.5, 2) + rng.uniform(0, 6))
        hu += (rng.uniform(1, 4.5) * fan[:, :, None] * along_z).astype(np.float32)
    return np.asarray(hu, np.float32)


def _coarse(axis: Float[np.ndarray, " fine"]) -> Float[np.ndarray, " coarse"]:
    return np.asarray(axis.reshape(-1, _FINE).mean(1))


def _majority(label: UInt8[np.ndarray, "fi fj fk"]) -> UInt8[np.ndarray, "i j k"]:
    """The class that fills most of a voxel."""
    share = np.stack([_averaged((label == c).astype(np.float32)) for c in range(len(CT_CLASSES))])
    share[LESION] *= 1.01  # ties go to the rare class
    return np.asarray(share.argmax(0), np.uint8)


def phantom(seed: int, stream: int, number: int, shape: Sequence[int]) -> Phantom:
    """One patient: the same for the same four arguments, whatever else is made.

    Args:
        seed: of the set.
        stream: 0 for the pool, 1 for the test patients.
        number: of the patient in its stream.
        shape: voxels right-left, front-back, foot-head; the field of view is about 330 x 248 x 180 mm.
    """
    rng = np.random.default_rng((seed, 2, stream, number))
    spread = rng.uniform(0.95, 1.07, 2)
    extent = (_FIELD_OF_VIEW[0] * spread[0], _FIELD_OF_VIEW[1] * spread[0], _FIELD_OF_VIEW[2] * spread[1])
    canvas = Canvas([n * _FINE for n in shape], extent, rng)
    patient = Patient(rng)
    paint_trunk(canvas, patient)
    paint_lookalikes(canvas, patient)
    paint_organs(canvas, patient)
    image = np.clip(np.round(_scan(canvas, patient)), -1024, 3071).astype(np.int16)
    label = _majority(canvas.label)
    spacing = np.round([mm / n for mm, n in zip(extent, shape, strict=True)], 3)
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    corner = np.array((1, 1, -1)) * spacing * (np.array(shape) - 1) / 2
    affine[:3, 3] = np.round(corner + rng.uniform(-20, 20, 3), 2)
    return _turned(image, label, affine, str(rng.choice(_ORIENTATIONS)), patient.phase)


def _turned(image: np.ndarray, label: np.ndarray, affine: np.ndarray, axes: str, phase: str) -> Phantom:
    """Stored along other axes, at the same place in the world."""
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("LPS"), nib.orientations.axcodes2ornt(axes))
    image, label = (np.ascontiguousarray(nib.orientations.apply_orientation(a, turn)) for a in (image, label))
    world = affine @ nib.orientations.inv_ornt_aff(turn, _unturned_shape(image.shape, turn))
    return Phantom(image, label, world, phase)


def _unturned_shape(shape: Sequence[int], turn: np.ndarray) -> tuple[int, ...]:
    return tuple(shape[int(axis)] for axis in turn[:, 0])


def _save(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def _parameters(seed: int, train: int, test: int, shape: Sequence[int]) -> dict[str, Any]:
    return {"set": "ct", "version": _VERSION, "seed": seed, "train": train, "test": test, "shape": list(shape)}


def write_ct(
    root: Path,
    *,
    seed: int = 0,
    train: int = 16,
    test: int = 6,
    shape: tuple[int, int, int] = (64, 48, 32),
    progress: Progress = silent,
) -> None:
    """Write `dataset.json` (MSD style), `imagesTr`, `labelsTr`, `imagesTs`, `labelsTs` and a manifest.

    Every case is a patient of its own: `phantom_001`, ... in the pool, `phantom_test_001`, ... for
    measuring. Images are int16 HU, labels uint8.

    Raises:
        DataError: if the shape is too small to hold the anatomy, a number is below zero, the folder holds another set
            or files of another origin, or it cannot be made.
    """
    if min(shape) < 24 or train < 1 or min(test, seed) < 0:
        raise DataError(
            f"a CT set needs 24 voxels an axis, a patient to train on and a seed from 0 on; "
            f"got shape {shape}, train {train}, test {test}, seed {seed}"
        )
    begin(root, _parameters(seed, train, test, shape))
    listing: dict[str, list[dict[str, str]]] = {"training": [], "test": []}
    for stream, (part, count, folder) in enumerate((("training", train, "Tr"), ("test", test, "Ts"))):
        for kind in ("images", "labels"):
            (root / (kind + folder)).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            case = phantom(seed, stream, number, shape)
            name = f"phantom_{'test_' if stream == _TEST_STREAM else ''}{number + 1:03d}.nii.gz"
            _save(root / f"images{folder}" / name, case.image, case.affine)
            _save(root / f"labels{folder}" / name, case.label, case.affine)
            listing[part].append({"image": f"images{folder}/{name}", "label": f"labels{folder}/{name}"})
            progress("CT phantoms", stream * train + number + 1, train + test)
    write_json(root / "dataset.json", _header(train, test) | listing)
    finish(root)


def _header(train: int, test: int) -> dict[str, Any]:
    return {
        "name": "ct_phantom",
        "description": "CT phantom of the upper abdomen, made by dal_dense.synthetic; no patient's data",
        "licence": "CC0-1.0",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {str(number): name for number, name in enumerate(CT_CLASSES)},
        "numTraining": train,
        "numTest": test,
    }


def ensure_ct(
    root: Path,
    *,
    seed: int = 0,
    train: int = 16,
    test: int = 6,
    shape: tuple[int, int, int] = (64, 48, 32),
    progress: Progress = silent,
) -> bool:
    """Like `write_ct`, but do nothing if that very set is there; true if it was made now."""
    if is_complete(root, _parameters(seed, train, test, shape)):
        return False
    write_ct(root, seed=seed, train=train, test=test, shape=shape, progress=progress)
    return True
