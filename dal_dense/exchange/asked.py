"""What was asked, as the way back needs it: regions by id and by image, class values, and what came in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float64, UInt8
from pydantic import ValidationError

from dal_dense.errors import DataError, LabelError
from dal_dense.query import Sidecar, SidecarRegion

SIDECAR, RETURNED = "query.json", "returned"
UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")
"""What Label Studio puts before the name of an uploaded file."""


@dataclass(frozen=True)
class Returned:
    """One region's label as it came back.

    Attributes:
        region_id: the region that was asked.
        label: uint8 class numbers or the ignore value, of the region's shape and axis order; of a detection
            batch the table of boxes, see `boxes`.
        seconds: logged labelling time; None if nobody logged it.
        source: the file it was read from, relative to the folder of returns.
        starred: a `*` in `reviewed.txt` speaks for the file.
    """

    region_id: str
    label: UInt8[np.ndarray, "..."] | Float64[np.ndarray, "boxes 6"]
    seconds: float | None
    source: str
    starred: bool = False


@dataclass(frozen=True)
class Marks:
    """What the annotator says is reviewed (`reviewed.txt`).

    Attributes:
        names: region and image ids.
        folders: where every file is reviewed (`*`), relative to the folder of returns, which itself is "".
    """

    names: frozenset[str] = frozenset()
    folders: frozenset[str] = frozenset()

    def cover(self, file: str) -> bool:
        """Does a `*` beside this file, or above it, speak for it?"""
        return any(not folder or file.startswith(f"{folder}/") for folder in self.folders)


@dataclass(frozen=True)
class Asked:
    """The sidecars of one or several batches, oldest first, looked up by name."""

    regions: dict[str, SidecarRegion]
    rounds: dict[str, int]
    """Region id to the round that asked."""
    images: dict[str, list[SidecarRegion]]
    """Image id to its regions, of all these batches."""
    classes: dict[int, str]
    ignore: int
    background: int | None
    marks: Marks = field(default_factory=Marks)
    boxes: bool = False
    """Labels are tables of boxes, not masks."""
    min_visible: float = 0.0
    """Boxes: an object cut by its region's border to less than this share is ignored."""

    @classmethod
    def of(cls, sidecars: Sequence[Sidecar], marks: Marks, min_visible: float = 0.0) -> Asked:
        """From sidecars of one run, oldest first."""
        images: dict[str, list[SidecarRegion]] = {}
        for entry in (e for s in sidecars for e in s.regions):
            images.setdefault(entry.region.image_id, []).append(entry)
        last = sidecars[-1]
        return cls(
            regions={e.region.id: e for s in sidecars for e in s.regions},
            rounds={e.region.id: s.round for s in sidecars for e in s.regions},
            images=images,
            classes={int(value): name for value, name in last.classes.items()},
            ignore=last.ignore_index,
            background=last.background,
            marks=marks,
            boxes=last.labels == "boxes",
            min_visible=min_visible,
        )

    def named(self, name: str, file: str) -> tuple[list[SidecarRegion], bool]:
        """The regions that a name stands for, and whether it is a region's own name (else an image's).

        Raises:
            LabelError: if the name belongs to nothing that was asked.
        """
        for candidate in (name, name.removesuffix("_proposal"), UPLOAD_PREFIX.sub("", name)):
            if candidate in self.regions:
                return [self.regions[candidate]], True
            if candidate in self.images:
                return self.images[candidate], False
        raise LabelError(
            f"{file}: {name!r} was not asked; expected the id of a region or image in query.json as the file's name"
        )

    def asking(self, image_id: str) -> list[int]:
        """The rounds that ask something of this image."""
        return sorted({self.rounds[e.region.id] for e in self.images.get(image_id, ())})

    def reviewed(self, image_id: str, file: str) -> bool:
        """Is this image as a whole marked? Its name says nothing if several rounds ask: it may be an old mark."""
        named = image_id in self.marks.names and len(self.asking(image_id)) == 1
        return named or self.marks.cover(file)

    def finished(self, entries: list[SidecarRegion], file: str, *, told: bool = False) -> list[SidecarRegion]:
        """The regions that a whole image's label answers: those `reviewed.txt` names, or all of one batch.

        Args:
            entries: the regions of the image.
            file: how messages name the label.
            told: the file itself says that the image is reviewed.

        Raises:
            LabelError: if several rounds asked this image: an older label says nothing of newer regions; or if
                `reviewed.txt` names what is finished, and nothing of this image.
        """
        if picked := [e for e in entries if e.region.id in self.marks.names]:
            return picked
        image_id = entries[0].region.image_id
        if len(rounds := self.asking(image_id)) > 1:
            raise LabelError(
                f"{file}: rounds {', '.join(map(str, rounds))} all ask {image_id}, so a label of the "
                "whole image is unclear; return crops, or name the finished regions in reviewed.txt"
            )
        if self.marks.names and not told and not self.reviewed(image_id, file):
            raise LabelError(
                f"{file}: reviewed.txt names neither {image_id} nor a region of it, so it is taken as unfinished; "
                "name there what is finished"
            )
        return entries

    def checked(self, label: np.ndarray, name: str, file: str) -> UInt8[np.ndarray, "..."]:
        """The label as uint8, every value proven to be a class or the ignore value.

        Raises:
            LabelError: on fractions, NaN or values outside the classes.
        """
        allowed = np.array([*self.classes, self.ignore])
        with np.errstate(invalid="ignore"):
            wrong = ~np.isin(label, allowed)
        if wrong.any():
            found = np.unique(label[wrong])[:5].tolist()
            names = ", ".join(f"{v} {n}" for v, n in self.classes.items())
            raise LabelError(
                f"{file}: region {name} holds the values {found}; expected {names} or {self.ignore} (leave unlabelled)"
            )
        return np.array(label, dtype=np.uint8, order="C")


def load_sidecar(batch_dir: Path) -> Sidecar:
    """Read a batch's `query.json`.

    Raises:
        DataError: if it is missing or damaged.
    """
    path = batch_dir / SIDECAR
    try:
        return Sidecar.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; this is not the folder of a batch") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{path}: not a sidecar of this version ({where}: {first['msg']}); restore the file as it was written"
        ) from error
