"""Splits never split a group, draws come from the seed alone, and a pool grows without forgetting."""

import builtins
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from dal_dense.config import DataConfig
from dal_dense.errors import ConfigError, DataError
from dal_dense.images import read_image
from dal_dense.pool import Pool, class_table, open_pool
from dal_dense.records import IGNORE
from dal_dense.sources.base import Entry, Listing
from dal_dense.splits import Known, Member, check_unique, first_split, grown_split, time_of

TWO = {0: "road", 1: "car"}


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def frames(root: Path, names: list[str], masked: list[str] | None = None) -> None:
    touch(*(root / f"images/{n}.png" for n in names))
    touch(*(root / f"masks/{n}.png" for n in (names if masked is None else masked)))


def opened(root: Path, seed: int = 0, known: Known | None = None, **settings: object) -> Pool:
    config = DataConfig.model_validate({"format": "folder", "classes": TWO} | settings)
    return open_pool(config, root, seed=seed, known=known)


def ids(records: object) -> list[str]:
    return [r.id for r in records]  # type: ignore[attr-defined]


DRIVES = [f"d{d}_{i}" for d in range(5) for i in range(4)]


# --- groups and splits


def members(groups: list[int], masked: list[bool]) -> list[Member]:
    rows = enumerate(zip(groups, masked, strict=True))
    return [Member(Entry(f"i{n}", (Path(f"/i{n}.png"),), Path("/m") if m else None), f"g{g}") for n, (g, m) in rows]


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=30),
    st.floats(0, 0.99),
    st.one_of(st.none(), st.integers(1, 5)),
    st.integers(0, 5),
    st.randoms(),
)
def test_a_drawn_split_keeps_groups_whole(
    rows: list[tuple[int, bool]], share: float, cap: int | None, seed: int, order: object
) -> None:
    everyone = members([g for g, _ in rows], [m for _, m in rows])
    data = DataConfig(format="msd", test_fraction=share, max_pool=cap, max_test=cap)
    split = first_split(everyone, None, data, seed)
    assert not {m.group for m in split.train} & {m.group for m in split.test}
    assert all(m.entry.mask is not None for m in split.test)
    assert split.left_out == {m.entry.id for m in everyone} - {m.entry.id for m in (*split.train, *split.test)}
    assert cap is None or (len(split.train) <= cap and len(split.test) <= cap)
    masked = len({m.group for m in everyone if m.entry.mask is not None})
    assert bool(split.test) == (share > 0 and masked > 1)
    if masked > 1 and cap is None:
        assert any(m.entry.mask is not None for m in split.train)
    shuffled = everyone.copy()
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    again = first_split(shuffled, None, data, seed)
    assert {m.entry.id for m in again.train} == {m.entry.id for m in split.train}
    assert {m.entry.id for m in again.test} == {m.entry.id for m in split.test}


def test_the_share_is_of_groups_and_the_seed_decides() -> None:
    everyone = members(list(range(50)), [True] * 50)
    data = DataConfig(format="msd", test_fraction=0.2)
    tests = [frozenset(m.entry.id for m in first_split(everyone, None, data, s).test) for s in range(5)]
    assert {len(t) for t in tests} == {10} and len(set(tests)) == 5


def test_groups_by_pattern_table_and_default(tmp_path: Path) -> None:
    frames(tmp_path, DRIVES)
    assert {r.group for r in opened(tmp_path, group_pattern=r"^(d\d)_").train} < {f"d{i}" for i in range(5)}
    (tmp_path / "groups.csv").write_text("id,group,site\n" + "".join(f"{d},{d[:2]},x\n" for d in DRIVES))
    assert ids(opened(tmp_path, group_table="groups.csv").test) == ids(opened(tmp_path, group_pattern=r"^(d\d)").test)
    assert all(r.group == r.id for r in opened(tmp_path).train)


@pytest.mark.parametrize(
    ("setting", "error", "words"),
    [
        ({"group_pattern": r"d\d"}, ValidationError, "has no bracket"),
        ({"group_pattern": r"(d"}, ValidationError, "is no regular expression"),
        ({"group_pattern": r"(x)"}, DataError, "20 of 20 images get no group"),
        ({"group_pattern": r"(d)", "group_table": "t.csv"}, ValidationError, "one of them is enough"),
        ({"group_table": "t.csv"}, DataError, "columns id,group"),
        ({"group_table": "none.csv"}, DataError, "cannot be read"),
    ],
)
def test_group_settings_that_cannot_work(tmp_path: Path, setting: dict[str, str], error: type, words: str) -> None:
    frames(tmp_path, DRIVES)
    (tmp_path / "t.csv").write_text("name,patient\nd0_0,1\n")
    with pytest.raises(error, match=words):
        opened(tmp_path, **setting)


