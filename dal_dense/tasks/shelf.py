"""What was read once and may be read again: kept in memory up to a number of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from torch import Tensor


class Shelf:
    """Tensors by key; where they need more than `limit` bytes, those that were used least lately go.

    The last one always stays, however large it is. Whoever reads again must get the same values.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._held: OrderedDict[Hashable, Tensor] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        return self._bytes

    def get(self, key: Hashable, read: Callable[[], Tensor]) -> Tensor:
        """What is kept under this key, else what `read` gives, kept from now on."""
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        found = self._held[key] = read()
        self._bytes += found.nbytes
        while self._bytes > self._limit and len(self._held) > 1:
            self._bytes -= self._held.popitem(last=False)[1].nbytes
        return found
