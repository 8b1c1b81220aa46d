"""Medical Segmentation Decathlon and MONAI: a `dataset.json` that lists images and labels.

Antonelli et al., "The Medical Segmentation Decathlon", Nature Communications 13:4128 (2022).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dal_dense.config import DataConfig
from dal_dense.errors import DataError
from dal_dense.sources.base import Entry, Listing, Present, image_id, inside, label_names, read_json

_IMAGE_FOLDER = re.compile(r"^images\w*/")


def listing(data: DataConfig, root: Path) -> Listing:
    """Entries of `training`, `test` and any other list of the json; files that are not there are missing.

    Raises:
        DataError: if the json cannot be used, or a path leads out of data_root.
    """
    file = root / (data.listing or "dataset.json")
    content = read_json(file, "the listing")
    present, entries, missing = Present(), [], {}
    if not isinstance(content.get("training"), list):
        raise DataError(f'{file}: there is no list "training"; see datasets/README.md for the layout')
    for key, items in content.items():
        if not isinstance(items, list) or not _lists_images(key, items):
            continue
        for item in items:
            entry = _entry(item, data.train if key == "training" and data.train == "train" else key, file, root)
            if entry is None:
                continue
            absent = [p for p in (*entry.paths, entry.mask) if p is not None and not present(p)]
            if absent:
                missing[entry.id] = f"{absent[0]}: listed in {file.name} but not there; restore or unlist it"
            else:
                entries.append(entry)
    labels = label_names(file, content["labels"]) if "labels" in content else None
    return Listing(entries, labels, missing)


def _lists_images(key: str, items: list[Any]) -> bool:
    return key in ("training", "test") or any(isinstance(i, dict) and "image" in i for i in items)


def _entry(item: object, split: str, file: Path, root: Path) -> Entry | None:
    """One line of the listing; None for what macOS left in the archive (`._name`)."""
    fields: Mapping[str, Any] = item if isinstance(item, dict) else {"image": item}
    images, label = fields.get("image"), fields.get("label")
    images = images if isinstance(images, list) and images else [images]
    if isinstance(label, list):
        if len(label) != 1:
            raise DataError(f"{file}: {images[0]!r} has {len(label)} labels; write them as one index mask")
        label = label[0]
    paths = tuple(inside(root, file.parent, i, file) for i in images)
    if paths[0].name.startswith("._"):
        return None
    mask = inside(root, file.parent, label, file) if label else None
    relative = paths[0].relative_to(file.parent) if paths[0].is_relative_to(file.parent) else paths[0].relative_to(root)
    return Entry(image_id(_IMAGE_FOLDER.sub("", relative.as_posix())), paths, mask, split, fields)
