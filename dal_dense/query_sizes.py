"""What a query's settings mean on one image's grid: box sizes in voxels of its own array axes."""

from __future__ import annotations

from dataclasses import replace

from dal_dense.config import QueryConfig, UncertaintyConfig
from dal_dense.costs import CostModel
from dal_dense.errors import ConfigError
from dal_dense.offer_maps import OfferSpec
from dal_dense.records import Header, anatomical_axes


def array_size(size: tuple[int, ...], unit: str, header: Header) -> tuple[int, ...]:
    """`box_in_voxels`, at most the image."""
    return tuple(min(w, n) for w, n in zip(box_in_voxels(size, unit, header), header.shape, strict=True))


def box_in_voxels(size: tuple[int, ...], unit: str, header: Header) -> tuple[int, ...]:
    """A box size of the settings in voxels along the image's array axes, at least 1.

    Args:
        size: volumes right-left, back-front, feet-head; frames rows, columns.
        unit: voxel or mm (frames: always pixels).
        header: the image's grid.

    Raises:
        ConfigError: if the size has another number of axes than the image.
    """
    if len(size) != len(header.shape):
        raise ConfigError(
            f"query.sizes: {list(size)} has {len(size)} numbers, the images have {len(header.shape)} axes; "
            f"give {len(header.shape)} numbers a size"
        )
    wanted = list(size)
    if header.affine is not None:
        for value, axis in zip(size, anatomical_axes(header.affine), strict=True):
            wanted[axis] = round(value / header.spacing[axis]) if unit == "mm" else value
    return tuple(max(1, w) for w in wanted)


def offer_spec(
    query: QueryConfig,
    header: Header,
    costs: CostModel,
    *,
    uncertainty: UncertaintyConfig | None = None,
    quota_classes: tuple[int, ...] = (),
) -> OfferSpec:
    """What is on offer in one image; without `uncertainty` there is no model and no score."""
    spec = OfferSpec(
        kind="crop" if query.kind == "box" else query.kind,  # where no model has looked there are no boxes yet
        sizes=tuple(array_size(s, query.unit, header) for s in query.sizes) if query.kind in ("crop", "box") else (),
        spacing=header.spacing,
        axial_axis=None if header.affine is None else anatomical_axes(header.affine)[2],
        costs=costs,
        per_image=query.per_image,
        stride=query.stride,
        quota_classes=quota_classes,
    )
    if uncertainty is None:
        return spec
    return replace(spec, score=uncertainty.score, pooling=uncertainty.pooling, topk=uncertainty.topk)
