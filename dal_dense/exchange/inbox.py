"""The one folder that takes the labels of all rounds: whose it is, and where it may lie.

Region ids repeat from run to run, so a label says nothing of the run that asked for it. A folder of
returns is therefore owned: the first run that looks into it signs it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dal_dense.errors import DataError

OWNER = ".dal_dense_run"
"""Text file in a folder of returns: the id of the run that it belongs to."""


def owner_of(folder: Path) -> str:
    """The run that a folder belongs to; empty if nobody has signed it.

    Raises:
        DataError: if the signature cannot be read.
    """
    path = folder / OWNER
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}), and it tells which run the labels are for; "
            "check its permissions"
        ) from error


def claim(folder: Path, run_id: str) -> str | None:
    """Make a folder of returns this run's own; it is made if it is not there.

    Returns:
        A line to tell if the folder cannot be signed (it is still read); else None.

    Raises:
        DataError: if it belongs to another run, or is no folder.
    """
    refused = None
    if not owner_of(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _sign(folder / OWNER, run_id)
        except FileExistsError as error:
            raise DataError(f"{folder}: not a folder; name another one in annotator.returns") from error
        except OSError as error:
            refused = (
                f"{folder}: cannot be marked as the folder of run {run_id} ({error.strerror or error}), so labels of "
                f"another run would not be noticed; make it writable, or write {run_id} into {OWNER} there yourself"
            )
    owner = owner_of(folder)
    if owner and owner != run_id:
        raise DataError(
            f"{folder}: takes the labels of run {owner} ({OWNER} says so), this is run {run_id}, and region ids repeat "
            "between runs; give each run its own annotator.returns. If that run is gone, empty the folder"
        )
    return refused


def _sign(path: Path, run_id: str) -> None:
    """Never over another signature; an empty one is what a killed process left."""
    try:
        stream = path.open("x", encoding="utf-8")
    except FileExistsError:
        if not owner_of(path.parent):
            path.write_text(f"{run_id}\n", encoding="utf-8")
        return
    with stream:
        stream.write(f"{run_id}\n")


def check_apart(folder: Path, sent: Iterable[Path]) -> None:
    """Returns must not hold what is not returned: an untouched proposal or mask would be taken for an answer.

    Args:
        folder: where labels come back.
        sent: folders of batches, and images of the pool.

    Raises:
        DataError: if one of them lies in the folder.
    """
    inside = folder.resolve()
    for path in sent:
        if path.resolve().is_relative_to(inside):
            raise DataError(
                f"{folder}: holds {path}, which nobody has returned, so its proposals or masks would be taken for "
                "labels; name a folder in annotator.returns that is for returned labels alone"
            )
