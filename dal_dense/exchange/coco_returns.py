"""A COCO json that came back, drawn into label arrays. Nothing in it is trusted.

An image counts only once it is reviewed: its record says `"reviewed": true`, or `reviewed.txt` names
its region or frame. So a crop that was looked at and left empty is a label, and a proposal that nobody
looked at is not. Where annotations overlap, the smaller lies on top (ties: the later in the file).
Ground without annotation is background; in a pool without a background class it stays unlabelled.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8
from pycocotools import mask as rle
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dal_dense.errors import LabelError
from dal_dense.exchange.asked import Asked, Returned
from dal_dense.exchange.coco import IGNORE_NAME, QUERY_NAME
from dal_dense.query import SidecarRegion
from dal_dense.regions import slices


class _Lenient(BaseModel):
    """Tools add fields of their own; those we read must be of their type."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


_Entry = TypeVar("_Entry", bound=_Lenient)


class _Image(_Lenient):
    id: int
    file_name: str
    width: int
    height: int
    reviewed: bool | None = None


class _Category(_Lenient):
    id: int
    name: str


class _Runs(_Lenient):
    size: list[int] = Field(min_length=2, max_length=2)
    counts: list[int] | str


class _Annotation(_Lenient):
    id: int | None = None
    image_id: int
    category_id: int
    segmentation: list[list[float]] | _Runs | None = None
    attributes: Any = None


@dataclass(frozen=True)
class _Sheet:
    """One image record that was asked, with what it may answer."""

    image: _Image
    entries: list[SidecarRegion]
    is_crop: bool


def read_document(path: Path, asked: Asked, file: str) -> tuple[list[Returned], list[str]]:
    """Every reviewed region of one COCO json; what cannot be taken is told and hides nothing else.

    Args:
        path: the file.
        asked: what was asked.
        file: how messages name it.

    Raises:
        LabelError: if the file as a whole is no COCO json.
    """
    document = _parsed(path, file)
    problems: list[str] = []
    images = _records(_Image, document["images"], f"{file}: images", problems)
    values = _values(_records(_Category, document["categories"], f"{file}: categories", problems), asked)
    drawn, broken = _by_image(document["annotations"], file, problems)
    found: list[Returned] = []
    waiting: list[str] = []
    for image in images:
        try:
            sheet = _sheet(image, asked, file)
            annotations = drawn.get(image.id, [])
            entries = _reviewed(sheet, annotations, values, asked, file)
            waiting += [] if entries else [image.file_name]
            if entries and image.id in broken:
                raise LabelError(f"{file}: image {image.file_name!r} is left open, for an annotation on it is damaged")
            if entries:
                found += _labels(sheet, entries, annotations, values, asked, file)
        except LabelError as error:
            problems.append(str(error))
    if waiting:
        problems.append(_not_reviewed(waiting, file))
    return found, problems


def _parsed(path: Path, file: str) -> dict[str, list[Any]]:
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise LabelError(f"{file}: not a json file ({error}); export it again") from error
    parts = ("images", "annotations", "categories")
    if not isinstance(document, dict) or not all(isinstance(document.get(p), list) for p in parts):
        raise LabelError(f"{file}: no COCO json; expected the lists {', '.join(parts)}")
    for part in ("images", "categories"):
        ids = [item["id"] for item in document[part] if isinstance(item, dict) and isinstance(item.get("id"), int)]
        if len(ids) != len(set(ids)):
            raise LabelError(f"{file}: an id occurs twice in {part}, so annotations are unclear; export it again")
    return document


def _records(kind: type[_Entry], items: list[Any], where: str, problems: list[str]) -> list[_Entry]:
    found = []
    for number, item in enumerate(items):
        try:
            found.append(kind.model_validate(item))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            problems.append(f"{where}[{number}].{field}: {first['msg']}; this entry is left out")
    return found


def _values(categories: list[_Category], asked: Asked) -> dict[int, int | str]:
    """Category id to class number, by NAME: tools renumber. Unknown names stay text."""
    known: dict[str, int | str] = {name: value for value, name in asked.classes.items()}
    known |= {IGNORE_NAME: asked.ignore, QUERY_NAME: QUERY_NAME}
    return {c.id: known.get(c.name.strip(), f"category {c.name!r}") for c in categories}


def _by_image(items: list[Any], file: str, problems: list[str]) -> tuple[dict[int, list[_Annotation]], set[int]]:
    """Good annotations by image, and the images that carry a damaged one: these must not be taken."""
    drawn: dict[int, list[_Annotation]] = {}
    broken: set[int] = set()
    for number, item in enumerate(items):
        before = len(problems)
        good = _records(_Annotation, [item], f"{file}: annotation {number}", problems)
        if len(problems) > before and isinstance(item, dict) and isinstance(item.get("image_id"), int):
            broken.add(item["image_id"])
        for annotation in good:
            drawn.setdefault(annotation.image_id, []).append(annotation)
    return drawn, broken


