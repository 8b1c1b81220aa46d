"""Volumes, frames and masks: what is read, and that what cannot be trusted is refused with a remedy."""

import os
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle

from dal_dense.errors import DataError
from dal_dense.images import (
    Header,
    anatomical_axes,
    axial_axis,
    read_header,
    read_image,
    read_mask,
    sha256_of,
)
from dal_dense.masks import rasterise, to_classes
from dal_dense.records import IGNORE, ImageRecord

CLASSES = {0: 0, 1: 1, 2: 2}
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, NumPy 2


def record(*paths: Path, ndim: int = 3, mask: Path | None = None) -> ImageRecord:
    return ImageRecord("one", paths, paths[0].parent, "one", mask, ndim)


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    image = nib.Nifti1Image(array, np.diag([2.0, 3, 4, 1]) if affine is None else affine)
    nib.save(image, path)
    return path


def volume(path: Path, dtype: type = np.int16) -> tuple[Path, np.ndarray]:
    array = np.arange(4 * 5 * 6).reshape(4, 5, 6).astype(dtype)
    return save(path, array), array


def rotation(a: float, b: float, c: float) -> np.ndarray:
    sin, cos = np.sin, np.cos
    x = np.array([[1, 0, 0], [0, cos(a), -sin(a)], [0, sin(a), cos(a)]])
    y = np.array([[cos(b), 0, sin(b)], [0, 1, 0], [-sin(b), 0, cos(b)]])
    z = np.array([[cos(c), -sin(c), 0], [sin(c), cos(c), 0], [0, 0, 1]])
    return x @ y @ z


# --- volumes


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_volume_is_read_as_stored_with_its_grid(tmp_path: Path, name: str) -> None:
    path, array = volume(tmp_path / name)
    header, image = read_header(record(path)), read_image(record(path))
    assert header.shape == (4, 5, 6) and header.spacing == (2, 3, 4)
    assert image.dtype == np.float32 and np.array_equal(image, array[None])


def test_channels_come_first_from_one_file_or_several(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(4, 5, 6, 2)).astype(np.float32)
    path = save(tmp_path / "both.nii.gz", array)
    files = [save(tmp_path / f"c_{i}.nii.gz", array[..., i]) for i in range(2)]
    assert np.array_equal(read_image(record(path)), np.moveaxis(array, -1, 0))
    assert np.array_equal(read_image(record(*files)), np.moveaxis(array, -1, 0))
    assert read_header(record(path)).shape == (4, 5, 6)
    save(files[1], array[:3, ..., 1])
    with pytest.raises(DataError, match=r"c_1.nii.gz: the channel has shape \(3, 5, 6\), its image \(4, 5, 6\)"):
        read_image(record(*files))


def test_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.full((2, 2, 2), 10, np.int16), np.eye(4))
    image.header.set_slope_inter(2, -1000)
    nib.save(image, tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[352:] = np.full(8, 10, "<i2").tobytes()  # nibabel unscales on saving, so the stored value is put back
    (tmp_path / "a.nii").write_bytes(raw)
    assert np.array_equal(read_image(record(tmp_path / "a.nii")), np.full((1, 2, 2, 2), -980, np.float32))


@pytest.mark.parametrize("cut", [4, 9, 200])
def test_truncated_gzip_is_told(tmp_path: Path, cut: int) -> None:
    path = save(tmp_path / "a.nii.gz", np.random.default_rng(0).integers(0, 999, (9, 9, 9), dtype=np.int16))
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DataError, match=r"a.nii.gz: truncated or damaged; copy the file again"):
        read_image(record(path))


def test_a_wrong_checksum_is_told(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", np.random.default_rng(0).integers(0, 999, (30, 30, 30), dtype=np.int16))
    raw = bytearray(path.read_bytes())
    raw[-6] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match="damaged"):
        read_image(record(path))


def test_truncated_plain_nifti_is_told(tmp_path: Path) -> None:
    path, _ = volume(tmp_path / "a.nii")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"a.nii: cannot be read .*copy the file again"):
        read_image(record(path))