def entry(name: str, **fields: object) -> Entry:
    return Entry(name, (Path(f"{name}.jpg"),), None, None, fields)


def test_times_by_field_and_pattern() -> None:
    none = time_of(DataConfig(format="msd"))
    assert none(entry("a", t=3)) is None
    field = time_of(DataConfig(format="msd", time_field="t"))
    assert [field(entry("a", **f)) for f in ({"t": 3}, {"t": "2.5"}, {"t": None}, {})] == [3.0, 2.5, None, None]
    assert field(Entry("a", (Path("a.jpg"),), None)) is None
    pattern = time_of(DataConfig(format="msd", time_pattern=r"_(\d+)$"))
    assert [pattern(entry(name)) for name in ("drive1_0042", "drive1_x")] == [42.0, None]


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"time_pattern": r"_\d+"}, ValidationError, r"time_pattern\n.* has no bracket"),
        ({"time_pattern": r"_(\d+"}, ValidationError, r"time_pattern\n.* is no regular expression"),
        ({"time_pattern": r"(\d+)", "time_field": "t"}, ValidationError, "time_field and time_pattern are set"),
        ({"time_field": "t"}, DataError, r"d_7\.jpg: its time is 'noon', no number; correct it or data\.time_field"),
        ({"time_field": "u"}, DataError, "its time is nan"),
        ({"time_field": "v"}, DataError, r"its time is \[1\]"),
        ({"time_pattern": "(d)_"}, DataError, r"its time is 'd', no number; correct it or data\.time_pattern"),
    ],
)
def test_times_that_cannot_work(settings: dict[str, str], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        time_of(DataConfig.model_validate({"format": "msd", **settings}))(entry("d_7", t="noon", u=math.nan, v=[1]))


def test_records_know_their_time_and_a_setting_that_finds_none_is_told(tmp_path: Path) -> None:
    frames(tmp_path, ["d_0", "d_1", "d_2"])
    found = opened(tmp_path, time_pattern=r"_(\d+)$", test_fraction=0)
    assert [r.time for r in found.train] == [0.0, 1.0, 2.0]
    with pytest.raises(ConfigError, match=r"data\.time_pattern: .* finds no time, as in d_0; correct it"):
        opened(tmp_path, time_pattern=r"@(\d+)", test_fraction=0)


def test_one_image_without_a_group_is_set_aside_unless_strict(tmp_path: Path) -> None:
    frames(tmp_path, [*DRIVES, "odd"])
    found = opened(tmp_path, group_pattern=r"^(d\d)_")
    assert list(found.quarantined) == ["odd"] and "no group by the pattern" in found.quarantined["odd"]
    with pytest.raises(DataError, match="odd"):
        opened(tmp_path, group_pattern=r"^(d\d)_", strict=True)


def test_split_file(tmp_path: Path) -> None:
    frames(tmp_path, DRIVES)
    splits = {"note": "ignored", "pool": ["d0_0", "d1_1.png"], "test": ["d0_1"], "val": ["d3_0"]}
    (tmp_path / "s.json").write_text(json.dumps(splits))
    found = opened(tmp_path, split_file="s.json", train="pool", group_pattern=r"^(d\d)")
    assert ids(found.train) == ["d0_0", "d1_1"] and ids(found.test) == ["d0_1"]
    assert "1 groups are in the pool and in the listed test split (such as d0)" in found.notes[0]


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        ({"pool": ["d0_0"]}, "no split 'train'; it has pool"),
        ({"train": ["d0_0", "gone"], "test": ["d0_1"]}, "names 1 images that are not there, the first is 'gone'"),
        ({"train": ["d0_0", "d0_0"], "test": ["d0_1"]}, "there twice in the pool"),
        ({"train": ["d0_0"], "test": ["d0_0"]}, "is in the pool and in the test split; take it out of one"),
    ],
)
def test_split_files_that_cannot_work(tmp_path: Path, splits: dict[str, list[str]], words: str) -> None:
    frames(tmp_path, DRIVES)
    (tmp_path / "s.json").write_text(json.dumps(splits))
    with pytest.raises(DataError, match=words):
        opened(tmp_path, split_file="s.json")


