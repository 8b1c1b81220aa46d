"""Windows: what is shown, what is known, and that batch i is a pure function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from dal_dense.boxes import ABSENT, IGNORED, OBJECT, Boxes
from dal_dense.config import DetectionConfig, TrainConfig
from dal_dense.errors import DataError, Stopped
from dal_dense.images import read_image
from dal_dense.records import ImageRecord
from dal_dense.regions import Box, Regions
from dal_dense.tasks import detection_ground
from dal_dense.tasks.base import Hooks, LabelledImage
from dal_dense.tasks.detection_backend import Sample
from dal_dense.tasks.detection_ground import HELD, Windows, gather
from dal_dense.tasks.detection_partial import area_table
from dal_dense.tasks.shelf import Shelf

SHAPE = (60, 80)


def frame(root: Path) -> ImageRecord:
    """Red holds the row and green the column, so that pixels tell where they come from."""
    rows, cols = np.mgrid[: SHAPE[0], : SHAPE[1]]
    path = root / "frame.png"
    Image.fromarray(np.stack([rows, cols, rows * 0], -1).astype(np.uint8)).save(path)
    return ImageRecord("frame", (path,), root, "g", None, 2)


def windows(
    record: ImageRecord,
    parts: list[tuple[Box, str, Boxes]],
    *,
    detection: DetectionConfig | None = None,
    seed: int = 0,
    held: int = HELD,
    **train: object,
) -> Windows:
    settings = TrainConfig(**({"patch": (32, 32), "batch": 8, "intensity": 0.0, "scale": 0.0} | train))
    regions, kinds, tables = zip(*parts, strict=True)
    known = LabelledImage(record, Regions.of(regions, 2), tuple(t.table() for t in tables), kinds)
    detection = detection or DetectionConfig()
    pieces = gather([known], detection=detection, train=settings, hooks=Hooks(), held=held)
    return Windows(pieces, settings, detection.min_visible, seed)


def known_pixels(sample: Sample) -> torch.Tensor:
    k = sample.known
    return (k[1:, 1:] - k[:-1, 1:] - k[1:, :-1] + k[:-1, :-1]) > 0.5


def origin(sample: Sample) -> tuple[int, int]:
    """Row and column of the window's first pixel."""
    return int(sample.image[0, 0, 0]), int(sample.image[1, 0, 0])