@pytest.mark.parametrize(
    ("content", "words"), [(b"", r"empty \(0 bytes\)"), (b"no volume" * 99, "not a NIfTI file|damaged|cannot be read")]
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_empty_and_foreign_files_are_told(tmp_path: Path, content: bytes, words: str, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    for read in (read_header, read_image):
        with pytest.raises(DataError, match=words):
            read(record(tmp_path / name))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_voxels_are_counted_and_the_first_is_named(tmp_path: Path, bad: float) -> None:
    array = np.zeros((4, 5, 6), np.float32)
    array[1, 2, 3] = array[3, 0, 0] = bad
    with pytest.raises(DataError, match=r"2 voxels are NaN or infinite, the first at \(1, 2, 3\); fill them"):
        read_image(record(save(tmp_path / "a.nii.gz", array)))


def test_doubles_beyond_float32_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="8 voxels are NaN or infinite"):
        read_image(record(save(tmp_path / "a.nii.gz", np.full((2, 2, 2), 1e300))))


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 6, 2, 2)])
def test_other_than_volumes_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = save(tmp_path / "a.nii.gz", np.zeros(shape, np.int16))
    with pytest.raises(DataError, match="a volume has 3 axes"):
        read_header(record(path))


def test_colour_and_complex_volumes_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", np.zeros((2, 2, 2), np.complex64))
    with pytest.raises(DataError, match="complex64; convert"):
        read_image(record(path))


def test_a_sheared_sform_is_refused_with_its_angle(tmp_path: Path) -> None:
    affine = np.diag([2.0, 2, 2, 1])
    affine[0, 2] = 0.2
    path = save(tmp_path / "a.nii.gz", np.zeros((3, 3, 3), np.int16), affine)
    for read in (read_header, read_image):
        with pytest.raises(DataError, match=r"array axes 0 and 2 meet at 84.29 degrees, not 90; resample"):
            read(record(path))


def test_the_sform_wins_if_it_is_set_and_else_the_qform(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((3, 3, 3), np.int16), None)
    image.set_sform(np.diag([1.0, 2, 3, 1]), code=1)
    image.set_qform(np.diag([4.0, 5, 6, 1]), code=1)
    nib.save(image, tmp_path / "s.nii")
    image.set_sform(None, code=0)
    nib.save(image, tmp_path / "q.nii")
    assert read_header(record(tmp_path / "s.nii")).spacing == (1, 2, 3)
    assert read_header(record(tmp_path / "q.nii")).spacing == (4, 5, 6)


@settings(max_examples=50, deadline=None)
@given(
    st.permutations([0, 1, 2]),
    st.tuples(*[st.sampled_from([-1, 1])] * 3),
    st.tuples(*[st.floats(-0.4, 0.4)] * 3),
)
def test_anatomical_axes_of_flipped_permuted_oblique_grids(
    order: list[int], signs: tuple[int, ...], angles: tuple[float, ...]
) -> None:
    affine = np.eye(4)
    for array_axis, world_axis in enumerate(order):
        affine[:3, array_axis] = rotation(*angles)[:, world_axis] * signs[array_axis] * (array_axis + 1)
    axes = anatomical_axes(affine)
    assert [order[a] for a in axes] == [0, 1, 2]
    assert axial_axis(Header((2, 2, 2), (1.0, 1.0, 1.0), affine)) == order.index(2)


def test_frames_have_no_axial_axis() -> None:
    with pytest.raises(ValueError, match="frames have no axial axis"):
        axial_axis(Header((2, 2), (1.0, 1.0), None))


