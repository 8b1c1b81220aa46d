"""Videos become frames with drive and time, and a listing that a pool opens."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from dal_dense.config import DataConfig
from dal_dense.errors import ConfigError, DataError
from dal_dense.images import read_image
from dal_dense.pool import open_pool

SCRIPT = Path(__file__).parents[2] / "datasets" / "extract_frames.py"
RATE, ROWS, COLUMNS = 10, 48, 64


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("extract_frames", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["extract_frames"] = module
    spec.loader.exec_module(module)
    return module


tool = _module()


def video(path: Path, levels: list[int]) -> Path:
    """Grey frames, ten a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), RATE, (COLUMNS, ROWS))
    for level in levels:
        writer.write(np.full((ROWS, COLUMNS, 3), level, np.uint8))
    writer.release()
    return path


@pytest.fixture
def drives(tmp_path: Path) -> Path:
    video(tmp_path / "drives" / "monday.avi", [i * 7 for i in range(35)])
    video(tmp_path / "drives" / "tue day" / "front.AVI", [200] * 12)
    return tmp_path / "drives"


def run(drives: Path, out: Path, **settings: Any) -> dict[str, Any]:
    tool.extract(str(drives), out, **({"classes": ["car", "person"], "every": 0.5} | settings))
    read: dict[str, Any] = json.loads((out / "frames.json").read_text())
    return read


def levels(out: Path, content: dict[str, Any], drive: str) -> list[int]:
    names = [i["file_name"] for i in content["images"] if i["drive"] == drive]
    return [round(float(cv2.imread(str(out / "images" / n)).mean())) for n in names]


def test_frames_are_named_by_drive_and_time_and_listed(drives: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    content = run(drives, out)
    monday = [i for i in content["images"] if i["drive"] == "monday"]
    assert [i["file_name"] for i in monday] == [f"monday_{ms:08d}.jpg" for ms in range(0, 3500, 500)]
    assert [i["time"] for i in monday] == [0, 0.5, 1, 1.5, 2, 2.5, 3]
    np.testing.assert_allclose(levels(out, content, "monday"), [n * 35 for n in range(7)], atol=2)
    assert [i["time"] for i in content["images"] if i["drive"] == "tue-day-front"] == [0, 0.5, 1]
    assert [i["id"] for i in content["images"]] == list(range(1, 11)) and content["annotations"] == []
    assert all((i["width"], i["height"]) == (COLUMNS, ROWS) for i in content["images"])
    assert [(c["id"], c["name"]) for c in content["categories"]] == [(1, "car"), (2, "person")]
    assert {p.name for p in (out / "images").iterdir()} == {i["file_name"] for i in content["images"]}


def test_the_pool_opens_what_was_made(drives: Path, tmp_path: Path) -> None:
    run(drives, tmp_path / "data")
    data = DataConfig(format="coco", listing="frames.json", group_field="drive", test_fraction=0)
    pool = open_pool(data, tmp_path / "data", seed=0)
    assert pool.classes == ("background", "car", "person") and len(pool.train) == 10
    assert {r.group for r in pool.train} == {"monday", "tue-day-front"} and pool.train[0].mask is None
    assert read_image(pool.train[0]).shape == (3, ROWS, COLUMNS)


@pytest.mark.parametrize(("every", "times"), [(0.3, [0, 300, 600, 900]), (0.25, [0, 300, 500, 800, 1000]), (9, [0])])
def test_the_first_frame_at_or_after_each_multiple(every: float, times: list[int], tmp_path: Path) -> None:
    path = video(tmp_path / "a.avi", [9] * 12)
    assert [ms for ms, _ in tool.frames_of(path, every, lambda done, announced: None)] == times


@pytest.mark.parametrize(
    ("told", "every", "taken"),
    [
        ([0, 0.1, 0.2, 0.3, 0.35, 0.4], 0.1, [0, 100, 200, 300, 400]),  # 0.3 / 0.1 is under 3 in floats
        ([0, 0.5, 5.0, 5.1, 5.2, 5.9, 6.1], 1, [0, 5000, 6100]),  # after a gap, nothing is caught up
        ([0, 0.5, 0.5, 0.4, 1.0], 0.1, [0, 500, 1000]),  # times that stand still or run back
    ],
)
def test_times_of_any_rhythm(
    told: list[float], every: float, taken: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = video(tmp_path / "a.avi", [9] * len(told))
    monkeypatch.setattr(tool, "_time", lambda video, number, rate, before: told[number])
    assert [ms for ms, _ in tool.frames_of(path, every, lambda done, announced: None)] == taken


def test_more_often_than_the_video_takes_every_frame_once(tmp_path: Path) -> None:
    path = video(tmp_path / "a.avi", [9] * 12)
    seen: list[tuple[int, int]] = []
    found = [ms for ms, _ in tool.frames_of(path, 0.001, lambda *at: seen.append(at))]
    assert found == list(range(0, 1200, 100)) and seen[-1] == (12, 12)


def test_a_standing_car_gives_one_frame_until_it_moves(tmp_path: Path) -> None:
    """Steps of one grey level stay under the threshold, but add up: compared is the last frame taken."""
    video(tmp_path / "drives" / "a.avi", [*[50] * 10, *range(50, 60), *[120] * 10])
    out = tmp_path / "data"
    content = run(tmp_path / "drives", out, every=0.1, difference=3)
    times = [i["time"] for i in content["images"]]
    assert times[0] == 0 and times[1] >= 1.2 and 2.0 in times and times[-1] == 2.0
    steps = np.diff(levels(out, content, "a"))
    assert (steps >= 2).all() and len(times) == 5


def test_a_run_that_was_broken_off_ends_as_if_it_had_not_been(
    drives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(drives, tmp_path / "whole")
    real, left = tool._save, [9]

    def dies(path: Path, pixels: np.ndarray, quality: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        real(path, pixels, quality)

    monkeypatch.setattr(tool, "_save", dies)
    with pytest.raises(KeyboardInterrupt):
        run(drives, tmp_path / "data")
    monkeypatch.undo()
    stopped = json.loads((tmp_path / "data" / "frames.json").read_text())
    assert list(stopped["info"]["videos"]) == ["monday"] and len(stopped["images"]) == 7
    written = (tmp_path / "data" / "images" / "monday_00000000.jpg").stat().st_mtime_ns
    assert run(drives, tmp_path / "data") == whole
    assert (tmp_path / "data" / "images" / "monday_00000000.jpg").stat().st_mtime_ns == written  # left alone
    assert not list((tmp_path / "data").rglob("*.partial"))


def test_more_videos_join_and_ids_stay(drives: Path, tmp_path: Path) -> None:
    before = run(drives, tmp_path / "data")
    video(drives / "a_new_one.avi", [3] * 6)
    after = run(drives, tmp_path / "data")
    assert after["images"][:10] == before["images"]
    assert [(i["id"], i["drive"]) for i in after["images"][10:]] == [(11, "a_new_one"), (12, "a_new_one")]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"every": 1.0}, "was made with"),
        ({"difference": 1.0}, "was made with"),
        ({"classes": ["person", "car"]}, "has the classes"),
    ],
)
def test_a_folder_holds_frames_of_one_choice(settings: dict[str, Any], said: str, drives: Path, tmp_path: Path) -> None:
    run(drives, tmp_path / "data")
    with pytest.raises(ConfigError, match=said):
        run(drives, tmp_path / "data", **settings)


