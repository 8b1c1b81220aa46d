"""The pool: images, their splits and groups. What is labelled is a function of the ledger."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from dal_dense.box_truth import read_boxes
from dal_dense.boxes import Boxes
from dal_dense.config import DataConfig
from dal_dense.config_data import IGNORED_NAME, class_fault
from dal_dense.errors import ConfigError, DataError
from dal_dense.frames import FRAMES
from dal_dense.images import read_header
from dal_dense.masks import Annotation, rasterise, read_mask
from dal_dense.records import IGNORE
from dal_dense.records import ImageRecord as ImageRecord
from dal_dense.sources import SOURCES
from dal_dense.sources.base import Entry, Listing
from dal_dense.splits import (
    Known,
    Member,
    Split,
    check_unique,
    first_split,
    grown_split,
    listed_splits,
    time_of,
    with_groups,
)


@dataclass(frozen=True)
class Pool:
    """Images to ask from and images to measure on.

    Attributes:
        classes: names; the position is the class number.
        ndim: 2 (frames) or 3 (volumes).
        mapping: label value in the masks (COCO: category id) to class number or `IGNORE`.
        members: every image of the pool, quarantined ones too, oldest first.
        held_out: every test image, quarantined ones too.
        left_out: ids that are there and not used.
        absent: id to reason, for images that are listed but not there, or have no group.
        set_aside: id to reason, for images that `quarantine` was called for.
        notes: what the person should know about the split, one sentence each.
        annotations: COCO: image id to its annotations.
        boxes_asked: what is labelled are boxes (detection), not masks.
        origin: what to open again to see new files.
    """

    classes: tuple[str, ...]
    ndim: int
    mapping: Mapping[int, int]
    members: tuple[ImageRecord, ...]
    held_out: tuple[ImageRecord, ...]
    left_out: frozenset[str]
    absent: Mapping[str, str]
    set_aside: Mapping[str, str]
    notes: tuple[str, ...]
    annotations: Mapping[str, Sequence[Annotation]]
    boxes_asked: bool
    origin: tuple[DataConfig, Path, int]

    @cached_property
    def train(self) -> tuple[ImageRecord, ...]:
        """Images to ask from."""
        return tuple(r for r in self.members if r.id not in self.quarantined)

    @cached_property
    def test(self) -> tuple[ImageRecord, ...]:
        """Images that measure the model; all have masks, none is ever asked."""
        return tuple(r for r in self.held_out if r.id not in self.quarantined)

    @cached_property
    def quarantined(self) -> dict[str, str]:
        """Id to reason, for every image that cannot be used."""
        return {**self.absent, **self.set_aside}

    @cached_property
    def _by_id(self) -> dict[str, ImageRecord]:
        return {r.id: r for r in (*self.members, *self.held_out)}

    def __getitem__(self, image: str) -> ImageRecord:
        """The image of this id, be it quarantined.

        Raises:
            DataError: if there is none.
        """
        if image not in self._by_id:
            reason = self.quarantined.get(image, "not in the pool; correct the id or restore its files")
            raise DataError(f"{image}: {reason}")
        return self._by_id[image]

    def truth(self, record: ImageRecord) -> np.ndarray | None:
        """What a person would label: the mask, or the table of boxes (`boxes.Boxes.table`); None if nobody has.

        Raises:
            DataError: if it cannot be read, or does not fit the image or the classes.
        """
        if not self.boxes_asked:
            return self.mask(record)
        boxes = self.boxes(record)
        return None if boxes is None else boxes.table()

    def boxes(self, record: ImageRecord) -> Boxes | None:
        """The image's boxes, cut at its border; None if nobody has looked at it.

        Raises:
            DataError: if the image's header or an annotation cannot be used.
        """
        if record.mask is None or record.mask_format != "coco":
            return None
        name = f"{record.mask}: {record.paths[0].name}"
        return read_boxes(name, self.annotations[record.id], read_header(record).shape, self.mapping)

    def mask(self, record: ImageRecord) -> UInt8[np.ndarray, "*grid"] | None:
        """Class numbers and `IGNORE` on the image's own grid; None if the image has no mask.

        Raises:
            DataError: if the mask cannot be read, or does not fit the image or the classes.
        """
        if record.mask is None:
            return None
        header = read_header(record)
        if record.mask_format == "coco":
            name = f"{record.mask}: {record.paths[0].name}"
            return rasterise(name, self.annotations[record.id], header.shape, self.mapping)
        return read_mask(record.mask, like=header, mapping=self.mapping)

    def quarantine(self, image: str, reason: str) -> Pool:
        """The pool without this image; its record can still be looked up."""
        return replace(self, set_aside={**self.set_aside, image: reason})

    @property
    def known(self) -> Known:
        """What was decided about which image. Keep it, and give it to `open_pool` when the run goes on."""
        return Known(tuple(r.id for r in self.members), tuple(r.id for r in self.held_out), self.left_out)

    def refresh(self) -> Pool:
        """The pool with the files that appeared since, at its end; the test split stays as it is.

        Raises:
            DataError: if the listing can no longer be used.
        """
        data, root, seed = self.origin
        now = open_pool(data, root, seed=seed, known=self.known, boxes=self.boxes_asked)
        return replace(
            now,
            members=_kept(self.members, now.members),
            held_out=self.held_out,
            annotations={**self.annotations, **now.annotations},
            set_aside=self.set_aside,
        )


def _kept(before: Sequence[ImageRecord], now: Sequence[ImageRecord]) -> tuple[ImageRecord, ...]:
    """Records of before in their order, as they are now if they still are there, then the new ones."""
    fresh = {r.id: r for r in now}
    return (*(fresh.pop(r.id, r) for r in before), *fresh.values())


def open_pool(data: DataConfig, data_root: Path, *, seed: int, known: Known | None = None, boxes: bool = False) -> Pool:
    """List the images that the settings describe. Opens no image, so that 100,000 files take seconds.

    Args:
        data: the settings.
        data_root: folder that everything lies in.
        seed: of the run; decides the held-out groups and the samples of `max_pool` and `max_test`.
        known: what was decided when the run began; None decides now.
        boxes: boxes are labelled (detection), not masks.

    Raises:
        ConfigError: if the settings lack something, or do not fit each other.
        DataError: if the listing cannot be used, or images are there twice.
    """
    root = Path(os.path.normpath(data_root.absolute()))  # ids and sidecars name paths against it
    listing = SOURCES[data.format](data, root)
    classes, mapping = class_table(data, listing)
    train, test = listed_splits(listing.entries, listing.missing, data, root)
    check_unique(train, test or ())
    pool, lacking = with_groups(train, data, root)
    held, lacking_too = with_groups(test or (), data, root)
    held_or_none = None if test is None else held
    if known is None:
        split = first_split(pool, held_or_none, data, seed)
    else:
        split = grown_split(pool, held_or_none, known, data, seed)
    absent = {**listing.missing, **lacking, **lacking_too, **_gone(known, split, listing)}
    if absent and (data.strict or not split.train):
        raise DataError(f"{next(iter(absent.values()))} ({len(absent)} such images)")
    if not split.train:
        raise DataError(f"{root}: no image for the pool; check data.format, data.images and data.train")
    return Pool(
        classes=classes,
        ndim=_dimensions((*split.train, *split.test)),
        mapping=mapping,
        members=_records(split.train, root, listing, data),
        held_out=_records(split.test, root, listing, data),
        left_out=split.left_out,
        absent=absent,
        set_aside={},
        notes=split.notes,
        annotations=listing.annotations,
        boxes_asked=boxes,
        origin=(data, data_root, seed),
    )


def _gone(known: Known | None, split: Split, listing: Listing) -> dict[str, str]:
    """Images that were used before and are no longer listed."""
    if known is None:
        return {}
    there = {m.entry.id for m in (*split.train, *split.test)}
    reason = "was in the pool when the run began and is no longer there; restore its file"
    return {i: f"{i}: {reason}" for i in (*known.train, *known.test) if i not in there and i not in listing.missing}


def _records(members: Sequence[Member], root: Path, listing: Listing, data: DataConfig) -> tuple[ImageRecord, ...]:
    when = time_of(data)
    records = tuple(
        ImageRecord(e.id, e.paths, root, group, e.mask, ndim, listing.mask_format, when(e), _listed(e, listing))
        for e, group in members
        for ndim in [2 if _is_frame(e.paths[0]) else 3]
    )
    setting = "time_field" if data.time_field is not None else "time_pattern"
    if records and getattr(data, setting) is not None and all(r.time is None for r in records):
        raise ConfigError(
            f"data.{setting}: {getattr(data, setting)!r} finds no time, as in {records[0].id}; correct it"
        )
    return records


def _listed(entry: Entry, listing: Listing) -> tuple[int, int] | None:
    """Rows and columns that an image's annotations are in, where a COCO json says them."""
    if not listing.annotations.get(entry.id):
        return None
    rows, columns = ((entry.fields or {}).get(side) for side in ("height", "width"))
    if isinstance(rows, int) and isinstance(columns, int) and rows > 0 and columns > 0:
        return rows, columns
    return None