def test_missing_and_locked_files_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for ndim, name in ((3, "a.nii.gz"), (2, "a.png")):
        with pytest.raises(DataError, match=rf"{name}: the file is not there; restore it"):
            read_image(record(tmp_path / name, ndim=ndim))
    path, _ = volume(tmp_path / "a.nii")

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", refuse)  # root may read anything, so no mode bits here
    with pytest.raises(DataError, match=r"a.nii: not allowed to read it; correct its permissions"):
        read_image(record(path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_mode_bits_are_told(tmp_path: Path) -> None:
    path, _ = volume(tmp_path / "a.nii")
    path.chmod(0)
    with pytest.raises(DataError, match="not allowed to read it"):
        read_image(record(path))


# --- frames


def frame(path: Path, array: np.ndarray, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


RGB = np.random.default_rng(1).integers(0, 256, (7, 9, 3)).astype(np.uint8)


def test_rgb_frames_are_channels_first(tmp_path: Path) -> None:
    path = frame(tmp_path / "a.png", RGB)
    assert read_header(record(path, ndim=2)).shape == (7, 9)
    assert np.array_equal(read_image(record(path, ndim=2)), np.moveaxis(RGB, -1, 0).astype(np.float32))


def test_grey_16_bit_palette_alpha_and_binary_frames(tmp_path: Path) -> None:
    def read(name: str) -> np.ndarray:
        return read_image(record(tmp_path / name, ndim=2))

    grey = RGB[..., 0]
    frame(tmp_path / "grey.png", grey)
    frame(tmp_path / "deep.png", grey.astype(np.uint16) * 257)
    frame(tmp_path / "alpha.png", np.dstack([RGB, grey]))
    frame(tmp_path / "grey_alpha.png", np.dstack([grey, grey]))
    frame(tmp_path / "binary.png", (grey > 99).astype(np.uint8) * 255, "1")
    frame(tmp_path / "palette.png", grey, "P")
    frame(tmp_path / "cmyk.jpg", np.full((7, 9, 3), 255, np.uint8), "CMYK")
    three = np.repeat(grey[None], 3, 0).astype(np.float32)
    for name in ("grey.png", "grey_alpha.png", "palette.png"):
        assert np.array_equal(read(name), three), name
    assert np.allclose(read("deep.png"), three, atol=1e-4)
    assert np.array_equal(read("alpha.png"), np.moveaxis(RGB, -1, 0))
    assert np.array_equal(read("binary.png"), np.where(three > 99, 255, 0))
    assert np.allclose(read("cmyk.jpg"), 255)


def test_an_orientation_tag_moves_no_pixel(tmp_path: Path) -> None:
    tag = Image.Exif()
    tag[0x0112] = 6  # "turn by 90 degrees"
    path = frame(tmp_path / "a.jpg", RGB, exif=tag)
    assert read_header(record(path, ndim=2)).shape == (7, 9) and read_image(record(path, ndim=2)).shape == (3, 7, 9)


@pytest.mark.parametrize("cut", [2, 50, 0.5])
def test_a_jpeg_that_ends_early_is_refused(tmp_path: Path, cut: float) -> None:
    path = frame(tmp_path / "a.jpg", np.kron(RGB, np.ones((20, 20, 1), np.uint8)))
    raw = path.read_bytes()
    path.write_bytes(raw[: -int(cut if cut >= 1 else len(raw) * cut)])
    with pytest.raises(DataError, match=r"a.jpg: cannot be read \(image file is truncated.*copy the file again"):
        read_image(record(path, ndim=2))


def test_bytes_after_the_end_of_a_jpeg_do_no_harm(tmp_path: Path) -> None:
    path = frame(tmp_path / "a.jpg", RGB)
    path.write_bytes(path.read_bytes() + b"camera notes")
    assert read_image(record(path, ndim=2)).shape == (3, 7, 9)


@pytest.mark.parametrize(("content", "words"), [(b"", r"empty \(0 bytes\)"), (b"nothing", "neither a PNG nor a JPEG")])
def test_empty_and_foreign_frames_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    for read in (read_header, read_image):
        with pytest.raises(DataError, match=words):
            read(record(tmp_path / "a.jpg", ndim=2))


def test_a_damaged_png_is_refused(tmp_path: Path) -> None:
    path = frame(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (90, 90, 3)).astype(np.uint8))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"a.png: .*copy the file again"):
        read_image(record(path, ndim=2))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.nii.gz", "a.nii"])
@pytest.mark.filterwarnings("ignore")  # of what the damage does to numbers in the header
def test_a_damaged_byte_is_told_or_harmless(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    path, ndim = tmp_path / name, 3 if "nii" in name else 2
    save(path, rng.integers(0, 9, (6, 6, 6), dtype=np.int16)) if ndim == 3 else frame(path, RGB)
    raw = path.read_bytes()
    for at in rng.permutation(len(raw))[:200]:
        path.write_bytes(raw[:at] + bytes([raw[at] ^ int(rng.integers(1, 256))]) + raw[at + 1 :])
        try:
            read_header(record(path, ndim=ndim))
            read_image(record(path, ndim=ndim))
        except DataError as problem:
            assert str(path) in str(problem) and ";" in str(problem)


def test_grey_channel_files_are_stacked(tmp_path: Path) -> None:
    files = [frame(tmp_path / f"{i}.png", RGB[..., i]) for i in range(2)]
    assert np.array_equal(read_image(record(*files, ndim=2)), np.moveaxis(RGB[..., :2], -1, 0))
    frame(files[1], RGB)
    with pytest.raises(DataError, match=r"1.png: a channel file must be grey"):
        read_image(record(*files, ndim=2))


# --- masks


def test_a_mask_becomes_class_numbers(tmp_path: Path) -> None:
    path, _ = volume(tmp_path / "a.nii.gz")
    stored = np.random.default_rng(0).choice([0, 4, 9, 200], (4, 5, 6))
    for dtype in (np.uint8, np.int16, np.int32, np.float32, np.float64):
        mask = save(tmp_path / "m.nii.gz", stored.astype(dtype))
        found = read_mask(mask, like=read_header(record(path)), mapping={0: 0, 4: 1, 9: 2, 200: IGNORE})
        assert found.dtype == np.uint8
        assert np.array_equal(found, np.select([stored == 4, stored == 9, stored == 200], [1, 2, IGNORE], 0))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64, np.float64]))
