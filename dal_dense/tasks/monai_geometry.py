"""From an image as stored to the network's grid, and back: orientation, spacing, intensity.

One recipe serves training and inference. Volumes are turned to RAS and resampled to
`task.spacing`, frames resized to `task.frame_size`, by MONAI transforms on MetaTensors; their
recorded operations are undone on the way out. Where nothing is resampled, axes are only
permuted and reversed and every voxel stays bit-exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from threading import Lock
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from dal_dense.config import IntensityConfig
from dal_dense.errors import MissingPackageError
from dal_dense.images import Header
from dal_dense.tasks.monai_thin import put_back

try:
    import nibabel
    from monai.data import MetaTensor
    from monai.transforms import NormalizeIntensity, Orientation, Resize, ScaleIntensityRange, Spacing
    from monai.transforms.utils import convert_applied_interp_mode
except ImportError as missing:
    raise MissingPackageError(
        f"task monai_segmentation needs the package {missing.name!r}; install it with: pip install 'monai>=1.6'"
    ) from missing

AXES = (("L", "R"), ("P", "A"), ("I", "S"))
"""Beginning and end of the three anatomical axes of the model grid (RAS)."""

SAME_SPACING = 1e-3
"""Relative difference of voxel size below which a volume is not resampled."""

VOXELS_BACK = 1 << 23
"""Voxels of all channels that are carried back at once, where a channel has fewer."""


@dataclass(frozen=True)
class ModelGrid:
    """How one image's model grid lies against its stored array.

    Attributes:
        source_shape: array shape as stored.
        shape: shape of the model grid.
        spacing: voxel size on the model grid, mm (volumes, RAS order) or 1 (frames).
        axcodes: anatomical codes of the stored axes, such as "LPS"; empty for frames.
        operations: MONAI's record of what was done, for the way back.
        affine: voxel to mm of the model grid, 4x4.
    """

    source_shape: tuple[int, ...]
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    axcodes: str
    operations: tuple[Any, ...]
    affine: Tensor


def _intensity(settings: IntensityConfig) -> Any:
    """MONAI's transform for one way to scale raw intensities."""
    if settings.kind == "window":
        return ScaleIntensityRange(settings.low, settings.high, 0.0, 1.0, clip=True)
    if settings.kind == "rgb":
        return ScaleIntensityRange(0.0, 255.0, -1.0, 1.0)
    return NormalizeIntensity(channel_wise=True)