def _is_frame(path: Path) -> bool:
    return path.name.lower().endswith(FRAMES)


def _dimensions(members: Sequence[Member]) -> int:
    """2 or 3.

    Raises:
        DataError: if frames and volumes are mixed.
    """
    first = members[0].entry.paths[0]
    frames = _is_frame(first)
    for member in members:
        if _is_frame(member.entry.paths[0]) != frames:
            raise DataError(
                f"{member.entry.paths[0]}: a pool holds volumes or frames, not both, and {first.name} differs; "
                "give each its own folder and run"
            )
    return 2 if frames else 3


def class_table(data: DataConfig, listing: Listing) -> tuple[tuple[str, ...], dict[int, int]]:
    """Class names in the order of their label values, and label value to class number.

    Values of one name are one class; the name "ignore" and `data.ignore_index` become `IGNORE`.
    COCO: class 0 is the background, categories follow in the order of their ids.

    Raises:
        ConfigError: if nobody names the classes, or a value is both a class and to be ignored.
    """
    labels = data.classes if data.classes is not None else listing.labels
    if not labels:
        raise ConfigError("data.classes: null, and the data do not name them; give label values and names")
    if listing.mask_format == "coco" and listing.labels is not None:
        unlisted = sorted(set(labels) - set(listing.labels) - {0})
        if unlisted:
            raise ConfigError(f"data.classes: {unlisted[0]} is no category id; the listing has {dict(listing.labels)}")
    ignored = data.ignore_index
    fault = class_fault(labels, ignored, coco=listing.mask_format == "coco")
    if fault is not None:
        raise ConfigError(f"data.{fault}")
    named = {value: name for value, name in sorted(labels.items()) if name != IGNORED_NAME}
    start = ["background"] if listing.mask_format == "coco" and named.get(0) != "background" else []
    classes = tuple(dict.fromkeys([*start, *named.values()]))
    mapping = {value: classes.index(name) for value, name in named.items()}
    mapping |= {value: IGNORE for value, name in labels.items() if name == IGNORED_NAME}
    if ignored is not None:
        mapping[ignored] = IGNORE
    return classes, mapping
