"""Folders of images and index masks, flat or nested: NIfTI, PNG or JPEG (CamVid, Cityscapes, own data)."""

from __future__ import annotations

from pathlib import Path

from dal_dense.config import DataConfig
from dal_dense.errors import DataError
from dal_dense.sources.base import IMAGES, Entry, Listing, image_id, inside, walk, without_ending


def listing(data: DataConfig, root: Path) -> Listing:
    """Every image below `data.images`, with the mask of the same place and name below `data.masks`.

    If `data.images` has a subfolder named as `data.train`, its subfolders are the splits.

    Raises:
        DataError: if a folder is missing, or no mask belongs to any image.
    """
    images = inside(root, root, data.images, Path("data.images"))
    masks = None if data.masks is None else inside(root, root, data.masks, Path("data.masks"))
    known = {} if masks is None else _masks(masks, data.mask_suffix, skip=(images,))
    splits = (images / data.train).is_dir()
    entries: list[Entry] = []
    for relative, names in walk(images, skip=() if masks is None else (masks,)):
        split = relative.split("/")[0] if splits and relative else None
        if splits and split is None:
            continue
        base = images / relative
        for name in names:
            stem = _stem(name, data.image_suffix)
            if stem is None or (masks == images and stem.endswith(data.mask_suffix)):
                continue
            key = relative + stem
            entries.append(Entry(image_id(key), (base / name,), known.get(key), split))
    if known and entries and not any(e.mask for e in entries):
        raise DataError(
            f"{masks}: none of its {len(known)} masks belongs to an image: mask {next(iter(known))!r}, image "
            f"{_name(entries[0], images)!r}; correct data.mask_suffix or data.image_suffix, or set data.masks to null"
        )
    return Listing(entries)


def _name(entry: Entry, images: Path) -> str:
    return entry.paths[0].relative_to(images).as_posix()


def _stem(name: str, suffix: str) -> str | None:
    """The name without extension and suffix; None if it is no image, or lacks the suffix."""
    stem = without_ending(name, IMAGES)
    if stem == name or not stem.endswith(suffix):
        return None
    return stem.removesuffix(suffix)


def _masks(folder: Path, suffix: str, skip: tuple[Path, ...]) -> dict[str, Path]:
    """Place and name without suffix, to mask.

    Raises:
        DataError: if two masks belong to one image.
    """
    found: dict[str, Path] = {}
    for relative, names in walk(folder, skip=skip):
        base = folder / relative
        for name in names:
            stem = _stem(name, suffix)
            if stem is None:
                continue
            if relative + stem in found:
                first = found[relative + stem].name
                raise DataError(f"{base / name}: a second mask for {stem!r}, besides {first}; keep one")
            found[relative + stem] = base / name
    return found
