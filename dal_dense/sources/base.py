"""What every source gives, and what they share: ids, safe paths, folders listed once.

No source opens an image or asks the file system about single files, so that 100,000 files are
listed in seconds.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dal_dense.errors import DataError
from dal_dense.frames import FRAMES
from dal_dense.volumes import NIFTI

IMAGES = (*NIFTI, *FRAMES)


class Entry(NamedTuple):
    """One image as a source lists it.

    Attributes:
        id: made from the path alone, so that it stays the same while the pool grows.
        paths: absolute, one a channel file; a DICOM series is its folder.
        mask: absolute, or None.
        split: name of its split as the listing says, or None if the listing has no splits.
        fields: the listing's own fields of it, for `group_field`.
    """

    id: str
    paths: tuple[Path, ...]
    mask: Path | None
    split: str | None = None
    fields: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Listing:
    """All that a source knows.

    Attributes:
        entries: in a stable order.
        labels: label value to class name as the listing says; None if only the config can say.
        missing: id to reason, for images that are listed but not there.
        annotations: COCO only: image id to its annotations.
        mask_format: how the masks are read.
    """

    entries: Sequence[Entry]
    labels: Mapping[int, str] | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    mask_format: Literal["index", "coco"] = "index"


def image_id(text: str) -> str:
    """An id that is safe in file names: no extension, `/` as `.`, other odd characters as `-`."""
    bare = without_ending(text, IMAGES).replace("/", ".")
    return re.sub(r"[^A-Za-z0-9._-]", "-", bare).lstrip(".-") or "image"


def without_ending(name: str, endings: Sequence[str]) -> str:
    """The name without the first of the endings that it has, in any case."""
    lower = name.lower()
    return next((name[: -len(e)] for e in endings if lower.endswith(e)), name)


def inside(root: Path, base: Path, text: object, listing: Path) -> Path:
    """The path that a listing names, which must lie inside data_root.

    Args:
        root: data_root, absolute.
        base: what relative paths are relative to.
        text: as found in the listing.
        listing: the file that names it, for the message.

    Raises:
        DataError: if it is no text, or leads out of data_root.
    """
    if not isinstance(text, str) or not text:
        raise DataError(f"{listing}: {text!r} stands where a file name is needed; correct the listing")
    path = os.path.normpath(os.path.join(base, text))  # noqa: PTH118 - pathlib does not resolve '..' without the disk
    if os.path.commonpath((path, root)) != str(root):
        raise DataError(f"{listing}: {text!r} leads out of data_root {root}; move the file there or correct it")
    return Path(path)


def walk(folder: Path, skip: Sequence[Path] = ()) -> Iterator[tuple[str, list[str]]]:
    """(folder relative to the first, its visible file names), sorted; linked folders are followed once.

    Raises:
        DataError: if a folder is missing or locked.
    """
    left_out = {str(p) for p in skip}
    waiting, links = [("", str(folder))], {os.path.realpath(folder)}
    while waiting:
        relative, path = waiting.pop()
        files, folders = [], []
        try:
            with os.scandir(path) as found:
                for item in found:
                    if item.name.startswith("."):  # also the `._` files that macOS leaves in archives
                        continue
                    if not item.is_dir():
                        files.append(item.name)
                    elif item.path not in left_out and not (item.is_symlink() and _seen(item.path, links)):
                        folders.append((f"{relative}{item.name}/", item.path))
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"{path}: no such folder; correct the settings or the listing") from None
        except PermissionError:
            raise DataError(f"{path}: not allowed to list this folder; correct its permissions") from None
        yield relative, sorted(files)
        waiting.extend(sorted(folders, reverse=True))


def _seen(link: str, links: set[str]) -> bool:
    """Has this link's target been entered before? A link to a folder above would never end."""
    target = os.path.realpath(link)
    if target in links:
        return True
    links.add(target)
    return False


class Present:
    """Is a file there? Each folder is listed once instead of asking for each file."""

    def __init__(self) -> None:
        self._folders: dict[str, frozenset[str]] = {}

    def __call__(self, path: Path) -> bool:
        """True if the folder of this path holds such a name."""
        folder, name = os.path.split(path)
        if folder not in self._folders:
            try:
                self._folders[folder] = frozenset(os.listdir(folder))  # noqa: PTH208 - names are enough
            except (FileNotFoundError, NotADirectoryError):
                self._folders[folder] = frozenset()
            except PermissionError:
                raise DataError(f"{folder}: not allowed to list this folder; correct its permissions") from None
        return name in self._folders[folder]


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DataError: if the file is missing, locked, no JSON, or holds something else than an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{path}: {what} is not there; correct data_root or the setting that names it") from None
    except OSError as problem:
        raise DataError(f"{path}: {what} cannot be read ({problem.strerror}); correct its permissions") from None
    except ValueError as problem:
        raise DataError(f"{path}: {what} is no valid JSON ({problem}); correct it") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: {what} must be a JSON object, not a {type(content).__name__}; correct it")
    return content


def label_names(listing: Path, labels: object) -> dict[int, str]:
    """Label value to name, from {"0": "background"} or {"background": 0}.

    Raises:
        DataError: for anything else, such as nnU-Net's regions (lists of values).
    """
    if not isinstance(labels, dict) or not labels:
        raise DataError(f'{listing}: "labels" must map values to names; correct it or set data.classes')
    try:
        return {int(value): str(name) for value, name in labels.items()}
    except ValueError:
        pass
    if not all(isinstance(value, int | str) for value in labels.values()):
        raise DataError(f'{listing}: "labels" holds regions made of several values; name single values in data.classes')
    try:
        return {int(value): str(name) for name, value in labels.items()}
    except ValueError:
        raise DataError(f'{listing}: "labels" has neither numbers as keys nor as values; correct it') from None
