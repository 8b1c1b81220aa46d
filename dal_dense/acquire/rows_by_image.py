"""Which rows belong to which image, without a list an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor


class RowsByImage:
    """A pool is read image by image, so the rows of an image mostly lie together: then the ends of these blocks are
    all that is kept. Rows in another order cost an index of 8 bytes a row.

    Attributes:
        images: numbers of the images that have rows, ascending, int64 (I,), on the CPU.
    """

    images: Int[Tensor, " I"]

    def __init__(self, image: Int[Tensor, " N"]) -> None:
        self._device = image.device
        together = bool((image[1:] >= image[:-1]).all())
        self._order = None if together else image.argsort(stable=True)
        images, counts = torch.unique_consecutive(image if together else image[self._order], return_counts=True)
        self._on_device = counts.clone()  # what torch returns keeps room for as many images as rows
        self.images, self._counts = images.clone().cpu(), self._on_device.cpu()
        self._starts = self._counts.cumsum(0) - self._counts

    def counts_of(self, images: Int[Tensor, " K"]) -> Int[Tensor, " K"]:
        """How many rows these images have, on the CPU."""
        return self._found(images.cpu())[1]

    def rows_of(self, images: Int[Tensor, " K"] | Sequence[int]) -> tuple[Int[Tensor, " R"], Int[Tensor, " R"]]:
        """Rows of these images, one image after the other, and whose they are (position among `images`).

        An image without rows here adds none.
        """
        wanted = torch.as_tensor(images, dtype=torch.int64).cpu()
        if not len(self.images):
            return (torch.zeros(0, dtype=torch.int64, device=self._device),) * 2
        place, counts = self._found(wanted)
        owner = torch.repeat_interleave(counts)
        before = counts.cumsum(0) - counts
        rows = (torch.arange(len(owner)) + (self._starts[place] - before)[owner]).to(self._device)
        return rows if self._order is None else self._order[rows], owner.to(self._device)

    def _found(self, wanted: Int[Tensor, " K"]) -> tuple[Int[Tensor, " K"], Int[Tensor, " K"]]:
        """Positions among `images`, and how many rows: 0 where an image has none here."""
        if not len(self.images):
            return (torch.zeros_like(wanted),) * 2
        place = torch.searchsorted(self.images, wanted).clamp_max(len(self.images) - 1)
        return place, torch.where(self.images[place] == wanted, self._counts[place], 0)

    def places(self, images: Int[Tensor, " K"]) -> Int[Tensor, " K"]:
        """Positions of these images, which all have rows, among `images`."""
        return torch.searchsorted(self.images, images.cpu()).to(self._device)

    def of_images(self, column: Shaped[Tensor, " N"]) -> Shaped[Tensor, " I"]:
        """A column that is the same in all rows of an image (group, time): one entry an image, on the CPU."""
        first = self._starts.to(self._device)
        return column[first if self._order is None else self._order[first]].cpu()

    def largest(self, column: Float[Tensor, " N"]) -> Float[Tensor, " I"]:
        """The largest entry of each image, at least 0."""
        if not len(column):
            return column
        sorted_ = column if self._order is None else column[self._order]
        return torch.segment_reduce(sorted_, "max", lengths=self._on_device).clamp_min(0)

    def spread(self, values: Float[Tensor, " I"]) -> Float[Tensor, " N"]:
        """The image's number in each of its rows."""
        rows = values.repeat_interleave(self._on_device)
        if self._order is None:
            return rows
        spread = torch.empty_like(rows)
        spread[self._order] = rows
        return spread


def in_parts(counts: Int[Tensor, " K"], most: int) -> list[int]:
    """Lengths of parts, in order; those of each part but its last add up to less than `most`."""
    part = (counts.cumsum(0) - counts) // most
    lengths: list[int] = torch.unique_consecutive(part, return_counts=True)[1].tolist()
    return lengths
