"""A made-up set is complete when its manifest is there: it is written first under another name, and renamed last."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dal_dense.errors import DataError

MANIFEST = "synthetic.json"
BEGUN = MANIFEST + ".part"
"""The manifest's name until the set is complete: the mark of a folder that we may write to."""

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
    """Whether `root` already holds the set that these parameters make, whole.

    Raises:
        DataError: if it holds another set, or half of one, for a run may depend on it; or files that are not ours;
            or is no folder. None of these is written to.
    """
    try:
        names = {path.name for path in root.iterdir()}
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _no_folder(root, error) from error
    mark = next((name for name in (MANIFEST, BEGUN) if name in names), None)
    if mark:
        _refuse_other(root / mark, parameters)
    elif others := [name for name in names if not name.startswith((".", BEGUN))]:  # a mark may be cut off too
        raise DataError(
            f"{root}: holds {min(others)} but no {MANIFEST}; expected a new or empty folder, so that nothing is "
            "overwritten; name another folder, or delete this one if it is half of a made-up set"
        )
    return mark == MANIFEST


def begin(root: Path, parameters: Mapping[str, Any]) -> None:
    """Mark a folder as ours before anything else is written to it: a set that is cut off can be made again there.

    Raises:
        DataError: as `is_complete`, or if the folder cannot be made.
    """
    is_complete(root, parameters)
    try:
        root.mkdir(parents=True, exist_ok=True)
        write_json(root / BEGUN, parameters)
    except OSError as error:
        raise _no_folder(root, error) from error


def finish(root: Path) -> None:
    """Call what was begun complete, unless another program that made the same set has."""
    with suppress(FileNotFoundError):
        (root / BEGUN).replace(root / MANIFEST)


def _no_folder(root: Path, error: OSError) -> DataError:
    return DataError(f"{root}: {error.strerror}; expected a folder, or a place where one can be made; name another")


def _refuse_other(path: Path, parameters: Mapping[str, Any]) -> None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: not readable as json ({error}); delete the folder {path.parent} and make the set again"
        ) from error
    wanted = json.loads(json.dumps(parameters))
    if found != wanted:
        keys = sorted(set(found) | set(wanted)) if isinstance(found, dict) else []
        differs = ", ".join(
            f"{k} {found.get(k)} (asked: {wanted.get(k)})" for k in keys if found.get(k) != wanted.get(k)
        )
        raise DataError(
            f"{path.parent} holds a set made otherwise: {differs or 'unknown'}; delete it or name another folder"
        )
