"""Frames that lie near in time to others of their group."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dal_dense.acquire.rows_by_image import in_parts

_PAIRS = 1 << 18
"""Pairs of frames that are looked at together."""
_ROUNDING = 1e-12
"""A search reaches farther by this share, so that rounding of its ends hides no frame."""


class Times:
    """The images that know their time, sorted by group and time, all on the CPU."""

    def __init__(self, images: Int[Tensor, " I"], group: Int[Tensor, " I"], time: Float[Tensor, " I"]) -> None:
        known = time.isfinite().nonzero()[:, 0]
        order = known[time[known].argsort(stable=True)]
        order = order[group[order].argsort(stable=True)]
        self._images, self._time = images[order], time[order].double()
        self._groups, group_at = torch.unique(group[order], return_inverse=True)
        self._moments, moment_at = torch.unique(self._time, return_inverse=True)
        self._place = group_at * (len(self._moments) + 1) + moment_at  # ascends with group and time

    def near(
        self, images: Int[Tensor, " K"], group: Int[Tensor, " K"], time: Float[Tensor, " K"], gap: float
    ) -> Int[Tensor, " R"]:
        """The other images of the group less than `gap` before or after any of these, which need not be known here.

        A time that nobody knows, NaN, is near to nothing.
        """
        at = torch.searchsorted(self._groups, group)
        here = time.isfinite() & (at < len(self._groups))
        here[here.clone()] = self._groups[at[here]] == group[here]
        images, time, first = images[here], time[here].double(), at[here] * (len(self._moments) + 1)
        reach = gap + (gap + time.abs()) * _ROUNDING
        low = torch.searchsorted(self._place, first + torch.searchsorted(self._moments, time - reach))
        high = torch.searchsorted(self._place, first + torch.searchsorted(self._moments, time + reach, right=True))
        found = [self._images[:0]]
        for part in torch.split(torch.arange(len(low)), in_parts(high - low, _PAIRS)):
            counts = (high - low)[part]
            owner = torch.repeat_interleave(counts)
            other = torch.arange(len(owner)) + (low[part] - counts.cumsum(0) + counts)[owner]
            close = (self._time[other] - time[part][owner]).abs() < gap
            close &= self._images[other] != images[part][owner]
            found.append(self._images[other[close]])
        near: Tensor = torch.unique(torch.cat(found))
        return near
