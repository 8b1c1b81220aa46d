"""Read whatever annotators put into the folder of returns. One bad file never hides the good ones."""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dal_dense.errors import LabelError
from dal_dense.exchange import boxes_in, coco_returns, frames, neighbours, nifti, side_files
from dal_dense.exchange.asked import SIDECAR, Asked, Marks, Returned, load_sidecar
from dal_dense.exchange.inbox import owner_of

HINTS = {
    ".nrrd": "save the segmentation as NIfTI (.nii.gz)",
    ".mha": "save the label as NIfTI (.nii.gz)",
    ".mgz": "save the label as NIfTI (.nii.gz)",
    ".dcm": "save the segmentation as NIfTI (.nii.gz)",
    ".jpg": "JPEG changes class numbers; save the mask as PNG",
    ".jpeg": "JPEG changes class numbers; save the mask as PNG",
    ".zip": "unpack it here",
    ".xml": "export as COCO 1.0",
}
_ROUNDING = 0.02
"""Pixels by which a tool may move a corner when it writes it."""
_BINS = ("__MACOSX", "$RECYCLE.BIN", "#recycle", "@eaDir")
"""Folders in which systems keep deleted files, thumbnails and the like."""
_SENT = ("images", "proposals", "scans", "frames", "region_masks")
"""Folders of a batch; nothing in them is an answer."""


def read_returns(
    batch_dir: Path,
    returns_dir: Path,
    *,
    earlier: Sequence[Path] = (),
    answered: Collection[str] = (),
    min_visible: float = 0.25,
) -> tuple[list[Returned], list[str]]:
    """All labels in a folder that answer a batch, and what could not be taken, a line each.

    Only the sidecars of the batches and files inside `returns_dir` are read; links that leave it are
    refused. Two different labels for one region that waits: neither is taken.

    Args:
        batch_dir: the batch whose `query.json` says what was asked.
        returns_dir: folder of labels, searched with its subfolders; may not be there yet.
        earlier: batches of earlier rounds that share the folder, oldest first.
        answered: regions that have a label already; whatever differs is returned, so that each is compared with it.
        min_visible: boxes: objects cut by a region's border to less than this share are ignored.

    Returns:
        Labels in the order the regions were asked, and problems in plain words.

    Raises:
        DataError: if a sidecar is missing or damaged.
    """
    problems: list[str] = []
    sidecars = [load_sidecar(d) for d in (*earlier, batch_dir)]
    files = list(_files(returns_dir, sidecars[-1].run, problems))
    asked = Asked.of(sidecars, _marks(files, len(sidecars) > 1, problems), min_visible)
    found: list[Returned] = []
    times: dict[str, float] = {}
    for path, file in files:
        try:
            found += _read(path, file, asked, times, problems)
        except LabelError as error:
            problems.append(str(error))
        except csv.Error as error:
            problems.append(f"{file}: not a table that can be read ({error}); save it again as csv")
        except OSError as error:
            problems.append(f"{file}: cannot be read ({error.strerror or error}); check its permissions")
    problems += _bad_names(asked, times)
    settled = _settled(found, times, asked, answered, problems)
    return neighbours.told_apart(settled, asked) if asked.boxes else settled, problems