def test_duplicate_ids_and_files(tmp_path: Path) -> None:
    touch(tmp_path / "images/a.png", tmp_path / "images/a.jpg", tmp_path / "images/b.png")
    (tmp_path / "s.json").write_text(json.dumps({"train": ["a", "b"]}))
    words = r"a.png: id 'a' is there twice in the pool, the first time as .*a.jpg; rename"
    for split_file in (None, "s.json"):
        with pytest.raises(DataError, match=words):
            opened(tmp_path, masks=None, split_file=split_file)
    one, two = Entry("a", (Path("/a"),), None), Entry("b", (Path("/a"),), None)
    with pytest.raises(DataError, match="twice"):
        check_unique([one, two], [])
    with pytest.raises(DataError, match="take it out of one of them"):
        check_unique([one], [two])


def test_volumes_and_frames_do_not_mix(tmp_path: Path) -> None:
    touch(tmp_path / "images/a.png", tmp_path / "images/b.nii.gz")
    with pytest.raises(DataError, match=r"b.nii.gz: a pool holds volumes or frames, not both, and a.png differs"):
        opened(tmp_path, masks=None)


def test_an_empty_pool_is_told(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="no image for the pool"):
        opened(tmp_path, masks=None)


# --- classes


def test_class_numbers_are_positions() -> None:
    classes = {7: "road", -1: "ignore", 26: "car", 27: "car", 8: "walk"}
    names, mapping = class_table(DataConfig(format="folder", classes=classes, ignore_index=255), Listing([]))
    assert names == ("road", "walk", "car")
    assert mapping == {7: 0, 8: 1, 26: 2, 27: 2, -1: IGNORE, 255: IGNORE}


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        (None, "data.classes: null"),
        ({0: "only"}, "data.classes: 1 named, .* between 2 and 254"),
        ({0: "road", 7: "car"}, "data.ignore_index 7 is the class 'car' too"),
    ],
)
def test_classes_of_a_listing_that_cannot_work(listed: dict[int, str] | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        class_table(DataConfig(format="msd", ignore_index=7), Listing([], labels=listed))


def test_masks_are_read_with_the_pools_classes(tmp_path: Path) -> None:
    stored = np.array([[4, 9], [11, 4]], np.uint8)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        Image.fromarray(stored).save(tmp_path / folder / "a.png")
    found = opened(tmp_path, classes={4: "road", 9: "car"}, ignore_index=11)
    mask = found.mask(found["a"])
    assert mask is not None and mask.tolist() == [[0, 1], [IGNORE, 0]]
    with pytest.raises(DataError, match=r"label values 9 \(once\) are outside the classes \[4, 5, 11\]"):
        opened(tmp_path, classes={4: "road", 5: "car"}, ignore_index=11).mask(found["a"])


# --- quarantine, growth, resuming


def test_quarantine_keeps_the_record(tmp_path: Path) -> None:
    frames(tmp_path, DRIVES)
    before = opened(tmp_path)
    bad = before.train[3].id
    after = before.quarantine(bad, "NaN")
    assert bad not in ids(after.train) and after[bad].id == bad and after.quarantined == {bad: "NaN"}
    assert bad in ids(before.train) and after.refresh().quarantined == {bad: "NaN"}
    assert bad not in ids(after.refresh().train)
    with pytest.raises(DataError, match="nobody: not in the pool"):
        before["nobody"]


def test_new_files_join_at_the_end_and_the_test_split_stays(tmp_path: Path) -> None:
    frames(tmp_path, DRIVES)
    before = opened(tmp_path, group_pattern=r"^(d\d)_")
    closed = before.test[0].group
    frames(tmp_path, ["a0_0", "d9_9", f"{closed}_9"])
    after = before.refresh()
    assert ids(after.train) == [*ids(before.train), "d9_9"] and list(after.quarantined) == ["a0_0"]
    assert ids(after.test) == ids(before.test) and f"{closed}_9" in after.left_out
    assert after.notes == ("1 new images belong to held-out groups and are left out",)
    assert after.refresh().known == after.known


def test_a_pool_opened_again_decides_as_before(tmp_path: Path) -> None:
    frames(tmp_path, DRIVES)
    before = opened(tmp_path, max_pool=9, max_test=2, group_pattern=r"^([a-z]\d)_")
    assert len(before.train) == 9 and len(before.test) == 2
    frames(tmp_path, [f"a{i}_0" for i in range(9)])
    again = opened(tmp_path, max_pool=9, max_test=2, group_pattern=r"^([a-z]\d)_", known=before.known)
    assert (ids(again.train), ids(again.test)) == (ids(before.train), ids(before.test))
    grown = opened(tmp_path, group_pattern=r"^([a-z]\d)_", known=before.known)
    assert ids(grown.train) == [*ids(before.train), *(f"a{i}_0" for i in range(9))]


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=20),
    st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=10),
    st.one_of(st.none(), st.integers(1, 8)),
)
def test_growth_never_leaks_a_group(old: list[tuple[int, bool]], new: list[tuple[int, bool]], cap: int | None) -> None:
    everyone = members([g for g, _ in [*old, *new]], [m for _, m in [*old, *new]])
    data = DataConfig(format="msd", test_fraction=0.3, max_pool=cap, max_test=cap)
    first = first_split(everyone[: len(old)], None, data, 1)
    known = Known(tuple(m.entry.id for m in first.train), tuple(m.entry.id for m in first.test), first.left_out)
    grown = grown_split(everyone, None, known, data, 1)
    assert grown.train[: len(first.train)] == first.train and grown.test == first.test
    assert not {m.group for m in grown.train} & {m.group for m in grown.test}
    assert first.left_out <= grown.left_out and (cap is None or len(grown.train) <= cap)