def test_a_crop_is_shown_whole_and_known_but_for_ignored_ground(tmp_path: Path) -> None:
    boxes = Boxes.of(
        [(12.0, 25.0, 20.0, 40.0), (30.0, 20.0, 40.0, 26.5), (11.0, 50.0, 15.0, 55.0)],
        [2, 1, 1],
        [OBJECT, IGNORED, ABSENT],
    )
    (sample, *_) = windows(frame(tmp_path), [(((10, 20), (40, 60)), "crop", boxes)]).batch(0)
    assert sample.image.shape == (3, 30, 40) and origin(sample) == (10, 20)
    assert sample.boxes.tolist() == [[5, 2, 20, 10]] and sample.classes.tolist() == [2]
    assert sample.absent.tolist() == [[30, 1, 35, 5]]
    expected = torch.ones(30, 40, dtype=torch.bool)
    expected[20:30, 0:7] = False
    assert torch.equal(known_pixels(sample), expected)
    assert torch.equal(sample.ignored, area_table(~expected))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_windows_of_a_frame_hold_the_objects_where_they_are(seed: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        boxes = Boxes.of([(5.0, 6.0, 15.0, 20.0), (40.0, 50.0, 58.0, 78.0)], [1, 2])
        where = [(((0, 0), SHAPE), "image", boxes)]
        source = windows(frame(Path(folder)), where, seed=seed, flip_axes=("left_right", "up_down"), foreground=1.0)
        for sample in source.batch(seed):
            assert sample.image.shape == (3, 32, 32) and known_pixels(sample).any()
            for box, kind in zip(sample.boxes, sample.classes, strict=True):
                x0, y0, x1, y1 = box.int().tolist()
                inside = sample.image[:, y0:y1, x0:x1]
                top, left, bottom, right = boxes.corners[int(kind) - 1]
                assert (inside[0] >= top).all() and (inside[0] < bottom).all()
                assert (inside[1] >= left).all() and (inside[1] < right).all()


def test_of_a_verified_box_only_the_box_is_known(tmp_path: Path) -> None:
    one = Boxes.of([(20.0, 30.0, 30.0, 45.0)], [1])
    two = Boxes.of([(22.0, 50.0, 30.0, 56.0)], [1], [ABSENT])
    parts = [(((20, 30), (30, 45)), "box", one), (((22, 50), (30, 56)), "box", two)]
    samples = [s for i in range(4) for s in windows(frame(tmp_path), parts, foreground=0.5).batch(i)]
    assert all(not known_pixels(s).any() for s in samples)
    assert any(len(s.boxes) and len(s.absent) for s in samples)
    assert all(s.image.shape == (3, 32, 32) for s in samples)


def test_a_window_beyond_a_crop_ignores_what_the_crops_border_cut(tmp_path: Path) -> None:
    crop = Boxes.of([(10.0, 5.0, 20.0, 12.0), (25.0, 30.0, 35.0, 40.0)], [1, 2])  # the second ends at the border
    box = Boxes.of([(26.0, 44.0, 34.0, 52.0)], [1])
    parts = [(((0, 0), (60, 40)), "crop", crop), (((26, 44), (34, 52)), "box", box)]
    source = windows(frame(tmp_path), parts, patch=(60, 60))
    shown = [s for i in range(6) for s in source.batch(i) if s.image.shape[1:] == (60, 60)]
    assert shown
    for sample in shown:
        top, left = origin(sample)
        known = known_pixels(sample)
        assert known[:20, : 40 - left].all() and not known[:, 40 - left :].any()
        assert not known[25 - top : 35 - top, 30 - left : 40 - left].any()
        assert 2 not in sample.classes.tolist()
    alone = [s for i in range(6) for s in source.batch(i) if s.image.shape[1:] == (60, 40)]
    assert alone and all(2 in s.classes.tolist() for s in alone)  # seen alone, it is an object


def test_a_box_on_labelled_ground_is_not_taught_twice(tmp_path: Path) -> None:
    boxes = Boxes.of([(10.0, 10.0, 20.0, 22.0)], [1])
    parts = [(((0, 0), (40, 40)), "crop", boxes), (((10, 10), (20, 22)), "box", boxes)]
    assert len(windows(frame(tmp_path), parts).pieces) == 1


@pytest.mark.parametrize(("left", "pieces"), [(26, 2), (20, 1)])
def test_a_box_at_a_crops_corner_is_taught_wherever_a_window_shows_it(tmp_path: Path, left: int, pieces: int) -> None:
    """Its middle lies in the crop; 42 or 60 hundredths of it do."""
    car = (20.0, float(left), 40.0, left + 20.0)
    beside = Boxes.of([(46.0, 44.0, 54.0, 54.0)], [2])
    corner = ((0, 0), (32, 40))
    crop = Boxes.of([car], [1]).within(corner, 0.25)
    parts = [(corner, "crop", crop), (((20, left), (40, left + 20)), "box", Boxes.of([car], [1]))]
    assert len(windows(frame(tmp_path), parts).pieces) == pieces
    source = windows(frame(tmp_path), [*parts, (((46, 44), (54, 54)), "box", beside)], patch=(60, 80), batch=1)
    for number in range(1, pieces + 1):
        sample = source.plain(number)
        assert sample.boxes.tolist() == [[left, 20, left + 20, 40], [44, 46, 54, 54]]
        assert sample.classes.tolist() == [1, 2]


def test_what_two_regions_hold_alike_is_one_object(tmp_path: Path) -> None:
    car, van = Boxes.of([(10.0, 12.0, 20.0, 22.0)], [1]), Boxes.of([(30.0, 50.0, 40.0, 60.0)], [2])
    both = Boxes.of(np.concatenate([van.corners, car.corners]), [2, 1])
    parts = [
        (((0, 0), (24, 30)), "crop", car),
        (((5, 5), (24, 35)), "crop", car),
        (((30, 50), (40, 60)), "box", both),
        (((30, 52), (40, 62)), "box", van),
    ]
    source = windows(frame(tmp_path), parts, patch=(60, 80))
    assert all(source.plain(n).classes.tolist() == [1, 2] for n in (2, 3))
    assert [piece.own.tolist() for piece in source.pieces[2:]] == [[0, 1], [1]]


def test_frames_are_scaled_by_their_longer_side(tmp_path: Path) -> None:
    boxes = Boxes.of([(10.0, 20.0, 30.0, 60.0)], [1])
    source = windows(frame(tmp_path), [(((0, 0), SHAPE), "image", boxes)], detection=DetectionConfig(long_side=40))
    sample = source.batch(0)[0]
    assert source.pieces[0].pixels().shape == (3, 30, 40)
    assert sample.image.shape == (3, 30, 32)
    width, height = (sample.boxes[0, 2:] - sample.boxes[0, :2]).tolist()
    assert height == 10 and width <= 20


def test_slivers_and_specks_are_ignored(tmp_path: Path) -> None:
    boxes = Boxes.of([(10.0, 10.0, 10.6, 30.0), (0.0, 60.0, 60.0, 79.0)], [1, 2])
    source = windows(frame(tmp_path), [(((0, 0), SHAPE), "image", boxes)], detection=DetectionConfig(min_visible=0.9))
    for i in range(3):
        for sample in source.batch(i):
            assert not len(sample.boxes)  # less than 1 pixel high; never seen to nine tenths in 32 x 32
            _, left = origin(sample)
            assert not known_pixels(sample)[:, max(0, 60 - left) : 79 - left].any()


def test_batches_are_pure_and_augmented(tmp_path: Path) -> None:
    boxes = Boxes.of([(10.0, 20.0, 30.0, 60.0)], [1])
    more = {"intensity": 0.2, "scale": 0.3, "flip_axes": ("left_right",)}
    make = lambda seed: windows(frame(tmp_path), [(((0, 0), SHAPE), "image", boxes)], seed=seed, **more)  # noqa: E731
    one, two, other = make(1), make(1), make(2)
    two.batch(4)
    for a, b in zip(one.batch(3), two.batch(3), strict=True):
        assert torch.equal(a.image, b.image) and torch.equal(a.boxes, b.boxes) and torch.equal(a.known, b.known)
    assert not all(torch.equal(a.image, b.image) for a, b in zip(one.batch(3), other.batch(3), strict=True))
    sizes = [tuple(s.image.shape[1:]) for i in range(4) for s in one.batch(i)]
    assert {min(s) for s in sizes} <= set(range(31, 34)) and all(s.image.max() <= 255 for s in one.batch(0))


def grey_frame(root: Path) -> ImageRecord:
    """Three grey files of 16 bits: no whole numbers on the scale of 0 to 255."""
    rng = np.random.default_rng(0)
    paths = tuple(root / f"{c}.png" for c in "rgb")
    for path in paths:
        Image.fromarray(rng.integers(0, 1 << 16, SHAPE).astype(np.uint16)).save(path)
    return ImageRecord("grey", paths, root, "g", None, 2)


@pytest.mark.parametrize("make", [frame, grey_frame])
@pytest.mark.parametrize("long_side", [None, 40])
def test_ground_that_memory_has_no_room_for_is_read_again_to_the_last_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], ImageRecord], long_side: int | None
) -> None:
    reads = 0

    def counted(record: ImageRecord, **more: int) -> NDArray[np.float32]:
        nonlocal reads
        reads += 1
        return read_image(record, **more)

    monkeypatch.setattr(detection_ground, "read_image", counted)
    left, right = (Boxes.of([box], [1]) for box in ((4.0, 6, 20, 22), (10.0, 50, 40, 70)))
    single = Boxes.of([(44.0, 12.0, 58.0, 30.0)], [2])
    parts = [
        (((0, 0), (40, 40)), "crop", left),
        (((0, 40), (60, 80)), "image", right),
        (((44, 12), (58, 30)), "box", single),
    ]
    options = {"detection": DetectionConfig(long_side=long_side), "scale": 0.3, "intensity": 0.1, "patch": (16, 16)}
    batches, counts, kept = [], [], []
    for held in (HELD, 3000, 1):
        reads = 0
        source = windows(make(tmp_path), parts, held=held, **options)
        batches.append([s for i in range(4) for s in source.batch(i)] + [source.plain(n) for n in range(3)])
        counts.append(reads)
        kept.append(source.pieces[0].shelf.nbytes)
    assert counts[0] == 1 < counts[2] and counts[1] <= counts[2]
    largest = max(piece.pixels().nbytes for piece in source.pieces)
    assert kept[0] == sum(piece.pixels().nbytes for piece in source.pieces)
    assert kept[1] <= max(3000, largest) and kept[2] <= largest
    for other in batches[1:]:
        for a, b in zip(batches[0], other, strict=True):
            assert torch.equal(a.image, b.image) and torch.equal(a.boxes, b.boxes) and torch.equal(a.known, b.known)
    exact = make is grey_frame and long_side is None
    assert {piece.pixels().dtype for piece in source.pieces} == {torch.float32 if exact else torch.uint8}


