"""COCO json with images; masks are rasterised from its annotations when they are read.

Lin et al., "Microsoft COCO", ECCV 2014; format of the COCO data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dal_dense.config import DataConfig
from dal_dense.errors import DataError
from dal_dense.sources.base import Entry, Listing, Present, image_id, inside, read_json


def listing(data: DataConfig, root: Path) -> Listing:
    """Images of the json. An image has a mask if it has annotations, or says `"reviewed": true`.

    Raises:
        DataError: if the json is no COCO, or its parts do not fit each other.
    """
    # the config demands a listing of coco; the types know nothing of that
    first = _one(data, root, root / (data.listing or ""), None if data.test_listing is None else data.train)
    if data.test_listing is None:
        return first
    second = _one(data, root, root / data.test_listing, data.test)
    if first.labels != second.labels:
        raise DataError(
            f"{root / data.test_listing}: its categories {second.labels} differ from those of {data.listing}, "
            f"{first.labels}; give both the same"
        )
    return Listing(
        [*first.entries, *second.entries],
        first.labels,
        {**first.missing, **second.missing},
        {**first.annotations, **second.annotations},
        "coco",
    )


def _one(data: DataConfig, root: Path, file: Path, split_name: str | None) -> Listing:
    """One json; `split_name` is the split of all its images, None leaves it to the json."""
    content = read_json(file, "the listing")
    images, categories = content.get("images"), content.get("categories")
    if not isinstance(images, list) or not isinstance(categories, list) or not categories:
        raise DataError(f'{file}: needs the lists "images" and "categories" (COCO); correct it')
    labels = _categories(categories, file)
    by_image = _annotations(content.get("annotations") or [], images, labels, file)
    base = inside(root, root, data.images, Path("data.images"))
    present = Present()
    entries, missing, annotations = [], {}, {}
    for image in images:
        path = inside(root, base, image.get("file_name"), file)
        near = base if path.is_relative_to(base) else root
        name = image_id(path.relative_to(near).as_posix())
        if not present(path):
            missing[name] = f"{path}: listed in {file.name} but not there; restore it or correct the listing"
            continue
        own = by_image[image["id"]]
        known = image.get("reviewed", bool(own) or data.unannotated == "empty")
        split = split_name or image.get("split")
        entries.append(Entry(name, (path,), file if known else None, None if split is None else str(split), image))
        if known:
            annotations[name] = tuple(own)
    return Listing(entries, labels, missing, annotations, "coco")


def _categories(categories: list[Mapping[str, Any]], file: Path) -> dict[int, str]:
    labels: dict[int, str] = {}
    for category in categories:
        name = category.get("name")
        number = _whole(category.get("id"), f"{file}: category {name!r}")
        if name is None or number in labels:
            raise DataError(f"{file}: category {number} ({name!r}) has no name or is there twice; correct it")
        labels[number] = str(name)
    return labels


def _annotations(
    annotations: list[Mapping[str, Any]], images: list[Mapping[str, Any]], labels: Mapping[int, str], file: Path
) -> dict[Any, list[Mapping[str, Any]]]:
    """Image id to its annotations.

    Raises:
        DataError: for an id that is missing or there twice, an unlisted image or category.
    """
    by_image: dict[Any, list[Mapping[str, Any]]] = {}
    for kind, items in (("images", images), ("annotations", annotations)):
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise DataError(f'{file}: "{kind}" must be a list of objects (COCO); correct it')
    for image in images:
        key = image.get("id")
        if not isinstance(key, int | str) or key in by_image:
            what = f"image id {key!r} ({image.get('file_name')})"
            raise DataError(f"{file}: {what} is missing or there twice; correct it")
        by_image[key] = []
    for annotation in annotations:
        what = f"{file}: annotation {annotation.get('id', '?')}"
        if not isinstance(annotation.get("image_id"), int | str) or annotation["image_id"] not in by_image:
            raise DataError(f"{what} belongs to image {annotation.get('image_id')!r}, which is not listed; correct it")
        category = annotation.get("category_id")
        if isinstance(category, str):
            annotation = {**annotation, "category_id": _whole(category, what)}
        if not isinstance(category, int | str) or annotation["category_id"] not in labels:
            raise DataError(f"{what} is of category {annotation.get('category_id')!r}, which is not listed; correct it")
        by_image[annotation["image_id"]].append(annotation)
    return by_image


def _whole(value: object, what: str) -> int:
    """A category id; text of digits is one too.

    Raises:
        DataError: for anything else.
    """
    if isinstance(value, str) and value.strip().isdigit():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"{what} has the id {value!r}; give a whole number")
    return value
