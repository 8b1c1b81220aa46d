"""What the person sees while it runs, and how they stop it."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:
    from dal_dense.tasks.base import Hooks


LINE_EVERY = 20.0
"""Seconds between lines of progress where there is no terminal."""


class Screen:
    """A rich console with one progress bar a running job; a quiet one shows nothing."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or Console(quiet=quiet)
        self._stop = False
        self._progress: Progress | None = None
        self._bars: dict[str, TaskID] = {}
        self._told = time.monotonic()

    def say(self, what: object) -> None:
        """A line, a table or any other rich renderable. Lines are not broken, so that paths can be copied."""
        self.console.print(what, highlight=False, markup=False, emoji=False, soft_wrap=isinstance(what, str))

    def warn(self, text: str) -> None:
        """Something the person should know; the run goes on. Brackets in it (file names) are no markup."""
        self.console.print(Text.assemble(("warning:", "yellow"), " ", text), soft_wrap=True)

    def stopping(self) -> bool:
        """True once the person asked to stop."""
        return self._stop

    def hooks(self) -> Hooks:
        """Progress and stop wish in the form that tasks take."""
        from dal_dense.tasks.base import Hooks

        return Hooks(progress=self._advance, stopping=self.stopping)

    def _advance(self, what: str, done: int, total: int) -> None:
        if self._progress is None:
            return
        if not self.console.is_terminal:  # a log file: a line now and then instead of a bar
            if time.monotonic() - self._told >= LINE_EVERY:
                self._told = time.monotonic()
                self.say(f"{what}: {done} of {total}")
            return
        if what not in self._bars:
            for bar in self._bars.values():
                self._progress.remove_task(bar)
            self._bars = {what: self._progress.add_task(what, total=total)}
        self._progress.update(self._bars[what], completed=done, total=total)

    @contextmanager
    def running(self) -> Iterator[Screen]:
        """Show progress, and turn Ctrl-C and SIGTERM into a wish to stop at the next safe point."""

        def ask(number: int, frame: FrameType | None) -> None:
            if self._stop:  # asked twice: the ledger survives anything, so let go at once
                raise KeyboardInterrupt
            self._stop = True
            self.say("stopping at the next safe point; once more stops at once")

        before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        try:
            with Progress(*columns, console=self.console, transient=True) as self._progress:
                yield self
        finally:
            self._progress, self._bars = None, {}
            for number, handler in before.items():
                signal.signal(number, handler)