def test_what_was_used_least_lately_goes_from_the_shelf() -> None:
    shelf, read = Shelf(20), []

    def get(key: int, size: int = 8) -> None:
        shelf.get(key, lambda: read.append(key) or torch.zeros(size, dtype=torch.uint8))  # type: ignore[func-returns-value]

    for key in (1, 2, 1, 3, 1, 2):  # 3 makes 2 go, not 1
        get(key)
    assert read == [1, 2, 3, 2] and shelf.nbytes == 16
    get(4, 30)
    assert shelf.nbytes == 30  # more than there is room for: alone
    get(4)
    assert read[-1] == 4 and len(read) == 5


@pytest.mark.parametrize(("side", "count"), [(32, 8), (16, 29), (8, 32)])
def test_a_batch_of_small_crops_holds_as_many_pixels_up_to_four_times_the_windows(
    tmp_path: Path, side: int, count: int
) -> None:
    nothing = Boxes.of([], [])
    batch = windows(frame(tmp_path), [(((0, 0), (side, side)), "crop", nothing)]).batch(0)
    assert len(batch) == count  # a patch is 32 x 32, a batch 8 of them; 0.9 of their pixels make it full


def test_classes_are_drawn_evenly(tmp_path: Path) -> None:
    many = [(4.0 * i, 2.0, 4.0 * i + 3, 9.0) for i in range(12)]
    boxes = Boxes.of([*many, (20.0, 60.0, 30.0, 75.0)], [1] * 12 + [2])
    source = windows(frame(tmp_path), [(((0, 0), SHAPE), "image", boxes)], patch=(20, 20), foreground=1.0)
    rare = [2 in s.classes.tolist() for i in range(20) for s in source.batch(i)]
    assert 0.3 < np.mean(rare) < 0.7


def test_bad_ground_is_told(tmp_path: Path) -> None:
    boxes = Boxes.of([(10.0, 20.0, 30.0, 60.0)], [1])
    with pytest.raises(DataError, match="outside the frame"):
        windows(frame(tmp_path), [(((0, 0), (60, 81)), "crop", boxes)])
    known = LabelledImage(frame(tmp_path), Regions.of([((0, 0), SHAPE)], 2), (boxes.table(),), ("image",))
    with pytest.raises(Stopped):
        gather(
            [known], detection=DetectionConfig(), train=TrainConfig(patch=(32, 32)), hooks=Hooks(stopping=lambda: True)
        )
