"""Read whatever annotators put into the folder of returns. One bad file never hides the good ones."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dal_dense.errors import LabelError
from dal_dense.exchange import coco_returns, frames, nifti, side_files
from dal_dense.exchange.asked import Asked, Marks, Returned, load_sidecar

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


def read_returns(
    batch_dir: Path, returns_dir: Path, *, earlier: Sequence[Path] = ()
) -> tuple[list[Returned], list[str]]:
    """All labels in a folder that answer a batch, and what could not be taken, a line each.

    Only the sidecars of the batches and files inside `returns_dir` are read; links that leave it are
    refused. Two different labels for one region: neither is taken.

    Args:
        batch_dir: the batch whose `query.json` says what was asked.
        returns_dir: folder of labels, searched with its subfolders; may not be there yet.
        earlier: batches of earlier rounds that share the folder, oldest first.

    Returns:
        Labels in the order the regions were asked, and problems in plain words.

    Raises:
        DataError: if a sidecar is missing or damaged.
    """
    problems: list[str] = []
    files = list(_files(returns_dir, problems))
    marks = _marks([path for path, _ in files if path.name == side_files.REVIEWED])
    asked = Asked.of([load_sidecar(d) for d in (*earlier, batch_dir)], marks)
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
    problems += [f"{n!r} in {side_files.REVIEWED} was not asked" for n in sorted(_strangers(marks.names, asked))]
    problems += [f"{n!r} in {side_files.TIMES} was not asked" for n in sorted(_strangers(times.keys(), asked))]
    return _settled(found, times, asked, problems), problems


def _files(root: Path, problems: list[str]) -> Iterator[tuple[Path, str]]:
    """Plain files inside the folder, in order of name, with the name to show."""
    inside = root.resolve()
    for folder, subfolders, names in os.walk(root):
        subfolders.sort()
        for name in sorted(names + [s for s in subfolders if Path(folder, s).is_symlink()]):
            path = Path(folder, name)
            file = path.relative_to(root).as_posix()
            if name.startswith(".") or "__MACOSX" in path.parts:
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                problems.append(f"{file}: a link that leads out of the folder of returns; copy the file itself here")
            elif path.is_file():
                yield path, file
            else:
                problems.append(f"{file}: no plain file; copy the file itself here")


def _marks(paths: list[Path]) -> Marks:
    every = [side_files.read_marks(p) for p in paths]
    return Marks(frozenset().union(*(m.names for m in every)), any(m.everything for m in every))


def _read(path: Path, file: str, asked: Asked, times: dict[str, float], problems: list[str]) -> list[Returned]:
    """One file by its kind; times and problems are added to."""
    lower = path.name.lower()
    for suffix in nifti.SUFFIXES:
        if lower.endswith(suffix):
            return nifti.read_label(path, path.name[: -len(suffix)], asked, file)
    if lower.endswith(".png"):
        return frames.read_index(path, path.stem, asked, file)
    if lower == side_files.TIMES:
        read, bad = side_files.read_times(path, file)
        times |= read
        problems += bad
    elif lower.endswith(".json"):
        lead = side_files.lead_times(path)
        if lead is None:
            found, bad = coco_returns.read_document(path, asked, file)
            problems += bad
            return found
        times |= {name: s for name, s in lead.items() if name in asked.regions}
    elif not lower.endswith(".txt"):
        hint = HINTS.get(path.suffix.lower(), "expected NIfTI, PNG of class numbers or COCO json")
        raise LabelError(f"{file}: not a label that can be read; {hint}")
    return []


def _strangers(names: Iterable[str], asked: Asked) -> set[str]:
    known = {e.region.image_id for e in asked.regions.values()} | asked.regions.keys()
    return set(names) - known


def _settled(found: list[Returned], times: dict[str, float], asked: Asked, problems: list[str]) -> list[Returned]:
    """One label a region, its time beside it; where two files differ, none."""
    by_region: dict[str, list[Returned]] = {}
    for item in found:
        by_region.setdefault(item.region_id, []).append(item)
    settled = []
    for name in asked.regions:
        items = by_region.get(name, [])
        others = [i.source for i in items[1:] if not np.array_equal(i.label, items[0].label)]
        if others:
            problems.append(
                f"region {name}: {items[0].source} and {others[0]} hold different labels, so none is taken; keep one"
            )
        elif items:
            settled.append(replace(items[0], seconds=times.get(name)))
    return settled
