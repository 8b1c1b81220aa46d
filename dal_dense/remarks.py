"""What is said of returns: all of a round that waits; of a closed round what is new, and one line for the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dal_dense.exchange.asked import Returned
from dal_dense.ledger import Ledger
from dal_dense.ledger_answers import LOGGED
from dal_dense.query import QueryRegion
from dal_dense.report.words import count

EVENT = "told"
"""Kind of the ledger's event that keeps what was said, so that a later call knows what is new."""


@dataclass(frozen=True)
class _Line:
    round: int
    place: Path
    text: str
    once: bool


@dataclass
class Remarks:
    """Collects what is to be said in one call.

    Attributes:
        ledger: knows which rounds are closed and what earlier calls said; takes late times.
    """

    ledger: Ledger
    _held: list[_Line] = field(default_factory=list)
    _late: list[str] = field(default_factory=list)
    _starred: dict[Path, Counter[str]] = field(default_factory=dict)

    def problem(self, number: int, place: Path, text: str, *, once: bool = False) -> None:
        """Something that was not taken.

        Args:
            number: the round it belongs to.
            place: the folder of returns.
            text: what is wrong; begins with a file's name in the folder, or says of the folder as a whole.
            once: said in one call, never again.
        """
        file, colon, rest = text.partition(": ")
        whole = f"{place / file}: {rest}" if colon and (place / file).exists() else f"{place}: {text}"
        self._held.append(_Line(number, place, whole, once))

    def took(self, place: Path, item: Returned) -> None:
        """A new label. What a `*` took is told: an older export beside the right one would not be noticed."""
        if item.starred:
            file = place / item.source
            self._starred.setdefault(file.parent, Counter())[file.name] += 1

    def time(self, number: int, place: Path, item: Returned, charged: float) -> None:
        """Charge a time that came after its label; a second, different time is told.

        Args:
            number: the round that asked.
            place: the folder of returns.
            item: the label with its logged time.
            charged: seconds charged so far.
        """
        if item.seconds is None:
            return
        if self.ledger.record_time(item.region_id, item.seconds, f"{item.source}; {LOGGED}"):
            self._late.append(item.region_id)
        elif item.seconds != charged:
            text = (
                f"region {item.region_id} is charged {charged:g} s already, as logged; {item.seconds:g} s came later "
                "and is not used"
            )
            self.problem(number, place, text, once=True)

    def lines(self) -> list[str]:
        """What to say now; remembers it."""
        before = {line for event in self.ledger.events(EVENT) for line in event["lines"]}
        if new := [line for line in dict.fromkeys(held.text for held in self._held) if line not in before]:
            self.ledger.record_event(EVENT, {"lines": new})
        shown: list[str] = []
        again: Counter[tuple[int, Path]] = Counter()
        for held in self._held:
            known = held.text in before
            if known and not held.once and self.ledger.closed(held.round):
                again[held.round, held.place] += 1
            elif not (known and held.once):
                shown.append(held.text)
        shown += [
            f"{place}: round {number} is closed, and {count(n, 'warning')} of earlier calls on files here still "
            f"{'holds' if n == 1 else 'hold'}; nothing of it is taken"
            for (number, place), n in again.items()
        ]
        return shown + self._news()

    def _news(self) -> list[str]:
        """What this call did that nobody may have expected."""
        news = [
            f"{folder}: '*' in reviewed.txt marked {count(files.total(), 'region')} as finished: "
            + ", ".join(f"{n} of {name}" for name, n in sorted(files.items()))
            for folder, files in self._starred.items()
        ]
        if self._late:
            shown = ", ".join(self._late[:3]) + (f" and {len(self._late) - 3} more" if len(self._late) > 3 else "")
            news.append(f"logged times came after their labels and replace what the cost model charged: {shown}")
        return news


def wait_for(region: QueryRegion, file: Path, refused: Mapping[str, str]) -> str:
    """What becomes of a label whose region was rejected meanwhile."""
    if region.id not in refused:
        return ""
    return (
        f". Region {region.id} was rejected ({refused[region.id]}); {file} stays where it is, and "
        "its label is taken once the image is back as it was"
    )
