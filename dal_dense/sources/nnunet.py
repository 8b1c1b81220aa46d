"""nnU-Net v2 raw folders: `imagesTr/CASE_0000.nii.gz` a channel, `labelsTr/CASE.nii.gz`.

Isensee et al., "nnU-Net", Nature Methods 18:203-211 (2021); layout of version 2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dal_dense.config import DataConfig
from dal_dense.errors import DataError
from dal_dense.sources.base import IMAGES, Entry, Listing, Present, image_id, inside, label_names, read_json, walk


def listing(data: DataConfig, root: Path) -> Listing:
    """Cases of imagesTr (split train) and imagesTs (split test); a case without all channels is missing.

    Raises:
        DataError: if dataset.json lacks what nnU-Net requires, or its file type is not read here.
    """
    file = root / (data.listing or "dataset.json")
    content = read_json(file, "the listing")
    ending, channels = content.get("file_ending"), content.get("channel_names")
    if not isinstance(ending, str) or not isinstance(channels, dict) or "labels" not in content:
        raise DataError(f"{file}: needs channel_names, labels and file_ending (nnU-Net v2); convert an older data set")
    if ending.lower() not in IMAGES:
        raise DataError(f"{file}: file_ending {ending!r} is not read here; convert to one of {', '.join(IMAGES)}")
    labels = label_names(file, content["labels"])
    if isinstance(content.get("dataset"), dict):
        entries, missing = _named(content["dataset"], file, root)
        return Listing(entries, labels, missing)
    entries, missing = [], {}
    for split, images, masks in (("train", "imagesTr", "labelsTr"), ("test", "imagesTs", "labelsTs")):
        if split == "train" or (file.parent / images).is_dir():
            cases = _cases(file.parent / images, ending)
            for entry, absent in _entries(cases, split, file.parent / masks, ending, len(channels)):
                if absent is None:
                    entries.append(entry)
                else:
                    missing[entry.id] = absent
    return Listing(entries, labels, missing)


def _cases(folder: Path, ending: str) -> dict[str, dict[int, Path]]:
    """Case name to its channel files."""
    name = re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}")
    cases: dict[str, dict[int, Path]] = {}
    _, files = next(walk(folder))
    for file in files:
        found = name.fullmatch(file)
        if found:
            cases.setdefault(found[1], {})[int(found[2])] = folder / file
    return cases


def _entries(
    cases: Mapping[str, Mapping[int, Path]], split: str, masks: Path, ending: str, channels: int
) -> Iterator[tuple[Entry, str | None]]:
    """Each case, with the reason if it cannot be used."""
    present = Present()
    for case, files in cases.items():
        mask = masks / f"{case}{ending}"
        paths = tuple(files[c] for c in sorted(files))
        entry = Entry(image_id(case), paths, mask if present(mask) else None, split)
        wanted = set(range(channels))
        reason = None
        if set(files) != wanted:
            reason = f"{paths[0].parent / case}: has channels {sorted(files)}, needs {sorted(wanted)}; add the rest"
        yield entry, reason


def _named(dataset: Mapping[str, Any], file: Path, root: Path) -> tuple[list[Entry], dict[str, str]]:
    """The json's own `dataset` of {case: {images, label}}, which replaces the folders."""
    present, entries, missing = Present(), [], {}
    for case, item in dataset.items():
        if not isinstance(item, dict) or not isinstance(item.get("images"), list) or not item["images"]:
            raise DataError(f'{file}: case {case!r} in "dataset" needs a list "images"; correct it')
        paths = tuple(inside(root, file.parent, i, file) for i in item["images"])
        mask = inside(root, file.parent, item["label"], file) if item.get("label") else None
        absent = [p for p in (*paths, mask) if p is not None and not present(p)]
        if absent:
            missing[image_id(case)] = f"{absent[0]}: listed in {file.name} but not there; restore it or correct it"
        else:
            entries.append(Entry(image_id(case), paths, mask, "train"))
    return entries, missing
