"""Bad input through the whole program: a message with file, fact and remedy; one bad image stops nothing.

Every fault is met twice: by default the image is set aside and listed and the run ends normally; with
`data.strict` the run stops with status 1 and, once the file is mended, comes to the end that a run
without the fault comes to. Whatever was labelled before stays in the ledger.
"""

from __future__ import annotations

import errno
import html
import itertools
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pytest

from dal_dense import ledger_store, rounds
from dal_dense.annotators import Outcome
from dal_dense.cli import load_config
from dal_dense.errors import DataError
from dal_dense.ledger import Ledger
from dal_dense.pool import open_pool
from dal_dense.records import ImageRecord
from dal_dense.results import load
from dal_dense.run import Run
from tests.e2e.command import Ended, TrainAl, batch, build_toy, draw, draw_frames, labels, main_of_script, story
from tests.toy import ToyTask
from tests.world import frame_settings, settings, write_frames, write_volumes

ROOT = Path(__file__).parents[2]
BAD = "case_01"
SHORT = {"budget__rounds": "1"}


def whole_story(argv: list[str], run_dir: Path) -> list[object]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dal_dense.build.build_task", build_toy)
        patch.setattr("dal_dense.report.figures._svg", lambda *given, **more: "<svg/>")
        assert main_of_script()(argv) == 0
    return story(run_dir)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Volumes without a fault; tests copy them."""
    return write_volumes(tmp_path_factory.mktemp("clean"))


@pytest.fixture(scope="module")
def expected(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """What an undisturbed run tells."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    return whole_story(settings(clean, run_dir), run_dir)