def test_mapping_agrees_with_a_plain_loop(data: st.DataObject, dtype: type) -> None:
    low, high = (-100, 100) if np.dtype(dtype).kind != "u" else (0, 200)
    mapping = data.draw(st.dictionaries(st.integers(low, high), st.sampled_from([0, 1, 2, IGNORE]), min_size=1))
    values = data.draw(st.lists(st.sampled_from(sorted(mapping)), min_size=1, max_size=20))
    found = to_classes(Path("m"), np.array(values, dtype=dtype)[None], mapping)
    assert found.tolist() == [[mapping[v] for v in values]]


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32])
def test_values_outside_the_classes_are_listed_with_counts(tmp_path: Path, dtype: type) -> None:
    path, _ = volume(tmp_path / "a.nii.gz")
    stored = np.zeros((4, 5, 6), dtype)
    stored[0, 0, :3], stored[1, 1, 1] = 7, 30
    mask = save(tmp_path / "m.nii.gz", stored)
    words = r"label values 7 \(3 times\), 30 \(once\) are outside the classes \[0, 1, 2\]; correct"
    with pytest.raises(DataError, match=words):
        read_mask(mask, like=read_header(record(path)), mapping=CLASSES)


def test_fractions_and_nan_are_no_labels(tmp_path: Path) -> None:
    path, _ = volume(tmp_path / "a.nii.gz")
    stored = np.zeros((4, 5, 6), np.float32)
    stored[0, 0, 0], stored[0, 0, 1] = 0.5, np.nan
    mask = save(tmp_path / "m.nii.gz", stored)
    with pytest.raises(DataError, match=r"label values 0.5 \(once\), nan \(once\) are not whole numbers"):
        read_mask(mask, like=read_header(record(path)), mapping=CLASSES)