def _files(root: Path, run_id: str, problems: list[str]) -> Iterator[tuple[Path, str]]:
    """Plain files inside the folder, in order of name, with the name to show."""
    inside = root.resolve()

    def closed(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            problems.append(
                f"{_shown(Path(error.filename), root)}: cannot be looked into ({error.strerror}); check its permissions"
            )

    for place, subfolders, names in os.walk(root, onerror=closed):
        folder = Path(place)
        if folder != root and owner_of(folder) not in ("", run_id):
            problems.append(f"{_shown(folder, root)}: takes the labels of another run, so it is not looked into")
            subfolders.clear()
            continue
        links = [s for s in subfolders if (folder / s).is_symlink()]
        subfolders[:] = _searched(folder, root, subfolders, SIDECAR in names, problems)
        for name in sorted(names + links):
            path = folder / name
            file = _shown(path, root)
            if name.startswith(".") or name == SIDECAR:
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                problems.append(f"{file}: a link that leads out of the folder of returns; copy the file itself here")
            elif path.is_file():
                yield path, file
            else:
                problems.append(f"{file}: no plain file; copy the file itself here")


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _searched(folder: Path, root: Path, subfolders: list[str], is_batch: bool, problems: list[str]) -> list[str]:
    """Subfolders to look into: no bins of a system, and none of a batch that was sent back as a whole."""
    wanted = []
    for name in sorted(subfolders):
        file = _shown(folder / name, root)
        if name in _SENT if is_batch else name == "proposals":
            problems.append(
                f"{file}: holds what was sent, so it is not read, lest an untouched proposal becomes a label; "
                "put finished labels elsewhere in the folder of returns"
            )
        elif name.lower() in (side_files.REVIEWED, side_files.TIMES):
            problems.append(f"{file}: a folder; expected a text file")
        elif not name.startswith(".") and name not in _BINS:
            wanted.append(name)
    return wanted


def _marks(files: Sequence[tuple[Path, str]], several: bool, problems: list[str]) -> Marks:
    """All that is marked as reviewed. A `*` at the top of a folder that rounds share would mark future rounds too."""
    names: set[str] = set()
    folders: set[str] = set()
    for path, file in files:
        if path.name.lower() == side_files.REVIEWED:
            try:
                marks = side_files.read_marks(path, file)
            except OSError as error:
                problems.append(f"{file}: cannot be read ({error.strerror or error}); check its permissions")
                continue
            names |= marks.names
            folders |= marks.folders
    if several and "" in folders:
        folders.remove("")
        problems.append(
            f"'*' in {side_files.REVIEWED} is unclear, for several rounds share this folder; name the finished "
            "regions, or put each export into a subfolder with its own file"
        )
    return Marks(frozenset(names), frozenset(folders))


def _bad_names(asked: Asked, times: Iterable[str]) -> Iterator[str]:
    """What reviewed.txt and times.csv name and we cannot use."""
    for name in sorted(asked.marks.names - asked.regions.keys()):
        rounds = asked.asking(name)
        if not rounds:
            yield f"{name!r} in {side_files.REVIEWED} was not asked"
        elif len(rounds) > 1:
            said = f"rounds {', '.join(map(str, rounds))} ask this image"
            yield f"{name!r} in {side_files.REVIEWED} is unclear, for {said}; name the finished regions"
    for name in sorted(set(times) - asked.regions.keys()):
        if name in asked.images:
            yield f"{name!r} in {side_files.TIMES} is an image, so its time is not charged; log each region's time"
        else:
            yield f"{name!r} in {side_files.TIMES} was not asked"


def _read(path: Path, file: str, asked: Asked, times: dict[str, float], problems: list[str]) -> list[Returned]:
    """One file by its kind; times and problems are added to."""
    lower = path.name.lower()
    if asked.boxes and lower.endswith((*nifti.SUFFIXES, ".png")):
        raise LabelError(f"{file}: masks are no answer to a detection batch; return boxes as COCO json")
    for suffix in nifti.SUFFIXES:
        if lower.endswith(suffix):
            return nifti.read_label(path, path.name[: -len(suffix)], asked, file)
    if lower.endswith(".png"):
        return frames.read_index(path, path.stem, asked, file)
    if lower == side_files.TIMES:
        read, bad = side_files.read_times(path, file)
        problems += bad
        for name, seconds in read.items():
            problems += side_files.take_time(times, name, seconds, file)
    elif lower.endswith(".json"):
        lead = side_files.lead_times(path)
        if lead is None:
            read_document = boxes_in.read_document if asked.boxes else coco_returns.read_document
            found, bad = read_document(path, asked, file)
            problems += bad
            return [replace(item, starred=asked.marks.cover(file)) for item in found]
        for name, seconds in lead:
            if name in asked.regions:
                problems += side_files.take_time(times, name, seconds, file)
        if whole := sorted({name for name, _ in lead} & asked.images.keys() - asked.regions.keys()):
            shown = ", ".join(whole[:3]) + (f" and {len(whole) - 3} more" if len(whole) > 3 else "")
            problems.append(f"{file}: lead times of whole images are not charged ({shown}); log them by region")
    elif not lower.endswith(".txt"):
        hint = HINTS.get(path.suffix.lower(), "expected NIfTI, PNG of class numbers or COCO json")
        raise LabelError(f"{file}: not a label that can be read; {hint}")
    return []


def _settled(
    found: list[Returned], times: dict[str, float], asked: Asked, answered: Collection[str], problems: list[str]
) -> list[Returned]:
    """One label a region, its time beside it; where two files differ, none, or all if the region is answered."""
    by_region: dict[str, list[Returned]] = {}
    for item in found:
        by_region.setdefault(item.region_id, []).append(item)
    settled = []
    for name in asked.regions:
        items = by_region.get(name, [])
        others = [i for i in items[1:] if not _same(i.label, items[0].label)]
        if others and name not in answered:
            problems.append(
                f"region {name}: {items[0].source} and {others[0].source} hold different labels, "
                "so none is taken; keep one"
            )
        else:
            settled += [replace(item, seconds=times.get(name)) for item in [*items[:1], *others]]
    return settled


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Is this the same label? Tools round boxes, to a hundredth of a pixel or finer."""
    if one.dtype == np.uint8:
        return np.array_equal(one, other)
    return one.shape == other.shape and np.allclose(one, other, rtol=0, atol=_ROUNDING)
