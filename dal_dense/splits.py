"""Groups, and which images are the pool and which measure the model.

Draws are keyed by group or id, so they do not depend on the order of files. What was decided when
a pool was first opened stays decided (`Known`): test images stay test images, files that appear
later can only join the pool, and never from a group that is held out.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dal_dense.config import DataConfig
from dal_dense.errors import DataError
from dal_dense.noise import derive_seed
from dal_dense.sources.base import Entry, image_id, read_json

MISTAKE = 0.1
"""Share of images without a group from which on the setting is wrong, not the images."""


class Member(NamedTuple):
    """An image with its group."""

    entry: Entry
    group: str


@dataclass(frozen=True)
class Known:
    """Ids as decided when the pool was first opened; `left_out` were there and are not used."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    left_out: frozenset[str]


@dataclass(frozen=True)
class Split:
    """Pool, test images, ids that are not used, and what the person should know about it."""

    train: tuple[Member, ...]
    test: tuple[Member, ...]
    left_out: frozenset[str]
    notes: tuple[str, ...]


def listed_splits(
    entries: Sequence[Entry], missing: Mapping[str, str], data: DataConfig, root: Path
) -> tuple[list[Entry], list[Entry] | None]:
    """Pool and test entries as the split file or the listing says; test is None if neither names any.

    Raises:
        DataError: if a split is not there, or names images that are not.
    """
    if data.split_file is not None:
        return _from_file(entries, missing, data, root / data.split_file)
    names = {e.split for e in entries if e.split is not None}
    if not names:
        return list(entries), None
    train = [e for e in entries if e.split == data.train]
    if not train and not missing:
        raise DataError(f"data.train: no split {data.train!r} in the listing; it has {', '.join(sorted(names))}")
    return train, [e for e in entries if e.split == data.test] or None


def _from_file(
    entries: Sequence[Entry], missing: Mapping[str, str], data: DataConfig, file: Path
) -> tuple[list[Entry], list[Entry] | None]:
    splits = {k: v for k, v in read_json(file, "the split file").items() if isinstance(v, list)}
    wanted = [data.train] if data.test == "test" and "test" not in splits else [data.train, data.test]
    for name in wanted:
        if name not in splits:
            raise DataError(f"{file}: no split {name!r}; it has {', '.join(sorted(splits)) or 'none'}")
    check_unique(entries, ())
    by_id = {e.id: e for e in entries}
    chosen = []
    for name in wanted:
        ids = [image_id(str(i)) for i in splits[name]]
        absent = [i for i in ids if i not in by_id and i not in missing]
        if absent:
            raise DataError(
                f"{file}: split {name!r} names {len(absent)} images that are not there, the first is {absent[0]!r} "
                f"(an id here looks like {next(iter(by_id), 'none')!r}); correct it or restore the files"
            )
        chosen.append([by_id[i] for i in ids if i in by_id])
    return chosen[0], chosen[1] if len(chosen) > 1 else None


def check_unique(train: Iterable[Entry], test: Iterable[Entry]) -> None:
    """No image twice, none both in the pool and in the test.

    Raises:
        DataError: naming the id and both files.
    """
    ids: dict[str, tuple[str, Entry]] = {}
    files: dict[Path, tuple[str, Entry]] = {}
    for split, entries in (("the pool", train), ("the test split", test)):
        for entry in entries:
            place, earlier = entry.paths[0], ids.get(entry.id) or files.get(entry.paths[0])
            if earlier is None:
                ids[entry.id] = files[place] = (split, entry)
                continue
            where, first = earlier
            if where != split:
                raise DataError(f"{place}: {entry.id!r} is in {where} and in {split}; take it out of one of them")
            raise DataError(
                f"{place}: id {entry.id!r} is there twice in {split}, the first time as {first.paths[0]}; "
                "rename or take out one of them"
            )


def with_groups(entries: Sequence[Entry], data: DataConfig, root: Path) -> tuple[list[Member], dict[str, str]]:
    """Each entry with its group (its id if the settings name none), and the ids that have none, with the reason.

    Raises:
        DataError: if so many images have no group that the setting must be wrong.
    """
    named = [n for n in ("group_field", "group_pattern", "group_table") if getattr(data, n) is not None]
    if not named:
        return [Member(e, e.id) for e in entries], {}
    found, how = _groups(entries, data, root)
    remedy = f"no group {how}; add it, or correct data.{named[0]}"
    lacking = {e.id: f"{e.paths[0]}: {remedy}" for e in entries if e.id not in found}
    if len(lacking) > MISTAKE * len(entries):
        count = f"{len(lacking)} of {len(entries)} images get no group"
        raise DataError(f"data.{named[0]}: {count}, the first: {next(iter(lacking.values()))}")
    return [Member(e, found[e.id]) for e in entries if e.id in found], lacking


def _groups(entries: Sequence[Entry], data: DataConfig, root: Path) -> tuple[dict[str, str], str]:
    """Id to group, and how it was looked for, for messages."""
    if data.group_field is not None:
        field = data.group_field
        values = {e.id: (e.fields or {}).get(field) for e in entries}
        return {i: str(v) for i, v in values.items() if v is not None}, f"in field {field!r} of the listing"
    if data.group_pattern is not None:
        pattern = re.compile(data.group_pattern)
        matches = ((e.id, pattern.search(e.id)) for e in entries)
        return {i: m[1] for i, m in matches if m and m[1]}, f"by the pattern {data.group_pattern!r}"
    file = root / str(data.group_table)
    table = _table(file)
    return {e.id: table[e.id] for e in entries if e.id in table}, f"in {file.name}"


