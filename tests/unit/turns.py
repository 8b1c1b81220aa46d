"""Watches whether networks are called from two threads at once."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn.modules import module


class Turns:
    """Threads seen within a network, and the most of them that were there together."""

    def __init__(self) -> None:
        self.threads: set[int] = set()
        self.most = 0
        self._depth: Counter[int] = Counter()
        self._lock = threading.Lock()

    def enter(self, *_: object) -> None:
        here = threading.get_ident()
        with self._lock:
            self._depth[here] += 1
            self.threads.add(here)
            self.most = max(self.most, len(+self._depth))
        time.sleep(1e-4)  # long enough for the other thread to come in, were it let in

    def leave(self, *_: object) -> None:
        with self._lock:
            self._depth[threading.get_ident()] -= 1


@contextmanager
def watched_networks() -> Iterator[Turns]:
    """Around calls of any module."""
    turns = Turns()
    before = module.register_module_forward_pre_hook(turns.enter)
    after = module.register_module_forward_hook(turns.leave, always_call=True)
    try:
        yield turns
    finally:
        before.remove()
        after.remove()
