"""The made-up sets: the same everywhere, truth that fits the picture, folders that can be trusted."""

import hashlib
import json
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pytest
import yaml
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from dal_dense.config import Config
from dal_dense.errors import DataError
from dal_dense.synthetic import CT_CLASSES, DRIVING_CLASSES, ensure_ct, ensure_driving, write_ct
from dal_dense.synthetic.ct import phantom
from dal_dense.synthetic.drive import WEATHER
from dal_dense.synthetic.driving import THINGS, drive
from dal_dense.synthetic.scene import NEAR, Camera, Painter, sampled, speckle
from dal_dense.synthetic.store import begin, finish, is_complete
from dal_dense.synthetic.street import SIDEWALK, SKY, VEHICLE

SHAPE = (32, 24, 24)
CT = {"train": 2, "test": 1, "shape": SHAPE}
FRAMES = {"drives": 2, "frames_per_drive": 2, "test_drives": 1, "test_frames_per_drive": 1, "size": (48, 80)}


def _digests(root: Path) -> dict[str, str]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def ct_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("ct") / "data"
    assert ensure_ct(root, seed=3, **CT)
    return root


@pytest.fixture(scope="module")
def frames_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("frames") / "data"
    assert ensure_driving(root, seed=3, **FRAMES)
    return root


@pytest.fixture(scope="module")
def patients():
    return [phantom(0, 0, n, (48, 36, 24)) for n in range(12)]


def test_another_process_makes_the_same_files(ct_root, frames_root, tmp_path):
    code = (
        "import sys; from pathlib import Path; from dal_dense.synthetic import ensure_ct, ensure_driving\n"
        f"ensure_ct(Path(sys.argv[1]) / 'a', seed=3, **{CT!r})\n"
        f"ensure_driving(Path(sys.argv[1]) / 'b', seed=3, **{FRAMES!r})\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert _digests(tmp_path / "a") == _digests(ct_root)
    assert _digests(tmp_path / "b") == _digests(frames_root)


def test_a_case_does_not_depend_on_how_many_are_made(ct_root, frames_root, tmp_path):
    ensure_ct(tmp_path / "a", seed=3, train=1, test=1, shape=SHAPE)
    few, many = _digests(tmp_path / "a"), _digests(ct_root)
    for name in ("imagesTr/phantom_001.nii.gz", "imagesTs/phantom_test_001.nii.gz"):
        assert few[name] == many[name]
    assert few["imagesTr/phantom_001.nii.gz"] != few["imagesTs/phantom_test_001.nii.gz"]
    later = drive(3, 0, 1, (48, 80)).frame(1)  # without its first frame, without the drive before it
    assert (later.label == cv2.imread(str(frames_root / "masks" / "drive02_0001.png"), cv2.IMREAD_GRAYSCALE)).all()


def test_other_seeds_make_other_cases():
    assert (phantom(0, 0, 0, SHAPE).image != phantom(1, 0, 0, SHAPE).image).any()
    assert (drive(0, 0, 0, (48, 80)).frame(0).image != drive(1, 0, 0, (48, 80)).frame(0).image).any()


def test_ensure_does_nothing_when_the_set_is_there(ct_root):
    before = {p: p.stat().st_mtime_ns for p in ct_root.rglob("*")}
    assert not ensure_ct(ct_root, seed=3, **CT)
    assert {p: p.stat().st_mtime_ns for p in ct_root.rglob("*")} == before


def _stop(what: str, done: int, total: int) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("ensure", "numbers", "whole"), [(ensure_ct, CT, "ct_root"), (ensure_driving, FRAMES, "frames_root")]
)
def test_a_set_that_was_cut_off_is_made_again(ensure, numbers, whole, tmp_path, request):
    with pytest.raises(KeyboardInterrupt):
        ensure(tmp_path, seed=3, **numbers, progress=_stop)
    before = _digests(tmp_path)
    with pytest.raises(DataError, match=r"seed 3 \(asked: 4\)"):
        ensure(tmp_path, seed=4, **numbers)
    assert _digests(tmp_path) == before, "a case of the other seed would be among ours"
    assert ensure(tmp_path, seed=3, **numbers)
    assert _digests(tmp_path) == _digests(request.getfixturevalue(whole))


