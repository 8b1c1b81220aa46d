"""Offers: all that the acquisition engine ever sees of the pool.

A struct of tensors with a row per region on offer. Voxels, probabilities and files stay behind:
each uncertainty map is reduced to these rows on the device where it was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from dal_dense.errors import DataError
from dal_dense.regions import Regions

LARGEST = 5e16
"""Absolute value that an embedding may hold: so `select` takes features of 2048 such numbers (`checks.LARGEST`)."""
KINDS = ("crop", "slice", "image", "box")
"""Query kinds; `Offers.kind` holds the position in this tuple."""


@dataclass(frozen=True)
class Parts:
    """Objects that a detector found inside the rows of `Offers`; an object may belong to several rows.

    Attributes:
        row: row of the offers, int64 (M,).
        classes: class number, int64 (M,).
        weight: probability of that class, float32 (M,).
        embedding: feature of the object, float32 (M, E).
    """

    row: Int[Tensor, " M"]
    classes: Int[Tensor, " M"]
    weight: Float[Tensor, " M"]
    embedding: Float[Tensor, "M E"]

    def of_rows(self, rows: Tensor | slice, count: int) -> Parts:
        """Those of some rows, numbered anew; `count` is how many rows there were."""
        index = torch.arange(count, device=self.row.device)[rows]
        new = torch.full((count,), -1, dtype=torch.int64, device=self.row.device)
        new[index] = torch.arange(len(index), device=self.row.device)
        kept = new[self.row] >= 0
        return Parts(new[self.row][kept], self.classes[kept], self.weight[kept], self.embedding[kept])

    def to(self, device: torch.device | str) -> Parts:
        """The same on another device."""
        return Parts(*(getattr(self, f.name).to(device) for f in fields(self)))


@dataclass(frozen=True)
class Offers:
    """N regions on offer. All tensors share the first dimension N and one device.

    Attributes:
        image: row of the image in the pool's listing of this round, int64 (N,).
        group: number of its group (patient, drive), int64 (N,).
        regions: boxes in the image's own array index space.
        kind: position in `KINDS`, uint8 (N,).
        key: 63-bit id of (image id, box); the same in every process and order, int64 (N,).
            Random draws are keyed by it.
        score: value of labelling one voxel here, >= 0, float32 (N,); which score is the task's setting.
        class_score: the same split by class (class-wise predictive entropy), float32 (N, C).
        shares: predicted class shares, rows sum to 1, float32 (N, C).
        boundary: expected length of all contours inside, mm (volumes) or pixels (frames), float32 (N,).
        objects: expected number of objects inside, float32 (N,).
        area: ground to be searched, mm^2 summed over slices (volumes) or pixels^2 (frames), float32 (N,).
        seconds: predicted labelling time of the region without opening its image, float32 (N,).
        image_seconds: predicted time to open the region's image, once an image and round, float32 (N,).
        embedding: network features pooled over the box, float32 (N, E); E may be 0.
        labelled: rows of ground that is labelled already. They are never chosen; diversity
            strategies measure distance to them. bool (N,).
        extra: further scores by name (margin, mutual_information, ...), for the report and for study;
            `time`: of the frame within its group, for `Budget.min_gap`, NaN where nobody says.
        parts: objects inside the rows, where the task finds objects.
    """

    image: Int[Tensor, " N"]
    group: Int[Tensor, " N"]
    regions: Regions
    kind: Integer[Tensor, " N"]
    key: Int[Tensor, " N"]
    score: Float[Tensor, " N"]
    class_score: Float[Tensor, "N C"]
    shares: Float[Tensor, "N C"]
    boundary: Float[Tensor, " N"]
    objects: Float[Tensor, " N"]
    area: Float[Tensor, " N"]
    seconds: Float[Tensor, " N"]
    image_seconds: Float[Tensor, " N"]
    embedding: Float[Tensor, "N E"]
    labelled: Bool[Tensor, " N"]
    extra: dict[str, Float[Tensor, " N"]] = field(default_factory=dict)
    parts: Parts | None = None

    def __post_init__(self) -> None:
        n = len(self.regions)
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor) and value.shape[0] != n:
                raise ValueError(f"Offers.{f.name} has {value.shape[0]} rows, regions has {n}")

    def __len__(self) -> int:
        return len(self.regions)

    def __getitem__(self, rows: Tensor | slice) -> Offers:
        picked = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name not in ("extra", "parts")}
        parts = None if self.parts is None else self.parts.of_rows(rows, len(self))
        return replace(self, **picked, extra={k: v[rows] for k, v in self.extra.items()}, parts=parts)

    @property
    def extent(self) -> Float[Tensor, " N"]:
        """What a score is multiplied by to value the whole region: its pixels; 1 for a single box, float64."""
        single = self.kind == KINDS.index("box")
        return torch.where(single, 1, self.regions.volume()).double()

    @property
    def device(self) -> torch.device:
        """Where the columns lie; selection runs there."""
        return self.image.device

    def to(self, device: torch.device | str) -> Offers:
        """The same rows on another device."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name not in ("extra", "parts")}
        parts = None if self.parts is None else self.parts.to(device)
        return replace(self, **moved, extra={k: v.to(device) for k, v in self.extra.items()}, parts=parts)