def test_a_mask_of_another_shape_or_place_is_refused(tmp_path: Path) -> None:
    path, _ = volume(tmp_path / "a.nii.gz")
    like = read_header(record(path))
    mask = save(tmp_path / "m.nii.gz", np.zeros((4, 5, 7), np.uint8))
    with pytest.raises(DataError, match=r"m.nii.gz: the mask has shape \(4, 5, 7\), its image \(4, 5, 6\); pair"):
        read_mask(mask, like=like, mapping=CLASSES)
    zeros = np.zeros((4, 5, 6), np.uint8)
    moved, flipped, rounded = np.diag([2.0, 3, 4, 1]), np.diag([-2.0, 3, 4, 1]), np.diag([2.0001, 3, 4, 1])
    moved[2, 3] = 2.0
    for affine in (moved, flipped):
        with pytest.raises(DataError, match=r"the mask's affine differs from its image's, by up to \d+ mm; pair"):
            read_mask(save(mask, zeros, affine), like=like, mapping=CLASSES)
    assert read_mask(save(mask, zeros, rounded), like=like, mapping=CLASSES).sum() == 0


def test_a_mask_with_channels_is_refused(tmp_path: Path) -> None:
    path, _ = volume(tmp_path / "a.nii.gz")
    mask = save(tmp_path / "m.nii.gz", np.zeros((4, 5, 6, 2), np.uint8))
    with pytest.raises(DataError, match="a mask needs one channel, this has 2"):
        read_mask(mask, like=read_header(record(path)), mapping=CLASSES)


def test_index_masks_of_frames_keep_palette_indices(tmp_path: Path) -> None:
    like = Header((7, 9), (1.0, 1.0), None)
    values = RGB[..., 0] % 3
    plain = frame(tmp_path / "plain.png", values)
    image = Image.fromarray(values)
    image.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200])  # as in PASCAL VOC: colours are for the eye
    image.save(tmp_path / "palette.png")
    deep = frame(tmp_path / "deep.png", values.astype(np.uint16))
    for path in (plain, tmp_path / "palette.png", deep):
        assert np.array_equal(read_mask(path, like=like, mapping=CLASSES), values), path.name


