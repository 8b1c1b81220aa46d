"""Who a run is: its id, its seed, and whether the settings are those it was begun with."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dal_dense.errors import LedgerError
from dal_dense.ledger_rows import to_json
from dal_dense.ledger_store import Store

HARMLESS = ("device", "threads", "run_dir", "data_root", "budget", "annotator", "data.strict")
"""Settings, or groups of them, that may change between two calls of the same run."""

_ABSENT = "(no such setting)"


def identity(store: Store) -> tuple[str, int] | None:
    """(run_id, seed); None if the run has not begun."""
    if not store.select("SELECT 1 FROM sqlite_master WHERE name = 'run'"):
        return None
    found = store.select("SELECT run_id, seed FROM run")
    return (found[0]["run_id"], found[0]["seed"]) if found else None


def begin(store: Store, config: Mapping[str, Any], seed: int) -> None:
    """The run's own row: its settings as given, and an id that no other run has."""
    with store.recording() as now:
        text = to_json(config)
        run_id = hashlib.blake2b(f"{text}/{seed}/{now}/{store.path.resolve()}".encode(), digest_size=6).hexdigest()
        store.insert("run", (1, run_id, seed, text, now))


def harmless_changes(
    path: Path, old: Mapping[str, Any], new: Mapping[str, Any], *, asked: bool
) -> dict[str, tuple[str, str]]:
    """Harmless settings that differ: dotted name to both values as JSON.

    Args:
        path: the ledger, for errors.
        old: settings in force.
        new: settings given now.
        asked: something was asked, or is known, already; before that only the data must stay what they were.

    Raises:
        LedgerError: if any other setting differs; every one is listed with its old and new value.
    """
    changed = changed_fields(old, new)
    serious = {n: pair for n, pair in changed.items() if not _is_harmless(n) and (asked or n.startswith("data."))}
    if serious:
        lines = "".join(f"\n  {name}: {a} -> {b}" for name, (a, b) in serious.items())
        back = " ".join(shlex.quote(f"--{name}={_typed(a)}") for name, (a, _) in serious.items() if a != _ABSENT)
        remedy = f"use a new run_dir for the new settings, or go on with the old ones{f': {back}' if back else ''}"
        raise LedgerError(f"{path}: the run was begun with other settings:{lines}\n{remedy}")
    return changed


def _typed(value: str) -> str:
    """JSON as one types it after `--name=`: text without its quotes."""
    plain = json.loads(value)
    return plain if isinstance(plain, str) else value


def _is_harmless(name: str) -> bool:
    return any(name == group or name.startswith(f"{group}.") for group in HARMLESS)


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Dotted names of the settings that differ, with both values as JSON."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    names = sorted(before.keys() | after.keys())
    pairs = {n: (before.get(n, _ABSENT), after.get(n, _ABSENT)) for n in names}
    return {n: (a, b) for n, (a, b) in pairs.items() if a != b}


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", to_json(value)
