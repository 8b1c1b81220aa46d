"""A COCO json that came back, up to its drawings: which images were asked, and which are reviewed. Nothing in it is
trusted.

An image counts only once it is reviewed: its record says `"reviewed": true`, or `reviewed.txt` names
its region or frame. So a crop that was looked at and left empty is a label, and a proposal that nobody
looked at is not. Ids may be whole numbers or text of digits ("17" is 17); any other id is told and left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from dal_dense.errors import LabelError
from dal_dense.exchange.asked import Asked, Returned
from dal_dense.exchange.coco import IGNORE_NAME, QUERY_NAME
from dal_dense.query import SidecarRegion

_MOST_DIGITS = 18
_SERVED = re.compile(r"^/data/(?:upload|local-files)/")
"""Where Label Studio's server says that an image lies."""


def _whole(value: object) -> object:
    """Text of digits as the number that it spells; all else unchanged."""
    plain = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _MOST_DIGITS
    return int(value) if plain else value  # type: ignore[call-overload]


Id = Annotated[int, BeforeValidator(_whole)]


class Lenient(BaseModel):
    """Tools add fields of their own; those we read must be of their type."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class CocoImage(Lenient):
    """One image record; Label Studio tells no size of an image on which nothing is drawn."""

    id: Id
    file_name: str
    width: int | None
    height: int | None
    reviewed: bool | None = None


class CocoCategory(Lenient):
    """One category record."""

    id: Id
    name: str


class Runs(Lenient):
    """A mask as run lengths."""

    size: list[int] = Field(min_length=2, max_length=2)
    counts: list[int] | str


class Drawn(Lenient):
    """What every annotation has."""

    id: Id | None = None
    image_id: Id
    category_id: Id
    segmentation: list[list[float]] | Runs | None = None
    attributes: Any = None

    @property
    def query_id(self) -> str | None:
        """The region it was sent for, if the tool kept that."""
        found = self.attributes.get("query_id") if isinstance(self.attributes, dict) else None
        return found if isinstance(found, str) else None


_Entry = TypeVar("_Entry", bound=Lenient)
_Drawn = TypeVar("_Drawn", bound=Drawn)
Values = dict[int, int | str]
"""Category id to class number, the ignore value, `QUERY_NAME`, or words for a name that is unknown."""


@dataclass(frozen=True)
class Sheet:
    """One image record that was asked, with what it may answer."""

    image: CocoImage
    entries: list[SidecarRegion]
    is_crop: bool
    shape: tuple[int, int]
    """Rows and columns."""

    def value(self, annotation: Drawn, values: Values, asked: Asked, where: str) -> int | None:
        """Class number or the ignore value of an annotation; None for our own mark of a region.

        Raises:
            LabelError: if its category is not known.
        """
        value = values.get(annotation.category_id, f"category id {annotation.category_id}")
        if value == QUERY_NAME:
            return None
        if isinstance(value, str):
            names = ", ".join([*asked.classes.values(), IGNORE_NAME])
            raise LabelError(f"{where}: {value} is unknown; expected {names}")
        return value


Answer = Callable[[Sheet, list[SidecarRegion], list[_Drawn], Values, Asked, str], list[Returned]]
"""Makes labels of the reviewed regions of one image from what is drawn on it."""


def read_sheets(
    path: Path, asked: Asked, file: str, kind: type[_Drawn], answer: Answer[_Drawn]
) -> tuple[list[Returned], list[str]]:
    """Every reviewed region of one COCO json; what cannot be taken is told and hides nothing else.

    Args:
        path: the file.
        asked: what was asked.
        file: how messages name it.
        kind: how its annotations are read.
        answer: makes labels of them.

    Raises:
        LabelError: if the file as a whole is no COCO json.
    """
    document = _parsed(path, file)
    problems: list[str] = []
    images = _records(CocoImage, document["images"], f"{file}: images", problems)
    values = _values(_records(CocoCategory, document["categories"], f"{file}: categories", problems), asked)
    drawn, broken = _by_image(document["annotations"], kind, file, problems)
    problems += _strays({*drawn, *broken} - set(_ids(document["images"])), file)
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
                found += answer(sheet, entries, annotations, values, asked, file)
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
        ids = _ids(document[part])
        if len(ids) != len(set(ids)):
            raise LabelError(f"{file}: an id occurs twice in {part}, so annotations are unclear; export it again")
    return document


def _ids(items: list[Any], field: str = "id") -> list[int]:
    """The ids that are whole numbers."""
    found = [_whole(item.get(field)) for item in items if isinstance(item, dict)]
    return [i for i in found if isinstance(i, int)]


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


def _values(categories: list[CocoCategory], asked: Asked) -> Values:
    """Category id to class number, by NAME: tools renumber. Unknown names stay text."""
    known: dict[str, int | str] = {name: value for value, name in asked.classes.items()}
    known |= {IGNORE_NAME: asked.ignore, QUERY_NAME: QUERY_NAME}
    return {c.id: known.get(c.name.strip(), f"category {c.name!r}") for c in categories}


def _by_image(
    items: list[Any], kind: type[_Drawn], file: str, problems: list[str]
) -> tuple[dict[int, list[_Drawn]], set[int]]:
    """Good annotations by image, and the images that carry a damaged one: these must not be taken."""
    drawn: dict[int, list[_Drawn]] = {}
    broken: set[int] = set()
    for number, item in enumerate(items):
        before = len(problems)
        good = _records(kind, [item], f"{file}: annotation {number}", problems)
        if len(problems) > before:
            broken.update(_ids([item], "image_id"))
        for annotation in good:
            drawn.setdefault(annotation.image_id, []).append(annotation)
    return drawn, broken


def _strays(images: set[int], file: str) -> list[str]:
    """What to tell of annotations on images that the file does not list."""
    if not images:
        return []
    shown = ", ".join(map(str, sorted(images)[:3])) + (f" and {len(images) - 3} more" if len(images) > 3 else "")
    return [f"{file}: annotations belong to images that it does not list (id {shown}); export it with all its images"]


def _sheet(image: CocoImage, asked: Asked, file: str) -> Sheet:
    """Which regions an image record stands for. Its name is only compared, never opened."""
    path = PurePosixPath(_SERVED.sub("", image.file_name).replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in image.file_name:
        raise LabelError(
            f"{file}: file_name {image.file_name!r} leads out of the folder; expected the name the image was sent with"
        )
    entries, is_crop = asked.named(path.stem, file)
    if len(entries[0].source.shape) != 2:
        raise LabelError(f"{file}: {path.stem} belongs to a volume; return a NIfTI label")
    (top, left), (bottom, right) = entries[0].window if is_crop else ((0, 0), entries[0].source.shape)
    rows, columns = bottom - top, right - left
    if (image.height, image.width) not in ((rows, columns), (None, None)):
        raise LabelError(
            f"{file}: image {path.stem} is {image.width} x {image.height}; "
            f"expected {columns} x {rows} (width x height), as it was sent"
        )
    return Sheet(image, entries, is_crop, (rows, columns))


def _reviewed(sheet: Sheet, annotations: list[_Drawn], values: Values, asked: Asked, file: str) -> list[SidecarRegion]:
    """The regions of this image that a person has looked at."""
    named = [e for e in sheet.entries if e.region.id in asked.marks.names]
    whole = sheet.image.reviewed is True or asked.reviewed(sheet.entries[0].region.image_id, file)
    if sheet.is_crop or not whole:
        return sheet.entries if whole else named
    outlined = {a.query_id for a in annotations if values.get(a.category_id) == QUERY_NAME}
    return [e for e in sheet.entries if e.region.id in outlined] or asked.finished(sheet.entries, file, told=True)


def _not_reviewed(names: list[str], file: str) -> str:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return (
        f'{file}: not marked as reviewed, so left open: {shown}. Set "reviewed": true on these images, or name '
        "them in reviewed.txt beside the file, one id a line (* for all; CVAT drops the mark from its exports)"
    )
