"""A made-up set is complete when its manifest is there: it is written last, by one rename."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dal_dense.errors import DataError

MANIFEST = "synthetic.json"

Progress = Callable[[str, int, int], None]
"""Called as (what, done, total)."""


def silent(what: str, done: int, total: int) -> None:
    """The progress callback that says nothing."""


def write_json(path: Path, content: Any) -> None:
    """Write beside the file, then rename: a reader never sees half of it."""
    half = path.with_name(path.name + ".part")
    half.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    half.replace(path)


def is_complete(root: Path, parameters: Mapping[str, Any]) -> bool:
    """Whether `root` already holds the set that these parameters make.

    Raises:
        DataError: if it holds another set; a run may depend on it, so it is not overwritten.
    """
    path = root / MANIFEST
    if not path.is_file():
        return False
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"{path}: not readable as json ({error}); delete the folder {root} and make the set again"
        ) from error
    wanted = json.loads(json.dumps(parameters))
    if found != wanted:
        keys = sorted(set(found) | set(wanted)) if isinstance(found, dict) else []
        differs = ", ".join(
            f"{k} {found.get(k)} (asked: {wanted.get(k)})" for k in keys if found.get(k) != wanted.get(k)
        )
        raise DataError(f"{root} holds a set made otherwise: {differs or 'unknown'}; delete it or name another folder")
    return True