@pytest.fixture(scope="module")
def expected_soon(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The same of a run of one round: a fault of the pool is met before the first."""
    run_dir = tmp_path_factory.mktemp("short") / "run"
    return whole_story(settings(clean, run_dir, **SHORT), run_dir)


@pytest.fixture
def data(clean: Path, tmp_path: Path) -> Path:
    """Volumes to spoil."""
    return shutil.copytree(clean, tmp_path / "data")


# settings


Case = tuple[list[str], str, str]
"""Arguments, how the line begins, what to do."""


def value_cases(good: list[str]) -> dict[str, Case]:
    """Of `setting_cases`: one wrong value beside good ones."""
    cases = {
        "a number for a list": ("task.train.patch=8", "task.train.patch: got '8'", "a list in brackets"),
        "a word for a number": ("data.ignore_index=ten", "data.ignore_index: got 'ten'", "whole number"),
        "too few levels": ("task.network.channels=[8]", "task.network.channels: got '[8]'", "at least 2"),
        "a level of nothing": ("task.network.channels=[8, 0]", "task.network.channels [8, 0]", "at least 1"),
        "a patch between levels": ("task.train.patch=[9, 8, 8]", "task.train.patch [9, 8, 8] does", "write [8, 8, 8]"),
        "a patch of four axes": ("task.train.patch=[8, 8, 8, 8]", "task.train.patch [8, 8, 8, 8]", "3 for volumes"),
        "one class": ("data.classes={0: body}", "data.classes: 1 named", "name between 2 and 254"),
        "no size": ("query.sizes=[]", "query.sizes: got '[]'", "as in [[64, 64, 48]]"),
        "a name for a group": ("strategy=hybrid", "strategy: got 'hybrid'", "settings of its own below it"),
        "no threads": ("threads=0", "threads: got 0; expected 1 or more; ", "see --help"),
        "half a pattern": ("data.group_pattern=(a", "data.group_pattern: '(a' is no regular", "correct it"),
        "no bracket": ("data.time_pattern=a", "data.time_pattern: 'a' has no bracket", "put one around"),
        "frames' size for volumes": ("task.frame_size=[8, 8]", "task.frame_size is for", "give it 2"),
        "two numbers for three": ("task.spacing=[2, 2]", "task.spacing: got '[2, 2]'", "3 numbers in brackets"),
        "a list of classes": ("data.classes=[a, b]", "data.classes: got ", "in braces, as in {0: background"),
        "a voxel of no size": ("task.spacing=[2, 2, 0]", "task.spacing [2.0, 2.0, 0.0]", "must be above 0"),
        "sizes of other axes": ("query.sizes=[[4, 4]]", "query.sizes has [2] numbers", "both need 3"),
        "unknown device": ("device=gpu", "device: 'gpu' is no device", "use auto, cpu, cuda"),
        "missing listing": ("data.listing=other.json", "data.listing: other.json is not in", "correct the path"),
        "a folder for a file": ("data.split_file=.", "data.split_file: . is no file", "correct the path"),
        "a file for a folder": ("data.listing=dataset.json/x", "data.listing: dataset.json/x is not in", "correct"),
        "no number that may be null": ("query.scan_images=1e3", "query.scan_images: got '1e3'", "whole number or null"),
        "half a label value": ("data.classes={0: a, 1.7: b}", "data.classes: got {0: 'a', 1.7", "{0: background, 1: "),
        "true for a number": ("seed=true", "seed: got True; true, false", "see --help"),
        "a zoom beyond sense": ("task.train.scale=0.999", "task.train.scale: got ", "expected at most 0.5; "),
        "names before values": (
            "data.classes={a: 0, b: 1}",
            "data.classes: got {'a': 0",
            "{0: background, 1: liver}",
        ),
        "a path too long": (f"run_dir={'x' * 300}", "run_dir: xxx", "give a folder"),
        "a seed too large": ("seed=9223372036854775808", "seed: got ", "expected at most 9223372036854775807; "),
        "one draw to compare": (
            "uncertainty.score=mutual_information",
            "uncertainty.score mutual",
            "2 or more",
        ),
        "missing table": ("data.group_table=g.csv", "data.group_table: g.csv is not in", "correct the path"),
        "a list for a list of lists": ("query.sizes=[4, 4, 4]", "query.sizes: got ", "[[64, 64, 48]]"),
        "unknown key": ("budget.round=3", "budget.round: no such setting", "did you mean budget.rounds?"),
        "unknown group": ("colour=3", "colour: no such setting", "see --help"),
        "wrong type": ("budget.rounds=many", "budget.rounds: got 'many'; expected", "see --help"),
        "unknown name": ("strategy.name=best", "strategy.name: got 'best'; expected", "see --help"),
        "no rounds": ("budget.rounds=0", "budget.rounds: got '0'; expected 1 or more; ", "see --help"),
        "negative time": (
            "budget.seconds_per_round=-5",
            "budget.seconds_per_round: got '-5'",
            "expected more than 0; ",
        ),
    }
    return {name: ([*good, f"--{setting}"], fact, remedy) for name, (setting, fact, remedy) in cases.items()}


def pair_cases(good: list[str]) -> dict[str, Case]:
    """Of `setting_cases`: settings that cannot go together."""
    cases = {
        "empty window": (
            "task.intensity.low=100 task.intensity.high=-100",
            "task.intensity.high (-100) must exceed low (100)",
            "must exceed",
        ),
        "no dropout to draw from": (
            "uncertainty.draws=mc_dropout task.network.dropout=0",
            "uncertainty.draws mc_dropout needs task.network.dropout above 0",
            "raise it or choose other draws",
        ),
        "too few levels for dynunet": (
            "task.network.name=dynunet task.network.channels=[8,16]",
            "task.network.channels [8, 16] are 2 levels",
            "add a level",
        ),
        "levels that do not double": (
            "task.network.name=segresnet task.network.channels=[8,12]",
            "task.network.channels [8, 12] do not suit segresnet",
            "write [8, 16]",
        ),
        "two names for groups": (
            "data.group_pattern=(a) data.group_field=patient",
            "data.group_field and group_pattern are set",
            "keep one",
        ),
        "slices of frames": (
            "task.train.patch=[8,8] query.kind=slice",
            "query.kind slice needs volumes",
            "give it 3",
        ),
        "missing weights": (
            "task.train.patch=[64,64] query.sizes=[[8,8]] task.name=torchvision_detection task.network.name=fcos "
            "task.metric=ap50 task.intensity.kind=rgb uncertainty.draws=single query.kind=image "
            "costs.preset=box_clicks data.format=coco data.listing=dataset.json data.images=. "
            "task.detection.weights=none.pth",
            "task.detection.weights: no file at none.pth",
            "give the path of one",
        ),
    }
    return {
        name: ([*good, *(f"--{setting}" for setting in pairs.split())], fact, remedy)
        for name, (pairs, fact, remedy) in cases.items()
    }


def file_cases(folder: Path, where: str) -> dict[str, Case]:
    """Of `setting_cases`: mistakes in the file of settings.

    Args:
        folder: takes the files.
        where: good lines, with run_dir and data_root.
    """
    cases = {
        "unknown key in a file": (
            where + "budget: {round: 3}\n",
            "budget.round: no such setting",
            "did you mean budget.rounds?",
        ),
        "unknown group in a file": (
            where + "bugdet: {rounds: 3}\n",
            "bugdet.rounds: no such setting",
            "did you mean budget.rounds?",
        ),
        "wrong type in a file": (where + "budget: {rounds: soon}\n", "budget.rounds: got 'soon'", "see --help"),
        "broken file": ("run_dir: [\n", "config: not valid YAML", "mend the file"),
        "true for a number in a file": (
            where + "task: {train: {lr: true}}\n",
            "task.train.lr: got True; true",
            "see --help",
        ),
        "no for a name": (
            where.replace("{format: msd}", "{format: msd, classes: {0: no, 1: yes}}"),
            "data.classes: got {0: False, 1: True}; true",
            "quote names",
        ),
        "a list for a key": ("? [a, b]\n: 1\n", "config: not valid YAML: ", "mend the file"),
        "no whole number": (where + "query: {stride: !!int x}\n", "config: cannot be understood", "mend the file"),
        "a number for a key": (where + "1: 2\n", "config: Key must be a string", "correct it"),
        "a number for a group": (where + "budget: 600\n", "budget: got 600", "settings of its own below it"),
        "nothing in a file": ("# soon\n", "config: holds no settings", "configs/"),
        "twice in a file": ("budget:\n  rounds: 2\n  rounds: 3\n", "FILE: rounds is set again in line 3", "keep one"),
        "twice in a line": ("budget: {rounds: 2, rounds: 3}\n", "FILE: rounds is set again in line 1", "keep one"),
    }
    found = {}
    for name, (text, fact, remedy) in cases.items():
        file = folder / f"{name}.yaml"
        file.write_text(text)
        found[name] = ([f"--config={file}"], fact.replace("FILE", str(file)), remedy)
    return found


def setting_cases(folder: Path) -> dict[str, Case]:
    """All by name."""
    root, run_dir, nowhere = folder / "data", folder / "run", folder / "nowhere"
    root.mkdir()
    (root / "dataset.json").write_text("{}")
    (folder / "file").write_text("")
    good = settings(root, run_dir)
    bare = [a for a in good if not a.startswith("--run_dir")]
    where = f"run_dir: {run_dir}\ndata_root: {root}\ndata: {{format: msd}}\n"
    return (
        value_cases(good)
        | pair_cases(good)
        | file_cases(folder, where)
        | {
            "a folder of settings": ([f"--config={folder}"], "config: ", "give the path of a YAML file"),
            "no value": ([*good, "--query.stride"], "query.stride: no value given", "--query.stride VALUE"),
            "a stray word": ([*good, "soon"], "soon: no setting", "--any.key value"),
            "a file without its option": ([*good, "my.yaml"], "my.yaml: no setting", "write --config my.yaml"),
            "no masks": (
                [*good, "--data.format=folder", "--data.images=.", "--data.classes={0: rest, 1: liver}"],
                "data.masks: masks is not in",
                "or set null if there are none",
            ),
            "no run_dir": (bare, "run_dir: not set", "--run_dir VALUE"),
            "missing data_root": (
                [*good, f"--data_root={nowhere}"],
                f"data_root: no folder at {nowhere}",
                "--data_root P",
            ),
            "missing config": ([f"--config={folder / 'no.yaml'}"], "config: ", "give the path of a YAML file"),
            "run_dir is a file": ([*good, f"--run_dir={folder / 'file'}"], "run_dir: ", "give a folder"),
        }
    )


PROBE = """
import contextlib, importlib.util, io, json, sys
spec = importlib.util.spec_from_file_location("train_al", "tools/train_al.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
told = {}
for name, argv in json.load(sys.stdin).items():
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        status = module.main(argv)
    told[name] = [status, err.getvalue()]
heavy = [m for m in ("torch", "monai", "nibabel", "cv2", "matplotlib", "scipy") if m in sys.modules]
print(json.dumps([told, heavy]))
"""


def test_a_wrong_setting_is_one_line_before_anything_heavy_loads(tmp_path: Path) -> None:
    cases = setting_cases(tmp_path)
    given = json.dumps({name: argv for name, (argv, _, _) in cases.items()})
    done = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=ROOT, input=given, capture_output=True, text=True, check=True
    )
    told, heavy = json.loads(done.stdout)
    assert heavy == []
    wrong = {
        name: told[name]
        for name, (_, fact, remedy) in cases.items()
        if told[name][0] != 2
        or not told[name][1].startswith(fact)
        or remedy not in told[name][1]
        or told[name][1].count("\n") != 1
        or not told[name][1].endswith("\n")
    }
    assert wrong == {}
    assert not (tmp_path / "run").exists()


def test_colours_for_volumes_are_refused(train_al: TrainAl, data: Path, tmp_path: Path) -> None:
    ended = train_al(settings(data, tmp_path / "run", task__intensity__kind="rgb"))
    assert ended.status == 2 and ended.err.count("\n") == 1 and not (tmp_path / "run").exists()
    assert ended.err.startswith("task.intensity.kind: rgb scales colours from 0 to 255, but the pool holds volumes; ")
    assert "window (CT" in ended.err and "zscore" in ended.err


LEFT_OUT = {
    "no room in the pool": ({"data__max_pool": "3"}, "by data.max_pool (3)"),
    "no room in the test": ({"data__max_test": "1"}, "by data.max_test (1)"),
    "room enough": ({"data__max_pool": "5", "data__max_test": "2"}, "with what is held out to measure the model"),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_an_initial_mask_of_an_image_that_is_left_out_is_told(
    train_al: TrainAl, data: Path, tmp_path: Path, name: str
) -> None:
    limits, why = LEFT_OUT[name]
    if name == "room enough":
        listing = json.loads((data / "dataset.json").read_text())
        del listing["test"][1]["label"]  # so it cannot measure
        (data / "dataset.json").write_text(json.dumps(listing))
    config = load_config(settings(data, tmp_path / "run", **limits))
    (image,) = open_pool(config.data, data, seed=config.seed).left_out
    given = {"annotator__initial_masks": f"[{image}]", "budget__start_seconds": "0", **limits}
    ended = train_al(settings(data, tmp_path / "run", **given))
    assert ended.status == 2 and ended.err.count("\n") == 1 and not (tmp_path / "run").exists()
    assert ended.err.startswith(f"annotator.initial_masks: {image} is left out {why}; name other images, or begin in ")
    assert "larger data.max_pool" in ended.err and "data.split_file" in ended.err


# one bad image


Change = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def spoil(change: Change) -> Callable[[Path], None]:
    """A fault in a volume's voxels or affine."""

    def apply(path: Path) -> None:
        image = nib.load(path)
        values, affine = change(np.array(image.dataobj), np.array(image.affine))
        nib.save(nib.Nifti1Image(values, affine), path)

    return apply


def with_voxel(value: float, dtype: type, at: tuple[int, int, int] = (3, 4, 5)) -> Callable[[Path], None]:
    def change(values: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = values.astype(dtype)
        values[at] = value
        return values, affine

    return spoil(change)


def with_affine(row: int, column: int, value: float) -> Callable[[Path], None]:
    def change(values: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        affine[row, column] += value
        return values, affine

    return spoil(change)


def cut(share: float) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])

    return apply


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


IMAGE, MASK = f"imagesTr/{BAD}.nii.gz", f"labelsTr/{BAD}.nii.gz"
FAULTS: dict[str, tuple[str, Callable[[Path], None], str, str]] = {
    "truncated gz": (IMAGE, cut(0.6), "truncated or damaged", "copy the file again"),
    "zero bytes": (IMAGE, cut(0), "the file is empty (0 bytes)", "copy it again"),
    "NaN": (IMAGE, with_voxel(np.nan, np.float32), "1 voxel is NaN or infinite, the first at (3, 4, 5)", "fill them"),
    "Inf": (IMAGE, with_voxel(np.inf, np.float32), "1 voxel is NaN or infinite, the first at (3, 4, 5)", "fill them"),
    "sheared sform": (IMAGE, with_affine(0, 1, 0.5), "the grid is sheared: array axes 0 and 1 meet at", "resample it"),
    "another number of channels": (
        IMAGE,
        spoil(lambda values, affine: (np.stack([values, values], -1), affine)),
        "2 channels, but the first image of the pool has 1",
        "convert the image",
    ),
    "a folder in its place": (IMAGE, folder_instead, "not a NIfTI file", "copy it again"),
    "not there": (IMAGE, Path.unlink, "listed in dataset.json but not there", "restore or unlist it"),
    "mask of another shape": (
        MASK,
        spoil(lambda values, affine: (values[:-1], affine)),
        "the mask has shape (13, 12, 10), its image (14, 12, 10)",
        "pair the right files",
    ),
    "mask of another affine": (MASK, with_affine(0, 3, 7), "affine differs from its image's, by up to 7 mm", "correct"),
    "label outside the classes": (
        MASK,
        with_voxel(7, np.uint8),
        "label values 7 (once) are outside the classes [0, 1, 2]",
        "correct the mask",
    ),
    "truncated mask": (MASK, cut(0.9), "truncated or damaged", "copy the file again"),
}


def assert_told(text: str, path: Path, fact: str, remedy: str) -> None:
    """One line names the file, then the fact, then what to do."""
    line = next((line for line in text.splitlines() if str(path) in line), "")
    assert fact in line.split(str(path), 1)[-1] and remedy in line.split(fact, 1)[-1], text


def assert_listed(run_dir: Path, image: str, path: Path, fact: str, remedy: str, rounds: int = 2) -> None:
    """The ledger, `results.json` and the report all say which image is set aside, and why; it is not asked."""
    with Ledger.read(run_dir) as ledger:
        events = [e for kind in ("absent", "quarantine") for e in ledger.events(kind) if e["image"] == image]
        assert [e["image"] for e in events] == [image]  # once
        assert sorted(ledger.measurements()) == [*range(rounds + 1)] and ledger.open_regions() == []
    assert_told(events[0]["reason"], path, fact, remedy)
    assert load(run_dir).quarantined == {image: events[0]["reason"]}
    assert html.escape(events[0]["reason"], quote=False).replace("'", "&#39;") in (run_dir / "report.html").read_text()


@pytest.mark.parametrize("name", FAULTS)
def test_one_bad_image_is_set_aside_and_the_run_ends_normally(
    train_al: TrainAl, data: Path, tmp_path: Path, name: str
) -> None:
    where, fault, fact, remedy = FAULTS[name]
    fault(data / where)
    ended = train_al(settings(data, tmp_path / "run", **SHORT))
    assert (ended.status, ended.err) == (0, "")
    assert f"{BAD} is quarantined: " in ended.out
    assert_listed(tmp_path / "run", BAD, data / where, fact, remedy, rounds=1)
    with Ledger.read(tmp_path / "run") as ledger:
        assert BAD not in {r.image_id for q in ledger.queries() for r in q.regions}


@pytest.mark.parametrize("name", FAULTS)
def test_strictness_stops_at_one_bad_image_until_it_is_mended(
    train_al: TrainAl, clean: Path, data: Path, tmp_path: Path, expected_soon: list[object], name: str
) -> None:
    where, fault, fact, remedy = FAULTS[name]
    fault(data / where)
    argv = settings(data, tmp_path / "run", data__strict="true", **SHORT)
    ended = train_al(argv)
    assert ended.status == 1 and ended.err.count("\n") == 1
    assert_told(ended.err, data / where, fact, remedy)
    mend(clean, data, where)
    assert train_al(argv).status == 0
    assert story(tmp_path / "run") == expected_soon


def mend(clean: Path, data: Path, where: str) -> None:
    if (data / where).is_dir():
        (data / where).rmdir()
    shutil.copy(clean / where, data / where)


def locked(patch: pytest.MonkeyPatch, path: Path) -> None:
    """As if the permissions of this file forbade to read it (root may read everything)."""
    load_any = nib.load

    def refuse(name: Path, **options: object) -> object:
        if Path(name) == path:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return load_any(name, **options)

    patch.setattr(nib, "load", refuse)


def test_a_locked_file_is_set_aside_or_stops_a_strict_run(
    train_al: TrainAl, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: list[object]
) -> None:
    told = (data / IMAGE, "not allowed to read it", "correct its permissions")
    strict = settings(data, tmp_path / "strict", data__strict="true")
    with monkeypatch.context() as patch:
        locked(patch, data / IMAGE)
        assert train_al(settings(data, tmp_path / "run")).status == 0
        assert_listed(tmp_path / "run", BAD, *told)
        ended = train_al(strict)
    assert ended.status == 1
    assert_told(ended.err, *told)
    assert train_al(strict).status == 0
    assert story(tmp_path / "strict") == expected


@pytest.mark.parametrize("which", ["listing", "folder"])
def test_a_locked_listing_or_folder_is_told(
    train_al: TrainAl, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    path = data / "dataset.json" if which == "listing" else data / "imagesTr"
    known = (Path.read_text, "pathlib.Path.read_text") if which == "listing" else (None, "os.listdir")

    def refuse(name: Path | str, *args: object, **options: object) -> object:
        if Path(name) == path:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        assert known[0] is not None
        return known[0](Path(name), *args, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(known[1], refuse)
        ended = train_al(settings(data, tmp_path / "run"))
    assert ended.status == 1 and ended.err.count("\n") == 1
    fact = "the listing cannot be read (Permission denied)" if which == "listing" else "not allowed to list this folder"
    assert_told(ended.err, path, fact, "correct its permissions")


@pytest.mark.parametrize(("share", "fact"), [(0.0, "the file is empty (0 bytes)"), (0.5, "cannot be read (")])
def test_a_bad_jpeg_is_set_aside(train_al: TrainAl, tmp_path: Path, share: float, fact: str) -> None:
    root = write_frames(tmp_path / "data")
    rich = {"budget__start_seconds": "40", "query__max_per_image": "1", "data__test_fraction": "0.3"}
    assert train_al(frame_settings(root, tmp_path / "probe", **rich)).status == 0
    with Ledger.read(tmp_path / "probe") as ledger:
        bad = ledger.queries()[0].regions[0].image_id
    cut(share)(root / "images" / f"{bad}.jpg")
    assert train_al(frame_settings(root, tmp_path / "run", **rich)).status == 0
    assert_listed(tmp_path / "run", bad, root / "images" / f"{bad}.jpg", fact, "again")
    ended = train_al(frame_settings(root, tmp_path / "strict", **rich, data__strict="true"))
    assert ended.status == 1
    assert_told(ended.err, root / "images" / f"{bad}.jpg", fact, "again")


def test_a_name_with_brackets_is_told_as_it_is(train_al: TrainAl, tmp_path: Path) -> None:
    """The screen must not take parts of a file's name for its own markup."""
    root = write_volumes(tmp_path / "data [red] [/x]")
    cut(0.6)(root / IMAGE)
    ended = train_al(settings(root, tmp_path / "run"))
    assert ended.status == 0 and str(root / IMAGE) in ended.out


def test_a_bad_test_image_is_set_aside_before_the_first_figure(train_al: TrainAl, data: Path, tmp_path: Path) -> None:
    path = data / "labelsTr" / "case_05.nii.gz"
    with_voxel(9, np.uint8)(path)
    assert train_al(settings(data, tmp_path / "run")).status == 0
    assert_listed(tmp_path / "run", "case_05", path, "label values 9 (once)", "correct the mask")
    with Ledger.read(tmp_path / "run") as ledger:
        assert all(set(m.per_group) == {"case_04"} for m in ledger.measurements().values())


def test_a_bad_initial_mask_is_set_aside(train_al: TrainAl, data: Path, tmp_path: Path) -> None:
    cut(0.9)(data / MASK)
    start = {"annotator__initial_masks": "[case_00, case_01]", "budget__start_seconds": "0"}
    assert train_al(settings(data, tmp_path / "run", **start)).status == 0
    assert_listed(tmp_path / "run", BAD, data / MASK, "truncated or damaged", "copy the file again")
    ended = train_al(settings(data, tmp_path / "strict", **start, data__strict="true"))
    assert ended.status == 1
    assert_told(ended.err, data / MASK, "truncated or damaged", "copy the file again")


def test_where_no_mask_fits_the_classes_the_last_line_says_so(train_al: TrainAl, data: Path, tmp_path: Path) -> None:
    """Smaller regions would not help: images are set aside as they are chosen, until none is left."""
    argv = settings(data, tmp_path / "run", data__classes="{0: background, 1: ball}")
    for _ in range(2):  # what is set aside stays aside
        ended = train_al(argv)
        assert ended.status == 1 and ended.err.count("\n") == 1
        assert ended.err.startswith(
            "nothing is left to ask: no image can be used; mend what is said of each above (or "
        )
        assert all(f"case_{i:02d} is quarantined: " in ended.out for i in range(4))
    mended = [*argv, "--data.classes={0: background, 1: ball, 2: box}", f"--run_dir={tmp_path / 'other'}"]
    assert train_al(mended).status == 0


# a file that goes bad between the choice and the answer


@pytest.mark.parametrize("who, where", [("oracle", "labelsTr"), ("people", "imagesTr")])
def test_an_image_that_goes_bad_when_it_is_just_asked_is_set_aside_and_the_others_are_answered(
    train_al: TrainAl, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str, where: str
) -> None:
    """The choice has read it, so the annotator is the first to meet the fault."""
    run_dir = tmp_path / "run"
    argv = settings(data, run_dir, annotator__name=who, budget__rounds="1", annotator__initial_masks="[case_00]")
    whole, lost, kept = rounds.answer, [], []

    def answer(run: Run, number: int) -> Outcome:
        if not lost:
            asked = run.ledger.open_regions(number)
            lost.extend(r for r in asked if r.image_id == asked[0].image_id)
            kept.extend(r.id for r in asked if r.image_id != asked[0].image_id)
            cut(0.6)(data / where / f"{lost[0].image_id}.nii.gz")
        return whole(run, number)

    monkeypatch.setattr(rounds, "answer", answer)
    ended = train_al(argv)
    assert (ended.status, ended.err) == (0, "") and kept
    assert f"{lost[0].image_id} is quarantined: " in ended.out
    if who == "people":
        asked = json.loads((batch(run_dir, 0) / "query.json").read_text())["regions"]
        assert [entry["region"]["id"] for entry in asked] == kept
        draw(data, batch(run_dir, 0))
        assert train_al(argv).status == 0
    assert {*kept} <= labels(run_dir).keys() and labels(run_dir).keys().isdisjoint(r.id for r in lost)
    with Ledger.read(run_dir) as ledger:
        assert ledger.closed(0) and [r.region.id for r in ledger.rejected()] == [r.id for r in lost]


# a file that goes bad when it is labelled already


@pytest.mark.parametrize("strategy", ["hybrid", "random"])
def test_a_labelled_image_that_goes_bad_is_set_aside_and_its_labels_kept(
    train_al: TrainAl, data: Path, tmp_path: Path, strategy: str
) -> None:
    """`random` looks at headers only, so there the fit is the first to meet the fault."""
    argv = settings(data, tmp_path / "run", strategy__name=strategy)
    assert train_al([*argv, "--budget.rounds=1"]).status == 0
    kept = labels(tmp_path / "run")
    image = answered_images(tmp_path / "run")[0]
    path = data / "imagesTr" / f"{image}.nii.gz"
    with_voxel(np.nan, np.float32)(path)
    assert train_al(argv).status == 0
    assert_listed(tmp_path / "run", image, path, "1 voxel is NaN or infinite", "fill them")
    assert kept.items() <= labels(tmp_path / "run").items()
    with Ledger.read(tmp_path / "run") as ledger:
        assert image not in {r.image_id for r in ledger.queries()[2].regions} or strategy == "random"


@pytest.mark.parametrize("strategy", ["hybrid", "random"])
def test_a_labelled_image_that_goes_bad_stops_a_strict_run_until_it_is_mended(
    train_al: TrainAl, clean: Path, data: Path, tmp_path: Path, strategy: str
) -> None:
    undisturbed = tmp_path / "undisturbed"
    expected = whole_story(settings(clean, undisturbed, strategy__name=strategy), undisturbed)
    argv = settings(data, tmp_path / "run", data__strict="true", strategy__name=strategy)
    assert train_al([*argv, "--budget.rounds=1"]).status == 0
    kept = labels(tmp_path / "run")
    where = f"imagesTr/{answered_images(tmp_path / 'run')[0]}.nii.gz"
    cut(0.6)(data / where)
    ended = train_al(argv)
    assert ended.status == 1
    assert_told(ended.err, data / where, "truncated or damaged", "copy the file again")
    assert kept.items() <= labels(tmp_path / "run").items()
    mend(clean, data, where)
    assert train_al(argv).status == 0
    assert story(tmp_path / "run") == expected


def answered_images(run_dir: Path) -> list[str]:
    with Ledger.read(run_dir) as ledger:
        return [a.region.image_id for a in ledger.answered()]


def test_a_test_image_that_goes_bad_stops_the_run_so_that_figures_stay_comparable(
    train_al: TrainAl, clean: Path, data: Path, tmp_path: Path, expected: list[object]
) -> None:
    argv, where = settings(data, tmp_path / "run"), "imagesTr/case_04.nii.gz"
    assert train_al([*argv, "--budget.rounds=1"]).status == 0
    cut(0.6)(data / where)
    ended = train_al(argv)
    assert ended.status == 1
    assert_told(ended.err, data / where, "truncated or damaged", "copy the file again")
    mend(clean, data, where)
    assert train_al(argv).status == 0
    assert story(tmp_path / "run") == expected


# faults of the pool as a whole


def test_one_id_for_two_images_is_refused(train_al: TrainAl, tmp_path: Path) -> None:
    root = write_frames(tmp_path / "data")
    cv2.imwrite(str(root / "images" / "drive0_00.png"), np.zeros((24, 32, 3), np.uint8))
    ended = train_al(frame_settings(root, tmp_path / "run"))
    assert ended.status == 1 and ended.err.count("\n") == 1
    assert_told(ended.err, root / "images" / "drive0_00.png", "id 'drive0_00' is there twice", "rename or take out")
    assert str(root / "images" / "drive0_00.jpg") in ended.err and not (tmp_path / "run").exists()


def test_a_listing_that_leads_out_of_the_data_is_refused(train_al: TrainAl, data: Path, tmp_path: Path) -> None:
    listing = json.loads((data / "dataset.json").read_text())
    listing["training"][0]["image"] = "../../etc/passwd.nii.gz"
    (data / "dataset.json").write_text(json.dumps(listing))
    ended = train_al(settings(data, tmp_path / "run"))
    assert ended.status == 1
    assert_told(ended.err, data / "dataset.json", "leads out of data_root", "move the file there or correct it")


def test_a_class_that_nobody_labelled_is_told_and_does_no_harm(train_al: TrainAl, data: Path, tmp_path: Path) -> None:
    listing = json.loads((data / "dataset.json").read_text())
    listing["labels"]["3"] = "tumour"
    (data / "dataset.json").write_text(json.dumps(listing))
    ended = train_al(settings(data, tmp_path / "run"))
    assert ended.status == 0
    assert "warning: nothing of tumour is labelled yet, so the model cannot know it; raise budget" in ended.out


@pytest.mark.parametrize("setting", ["budget.start_seconds", "budget.seconds_per_round"])
def test_a_budget_that_buys_nothing_names_the_cheapest_region_and_may_be_raised(
    train_al: TrainAl, data: Path, tmp_path: Path, setting: str, expected: list[object]
) -> None:
    argv = settings(data, tmp_path / "run")
    ended = train_al([*argv, f"--{setting}=2"])
    assert ended.status == 1 and ended.err.count("\n") == 1
    assert ended.err.startswith("budget 2 s buys nothing: the cheapest of ")
    assert f"raise {setting} or ask for less at once (query.kind, query.sizes)" in ended.err
    assert train_al(argv).status == 0  # what the message says works, on the same run
    assert story(tmp_path / "run") == expected


# a full disk


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")  # as the kernel says it when a write fails: no name


def no_room_for(patch: pytest.MonkeyPatch, ending: str) -> None:
    """Writing any file whose path ends like this fills the disk half way."""
    for name in ("write_bytes", "write_text"):
        whole = getattr(Path, name)

        def write(
            path: Path, content: bytes | str, *args: object, whole: Callable[..., int] = whole, **more: object
        ) -> int:
            if str(path).endswith(ending):
                whole(path, content[: len(content) // 2], *args, **more)
                full()
            return whole(path, content, *args, **more)

        patch.setattr(Path, name, write)


@pytest.mark.parametrize(
    "ending", ["round_001/model.json", "r01-000.png.part", "results.json.part", "report.html.part"]
)
def test_a_full_disk_loses_nothing(
    train_al: TrainAl, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: list[object], ending: str
) -> None:
    argv = settings(data, tmp_path / "run")
    with monkeypatch.context() as patch:
        no_room_for(patch, ending)
        ended = train_al(argv)
    assert ended.status == 1 and ended.err.count("\n") == 1
    assert ended.err.startswith(f"the disk is full ({tmp_path / 'run'})")
    assert "all that was recorded is safe. Free some space and run the same command to go on." in ended.err
    kept = labels(tmp_path / "run")
    assert kept
    assert train_al(argv).status == 0
    assert story(tmp_path / "run") == expected and kept.items() <= labels(tmp_path / "run").items()
    assert load(tmp_path / "run").measured[-1].round == 2


def test_a_full_disk_under_the_ledger_loses_nothing(
    train_al: TrainAl, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: list[object]
) -> None:
    """SQLite itself meets the end of its room, at every seventh record; each time some space is freed again."""
    argv, whole = settings(data, tmp_path / "run"), ledger_store.transaction
    kept: dict[str, bytes] = {}
    for _life in range(20):
        records = itertools.count(1)

        @contextmanager
        def cramped(db: sqlite3.Connection, path: Path, records: Iterator[int] = records) -> Iterator[None]:
            with whole(db, path):
                yield
                if next(records) == 7:
                    db.execute("PRAGMA max_page_count = 1")  # that is: no more than there are
                    db.execute("CREATE TABLE filler AS SELECT zeroblob(100000)")

        monkeypatch.setattr(ledger_store, "transaction", cramped)
        ended = train_al(argv)
        if ended.status == 0:
            break
        assert ended.status == 1 and ended.err.count("\n") == 1
        assert_told(ended.err, tmp_path / "run" / "ledger.sqlite", "the disk is full", "run the command again")
        now = labels(tmp_path / "run")
        assert kept.items() <= now.items()
        kept = now
    assert ended.status == 0 and _life >= 3 and kept
    assert story(tmp_path / "run") == expected


@pytest.mark.parametrize("ending", ["r00-000.nii.gz", "query.json"])
def test_a_full_disk_leaves_no_half_batch(
    train_al: TrainAl, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    argv, folder = settings(data, tmp_path / "run", annotator__name="people"), batch(tmp_path / "run", 0)
    with monkeypatch.context() as patch:
        no_room_for(patch, ending)
        ended = train_al(argv)
    assert ended.status == 1
    assert_told(ended.err, folder, "the batch cannot be written (No space left on device)", "free space")
    assert not folder.exists() and list(folder.parent.iterdir()) == []
    with Ledger.read(tmp_path / "run") as ledger:
        asked = ledger.queries()
    assert train_al(argv).status == 0
    with Ledger.read(tmp_path / "run") as ledger:
        assert ledger.queries() == asked
    assert len(draw(data, folder)) == len(asked[0].regions)


# what comes back from people


@pytest.fixture
def waiting(train_al: TrainAl, data: Path, tmp_path: Path) -> tuple[list[str], Path]:
    """A run that waits for people: its command line, and the folder of returns."""
    argv = settings(data, tmp_path / "run", annotator__name="people")
    assert train_al(argv).status == 0
    return argv, batch(tmp_path / "run", 0) / "returned"


def problem(ended: Ended, fact: str, remedy: str) -> None:
    assert (ended.status, ended.err) == (0, "")
    warning = ended.out.split("warning: ", 1)[1]
    assert fact in warning and remedy in warning.split(fact, 1)[1]


def test_a_label_for_a_region_not_asked_is_told_and_the_others_are_taken(
    train_al: TrainAl, data: Path, tmp_path: Path, waiting: tuple[list[str], Path]
) -> None:
    argv, returned = waiting
    done = draw(data, returned.parent, [0, 1])
    shutil.copy(returned / f"{done[0]}.nii.gz", returned / "r09-000.nii.gz")
    problem(train_al(argv), "r09-000.nii.gz: 'r09-000' was not asked", "expected the id of a region or image")
    assert list(labels(tmp_path / "run")) == done


RETURNED: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "truncated": (cut(0.6), "cannot be read as NIfTI", "save it again"),
    "value outside the classes": (
        with_voxel(9, np.uint8, (1, 2, 3)),
        "holds the values [9]; expected 0 background, 1 ball",
        "255",
    ),
    "fractions": (
        with_voxel(0.5, np.float32, (1, 2, 3)),
        "holds the values [0.5]; expected 0 background, 1 ball",
        "255",
    ),
    "moved by 1 mm": (with_affine(0, 3, 1), "lies on another voxel grid", "without resampling or moving it"),
    "of a part": (spoil(lambda values, affine: (values[:-1], affine)), "covers only part", "as its reference volume"),
    "empty": (cut(0), "cannot be read as NIfTI", "save it again"),
}


@pytest.mark.parametrize("name", RETURNED)
def test_a_bad_label_is_told_stays_open_and_hides_no_good_one(
    train_al: TrainAl, data: Path, tmp_path: Path, waiting: tuple[list[str], Path], name: str
) -> None:
    (argv, returned), (fault, fact, remedy) = waiting, RETURNED[name]
    good, bad = draw(data, returned.parent, [0, 1])
    path = returned / f"{bad}.nii.gz"
    fault(path)
    ended = train_al(argv)
    problem(ended, f"{bad}.nii.gz: ", remedy)
    assert fact in ended.out and list(labels(tmp_path / "run")) == [good]
    draw(data, returned.parent, [1])
    assert train_al(argv).status == 0 and list(labels(tmp_path / "run")) == [good, bad]


def test_a_link_out_of_the_returns_is_not_followed(
    train_al: TrainAl, data: Path, tmp_path: Path, waiting: tuple[list[str], Path]
) -> None:
    argv, returned = waiting
    good, linked = draw(data, returned.parent, [0, 1])
    outside = tmp_path / "outside.nii.gz"
    (returned / f"{linked}.nii.gz").rename(outside)
    (returned / f"{linked}.nii.gz").symlink_to(outside)
    problem(train_al(argv), f"{linked}.nii.gz: a link that leads out of the folder of returns", "copy the file itself")
    assert list(labels(tmp_path / "run")) == [good]


@pytest.mark.parametrize("name", ["../../../escape.png", "/etc/passwd", "..\\..\\escape.png", "C:\\escape.png"])
def test_a_path_out_of_the_folder_in_a_returned_json_is_refused(train_al: TrainAl, tmp_path: Path, name: str) -> None:
    root, folder = write_frames(tmp_path / "data"), batch(tmp_path / "run", 0)
    argv = frame_settings(root, tmp_path / "run", annotator__name="people")
    assert train_al(argv).status == 0
    document = json.loads((folder / "coco_crops.json").read_text())
    for image in document["images"]:
        image["reviewed"] = True
    document["images"][0]["file_name"] = name
    (folder / "returned" / "labels.json").write_text(json.dumps(document))
    before = sorted(p for p in tmp_path.rglob("*") if p.is_file() and "run" not in p.relative_to(tmp_path).parts)
    problem(train_al(argv), f"labels.json: file_name {name!r} leads out of the folder", "expected the name")
    asked = [r["region"]["id"] for r in json.loads((folder / "query.json").read_text())["regions"]]
    assert list(labels(tmp_path / "run")) == asked[1:]
    assert before == sorted(
        p for p in tmp_path.rglob("*") if p.is_file() and "run" not in p.relative_to(tmp_path).parts
    )


def test_a_query_json_that_was_tampered_with_is_refused_and_can_be_restored(
    train_al: TrainAl, data: Path, tmp_path: Path, waiting: tuple[list[str], Path]
) -> None:
    argv, returned = waiting
    sidecar = returned.parent / "query.json"
    written = sidecar.read_text()
    draw(data, returned.parent)
    tampered = json.loads(written)
    tampered["regions"][0]["region"]["id"] = "../../escape"
    sidecar.write_text(json.dumps(tampered))
    ended = train_al(argv)
    assert ended.status == 1
    assert_told(ended.err, sidecar, "not a sidecar of this version", "restore the file as it was written")
    sidecar.write_text(written)
    assert train_al(argv).status == 0
    assert len(labels(tmp_path / "run")) == len(tampered["regions"])


def test_a_frame_label_of_another_size_is_told(train_al: TrainAl, tmp_path: Path) -> None:
    root, folder = write_frames(tmp_path / "data"), batch(tmp_path / "run", 0)
    argv = frame_settings(root, tmp_path / "run", annotator__name="people")
    assert train_al(argv).status == 0
    bad, *good = draw_frames(root, folder)
    cv2.imwrite(str(folder / "returned" / f"{bad}.png"), np.zeros((5, 5), np.uint8))
    problem(train_al(argv), f"{bad}.png: (5, 5) rows and columns", "not resized")
    assert list(labels(tmp_path / "run")) == good


def test_a_test_set_of_which_most_is_broken_is_not_set_aside(
    train_al: TrainAl, clean: Path, data: Path, tmp_path: Path, expected: list[object]
) -> None:
    argv, images = settings(data, tmp_path / "run"), ("imagesTr/case_04.nii.gz", "imagesTr/case_05.nii.gz")
    for image in images:
        (data / image).write_bytes(b"")
    ended = train_al(argv)
    assert ended.status == 1 and "2 of 2 images cannot be used, so none is set aside" in ended.err
    with Ledger.read(tmp_path / "run") as ledger:
        assert ledger.events("quarantine") == []
    for image in images:
        mend(clean, data, image)
    assert train_al(argv).status == 0
    assert story(tmp_path / "run") == expected


def test_where_most_images_fail_none_is_set_aside(
    train_al: TrainAl, data: Path, tmp_path: Path, expected: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: ToyTask, model: object, record: ImageRecord, *rest: object, **more: object) -> object:
        raise DataError(f"image {record.id}: the model's output holds NaN; lower task.train.lr")

    argv = settings(data, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(ToyTask, "offers", broken)
        ended = train_al(argv)
    assert ended.status == 1 and "images cannot be used, so none is set aside" in ended.err
    assert "The first: image " in ended.err and "holds NaN; lower task.train.lr" in ended.err
    with Ledger.read(tmp_path / "run") as ledger:
        assert ledger.events("quarantine") == []

    assert train_al(argv).status == 0
    assert story(tmp_path / "run") == expected