class Geometry:
    """The one recipe of a task.

    Args:
        spacing: model voxel size in mm, right-left, back-front, feet-head; None keeps each volume's own.
        frame_size: rows and columns of the model grid of frames; None keeps each frame's own.
        intensity: how raw intensities become network input.
    """

    def __init__(
        self,
        *,
        spacing: Sequence[float] | None = None,
        frame_size: Sequence[int] | None = None,
        intensity: IntensityConfig,
    ) -> None:
        self._spacing = tuple(spacing) if spacing is not None else None
        self._frame_size = tuple(frame_size) if frame_size is not None else None
        self._intensity = _intensity(intensity)
        self._turn = Orientation(axcodes="RAS", labels=AXES)
        # float32 is enough: array indices stay below 2^24 by far
        self._space = None if spacing is None else Spacing(self._spacing, dtype=np.float32)
        self._resize = None if frame_size is None else Resize(self._frame_size, mode="bilinear")
        self._lock = Lock()  # MONAI's transforms switch their tracing off and on, and two threads are at work

    def image(
        self, image: Float[np.ndarray, "channels *source"], header: Header
    ) -> tuple[Float[Tensor, "channels *grid"], ModelGrid]:
        """Network input for a stored image, and the way back."""
        with self._lock:
            moved = self._move(torch.from_numpy(np.ascontiguousarray(image)), header, nearest=False)
        values = self._intensity(moved.as_tensor()).float().contiguous()
        grid = ModelGrid(
            source_shape=tuple(header.shape),
            shape=tuple(int(n) for n in moved.shape[1:]),
            spacing=self._model_spacing(header, moved),
            axcodes="" if header.affine is None else "".join(nibabel.aff2axcodes(header.affine)),
            operations=tuple(moved.applied_operations),
            affine=moved.affine,
        )
        return _plain(values), grid

    def labels(self, both: Integer[np.ndarray, "2 *source"], header: Header) -> Int[Tensor, "2 *grid"]:
        """Class numbers and region numbers (from 1) carried to the model grid, nearest neighbour.

        Regions thinner than the grid are put back where they lie; see `monai_thin`.
        """
        with self._lock:
            moved = self._move(torch.from_numpy(both.astype(np.float32)), header, nearest=True)
        carried = _plain(moved.as_tensor()).round().int().contiguous()
        put_back(carried.numpy(), both, _forward(header, moved))
        return carried

    def values_back(
        self, values: Float[Tensor, "channels *grid"], grid: ModelGrid
    ) -> Float[Tensor, "channels *source"]:
        """Probabilities or maps of the model grid on the stored grid, linear; the same tensor where the grids are one.

        A few channels at a time, or one, so that MONAI's temporaries stay small.
        """
        if not grid.operations or (grid.axcodes == "RAS" and len(grid.operations) == 1):
            return values
        back = values.new_empty(len(values), *grid.source_shape)
        few = max(1, VOXELS_BACK // prod(grid.source_shape))
        for channels, there in zip(torch.split(values, few), torch.split(back, few), strict=True):
            operations = list(convert_applied_interp_mode(list(grid.operations), mode="bilinear"))
            moved = MetaTensor(channels, affine=grid.affine, applied_operations=operations)
            steps = [self._turn, self._space] if grid.axcodes else [self._resize]
            with self._lock:
                for step in reversed(steps[: len(operations)]):
                    moved = step.inverse(moved)
            there.copy_(_plain(moved.as_tensor()))
        return back

    def _move(self, data: Tensor, header: Header, *, nearest: bool) -> Any:
        mode = "nearest" if nearest else "bilinear"
        if header.affine is None:
            moved = MetaTensor(data)
            if self._resize is not None and tuple(header.shape) != self._frame_size:
                # averaging where pixels are dropped, so that thin things do not flicker
                shrinks = all(n <= m for n, m in zip(self._frame_size or (), header.shape, strict=True))
                moved = self._resize(moved, mode="nearest-exact" if nearest else "area" if shrinks else mode)
            return moved
        moved = self._turn(MetaTensor(data, affine=torch.as_tensor(header.affine, dtype=torch.float64)))
        if self._space is not None and not _same(_voxel_size(moved.affine), self._spacing or ()):
            moved = self._space(moved, mode=mode, padding_mode="border")
        return moved

    def _model_spacing(self, header: Header, moved: Any) -> tuple[float, ...]:
        if header.affine is None:
            return (1.0,) * len(header.shape)
        return _voxel_size(moved.affine)


def turn_back(coarse: Float[Tensor, "channels *coarse"], grid: ModelGrid) -> Float[Tensor, "channels *turned"]:
    """A coarse map over the model grid, its axes permuted and reversed to run as the stored array's do."""
    if not grid.axcodes or grid.axcodes == "RAS":
        return coarse
    turned = Orientation(axcodes=grid.axcodes, labels=AXES)(MetaTensor(coarse, affine=torch.eye(4)))
    return _plain(turned.as_tensor())


def _forward(header: Header, moved: Any) -> Float[np.ndarray, "rows rows"]:
    """Homogeneous matrix from stored index to model grid index."""
    if header.affine is not None:
        to_grid: Float[np.ndarray, "4 4"] = np.linalg.inv(np.asarray(moved.affine, dtype=np.float64))
        return np.asarray(to_grid @ header.affine)
    ratio = np.array(moved.shape[1:]) / np.array(header.shape)
    forward = np.diag([*ratio, 1.0])
    forward[:-1, -1] = (ratio - 1) / 2  # pixel centres lie half a pixel in
    return forward


def _plain(data: Tensor) -> Tensor:
    return data.as_subclass(Tensor) if type(data) is not Tensor else data


def _voxel_size(affine: Tensor) -> tuple[float, ...]:
    return tuple(float(x) for x in affine[:3, :3].double().pow(2).sum(0).sqrt())


def _same(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(abs(x - y) <= SAME_SPACING * y for x, y in zip(a, b, strict=True))
