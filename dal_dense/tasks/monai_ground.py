"""Labelled regions become training pieces; some regions are kept apart to calibrate on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import UInt16

from dal_dense.config import TrainConfig
from dal_dense.errors import DataError, Stopped
from dal_dense.images import read_header, read_image
from dal_dense.noise import region_keys, uniform
from dal_dense.records import Header
from dal_dense.regions import slices
from dal_dense.tasks.base import IGNORE, Hooks, LabelledImage
from dal_dense.tasks.monai_batches import Piece, cut_pieces
from dal_dense.tasks.monai_geometry import Geometry

CALIBRATE_FROM = 5
"""Labelled regions below which none is kept from training."""

Held = frozenset[tuple[str, int]]
"""Regions kept from training: image id and position among its regions."""


@dataclass(frozen=True)
class Ground:
    """All that a fit sees of the pool: pieces to train on, pieces to calibrate on."""

    train: tuple[Piece, ...]
    held: tuple[Piece, ...]


def held_out(labelled: Sequence[LabelledImage], share: float) -> Held:
    """The regions to calibrate on: drawn by their own keys, so most stay the same from round to round.

    A region in which a class has its only labelled voxels is never taken.

    Args:
        labelled: all that is known.
        share: of the regions, rounded up; none if it is 0 or there are fewer than `CALIBRATE_FROM`.
    """
    names = [(image.record.id, i) for image in labelled for i in range(len(image.labels))]
    if share == 0 or len(names) < CALIBRATE_FROM:
        return frozenset()
    keys = torch.cat([region_keys(image.record.id, image.regions) for image in labelled])
    draw = uniform(keys, 0, "held_out")
    seen = [{int(c) for c in np.unique(array)} - {IGNORE} for image in labelled for array in image.labels]
    left: dict[int, int] = {}
    for classes in seen:
        for c in classes:
            left[c] = left.get(c, 0) + 1
    taken: list[tuple[str, int]] = []
    wanted = math.ceil(share * len(names))
    for row in draw.argsort(stable=True).tolist():
        classes = seen[row]
        beyond = float(draw[row]) >= share and taken  # a fixed threshold, so that earlier choices stand
        if beyond or len(taken) == wanted:
            break
        if classes and all(left[c] > 1 for c in classes):
            taken.append(names[row])
            for c in classes:
                left[c] -= 1
    return frozenset(taken)


def gather(
    labelled: Sequence[LabelledImage],
    geometry: Geometry,
    *,
    held: Held,
    train: TrainConfig,
    classes: int,
    in_channels: int,
    seed: int,
    hooks: Hooks,
) -> Ground:
    """Read each labelled image once and keep only the ground around its labels.

    Raises:
        DataError: if an image cannot be read, or has another number of channels than the network.
        Stopped: the person asked to stop.
    """
    shown: list[Piece] = []
    kept: list[Piece] = []
    for i, known in enumerate(labelled):
        if hooks.stopping():
            raise Stopped
        hooks.progress("reading labelled images", i, len(labelled))
        if not len(known.regions):
            continue
        header = read_header(known.record)
        image, grid = geometry.image(read_image(known.record, channels=in_channels), header)
        both = geometry.labels(paste(known, header), header)
        apart = [n for n in range(len(known.labels)) if (known.record.id, n) in held]
        rest = [n for n in range(len(known.labels)) if n not in apart]
        cut = partial(
            cut_pieces, image, both[0].to(torch.uint8), both[1],
            train=train, spacing=grid.spacing, classes=classes, seed=seed,
        )  # fmt: skip
        shown += cut(keep=[n + 1 for n in rest])
        kept += cut(keep=[n + 1 for n in apart])
    return Ground(tuple(shown), tuple(kept))


def paste(known: LabelledImage, header: Header) -> UInt16[np.ndarray, "2 *grid"]:
    """Labels on the whole image's grid, `IGNORE` elsewhere, and beside them each region's number from 1."""
    both = np.zeros((2, *header.shape), dtype=np.uint16)
    both[0] = IGNORE
    for n, (box, label) in enumerate(zip(known.regions.boxes(), known.labels, strict=True), start=1):
        if len(box[0]) != len(header.shape) or any(b > m for b, m in zip(box[1], header.shape, strict=True)):
            raise DataError(
                f"{known.record.paths[0]}: the labelled region {box} lies outside the image's grid {header.shape}; "
                "was the image replaced after it was labelled? Put the old file back"
            )
        both[0][slices(box)] = label
        both[1][slices(box)] = n
    return both
