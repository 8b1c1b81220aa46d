"""COCO json with images; masks are rasterised from its annotations when they are read.

Lin et al., "Microsoft COCO", ECCV 2014; format of the COCO data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dal_dense.config import DataConfig
from dal_dense.errors import ConfigError, DataError
from dal_dense.sources.base import Entry, Listing, Present, image_id, inside, read_json


def listing(data: DataConfig, root: Path) -> Listing:
    """Images of the json. An image has a mask if it has annotations, or says `"reviewed": true`.

    Raises:
        ConfigError: if data.listing is not set.
        DataError: if the json is no COCO, or its parts do not fit each other.
    """
    if data.listing is None:
        raise ConfigError("data.listing: null; format coco needs the json file, relative to data_root")
    file = root / data.listing
    content = read_json(file, "the listing")
    images, categories = content.get("images"), content.get("categories")
    if not isinstance(images, list) or not isinstance(categories, list) or not categories:
        raise DataError(f'{file}: needs the lists "images" and "categories" (COCO); correct it')
    labels = {int(c["id"]): str(c["name"]) for c in categories}
    by_image = _annotations(content.get("annotations", []), images, labels, file)
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
        known = image.get("reviewed", bool(own))
        split = image.get("split")
        entries.append(Entry(name, (path,), file if known else None, None if split is None else str(split), image))
        if known:
            annotations[name] = tuple(own)
    return Listing(entries, labels, missing, annotations, "coco")


def _annotations(
    annotations: list[Mapping[str, Any]], images: list[Mapping[str, Any]], labels: Mapping[int, str], file: Path
) -> dict[Any, list[Mapping[str, Any]]]:
    """Image id to its annotations.

    Raises:
        DataError: for an id that is missing or there twice, an unlisted image or category.
    """
    by_image: dict[Any, list[Mapping[str, Any]]] = {}
    for image in images:
        key = image.get("id")
        if key is None or key in by_image:
            what = f"image id {key!r} ({image.get('file_name')})"
            raise DataError(f"{file}: {what} is missing or there twice; correct it")
        by_image[key] = []
    for annotation in annotations:
        what = f"{file}: annotation {annotation.get('id', '?')}"
        if annotation.get("image_id") not in by_image:
            raise DataError(f"{what} belongs to image {annotation.get('image_id')!r}, which is not listed; correct it")
        if annotation.get("category_id") not in labels:
            raise DataError(f"{what} is of category {annotation.get('category_id')!r}, which is not listed; correct it")
        by_image[annotation["image_id"]].append(annotation)
    return by_image