def test_a_mark_that_was_cut_off_and_hidden_files_do_not_count(tmp_path):
    for name in ("synthetic.json.part.part", ".DS_Store"):
        (tmp_path / name).write_text("")
    begin(tmp_path, CT)
    begin(tmp_path, CT)  # another program makes the same set
    finish(tmp_path)
    finish(tmp_path)
    assert is_complete(tmp_path, CT)


@pytest.mark.parametrize(("ensure", "numbers"), [(ensure_ct, CT), (ensure_driving, FRAMES)])
@pytest.mark.parametrize("name", ["dataset.json", "splits.json", "annotations/instances_train.json", "other.txt"])
def test_a_folder_of_other_files_is_refused_and_kept(ensure, numbers, name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=r"expected a new or empty folder.*name another folder"):
        ensure(tmp_path, **numbers)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / name).read_text() == "{}"


@pytest.mark.parametrize(
    ("argv", "status", "told"),
    [
        (["ct", "{file}"], 1, "{file}: Not a directory; expected a folder"),
        (["driving", "{file}/data"], 1, "{file}/data: Not a directory; expected a folder"),
        (["ct", "{new}", "--seed", "-1"], 1, "a seed from 0 on; got"),
        (["driving", "{new}", "--seed", "-1"], 1, "a seed from 0 on; got"),
        (["ct", "{new}", "--shape", "48"], 2, "shape: got '48'; expected a list in brackets, as in [64, 64, 48]"),
        (["driving", "{new}", "--size", "48"], 2, "size: got '48'; expected a list in brackets, as in [192, 320]"),
        (["ct", "{new}", "--train", "few"], 2, "train: got 'few'; expected whole number"),
        (["ct", "{new}", "--trian", "2"], 2, "unrecognized arguments: --trian 2; correct it, or see --help"),
        (["mr", "{new}"], 2, "invalid choice: 'mr'"),
    ],
)
def test_a_mistake_at_the_command_line_is_one_line(argv, status, told, tmp_path, pytestconfig, monkeypatch, capsys):
    file, new = tmp_path / "file", tmp_path / "new"
    file.write_text("mine")
    script = str(pytestconfig.rootpath / "datasets" / "prepare_demo.py")
    monkeypatch.setattr(sys, "argv", [script, *(part.format(file=file, new=new) for part in argv)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(script, run_name="__main__")
    assert end.value.code == status
    said = capsys.readouterr().err
    assert told.format(file=file) in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_text() == "mine"


def test_a_set_of_other_numbers_is_refused_and_kept(ct_root, frames_root):
    before = _digests(ct_root)
    with pytest.raises(DataError, match=r"seed 3 \(asked: 4\).*delete it or name another folder"):
        write_ct(ct_root, seed=4, **CT)
    with pytest.raises(DataError, match="set ct"):
        ensure_driving(ct_root, seed=3, **FRAMES)
    assert _digests(ct_root) == before


def test_impossible_numbers_are_refused(tmp_path):
    with pytest.raises(DataError, match="24 voxels"):
        ensure_ct(tmp_path, shape=(8, 64, 64))
    with pytest.raises(DataError, match="32 x 32"):
        ensure_driving(tmp_path, size=(16, 160))
    assert not list(tmp_path.iterdir())


def test_ct_folder_is_msd_with_full_headers(ct_root):
    listing = json.loads((ct_root / "dataset.json").read_text())
    assert list(listing["labels"].values()) == list(CT_CLASSES)
    assert (len(listing["training"]), len(listing["test"])) == (2, 1)
    for entry in listing["training"] + listing["test"]:
        image, label = nib.load(ct_root / entry["image"]), nib.load(ct_root / entry["label"])
        assert image.get_data_dtype() == np.int16
        assert label.get_data_dtype() == np.uint8
        assert image.shape == label.shape
        assert sorted(image.shape) == sorted(SHAPE)
        assert np.array_equal(image.affine, label.affine)
        assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 1
        assert np.allclose(image.get_qform(), image.get_sform(), atol=1e-3)


def test_organs_have_their_hu_and_their_side(patients):
    for case in patients:
        hu = case.image.astype(float)
        world = nib.affines.apply_affine(case.affine, np.argwhere(case.label == 1)).mean(0)
        middle = nib.affines.apply_affine(case.affine, np.argwhere(hu > -500)).mean(0)
        assert world[0] > middle[0] + 15, "the liver is on the right (RAS x)"
        spleen = np.argwhere(case.label == 3)
        if len(spleen) > 20:
            assert nib.affines.apply_affine(case.affine, spleen).mean(0)[0] < middle[0] - 30
        assert 35 < np.median(hu[case.label == 1]) < 140
        assert np.median(hu[case.label == 2]) > (100 if case.phase != "native" else 10)
        assert hu.min() >= -1024
        assert hu.min() < -950


def test_orientations_phases_and_missing_organs_vary(patients):
    assert len({nib.aff2axcodes(case.affine) for case in patients}) > 1
    assert len({case.phase for case in patients}) > 1
    volumes = np.array([np.bincount(case.label.ravel(), minlength=5) for case in patients])
    assert (volumes[:, 1] > 300).all()
    assert 0 < (volumes[:, 4] > 0).sum() < len(patients), "lesions in some patients only"
    assert volumes[volumes[:, 4] > 0, 4].max() > 4 * volumes[volumes[:, 4] > 0, 4].min()


def test_lesions_are_darker_than_their_liver(patients):
    gaps = [
        np.median(c.image[c.label == 1]) - np.median(c.image[c.label == 4])
        for c in patients
        if (c.label == 4).sum() > 15
    ]
    assert min(gaps) > 5
    assert np.median(gaps) > 15


def test_the_anatomy_stays_when_the_grid_is_finer():
    coarse, fine = phantom(0, 0, 0, SHAPE), phantom(0, 0, 0, tuple(2 * n for n in SHAPE))
    ratio = (fine.label == 1).sum() / (coarse.label == 1).sum()
    assert ratio == pytest.approx(8, rel=0.1)


def test_driving_folder_fits_together(frames_root):
    splits = json.loads((frames_root / "splits.json").read_text())
    assert splits == {
        "train": ["drive01_0000", "drive01_0001", "drive02_0000", "drive02_0001"],
        "test": ["test01_0000"],
    }
    names = json.loads((frames_root / "classes.json").read_text())["classes"]
    assert [entry["name"] for entry in names] == list(DRIVING_CLASSES)
    for name in splits["train"] + splits["test"]:
        image = cv2.imread(str(frames_root / "images" / f"{name}.jpg"))
        mask = cv2.imread(str(frames_root / "masks" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        assert image.shape == (48, 80, 3)
        assert mask.shape == (48, 80)
        assert mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {*range(len(DRIVING_CLASSES)), 255}


@pytest.mark.parametrize("split", ["train", "test"])
def test_coco_objects_are_the_masks_pixels(frames_root, split):
    coco = COCO(frames_root / "annotations" / f"instances_{split}.json")
    assert coco.anns
    for image in coco.loadImgs(coco.getImgIds()):
        mask = cv2.imread(str(frames_root / "masks" / f"{Path(image['file_name']).stem}.png"), cv2.IMREAD_UNCHANGED)
        covered = np.zeros(mask.shape, bool)
        for found in coco.loadAnns(coco.getAnnIds(image["id"])):
            pixels = coco.annToMask(found).astype(bool)
            assert (mask[pixels] == found["category_id"]).all()
            assert not (covered & pixels).any()
            covered |= pixels
            assert found["area"] == pixels.sum()
            assert found["iscrowd"] == (pixels.sum() < 8)
            assert found["bbox"] == list(coco_mask.toBbox(coco_mask.encode(np.asfortranarray(pixels))))
        assert (covered == np.isin(mask, list(THINGS))).all()
        assert image["group"] == image["file_name"].split("_")[0]


def test_every_class_and_weather_is_drawn():
    seen = np.zeros(256, int)
    means = []
    for number in range(len(WEATHER)):
        frames = [drive(0, 0, number, (64, 96)).frame(k) for k in (0, 6)]
        means.append(frames[0].image.mean())
        seen += np.bincount(np.concatenate([f.label.ravel() for f in frames]), minlength=256)
    share = seen / seen.sum()
    assert (share[: len(DRIVING_CLASSES)] > 0.0005).all()
    assert share[255] < 0.15
    assert means[1] < 0.75 * means[0], "dusk is darker than day"


def test_frames_of_a_drive_resemble_each_other():
    street, other = drive(0, 0, 2, (64, 96)), drive(0, 0, 6, (64, 96))
    now = street.frame(3).label
    assert (now == street.frame(4).label).mean() > (now == other.frame(3).label).mean()
    assert (now != street.frame(4).label).any()


def test_camera_puts_the_ground_where_it_projects_points():
    camera = Camera(rows=60, columns=100, focal=80.0, horizon=25.0, height=1.5, bend=0.002)
    x, z = camera.ground()
    rows, columns = np.nonzero(np.isfinite(z) & (z < 80))
    points = np.stack([x[rows, columns], np.zeros(len(rows)), z[rows, columns]], 1)
    assert np.allclose(camera.project(points), np.stack([columns + 0.5, rows + 0.5], 1), atol=0.02)
    assert np.isinf(z[:25]).all()


def test_near_shapes_hide_far_ones_and_nothing_behind_the_camera_shows():
    camera = Camera(rows=60, columns=100, focal=80.0, horizon=25.0, height=1.5, bend=0.0)
    painter = Painter(camera)
    painter.plate((-5, 5), (-1, 4), 20.0, (1, 1, 1), SIDEWALK)
    painter.plate((-1, 1), (0, 1), 10.0, (9, 9, 9), VEHICLE, thing=7)
    painter.plate((-9, 9), (-9, 9), NEAR / 2, (5, 5, 5), SKY)
    layers = painter.over(np.zeros((60, 100, 3)), np.full((60, 100), SKY), np.full((60, 100), np.inf))
    row, column = (int(v) for v in camera.project(np.array([[0.0, 0.5, 10.0]]))[0][::-1])
    assert (layers.label[row, column], layers.thing[row, column], layers.depth[row, column]) == (VEHICLE, 7, 10.0)
    assert layers.label[row, 33] == SIDEWALK
    assert (layers.thing > 0).sum() == pytest.approx(16 * 8, rel=0.2)
    assert layers.label[0, 0] == SKY
    assert np.isinf(layers.depth[0, 0])


def test_texture_repeats_without_a_seam():
    texture = speckle(np.random.default_rng(0), side=64)
    u = np.arange(-64.0, 128.0, dtype=np.float32)[None]
    line = sampled(texture, u, np.full_like(u, 5.0))[0]
    assert np.allclose(line[:64], line[64:128], atol=1e-5)
    assert np.allclose(line[64:128], texture[5], atol=1e-3)
    steps = np.abs(np.diff(line[64:]))
    assert steps[63] < steps[:63].max(), "the step from the last texel to the first is like any other"


@pytest.mark.parametrize("name", ["demo_ct", "demo_driving"])
def test_demo_configs_fit_the_made_sets(name, pytestconfig):
    config = Config.model_validate(yaml.safe_load((pytestconfig.rootpath / "configs" / f"{name}.yaml").read_text()))
    assert config.run_dir == Path("runs") / name
    assert config.data_root == config.run_dir / "data"
    if name == "demo_driving":
        assert config.data.classes == dict(enumerate(DRIVING_CLASSES))
        assert config.data.ignore_index == 255
