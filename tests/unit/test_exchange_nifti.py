"""Volumes go out and come back voxel for voxel, wherever the scanner lay."""

import gzip
import itertools
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, inv_ornt_aff

from dal_dense.config import DataConfig
from dal_dense.errors import DataError
from dal_dense.exchange.asked import load_sidecar
from dal_dense.exchange.batch import write_batch
from dal_dense.exchange.nifti import crop_affine
from dal_dense.exchange.returns import read_returns
from dal_dense.pool import Pool, open_pool
from dal_dense.query import Query, QueryRegion
from dal_dense.tasks.base import Proposal

CLASSES = {0: "background", 1: "liver", 2: "spleen"}
ALL_TURNS = [
    np.array(list(zip(axes, flips, strict=True)), dtype=float)
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


def rotation(a: float, b: float, c: float) -> np.ndarray:
    """Three Euler angles, radians."""
    one = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    two = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    three = np.array([[1, 0, 0], [0, np.cos(c), -np.sin(c)], [0, np.sin(c), np.cos(c)]])
    return one @ two @ three


angle = st.floats(-np.pi, np.pi)


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Oblique, any handedness and axis order, 0.3 to 5 mm, origin within 400 mm."""
    affine = np.eye(4)
    spacing = [draw(st.floats(0.3, 5)) for _ in range(3)]
    signs = [draw(st.sampled_from((-1, 1))) for _ in range(3)]
    order = draw(st.permutations(range(3)))
    turned = rotation(draw(angle), draw(angle), draw(angle))
    affine[:3, :3] = turned[:, order] * spacing * signs
    affine[:3, 3] = [draw(st.floats(-400, 400)) for _ in range(3)]
    return affine


@st.composite
def boxes(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A box inside; often at the border, sometimes one voxel thick."""
    start = tuple(draw(st.integers(0, n - 1)) for n in shape)
    stop = tuple(draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True))
    return start, stop


def pool_of(root: Path, image: np.ndarray, affine: np.ndarray) -> Pool:
    (root / "images").mkdir(parents=True)
    source = nib.Nifti1Image(image, affine)
    nib.save(source, root / "images" / "scan.nii.gz")
    return open_pool(DataConfig(format="folder", masks=None, classes=CLASSES, test_fraction=0), root, seed=0)


def region(box: tuple[tuple[int, ...], tuple[int, ...]], number: int = 0, image: str = "scan") -> QueryRegion:
    return QueryRegion(
        id=f"r00-{number:03d}", image_id=image, kind="crop", start=box[0], stop=box[1], score=0.5, seconds=60
    )


def query(*regions: QueryRegion, round: int = 0) -> Query:
    return Query(round=round, strategy="random", seed=1, regions=regions)


def export(tmp: Path, pool: Pool, asked: Query, labels: dict[str, np.ndarray]) -> Path:
    proposals = {k: Proposal(label=v, uncertainty=np.zeros(v.shape, np.float32)) for k, v in labels.items()}
    batch = tmp / "run" / "queries" / f"round_{asked.round:03d}"
    return write_batch(batch, asked, pool, proposals, run_id="run", classes=pool.classes, model_sha256=None)


