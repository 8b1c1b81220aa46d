"""Has an image still the shape that it was asked at? A run may find its data elsewhere (`data_root`).

A region is numbers in its image's own array, so it means nothing in an array of another shape. Other content of the
same shape is not noticed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dal_dense.errors import DataError
from dal_dense.images import read_header
from dal_dense.ledger import Ledger
from dal_dense.pool import ImageRecord, Pool
from dal_dense.query import Query
from dal_dense.report.words import count

EVENT = "shapes"
TOLD = 3
"""Images that are named before the others are only counted."""

Shape = tuple[int, ...]


def remember_shapes(ledger: Ledger, pool: Pool, query: Query) -> None:
    """Record the shapes of a query's images, before the query is recorded.

    The shape that an image was asked at stands. One that was recorded and then not asked is of a call that was cut
    off, and maybe of other data.
    """
    known = _recorded(ledger)
    names = sorted({r.image_id for r in query.regions} - (known.keys() & _reach(ledger).keys()))
    found = {name: shape for name in names if (shape := _shape(pool[name])) is not None}
    if any(known.get(name) != shape for name, shape in found.items()):
        ledger.record_event(EVENT, {"round": query.round, "images": found})


def check_shapes(run_dir: Path, pool: Pool) -> None:
    """Have the images of which regions were asked the shape that they had then?

    Reads their headers only, which of a DICOM series are those of all slices. Of ledgers that hold no shape, regions
    must lie inside their image. Images that are set aside, or cannot be read, are left to those who need them.
    Records nothing.

    Raises:
        DataError: a line each for the first images that differ.
    """
    if not Ledger.begun(run_dir):
        return
    with Ledger.read(run_dir) as ledger:
        shapes, reach = _recorded(ledger), _reach(ledger)
        aside = {e["image"] for e in ledger.events("quarantine")}
    asked = [r for r in pool.train if r.id in reach and r.id not in aside]
    wrong = list(_differing(asked, shapes, reach))
    if wrong:
        rest = [f"and {count(len(wrong) - TOLD, 'other image')}"] if len(wrong) > TOLD else []
        lines = "\n".join([*wrong[:TOLD], *rest])
        raise DataError(f"{lines}; give the data the run was begun with (data_root), or begin a new run_dir")


def _differing(records: list[ImageRecord], shapes: dict[str, Shape], reach: dict[str, Shape]) -> Iterator[str]:
    for record in records:
        shape, known, last = _shape(record), shapes.get(record.id), reach[record.id]
        if shape is None or shape == known or (known is None and _inside(last, shape)):
            continue
        then = f"it at {_by(known)}" if known is not None else f"a region up to {_by(last)} of it"
        unit = "pixels" if record.ndim == 2 else "voxels"
        yield f"{record.paths[0]}: holds {_by(shape)} {unit}, but this run asked {then}"


def _recorded(ledger: Ledger) -> dict[str, Shape]:
    """The shape of each image as it was recorded last."""
    return {name: tuple(shape) for event in ledger.events(EVENT) for name, shape in event["images"].items()}


def _reach(ledger: Ledger) -> dict[str, Shape]:
    """One past the last voxel that was asked, an axis, of each image."""
    found: dict[str, Shape] = {}
    for region in (r for q in ledger.queries() for r in q.regions):
        found[region.image_id] = tuple(map(max, region.stop, found.get(region.image_id, region.stop)))
    return found


def _shape(record: ImageRecord) -> Shape | None:
    """None if the image cannot be read, which is told where it is needed."""
    try:
        return read_header(record).shape
    except DataError:
        return None


def _inside(last: Shape, shape: Shape) -> bool:
    return len(last) == len(shape) and all(a <= b for a, b in zip(last, shape, strict=True))


def _by(shape: Shape) -> str:
    return " x ".join(map(str, shape))