def check(offers: Offers, image: str = "") -> None:
    """Look for numbers that no strategy can reckon with.

    Args:
        offers: rows.
        image: id of the image that all of them are of, for the error; else it says the image's number.

    Raises:
        DataError: if a column holds NaN, infinite or negative numbers (an embedding may hold negative ones), is not
            float32, or an embedding holds numbers beyond `LARGEST`.
    """
    for name in ("score", "class_score", "shares", "objects", "seconds", "image_seconds", "embedding"):
        _check(name, getattr(offers, name), offers, image)
    if offers.parts is not None:
        for name in ("weight", "embedding"):
            _check(f"parts.{name}", getattr(offers.parts, name), offers, image, offers.parts.row)


def _check(name: str, column: Tensor, offers: Offers, image: str, row_of: Int[Tensor, " M"] | None = None) -> None:
    """`row_of`: rows of the offers that the column's entries belong to; None: its own."""
    if column.dtype is not torch.float32:
        raise DataError(f"Offers.{name} must be float32, and is {column.dtype}; convert it with .float()")
    if not column.numel():
        return
    features = name.endswith("embedding")
    least, most = (-LARGEST, LARGEST) if features else (0.0, torch.finfo(torch.float32).max)
    low, high = column.aminmax()  # NaN if any entry is; no column of truth values is made
    if low >= least and high <= most:
        return
    wrong = ~((column >= least) & (column <= most)).reshape(len(column), -1)
    bad = int(wrong.any(1).nonzero()[0, 0])
    value = float(column[bad].reshape(-1)[wrong[bad]][0])
    row, which = (bad, "") if row_of is None else (int(row_of[bad]), f"object {bad} of ")
    of = image or f"image row {int(offers.image[row])}"
    raise DataError(
        f"Offers.{name} must be finite and {f'within {LARGEST:g} of 0' if features else '>= 0'}; {which}row {row} "
        f"({of}) holds {value:g}; look at that image and the task's outputs"
    )


def concat(parts: Sequence[Offers]) -> Offers:
    """Rows of all parts, in order. Parts must agree in classes, embedding width and extra scores."""
    if not parts:
        raise ValueError("nothing to concatenate: no offers were given")
    columns: dict[str, object] = {}
    for f in fields(Offers):
        values = [getattr(p, f.name) for p in parts]
        if f.name == "regions":
            columns[f.name] = Regions(torch.cat([r.start for r in values]), torch.cat([r.stop for r in values]))
        elif f.name == "extra":
            names = [k for k in values[0] if all(k in v for v in values)]
            columns[f.name] = {k: torch.cat([v[k] for v in values]) for k in names}
        elif f.name == "parts":
            columns[f.name] = _joined([len(p) for p in parts], values)
        else:
            columns[f.name] = torch.cat(values)
    return Offers(**columns)  # type: ignore[arg-type]


def _joined(counts: Sequence[int], given: Sequence[Parts | None]) -> Parts | None:
    """Objects of all parts, their rows numbered through; None unless every part has them."""
    before, moved = 0, []
    for count, parts in zip(counts, given, strict=True):
        if parts is None:
            return None
        moved.append(replace(parts, row=parts.row + before))
        before += count
    return Parts(*(torch.cat([getattr(p, f.name) for p in moved]) for f in fields(Parts)))