def give_back(batch: Path, label: np.ndarray, affine: np.ndarray, name: str = "r00-000.nii.gz") -> None:
    nib.save(nib.Nifti1Image(label, affine), batch / "returned" / name)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_crop_overlays_its_scan_and_comes_back_without_any_shift(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tmp = tmp_path_factory.mktemp("case")
    shape = tuple(data.draw(st.integers(1, 9)) for _ in range(3))
    box = data.draw(boxes(shape))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    pool = pool_of(tmp / "data", rng.integers(-1024, 3000, shape).astype(np.int16), data.draw(affines()))
    asked = query(region(box))
    label = rng.choice([0, 1, 2, 255], asked.regions[0].shape).astype(np.uint8)
    batch = export(tmp, pool, asked, {"r00-000": label})

    source = nib.load(tmp / "data" / "images" / "scan.nii.gz")
    voxels = np.asarray(source.dataobj)[tuple(slice(a, b) for a, b in zip(*box, strict=True))]
    for name, expected in (("images", voxels), ("proposals", label)):
        crop = nib.load(batch / name / "r00-000.nii.gz")
        np.testing.assert_array_equal(np.asarray(crop.dataobj), expected)
        assert crop.get_data_dtype() in (np.uint8, np.int16)
        corners = np.array(list(itertools.product(*[(0, n - 1) for n in crop.shape])))
        there = nib.affines.apply_affine(source.affine, corners + box[0])
        assert np.abs(nib.affines.apply_affine(crop.get_sform(), corners) - there).max() < 1e-4
        # the qform's first quaternion term is a root of a float32 difference, good to 3.5e-4 near half a turn
        span = 1 + np.abs(there - there[0]).max()
        assert np.abs(nib.affines.apply_affine(crop.get_qform(), corners) - there).max() < 2e-3 * span
        assert int(crop.header["sform_code"]) > 0 and int(crop.header["qform_code"]) > 0

    turn = data.draw(st.sampled_from(ALL_TURNS))  # what a viewer may do to the axes when it saves
    proposal = nib.load(batch / "proposals" / "r00-000.nii.gz")
    flipped = apply_orientation(np.asarray(proposal.dataobj), turn)
    give_back(batch, np.ascontiguousarray(flipped), proposal.affine @ inv_ornt_aff(turn, proposal.shape))
    found, problems = read_returns(batch, batch / "returned")
    assert problems == []
    np.testing.assert_array_equal(found[0].label, label)
    assert found[0].label.dtype == np.uint8
    shutil.rmtree(tmp)


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    affine = np.diag([-0.8, 0.8, 2.5, 1.0])
    affine[:3, :3] = rotation(0.3, -0.2, 0.1) @ affine[:3, :3]
    affine[:3, 3] = 120.5, -80.25, 33.125
    rng = np.random.default_rng(0)
    return pool_of(tmp_path / "data", rng.integers(-1000, 1000, (12, 11, 7)).astype(np.int16), affine)


BOX = ((0, 4, 2), (5, 10, 6))
OTHER = ((7, 0, 0), (12, 3, 7))


@pytest.fixture
def label() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 3, (5, 6, 4)).astype(np.uint8)


@pytest.fixture
def batch(tmp_path: Path, pool: Pool, label: np.ndarray) -> Path:
    return export(tmp_path, pool, query(region(BOX), region(OTHER, 1)), {"r00-000": label})


def geometry(batch: Path) -> np.ndarray:
    affine: np.ndarray = nib.load(batch / "images" / "r00-000.nii.gz").affine
    return affine


def test_the_whole_scan_shows_proposal_and_numbered_regions(batch: Path, pool: Pool, label: np.ndarray) -> None:
    mask = nib.load(batch / "scans" / "scan_regions.nii.gz")
    values = np.asarray(mask.dataobj)
    assert values.shape == (12, 11, 7) and values.dtype == np.uint8
    assert (values[0:5, 4:10, 2:6] == 1).all() and (values[7:, :3] == 2).all() and (values > 0).sum() == 5 * 6 * 4 + 105
    scan = np.asarray(nib.load(batch / "scans" / "scan_proposal.nii.gz").dataobj)
    np.testing.assert_array_equal(scan[0:5, 4:10, 2:6], label)
    np.testing.assert_allclose(mask.affine, nib.load(pool["scan"].paths[0]).affine, atol=1e-6)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("name", ["r00-000", "scan"])
def test_a_moved_label_is_told_how_far_it_moved(
    batch: Path, pool: Pool, label: np.ndarray, name: str, flipped: bool
) -> None:
    sent, values = geometry(batch), label
    if name == "scan":
        sent, values = nib.load(pool["scan"].paths[0]).affine, np.zeros((12, 11, 7), np.uint8)
    moved = sent @ nib.affines.from_matvec(np.eye(3), (2.5, -1, 3))
    if flipped:
        values = values[::-1]
        moved = moved @ nib.affines.from_matvec(np.diag([-1, 1, 1]), (len(values) - 1, 0, 0))
    give_back(batch, np.ascontiguousarray(values), moved, f"{name}.nii.gz")
    problems = read_returns(batch, batch / "returned")[1]
    assert len(problems) == 1 and "(moved by 2.5 x -1 x 3 voxels)" in problems[0]