def _sheet(image: _Image, asked: Asked, file: str) -> _Sheet:
    """Which regions an image record stands for. Its name is only compared, never opened."""
    path = PurePosixPath(image.file_name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in image.file_name:
        raise LabelError(
            f"{file}: file_name {image.file_name!r} leads out of the folder; expected the name the image was sent with"
        )
    entries, is_crop = asked.named(path.stem, file)
    if len(entries[0].source.shape) != 2:
        raise LabelError(f"{file}: {path.stem} belongs to a volume; return a NIfTI label")
    rows, columns = entries[0].region.shape if is_crop else entries[0].source.shape
    if (image.height, image.width) != (rows, columns):
        raise LabelError(
            f"{file}: image {path.stem} is {image.width} x {image.height}; "
            f"expected {columns} x {rows} (width x height), as it was sent"
        )
    return _Sheet(image, entries, is_crop)


def _reviewed(
    sheet: _Sheet, annotations: list[_Annotation], values: dict[int, int | str], asked: Asked, file: str
) -> list[SidecarRegion]:
    """The regions of this image that a person has looked at."""
    named = [e for e in sheet.entries if e.region.id in asked.marks.names]
    whole = sheet.image.reviewed is True or asked.reviewed(sheet.entries[0].region.image_id, file)
    if sheet.is_crop or not whole:
        return sheet.entries if whole else named
    outlined = {_query_id(a) for a in annotations if values.get(a.category_id) == QUERY_NAME}
    return [e for e in sheet.entries if e.region.id in outlined] or asked.finished(sheet.entries, file, told=True)


def _query_id(annotation: _Annotation) -> str | None:
    attributes = annotation.attributes
    found = attributes.get("query_id") if isinstance(attributes, dict) else None
    return found if isinstance(found, str) else None


def _labels(
    sheet: _Sheet,
    entries: list[SidecarRegion],
    annotations: list[_Annotation],
    values: dict[int, int | str],
    asked: Asked,
    file: str,
) -> list[Returned]:
    shape = (sheet.image.height, sheet.image.width)
    empty = asked.ignore if asked.background is None else asked.background
    label = np.full(shape, empty, np.uint8)
    layers: list[tuple[int, int, list[int]]] = []  # area, class, run lengths: masks of a whole frame would not fit
    for annotation in annotations:
        value = values.get(annotation.category_id, f"category id {annotation.category_id}")
        if value == QUERY_NAME:
            continue
        where = f"{file}: {sheet.image.file_name!r}, annotation {annotation.id}"
        if isinstance(value, str):
            names = ", ".join([*asked.classes.values(), IGNORE_NAME])
            raise LabelError(f"{where}: {value} is unknown; expected {names}")
        counts = _run_lengths(annotation.segmentation, shape, where)
        layers.append((sum(counts[1::2]), value, counts))
    for _, value, counts in sorted(layers, key=lambda layer: -layer[0]):
        # not by pycocotools: it leaves memory unset where run lengths end too early
        label[np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(shape, order="F")] = value
    return [Returned(e.region.id, _cut(label, sheet, e), None, file) for e in entries]


def _cut(label: UInt8[np.ndarray, "h w"], sheet: _Sheet, entry: SidecarRegion) -> UInt8[np.ndarray, "r c"]:
    return label if sheet.is_crop else np.ascontiguousarray(label[slices(entry.region.box)])


def _run_lengths(drawing: list[list[float]] | _Runs | None, shape: tuple[int, int], where: str) -> list[int]:
    """Polygons or a mask of any spelling as checked run lengths."""
    if isinstance(drawing, _Runs):
        return _checked(drawing, shape, where)
    if not drawing:
        raise LabelError(f"{where}: has a box but no outline; draw it as polygon or mask")
    limit = 2 * max(shape)  # a rasteriser's memory grows with the coordinates
    for polygon in drawing:
        if len(polygon) < 6 or len(polygon) % 2:
            raise LabelError(f"{where}: a polygon needs at least 3 points, x and y each; it has {len(polygon)} numbers")
        if max(map(abs, polygon)) > limit:
            raise LabelError(f"{where}: a polygon reaches {max(map(abs, polygon)):g}, far outside the image")
    merged = rle.merge(rle.frPyObjects(drawing, *shape))
    return _checked(_Runs(size=list(shape), counts=merged["counts"].decode("ascii")), shape, where)


def _checked(runs: _Runs, shape: tuple[int, int], where: str) -> list[int]:
    if tuple(runs.size) != shape:
        raise LabelError(f"{where}: mask of size {runs.size}, expected {list(shape)} (rows, columns)")
    counts = _unpacked(runs.counts, where) if isinstance(runs.counts, str) else runs.counts
    if min(counts, default=-1) < 0 or sum(counts) != shape[0] * shape[1]:
        raise LabelError(f"{where}: run lengths sum to {sum(counts)}, expected {shape[0] * shape[1]}; export it again")
    return counts


def _unpacked(text: str, where: str) -> list[int]:
    """COCO's packed run lengths: 5 bits a character, low bits first, from the fourth on as differences."""
    counts: list[int] = []
    value = place = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or place > 8:
            raise LabelError(f"{where}: run lengths are damaged; export the mask again")
        value |= (bits & 31) << 5 * place
        place += 1
        if not bits & 32:
            if bits & 16:
                value -= 1 << 5 * place
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = place = 0
    if place:
        raise LabelError(f"{where}: run lengths break off; export the mask again")
    return counts


def _not_reviewed(names: list[str], file: str) -> str:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return (
        f'{file}: not marked as reviewed, so left open: {shown}. Set "reviewed": true on these images, or name '
        "them in reviewed.txt beside the file, one id a line (* for all; CVAT drops the mark from its exports)"
    )
