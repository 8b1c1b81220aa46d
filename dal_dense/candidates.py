"""Boxes of one image worth a closer look, before their exact figures are known.

The peaks of the score, the peaks of each class's share of the entropy (for class quotas), and a few
drawn blindly, so that no strategy is shut in by what the model finds uncertain.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dal_dense import scores
from dal_dense.errors import ConfigError
from dal_dense.noise import derive_seed, region_keys, uniform
from dal_dense.regions import Regions

RANDOM_TRIES = 8
"""Free draws for each box that the tiling could not give."""


def box_sizes(
    kind: str, sizes: Iterable[Sequence[int]], shape: Sequence[int], axial_axis: int | None
) -> list[tuple[int, ...]]:
    """Box sizes of a query kind on this grid: the crops asked for, one axial slice, or all of it.

    Raises:
        ConfigError: if slices are asked of an image without axial axis, or the sizes have another
            number of axes than the image.
    """
    if kind == "image":
        return [tuple(shape)]
    if kind == "slice":
        if axial_axis is None:
            raise ConfigError("query.kind: slice needs volumes, and this image is a frame; use crop or image")
        return [tuple(1 if a == axial_axis else n for a, n in enumerate(shape))]
    for size in sizes:
        if len(size) != len(shape) or min(size) < 1:
            raise ConfigError(
                f"query.sizes: {tuple(size)} does not fit an image of shape {tuple(shape)}; "
                f"give {len(shape)} numbers >= 1"
            )
    return list(dict.fromkeys(scores.fitted(size, shape) for size in sizes))


def peak_boxes(
    values: Float[Tensor, "*grid"],
    size: Sequence[int],
    stride: int,
    count: int,
    blocked: Regions,
    *,
    topk: float | None = None,
    weight: Float[Tensor, "*grid"] | None = None,
) -> Regions:
    """The `count` best boxes of a map that do not overlap, by the mean over the box or over its best voxels.

    Args:
        values: a map.
        size: box size.
        stride: of the positions that are looked at.
        count: how many boxes at most.
        blocked: ground that none may touch.
        topk: share of a box's voxels that count; None: all.
        weight: multiplied in, voxel by voxel, for the mean over the whole box.
    """
    if topk is None:
        positions = scores.box_means(values, size, stride, weight)
        return scores.peaks(positions, size, stride, count, blocked, values.shape)[0]
    steps = scores.coarse_stride(size, stride)
    positions = scores.topk_means(values, size, steps, topk)
    return scores.peaks(positions, size, steps, count, blocked, values.shape)[0]


def random_boxes(
    image_id: str, shape: Sequence[int], size: Sequence[int], count: int, blocked: Regions, seed: int
) -> Regions:
    """At most `count` boxes drawn by seed and image id, none on blocked ground; on the CPU.

    Tiles of a tiling with random phase, so that they share no ground and rounds differ; where too
    few tiles are free, boxes anywhere, which may overlap each other.
    """
    box = scores.fitted(size, shape)
    here = derive_seed(seed, "boxes", image_id, *box)
    tiles = _free_tiles(shape, box, count, blocked, here)
    if len(tiles) >= count:
        return tiles
    tries = torch.arange(RANDOM_TRIES * (count - len(tiles)))
    columns = [
        (uniform(tries, here, f"axis {a}") * (n - s + 1)).long().clamp_max(n - s)
        for a, (n, s) in enumerate(zip(shape, box, strict=True))
    ]
    start = torch.stack(columns, 1)
    anywhere = Regions(start, start + torch.tensor(box))
    anywhere = anywhere[~anywhere.overlaps(blocked.to("cpu")).any(1)]
    return distinct(image_id, [tiles, anywhere])[:count]


def _free_tiles(shape: Sequence[int], box: Sequence[int], count: int, blocked: Regions, seed: int) -> Regions:
    phases = uniform(torch.arange(len(box)), seed, "phase").tolist()
    columns = [
        # as many tiles as fit: a phase beyond the remainder would cost the last one
        list(range(int(u * (n % s + 1)), n - s + 1, s))
        for u, n, s in zip(phases, shape, box, strict=True)
    ]
    free = torch.ones([len(c) for c in columns], dtype=torch.bool)
    for start, stop in blocked.boxes():
        free[scores.touching(columns, box, start, stop)] = False
    numbers = free.flatten().nonzero()[:, 0]
    drawn = numbers[uniform(numbers, seed, "tile").argsort(stable=True)[:count]]
    places = np.unravel_index(drawn.numpy(), tuple(free.shape))  # torch's imports sympy, which takes 0.4 s
    first = torch.stack([torch.tensor(c)[p] for c, p in zip(columns, places, strict=True)], 1)
    return Regions(first, first + torch.tensor(tuple(box)))


def distinct(image_id: str, parts: Iterable[Regions]) -> Regions:
    """All boxes in order of appearance, each once."""
    given = list(parts)
    boxes = Regions(torch.cat([r.start for r in given]), torch.cat([r.stop for r in given]))
    first: dict[int, int] = {}
    for row, key in enumerate(region_keys(image_id, boxes).tolist()):
        first.setdefault(key, row)
    return boxes[torch.tensor(list(first.values()), dtype=torch.int64, device=boxes.start.device)]


def share_out(count: int, classes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """`count` candidates shared over classes, rounded up: (class, how many)."""
    for c in classes:
        yield c, -(-count // len(classes))