def _table(file: Path) -> dict[str, str]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            rows = csv.DictReader(opened)
            if not {"id", "group"} <= set(rows.fieldnames or ()):
                raise DataError(f"{file}: needs a first line with the columns id,group; has {rows.fieldnames}")
            return {image_id(r["id"]): r["group"] for r in rows if r["id"] and r["group"]}
    except OSError as problem:
        raise DataError(f"{file}: the table of groups cannot be read ({problem.strerror}); correct it") from None


def first_split(train: Sequence[Member], test: Sequence[Member] | None, data: DataConfig, seed: int) -> Split:
    """Decide for the first time.

    Listed test images without a mask cannot measure anything and are left out. If no test image
    is listed, whole groups are drawn, among those that have masks.
    """
    notes: list[str] = []
    usable = [m for m in test or () if m.entry.mask is not None]
    if test is not None and len(usable) < len(test):
        notes.append(f"{len(test) - len(usable)} of {len(test)} listed test images have no mask and are left out")
    everyone = [*train, *(test or ())]
    if usable:
        pool = list(train)
        shared = {m.group for m in pool} & {m.group for m in usable}
        if shared:
            notes.append(
                f"{len(shared)} groups are in the pool and in the listed test split (such as {min(shared)}); "
                "figures will look better than on new groups"
            )
    else:
        pool, usable, note = _hold_out(train, data.test_fraction, seed)
        notes += [note] if note else []
    pool, usable = draw(pool, data.max_pool, seed, "pool"), draw(usable, data.max_test, seed, "test")
    used = {m.entry.id for m in (*pool, *usable)}
    return Split(tuple(pool), tuple(usable), frozenset(m.entry.id for m in everyone) - used, tuple(notes))


def _hold_out(members: Sequence[Member], share: float, seed: int) -> tuple[list[Member], list[Member], str]:
    """Pool, test, and a note, from whole groups drawn by seed."""
    masked = {m.group for m in members if m.entry.mask is not None}
    groups = sorted(masked, key=lambda g: derive_seed(seed, "held out", g))
    if share == 0 or len(groups) < 2:
        few = (
            f"{len(groups)} groups have masks, 2 are needed when the run begins (later files never join the test split)"
        )
        reason = "data.test_fraction is 0" if share == 0 else few
        return list(members), [], f"there is no test split, so nothing is measured: {reason}"
    held = set(groups[: min(max(1, round(share * len(groups))), len(groups) - 1)])
    inside = [m for m in members if m.group in held]
    test = [m for m in inside if m.entry.mask is not None]
    note = f"{len(inside) - len(test)} images without masks belong to held-out groups and are left out"
    return [m for m in members if m.group not in held], test, note if len(test) < len(inside) else ""


def draw(members: Sequence[Member], at_most: int | None, seed: int, what: str) -> list[Member]:
    """So many of them, by seed and id, in their own order."""
    if at_most is None or len(members) <= at_most:
        return list(members)
    ranked = sorted(members, key=lambda m: derive_seed(seed, "draw", what, m.entry.id))
    kept = {m.entry.id for m in ranked[:at_most]}
    return [m for m in members if m.entry.id in kept]


def grown_split(
    train: Sequence[Member], test: Sequence[Member] | None, known: Known, data: DataConfig, seed: int
) -> Split:
    """What was decided before, and the newcomers at the end of the pool, as far as `max_pool` has room."""
    by_id = {m.entry.id: m for m in (*(test or ()), *train)}
    old = [by_id[i] for i in known.train if i in by_id]
    kept = [by_id[i] for i in known.test if i in by_id]
    closed = _groups_of(by_id, (*known.test, *known.left_out)) - _groups_of(by_id, known.train)
    decided = {*known.train, *known.test, *known.left_out}
    new = [m for m in train if m.entry.id not in decided]
    welcome = [m for m in new if m.group not in closed]
    room = None if data.max_pool is None else max(0, data.max_pool - len(known.train))
    joined = draw(welcome, room, seed, "pool")
    late = {m.entry.id for m in new} - {m.entry.id for m in joined}
    notes = (f"{len(new) - len(welcome)} new images belong to held-out groups and are left out",)
    return Split((*old, *joined), tuple(kept), known.left_out | late, notes if len(welcome) < len(new) else ())


def _groups_of(by_id: Mapping[str, Member], ids: Collection[str]) -> set[str]:
    return {by_id[i].group for i in ids if i in by_id}


def time_of(data: DataConfig) -> Callable[[Entry], float | None]:
    """How to tell an image's time within its group.

    Raises:
        DataError: (when called) if a field or the bracket holds no number.
    """
    if data.time_field is None and data.time_pattern is None:
        return lambda entry: None
    pattern = None if data.time_pattern is None else re.compile(data.time_pattern)
    setting = "data.time_field" if pattern is None else "data.time_pattern"

    def when(entry: Entry) -> float | None:
        if pattern is None:
            value = (entry.fields or {}).get(data.time_field or "")
        else:
            found = pattern.search(entry.id)
            value = found.group(1) if found else None
        try:
            time = None if value is None else float(value)
        except (TypeError, ValueError):
            time = math.nan
        if time is not None and not math.isfinite(time):
            raise DataError(f"{entry.paths[0]}: its time is {value!r}, no number; correct it or {setting}")
        return time

    return when