def small_png(path: Path, values: np.ndarray, depth: int, kind: int) -> Path:
    """A PNG of less than a byte a pixel, grey (kind 0) or palette (3), byte by byte as the standard has it."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    bits = (values[..., None] >> np.arange(depth)[::-1]) & 1
    rows = np.packbits(bits.reshape(len(values), -1).astype(np.uint8), axis=1)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, kind, 0, 0, 0)
    colours = chunk(b"PLTE", bytes(range(10, 10 + 3 * 2**depth))) if kind == 3 else b""
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + colours + pixels + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("kind", [0, 3])
def test_index_masks_of_few_bits_keep_their_values(tmp_path: Path, depth: int, kind: int) -> None:
    values = np.arange(63).reshape(7, 9) % 2**depth
    path = small_png(tmp_path / "a.png", values, depth, kind)
    mapping = {v: v for v in range(2**depth)}
    assert np.array_equal(read_mask(path, like=Header((7, 9), (1.0, 1.0), None), mapping=mapping), values)
    if kind == 0:  # as a frame, white stays white
        assert read_image(record(path, ndim=2)).max() == 255


def test_colour_and_jpeg_masks_are_refused(tmp_path: Path) -> None:
    like = Header((7, 9), (1.0, 1.0), None)
    with pytest.raises(DataError, match=r"a colour mask \(mode RGB\), but an index mask"):
        read_mask(frame(tmp_path / "a.png", RGB), like=like, mapping=CLASSES)
    with pytest.raises(DataError, match="JPEG changes label values; save index masks as PNG"):
        read_mask(frame(tmp_path / "a.jpg", RGB[..., 0]), like=like, mapping=CLASSES)


# --- COCO annotations

SQUARE = [2.0, 1.0, 6.0, 1.0, 6.0, 5.0, 2.0, 5.0]


def test_polygons_rle_and_crowds_are_drawn() -> None:
    counts = [0, 8, 72]  # the first column of an 8 x 10 image
    mask = rasterise(
        "a.jpg",
        [
            {"category_id": 3, "segmentation": [[3.0, 2.0, 5.0, 2.0, 5.0, 4.0, 3.0, 4.0]]},
            {"category_id": 7, "segmentation": [SQUARE]},
            {"category_id": 7, "segmentation": {"size": [8, 10], "counts": counts}},
            {"category_id": 3, "iscrowd": 1, "bbox": [8, 6, 2, 2]},
            {"category_id": 5, "segmentation": [[0.0, 6.0, 9.0, 6.0, 9.0, 8.0]]},
        ],
        (8, 10),
        {3: 1, 7: 2},
    )
    expected = np.zeros((8, 10), np.uint8)
    expected[:, 0] = 2
    expected[1:5, 2:6] = 2
    expected[2:4, 3:5] = 1  # the smaller object lies on top, whatever the order
    expected[6:, 8:] = IGNORE
    assert np.array_equal(mask, expected)  # and category 5, which is no class here, is background


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=1, max_size=30), st.integers(1, 40))
def test_compressed_rle_is_read(bits: bytes, repeat: int) -> None:
    inside = np.repeat(np.unpackbits(np.frombuffer(bits, np.uint8)), repeat)
    inside = inside[: len(inside) // 8 * 8].reshape(8, -1)
    code = rle.encode(np.asfortranarray(inside))
    for counts in (code["counts"], code["counts"].decode()):
        annotation = {"category_id": 1, "segmentation": {"size": list(inside.shape), "counts": counts}}
        found = rasterise("a", [annotation], inside.shape, {1: 1})
        assert np.array_equal(found, inside)


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        (None, "annotation 4 has no segmentation, only a box"),
        ([[1.0, 2.0, 3.0, 4.0]], "polygon that is not a list of at least 3 points"),
        ({"size": [8, 9], "counts": [72]}, r"RLE of size \[8, 9\], its image is \[8, 10\]"),
        ({"size": [8, 10], "counts": [5, 3]}, "do not add up to 8 x 10"),
        ({"size": [8, 10], "counts": [0, 100]}, "do not add up to 8 x 10"),
        ({"size": [8, 10], "counts": [-5, 85]}, "do not add up to 8 x 10"),
        ({"size": [8, 10], "counts": "zzzzzzzzzz"}, "do not add up to 8 x 10"),
        ({"size": [8, 10], "counts": "04"}, "do not add up to 8 x 10"),
        ({"size": [8, 10], "counts": "PPPPPPPPP0000"}, "do not add up to 8 x 10"),
        ({"size": [8, 10]}, "do not add up to 8 x 10"),
    ],
)
def test_bad_segmentations_are_refused(segmentation: object, words: str) -> None:
    annotation = {"id": 4, "category_id": 1, "bbox": [0, 0, 2, 2], "segmentation": segmentation}
    with pytest.raises(DataError, match=words):
        rasterise("a.jpg", [annotation], (8, 10), {1: 1})


# --- fingerprints


def test_sha256_of_a_file_and_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    (folder / "1").write_bytes(b"abc")
    assert sha256_of(folder / "1") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    before = sha256_of(folder)
    (folder / "1").rename(folder / "2")
    renamed = sha256_of(folder)
    (folder / "2").write_bytes(b"abd")
    assert len({before, renamed, sha256_of(folder)}) == 3
    with pytest.raises(DataError, match="not there"):
        sha256_of(tmp_path / "none")


@pytest.mark.data
def test_real_ct_agrees_with_nibabel(data_root: Path) -> None:
    path = data_root / "medical/openkbp_hn5/images/okbp_002.nii.gz"
    header = read_header(record(path))
    assert np.allclose(header.affine, nib.load(path).affine) and anatomical_axes(header.affine) == (0, 1, 2)
    assert np.array_equal(read_image(record(path))[0], nib.load(path).get_fdata(dtype=np.float32))