@pytest.mark.parametrize(
    "settings", [{"every": 0}, {"every": float("nan")}, {"difference": -1}, {"quality": 0}, {"classes": []},
                 {"classes": ["car", "car"]}]
)  # fmt: skip
def test_impossible_settings_are_refused_before_anything_is_made(
    settings: dict[str, Any], drives: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError):
        run(drives, tmp_path / "data", **settings)
    assert not (tmp_path / "data").exists()


def test_a_video_that_cannot_be_read_is_told_and_hides_no_other(drives: Path, tmp_path: Path) -> None:
    (drives / "broken.mp4").write_bytes(b"not a video at all" * 99)
    (drives / "empty.avi").write_bytes(b"")
    cut = (drives / "monday.avi").read_bytes()
    (drives / "zz_cut.avi").write_bytes(cut[: len(cut) // 2])
    with pytest.raises(DataError) as told:
        run(drives, tmp_path / "data")
    lines = str(told.value).splitlines()
    assert [Path(line.split(":")[0]).name for line in lines] == ["broken.mp4", "empty.avi", "zz_cut.avi"]
    assert all("OpenCV cannot open it" in line for line in lines[:2])
    assert "ends after" in lines[2] and "of 35 frames" in lines[2]
    content = json.loads((tmp_path / "data" / "frames.json").read_text())
    assert {"monday", "tue-day-front"} < set(content["info"]["videos"])


def test_a_video_that_changed_is_told(drives: Path, tmp_path: Path) -> None:
    before = run(drives, tmp_path / "data")
    video(drives / "monday.avi", [1] * 60)
    with pytest.raises(DataError, match=r"monday\.avi: changed since"):
        run(drives, tmp_path / "data")
    assert json.loads((tmp_path / "data" / "frames.json").read_text()) == before


def test_what_is_not_there_or_not_clear_is_told(drives: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        tool.find_videos([tmp_path / "nowhere"])
    (tmp_path / "hollow").mkdir()
    with pytest.raises(DataError, match="holds no video"):
        tool.find_videos([tmp_path / "hollow"])
    (drives / "x").mkdir()
    shutil.copy(drives / "monday.avi", drives / "x" / "y.avi")
    shutil.copy(drives / "monday.avi", drives / "x-y.avi")
    with pytest.raises(DataError, match="would be the drive 'x-y'"):
        tool.find_videos([drives])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"info": {"settings": {}}}', '{"info": 3, "images": []}'])
def test_a_listing_of_someone_else_is_left_alone(text: str, drives: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "frames.json").write_text(text)
    with pytest.raises(DataError, match="no listing that this tool wrote"):
        run(drives, tmp_path / "data")
    assert (tmp_path / "data" / "frames.json").read_text() == text


def test_the_command_line(drives: Path, tmp_path: Path) -> None:
    (drives / "broken.mp4").write_bytes(b"x")
    words = ["--videos", str(drives), "--out", str(tmp_path / "data"), "--classes", "[car]", "--every", "0.5"]
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "monday: 7 frames" in done.stderr and "cannot open it as a video" in done.stderr
    assert len(json.loads((tmp_path / "data" / "frames.json").read_text())["images"]) == 10
