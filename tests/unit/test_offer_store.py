"""Offers on disk come back as they were, whatever cut the writing, and are read a column at a time."""

import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dal_dense import offer_store
from dal_dense.acquire import STRATEGIES, Budget, Round, acquire
from dal_dense.config import StrategyConfig
from dal_dense.errors import DataError
from dal_dense.offer_store import Gathered, OfferStore, _Column, without_images
from dal_dense.offers import Offers, Parts, concat
from tests.conformance.test_strategies import image_offers, random_offers


def images(count: int = 5, rows: int = 6) -> list[Offers]:
    gen = torch.Generator().manual_seed(0)
    made = [image_offers(i, rows, gen, axes=2) for i in range(count)]
    objects = [m.parts for m in made if m.parts is not None]
    by_row = [Parts(*(getattr(p, f.name)[p.row.argsort(stable=True)] for f in fields(Parts))) for p in objects]
    return [replace(m, parts=p) for m, p in zip(made, by_row, strict=True)]


def same(one: Offers, other: Offers) -> bool:
    plain = [f.name for f in fields(Offers) if f.name not in ("regions", "extra", "parts")]
    pairs = [(getattr(one, n), getattr(other, n)) for n in plain]
    pairs += [(one.regions.start, other.regions.start), (one.regions.stop, other.regions.stop)]
    assert one.extra.keys() == other.extra.keys() and (one.parts is None) == (other.parts is None)
    pairs += [(one.extra[n].nan_to_num(-1), other.extra[n].nan_to_num(-1)) for n in one.extra]
    if one.parts is not None and other.parts is not None:
        pairs += [(getattr(one.parts, f.name), getattr(other.parts, f.name)) for f in fields(Parts)]
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def test_every_column_comes_back(tmp_path: Path) -> None:
    parts = images()
    parts[2] = parts[2][torch.zeros(0, dtype=torch.int64)]
    store = OfferStore(tmp_path)
    for part in parts:
        store.append(part)
    assert same(store.read(), concat(parts))
    fresh = OfferStore(tmp_path)
    fresh.append(parts[1])
    assert same(fresh.read(), parts[1])


def test_columns_of_no_width_and_what_not_all_rows_have(tmp_path: Path) -> None:
    one, two, three = images(3)
    one = replace(one, embedding=one.embedding[:, :0], extra={**one.extra, "margin": one.score})
    two = replace(two, embedding=two.embedding[:, :0], parts=None)
    three = replace(three, embedding=three.embedding[:, :0])
    store = OfferStore(tmp_path)
    for part in (one, two, three):
        store.append(part)
    assert same(store.read(), concat([one, two, three]))
    assert store.read().parts is None and list(store.read().extra) == ["time"]


def test_what_was_cut_off_is_not_read_and_the_next_goes_behind_the_last_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three = images(3)
    store = OfferStore(tmp_path)
    store.append(one)
    write, written = _Column.write, 0

    def until_the_disk_is_full(column: _Column, *args: Any) -> None:
        nonlocal written
        written += 1
        if written > 3:
            raise OSError("no space left")
        write(column, *args)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr(_Column, "write", until_the_disk_is_full)
        store.append(two)
    with next(tmp_path.glob("00.bin")).open("ab") as file:
        file.write(b"half a row")
    assert store.rows == len(one) and same(store.read(), one)
    store.append(three)
    assert same(store.read(), concat([one, three]))


def test_a_file_that_is_too_short_is_not_filled_with_zeros(tmp_path: Path) -> None:
    (one,) = images(1)
    store = OfferStore(tmp_path)
    store.append(one)
    file = tmp_path / "00.bin"
    size = file.stat().st_size
    os.truncate(file, size - 1)
    with pytest.raises(DataError, match=f"00.bin should hold {size} bytes, {len(one)} rows .* and holds {size - 1}; "):
        store.read()
    assert file.stat().st_size == size - 1


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="the system does not say how much memory there is")
def test_a_column_larger_than_memory_is_mapped(tmp_path: Path) -> None:
    rows = 2 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    with (tmp_path / "00.bin").open("wb") as file:
        file.truncate(4 * rows)  # a hole: it takes no room on the disk
    column = _Column("00.bin", "float32", ()).mapped(tmp_path, rows)
    assert len(column) == rows and float(column[-1]) == 0