def test_a_whole_scan_that_comes_back_is_cut_into_its_regions(batch: Path, pool: Pool) -> None:
    whole = np.random.default_rng(2).integers(0, 3, (12, 11, 7)).astype(np.uint8)
    give_back(batch, whole, nib.load(pool["scan"].paths[0]).affine, "scan.nii.gz")
    found, problems = read_returns(batch, batch / "returned")
    assert problems == []
    np.testing.assert_array_equal(found[0].label, whole[0:5, 4:10, 2:6])
    np.testing.assert_array_equal(found[1].label, whole[7:12, 0:3, 0:7])
    (batch / "returned" / "reviewed.txt").write_text("r00-001  # the other is not done\n")
    found, problems = read_returns(batch, batch / "returned")
    assert [f.region_id for f in found] == ["r00-001"] and problems == []


def test_a_crop_saved_on_the_scans_grid_is_taken_too(batch: Path, pool: Pool) -> None:
    whole = np.random.default_rng(2).integers(0, 3, (12, 11, 7)).astype(np.float32)
    give_back(batch, whole, nib.load(pool["scan"].paths[0]).affine)
    found, problems = read_returns(batch, batch / "returned")
    assert problems == []
    np.testing.assert_array_equal(found[0].label, whole[0:5, 4:10, 2:6])


def spoil(kind: str, batch: Path, label: np.ndarray) -> None:
    affine, moved = geometry(batch), geometry(batch)
    target = batch / "returned" / "r00-000.nii.gz"
    match kind:
        case "half a voxel":
            moved[:3, 3] += moved[:3, 0] / 2
            give_back(batch, label, moved)
        case "one voxel":
            give_back(batch, label, crop_affine(affine, (1, 0, 0)))
        case "turned":
            moved[:3, :3] = rotation(0.02, 0, 0) @ moved[:3, :3]
            give_back(batch, label, moved)
        case "no geometry":
            give_back(batch, label, np.eye(4))
        case "resampled":
            moved[:3, 0] *= 2
            give_back(batch, label[::2], moved)
        case "part":
            give_back(batch, label[:3], affine)
        case "class":
            give_back(batch, np.where(label == 2, 7, label).astype(np.uint8), affine)
        case "fraction":
            give_back(batch, label.astype(np.float32) + 0.5, affine)
        case "nan":
            give_back(batch, np.full(label.shape, np.nan, np.float32), affine)
        case "channels":
            give_back(batch, np.stack([label, label], -1), affine)
        case "truncated":
            give_back(batch, label, affine)
            target.write_bytes(target.read_bytes()[:-20])
        case "damaged":
            data = bytearray(gzip.decompress((batch / "proposals" / "r00-000.nii.gz").read_bytes()))
            packed = bytearray(gzip.compress(bytes(data), compresslevel=0))
            packed[-60] ^= 1  # a voxel; only the checksum knows
            target.write_bytes(packed)
        case "text":
            target.write_bytes(b"not a nifti")
        case "empty":
            target.write_bytes(b"")
        case "huge":
            target.write_bytes(gzip.compress(bytes(4_000_000)))
        case "promise":
            data = bytearray(gzip.decompress((batch / "proposals" / "r00-000.nii.gz").read_bytes()))
            data[42:48] = b"\xff\x7f" * 3  # 32767 voxels an axis
            (batch / "returned" / "r00-000.nii").write_bytes(data)
        case "nrrd":
            (batch / "returned" / "r00-000.nrrd").write_bytes(b"NRRD")


