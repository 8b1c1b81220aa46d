"""Offers in files: for pools whose offers are larger than memory.

A folder with one plain binary file a column, grown by appending. What the columns are called and how many
rows are whole is known only to the process that writes them: rows that a killed one cut off are never read, for
its store is thrown away, and an append that failed is written over by the next. Read back, each column is a view
of its file: only the pages of the columns that are looked at come into memory, and the system may drop them again.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from dal_dense.errors import DataError
from dal_dense.offers import Offers, Parts, check, concat
from dal_dense.regions import Regions

MANY = 1 << 18
"""Rows that are held in memory before they are written; a pool of fewer rows is never written."""
_REGIONS, _EXTRA, _PARTS = "regions.", "extra.", "parts."


@dataclass(frozen=True)
class _Column:
    """File, type and width of one column."""

    file: str
    dtype: str
    width: tuple[int, ...]

    def mapped(self, folder: Path, rows: int) -> Tensor:
        """A view of the first rows; what is written to it goes to the file.

        Raises:
            DataError: if the file is shorter; a view would lengthen it with zeros.
        """
        shape, dtype = (rows, *self.width), getattr(torch, self.dtype)
        if not math.prod(shape):
            return torch.empty(shape, dtype=dtype)
        wanted, held = math.prod(shape) * dtype.itemsize, (folder / self.file).stat().st_size
        if held < wanted:
            raise DataError(
                f"{folder / self.file} should hold {wanted} bytes, {rows} rows of offers, and holds {held}; was it cut "
                "short, or is the disk full? Run again: the offers are made anew"
            )
        # shared: the system grants a private view only of what would fit into memory
        return torch.from_file(str(folder / self.file), shared=True, size=math.prod(shape), dtype=dtype).view(shape)

    def write(self, folder: Path, before: int, values: Tensor) -> None:
        """Put values behind the first `before` rows, in the place of whatever was there."""
        path = folder / self.file
        path.touch()
        with path.open("r+b") as file:
            file.truncate(before * math.prod(self.width) * values.element_size())
            file.seek(0, 2)
            values.contiguous().numpy().tofile(file)


class OfferStore:
    """Offers in a folder of their own; files of an earlier store there are written over."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows, self._objects = 0, 0
        self._columns: dict[str, _Column] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def append(self, offers: Offers) -> None:
        """Write rows behind those that are there.

        As in `concat`, extra scores that not all rows have are dropped, and objects too.

        Raises:
            DataError: if a column is of another type or width than before.
        """
        given = _columns(offers.to("cpu"), self.rows)
        found = {
            name: _Column(f"{i:02d}.bin", str(v.dtype).removeprefix("torch."), tuple(v.shape[1:]))
            for i, (name, v) in enumerate(given.items())
        }
        columns = {n: c for n, c in self._columns.items() if n in found} if self._columns else found
        for name, column in columns.items():
            new = found[name]
            if (new.dtype, new.width) != (column.dtype, column.width):
                raise DataError(
                    f"column {name} of the offers was {column.dtype} of width {column.width}, and is {new.dtype} of "
                    f"width {new.width} from row {self.rows} on; the task must offer the same columns for all images"
                )
            column.write(self.folder, self._count(name), given[name])
        self._columns = columns
        self.rows += len(offers)
        self._objects += 0 if offers.parts is None else len(offers.parts.row)

    def read(self) -> Offers:
        """All rows, as views of the files.

        Raises:
            DataError: if nothing was written, or a file has been cut short since.
        """
        if not self._columns:
            raise DataError(f"no offers are stored in {self.folder}; append some first")
        found = {name: column.mapped(self.folder, self._count(name)) for name, column in self._columns.items()}
        taken = {n: found.pop(n) for n in list(found) if n.startswith((_REGIONS, _EXTRA, _PARTS))}
        parts = {n.removeprefix(_PARTS): v for n, v in taken.items() if n.startswith(_PARTS)}
        return Offers(
            **found,
            regions=Regions(taken[_REGIONS + "start"], taken[_REGIONS + "stop"]),
            extra={n.removeprefix(_EXTRA): v for n, v in taken.items() if n.startswith(_EXTRA)},
            parts=Parts(**parts) if parts else None,
        )

    def _count(self, name: str) -> int:
        return self._objects if name.startswith(_PARTS) else self.rows


def _columns(offers: Offers, before: int) -> dict[str, Tensor]:
    """Every column by name; objects' rows are numbered on from `before`."""
    plain = {f.name: getattr(offers, f.name) for f in fields(offers) if f.name not in ("regions", "extra", "parts")}
    plain |= {_REGIONS + "start": offers.regions.start, _REGIONS + "stop": offers.regions.stop}
    plain |= {_EXTRA + name: values for name, values in offers.extra.items()}
    if offers.parts is not None:
        plain |= {_PARTS + f.name: getattr(offers.parts, f.name) for f in fields(Parts)}
        plain[_PARTS + "row"] = offers.parts.row + before
    return plain


class Gathered:
    """Offers as they come, image by image: in memory while they are few, then in a store."""

    def __init__(self, folder: Path) -> None:
        """`folder`: where stores are made; whoever owns it removes it when the offers are used."""
        self._folder = folder
        self._parts: list[Offers] = []
        self._held = 0
        self._store: OfferStore | None = None

    def add(self, offers: Offers, image: str = "") -> None:
        """Take some rows; `image`: as for `offers.check`.

        Raises:
            DataError: if a column holds NaN, infinite or negative numbers.
        """
        check(offers, image)
        self._parts.append(offers)
        self._held += len(offers)  # not counted anew each time: a pool comes in as many parts as it has images
        if self._held >= MANY:
            self._write()

    @property
    def nothing(self) -> bool:
        """Was nothing added?"""
        return not self._parts and self._store is None

    def all(self) -> Offers:
        """The rows that were added, in order.

        Raises:
            ValueError: if nothing was.
        """
        if self._store is None:
            return concat(self._parts)
        if self._parts:
            self._write()
        return self._store.read()

    def _write(self) -> None:
        if self._store is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._store = OfferStore(Path(tempfile.mkdtemp(dir=self._folder)))
        self._store.append(concat(self._parts))
        self._parts, self._held = [], 0


def without_images(offers: Offers, gone: Tensor, folder: Path) -> Offers:
    """The rows of the other images, gathered anew some rows at a time; files of `offers` are removed.

    Args:
        offers: rows.
        gone: bool, by image number: leave its rows out.
        folder: as for `Gathered`.
    """
    before = list(folder.iterdir()) if folder.exists() else []
    left = Gathered(folder)
    for rows in torch.split((~gone[offers.image]).nonzero()[:, 0], MANY):
        left.add(offers[rows])
    for old in before:
        shutil.rmtree(old)
    return left.all()