def test_columns_that_change(tmp_path: Path) -> None:
    one, two = images(2)
    store = OfferStore(tmp_path)
    with pytest.raises(DataError, match="no offers are stored"):
        store.read()
    store.append(one)
    with pytest.raises(DataError, match=r"embedding .* was float32 of width \(4,\), and is .*\(3,\) from row 6"):
        store.append(replace(two, embedding=two.embedding[:, :3]))
    assert same(store.read(), one)


@pytest.mark.parametrize("many", [1, 13, 10**6])
def test_gathered_rows_are_the_same_in_memory_and_on_disk(
    many: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offer_store, "MANY", many)
    gathered = Gathered(tmp_path / "offers")
    assert gathered.nothing
    for part in images():
        gathered.add(part)
    assert not gathered.nothing and same(gathered.all(), concat(images()))
    assert (tmp_path / "offers").exists() == (many < 10**6)  # a small pool leaves no trace
    gone = torch.tensor([False, True, False, False, True])
    every = gathered.all()
    left = without_images(every, gone, tmp_path / "offers")
    assert same(left, concat([images()[i] for i in (0, 2, 3)]))
    assert same(every, concat(images()))
    assert len([*tmp_path.glob("offers/*")]) == (many < 10**6)  # the files of `every` are gone
    with pytest.raises(DataError, match=r"Offers.score must be finite and >= 0; row 0"):
        gathered.add(replace(images()[0], score=-images()[0].score - 1))


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_chooses_the_same_from_disk(name: str, tmp_path: Path) -> None:
    offers = random_offers(3, 6, 12)
    store = OfferStore(tmp_path)
    store.append(offers)
    config, when = StrategyConfig(name=name), Round(2, 4, 7)
    here, there = (
        acquire(o, Budget(90.0, 2, 5), config, when, quota_classes=(1, 2), checked=checked)
        for o, checked in ((offers, False), (store.read(), True))
    )
    assert here.rows.tolist() == there.rows.tolist() and torch.equal(here.value, there.value)


BOUNDED = """
import resource, sys
from pathlib import Path
import torch
from dal_dense.acquire import Budget, Round, acquire
from dal_dense.config import StrategyConfig
from dal_dense.noise import uniform
from dal_dense.offer_store import OfferStore
from dal_dense.offers import Offers
from dal_dense.regions import Regions

folder, rows, bound = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)

def held():  # bytes of private memory, which the limit below counts; views of files are not
    return next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("VmData")) * 1024

store = OfferStore(folder)
part = rows // 8
for n in range(8):
    key = torch.arange(part) + n * part
    draw, zero = uniform(key, 0, "score").float(), torch.zeros(part)
    start = torch.stack([key % 36 // 6 * 100, key % 6 * 100], 1)
    store.append(Offers(
        image=key // 36, group=key // 3600, regions=Regions(start, start + 100), kind=zero.to(torch.uint8), key=key,
        score=draw, class_score=zero[:, None].expand(-1, 4), shares=zero[:, None].expand(-1, 4), boundary=zero,
        objects=zero, area=zero, seconds=draw * 20 + 3, image_seconds=zero + 10,
        embedding=zero[:, None].expand(-1, 16), labelled=zero > 1))
size = sum(f.stat().st_size for f in folder.iterdir())
choose = lambda offers: acquire(
    offers, Budget(3600.0, 4, 20), StrategyConfig(name="per_second"), Round(1, 2, 0), quota_classes=(), checked=True)
choose(store.read()[:1000])  # whatever the first call loads
resource.setrlimit(resource.RLIMIT_DATA, (held() + bound, resource.RLIM_INFINITY))
chosen = choose(store.read())
print(size, len(chosen), chosen.total)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on private memory is Linux's")
def test_reading_and_selection_keep_within_a_bound_that_the_columns_do_not(tmp_path: Path) -> None:
    """The kernel refuses memory beyond the bound, so the process ends badly where it is passed.

    24 bytes a row, and what some rows at a time take, which is less than one column more would.
    """
    rows = 2_000_000
    bound = 24 * rows + (28 << 20)
    command = [sys.executable, "-c", BOUNDED, str(tmp_path), str(rows), str(bound)]
    # what is freed goes back at once, so that nothing of it is used again unseen below the limit
    malloc = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, **malloc}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    size, chosen, total = (float(word) for word in done.stdout.split())
    assert size > 4 * bound and chosen > 50 and total <= 3600