EXPECTED = {
    "half a voxel": "another voxel grid",
    "one voxel": "begins at the region's voxel (1, 0, 0)",
    "turned": "axes or voxel size differ",
    "no geometry": "another voxel grid",
    "resampled": "another voxel grid",
    "part": "covers only part",
    "class": "[7]",
    "fraction": "0.5",
    "nan": "nan",
    "channels": "one 3-D label",
    "truncated": "cannot be read as NIfTI",
    "damaged": "cannot be read as NIfTI",
    "text": "cannot be read as NIfTI",
    "empty": "cannot be read as NIfTI",
    "huge": "more voxels than the whole scan",
    "promise": "more voxels than the whole scan",
    "nrrd": "as NIfTI",
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_a_bad_label_is_told_and_hides_no_good_one(kind: str, batch: Path, label: np.ndarray) -> None:
    spoil(kind, batch, label)
    other = np.zeros((5, 3, 7), np.uint8)
    give_back(batch, other, nib.load(batch / "images" / "r00-001.nii.gz").affine, "r00-001.nii.gz")
    found, problems = read_returns(batch, batch / "returned")
    assert [f.region_id for f in found] == ["r00-001"]
    assert len(problems) == 1 and "r00-000" in problems[0] and EXPECTED[kind] in problems[0]


@pytest.mark.filterwarnings("ignore")  # numpy and nibabel warn of what the damage does to numbers
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_header_is_told_never_a_crash(places: list[tuple[int, int]], batch: Path) -> None:
    data = bytearray(gzip.decompress((batch / "proposals" / "r00-000.nii.gz").read_bytes()))
    for place, value in places:
        data[place] = value
    (batch / "returned" / "r00-000.nii").write_bytes(data)
    found, problems = read_returns(batch, batch / "returned")
    assert len(found) + len(problems) == 1


def test_a_slice_that_lost_its_third_axis_is_taken(tmp_path: Path, pool: Pool) -> None:
    batch = export(tmp_path, pool, query(region(((1, 2, 3), (6, 9, 4)))), {})
    flat = np.random.default_rng(3).integers(0, 3, (5, 7)).astype(np.uint8)
    give_back(batch, flat, geometry(batch))
    found, problems = read_returns(batch, batch / "returned")
    assert problems == []
    np.testing.assert_array_equal(found[0].label[..., 0], flat)


def test_two_rounds_that_share_a_folder_and_a_scan_need_to_say_what_is_finished(tmp_path: Path, pool: Pool) -> None:
    first = export(tmp_path, pool, query(region(BOX)), {})
    later = query(region(OTHER).model_copy(update={"id": "r01-000"}), round=1)
    second = export(tmp_path, pool, later, {})
    folder = first / "returned"
    give_back(first, np.zeros((12, 11, 7), np.uint8), nib.load(pool["scan"].paths[0]).affine, "scan.nii.gz")
    found, problems = read_returns(second, folder, earlier=[first])
    assert found == [] and "rounds 0, 1 all ask scan" in problems[0]
    (folder / "reviewed.txt").write_text("r01-000\n")
    found, problems = read_returns(second, folder, earlier=[first])
    assert [f.region_id for f in found] == ["r01-000"] and problems == []


def test_an_export_that_cannot_finish_leaves_nothing(
    tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("dal_dense.exchange.nifti.save", full)
        with pytest.raises(DataError, match=r"No space left on device.*free space"):
            export(tmp_path, pool, query(region(BOX)), {})
    assert list((tmp_path / "run" / "queries").iterdir()) == []
    export(tmp_path, pool, query(region(BOX)), {})


def test_what_a_killed_export_left_is_written_anew(tmp_path: Path, pool: Pool) -> None:
    left = tmp_path / "run" / "queries" / ".round_000.partial" / "images"
    left.mkdir(parents=True)
    (left / "r99-000.nii.gz").write_bytes(b"half a file")
    batch = export(tmp_path, pool, query(region(BOX)), {})
    assert {p.name for p in (batch / "images").iterdir()} == {"r00-000.nii.gz"}
    assert [p.name for p in batch.parent.iterdir()] == ["round_000"]


def test_a_second_export_changes_nothing_and_another_query_is_refused(tmp_path: Path, pool: Pool, batch: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in batch.rglob("*")}
    export(tmp_path, pool, query(region(BOX), region(OTHER, 1)), {})
    assert {p: p.stat().st_mtime_ns for p in batch.rglob("*")} == before
    with pytest.raises(DataError, match="another query"):
        export(tmp_path, pool, query(region(OTHER)), {})


def test_several_channels_become_several_files(tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((6, 5, 4, 2)).astype(np.float32)
    pool = pool_of(tmp_path / "data", image, np.diag([1.0, 1.0, 3.0, 1.0]))
    batch = export(tmp_path, pool, query(region(((1, 1, 1), (4, 5, 3)))), {})
    files = load_sidecar(batch).regions[0].files
    for channel, role in enumerate(("image", "image_ch1")):
        np.testing.assert_array_equal(np.asarray(nib.load(batch / files[role]).dataobj), image[1:4, 1:5, 1:3, channel])


def test_label_tables_name_every_class(batch: Path) -> None:
    snap = (batch / "labels.txt").read_text()
    assert "1 " in snap and '"liver"' in snap and '"spleen"' in snap
    assert "2 spleen " in (batch / "labels.ctbl").read_text()
    assert "r00-001  scan  [7, 0, 0] [12, 3, 7]" in (batch / "README.txt").read_text()