def test_files_that_vanish_are_set_aside(tmp_path: Path) -> None:
    frames(tmp_path, DRIVES)
    before = opened(tmp_path)
    gone, tested = before.train[0].id, before.test[0].id
    for name in (gone, tested):
        (tmp_path / f"images/{name}.png").unlink()
    after = before.refresh()
    assert tested in after.quarantined and after[tested].id == tested and len(after.test) == len(before.test) - 1
    assert gone not in ids(after.train) and "no longer there" in after.quarantined[gone] and after[gone].id == gone
    touch(tmp_path / f"images/{gone}.png")
    assert ids(after.refresh().train) == ids(before.train)
    (tmp_path / f"images/{gone}.png").unlink()
    with pytest.raises(DataError, match="no longer there; restore its file"):
        opened(tmp_path, known=before.known)[gone]


def test_a_mask_that_appears_later_is_found(tmp_path: Path) -> None:
    frames(tmp_path, ["a", "b", "c"], masked=["a", "b"])
    before = opened(tmp_path)
    assert before["c"].mask is None
    touch(tmp_path / "masks/c.png")
    assert before.refresh()["c"].mask == tmp_path / "masks/c.png"


# --- size


def test_twenty_thousand_files_are_listed_without_opening_or_asking_for_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for i in range(10_000):
            os.close(os.open(tmp_path / folder / f"d{i // 100:03d}_{i:05d}.png", os.O_CREAT))

    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"a file was touched: {args}")

    asked: list[object] = []
    monkeypatch.setattr(builtins, "open", forbidden)
    monkeypatch.setattr(Path, "open", forbidden)
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, *a, **k: (asked.append(path), stat(path, *a, **k))[1])
    found = opened(tmp_path, group_pattern=r"^(d\d+)_", test_fraction=0.1)
    fresh = found.refresh()
    monkeypatch.undo()
    assert len(found.train) == 9000 and len(found.test) == 1000 and fresh.known == found.known
    assert len(asked) < 20


# --- real data


@pytest.mark.data
def test_camvid_as_published(data_root: Path) -> None:
    names = [c["name"] for c in json.loads((data_root / "driving/camvid/classes.json").read_text())["classes"]]
    found = opened(
        data_root / "driving/camvid", classes=dict(enumerate(names)), ignore_index=11, split_file="splits.json",
        train="pool_strict", group_pattern=r"^([^_]+)_",
    )  # fmt: skip
    assert len(found.train) == 354 and len(found.test) == 233 and len(found.classes) == 11
    mask = found.mask(found.train[0])
    assert mask is not None and mask.shape == (360, 480) and set(np.unique(mask)) <= {*range(11), IGNORE}
    assert read_image(found.train[0]).shape == (3, 360, 480)


@pytest.mark.data
@pytest.mark.parametrize(("name", "train", "test"), [("openkbp_hn5", 89, 29), ("msd_hippocampus", 200, 60)])
def test_public_volumes(data_root: Path, name: str, train: int, test: int) -> None:
    found = opened(data_root / "medical" / name, format="msd", classes=None)
    assert (len(found.train), len(found.test), found.notes, found.quarantined) == (train, test, (), {})
    for record in (found.train[0], found.test[-1]):
        mask = found.mask(record)
        assert mask is not None and mask.shape == read_image(record).shape[1:] and mask.max() == len(found.classes) - 1


@pytest.mark.data
def test_boxes_are_no_masks(data_root: Path) -> None:
    found = opened(
        data_root / "driving/road_users", format="coco", listing="annotations/instances_train.json", classes=None,
        group_field="group",
    )  # fmt: skip
    with pytest.raises(DataError, match="has no segmentation, only a box"):
        found.mask(found.train[0])
