from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pytest
from fake_run import CLASSES, fake_run, legend

from dal_dense.images import Header
from dal_dense.ledger import Ledger
from dal_dense.pool import ImageRecord
from dal_dense.query import Query, QueryRegion
from dal_dense.report import figures, gallery
from dal_dense.report.page import render, write_report
from dal_dense.report.palette import CLASS_COLOURS, class_colours, rgb
from dal_dense.results import Results, collect
from dal_dense.tasks.base import IGNORE, Proposal

VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(html.parser.HTMLParser):
    """What the tests ask of a page: balanced tags, links, headings, pictures, text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.used: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.used += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]
        if tag == "img":
            self.pictures.append(found)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "text"):
            self.text += data


def written(folder: Path, **kinds: int) -> tuple[Page, str]:
    fake_run(folder, size=4, regions=5, **kinds)  # type: ignore[arg-type]
    with Ledger.read(folder) as ledger:
        text = write_report(ledger, folder).read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    return page, text


def test_page_is_one_file_with_the_runs_numbers(tmp_path: Path) -> None:
    run = tmp_path / "my_run"
    legend(run, 2, class_colours(CLASSES))
    data = cv2.imencode(".png", np.zeros((20, 60, 4), np.uint8))[1].tobytes()
    (run / "gallery" / "r02-001.png").write_bytes(data)
    page, text = written(run, rounds=3)
    assert all(u.startswith(("#", "data:")) for u in page.used) and "<script" not in text
    assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", text)
    results = Results.model_validate_json((run / "results.json").read_bytes())
    last = results.rounds[-1]
    for expected in ("my_run", f"{last.metric:.3f}", f"{results.seconds_charged / 3600:.2f}", "ct_19", "truncated"):
        assert expected in page.text
    assert 'aria-label="Accuracy by confidence: 0.58 sure, 0.50 right; 0.97 sure, 0.90 right"' in text
    [picture] = page.pictures
    assert (picture["width"], picture["height"]) == ("60", "20") and "r02-001" in str(picture["alt"])
    assert page.text.count("no picture") == 4
    assert text.count("<svg") == text.count('role="img" aria-label="') - 1  # the key's heat bar is no figure
    assert "#20252b" not in text.split("</style>")[1]  # colours follow the reader's theme


@pytest.mark.parametrize("rounds", [1, 3])
def test_detection_shows_ap_of_each_class_and_size_and_its_own_interval(tmp_path: Path, rounds: int) -> None:
    page, _ = written(tmp_path, rounds=rounds, detection=True)
    measured = Results.model_validate_json((tmp_path / "results.json").read_bytes()).rounds
    first, last = measured[0], measured[-1]
    rows = re.sub(r"\s+", " ", page.text)
    for name, key in (("AP50, all", "ap50"), ("AP50, small", "ap50_small"), ("AP, medium", "ap_medium")):
        end = last.extra[key]
        start, change = ("–", "–") if rounds == 1 else (f"{first.extra[key]:.3f}", f"{end - first.extra[key]:+.3f}")
        assert f"{name} {start}{end:.3f}{change}" in rows
    assert "AP, large –––" in rows  # of which there is none
    assert "AP50 of each class" in rows and "AP worked out anew for each drawing" in rows
    assert "centred on the curve" not in rows and "mean over 12 groups" not in rows
    assert f"12 groups (95%: {last.interval.low:.3f}–{last.interval.high:.3f})" in rows


def test_segmentation_has_no_sizes(tmp_path: Path) -> None:
    page, _ = written(tmp_path, rounds=2)
    assert "By size of the object" not in page.text and "centred on the curve" in page.text
    assert "mean over 12 groups" in page.text


def test_ids_are_unique_across_figures(tmp_path: Path) -> None:
    _, text = written(tmp_path, rounds=3)
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids)) > 5


@pytest.mark.parametrize(
    ("rounds", "unfinished", "words"),
    [
        (0, False, ("not begun", "Nothing has been asked yet", "not measured yet")),
        (0, True, ("start set under way", "No measurement yet", "What the start set asks")),
        (1, False, ("start set done", "needs two measurements")),
        (2, True, ("round 2 under way", "3 answered, 2 open", "What round 2 asks")),
    ],
)
def test_page_of_a_run_in_any_state(tmp_path: Path, rounds: int, unfinished: bool, words: tuple[str, ...]) -> None:
    page, _ = written(tmp_path, rounds=rounds, unfinished=unfinished)
    for expected in words:
        assert expected in page.text


def test_same_ledger_same_page_and_names_are_escaped(tmp_path: Path) -> None:
    fake_run(tmp_path, rounds=2, size=2, regions=3)
    with Ledger.read(tmp_path) as ledger:
        results, queries = collect(ledger), ledger.queries()
    assert render(results, queries[-1], tmp_path) == render(results, queries[-1], tmp_path)
    bad = results.model_copy(update={"quarantined": {"<script>alert(1)</script>": "x"}})
    assert "<script" not in render(bad, queries[-1], tmp_path)


def test_round_without_questions(tmp_path: Path) -> None:
    """Masks were known from the start, so the start set asks nothing."""
    query = Query(round=0, strategy="uniform", seed=1, regions=())
    with Ledger.open(tmp_path, config={}, versions={}, seed=1, clock=lambda: 0.0) as ledger:
        ledger.record_query(query)
        assert "labels were there from the start" in write_report(ledger, tmp_path).read_text()


def test_class_limits_hold_all_values(tmp_path: Path) -> None:
    fake_run(tmp_path, rounds=2, size=2, regions=3)
    with Ledger.read(tmp_path) as ledger:
        rounds = collect(ledger).rounds
    low, high = figures.class_limits(rounds)
    values = [v for r in rounds for v in r.per_class.values() if v is not None]
    assert low < min(values) and max(values) < high


def test_palette_colours_differ() -> None:
    assert len(set(CLASS_COLOURS)) == len(CLASS_COLOURS)
    assert rgb("#0b6fa4") == (11, 111, 164)
    assert class_colours(("a", "b"), background=True) == {"b": CLASS_COLOURS[0]}
    assert class_colours(("a", "b"), background=False) == {"a": CLASS_COLOURS[0], "b": CLASS_COLOURS[1]}


def region(start: tuple[int, ...], stop: tuple[int, ...], name: str = "r01-000") -> QueryRegion:
    return QueryRegion(id=name, image_id="a", kind="crop", start=start, stop=stop, score=1.0, seconds=1.0)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA", "ASL"])
def test_volumes_are_shown_as_radiologists_look_at_them(codes: str) -> None:
    """A bright voxel right, front, and a dimmer one left, back: wherever the file's axes point."""
    world = nib.Nifti1Image(np.zeros((12, 10, 8), np.float32), np.diag([1.0, 2.0, 3.0, 1.0]))
    data = np.zeros((12, 10, 8), np.float32)
    data[9, 8, 5], data[3, 2, 5] = 100, 50  # RAS: i grows to the right, j to the front
    box = np.zeros((12, 10, 8), np.uint8)
    box[3:10, 2:9, 3:7] = 1
    level = np.zeros((12, 10, 8), np.float32)
    level[:, :, 5] = 1
    turn = nib.orientations.ornt_transform(nib.io_orientation(world.affine), nib.orientations.axcodes2ornt(codes))

    def turned(array: np.ndarray) -> nib.Nifti1Image:
        return nib.Nifti1Image(array, world.affine).as_reoriented(turn)

    image, affine = np.asarray(turned(data).dataobj), turned(data).affine
    inside = np.argwhere(np.asarray(turned(box).dataobj))
    asked = region(tuple(map(int, inside.min(0))), tuple(map(int, inside.max(0) + 1)))
    cut = tuple(slice(a, b) for a, b in zip(asked.start, asked.stop, strict=True))
    proposal = Proposal((image[cut] / 50).astype(np.uint8), np.asarray(turned(level).dataobj)[cut])
    header = Header(image.shape, tuple(np.abs(affine[:3, :3]).max(0)), affine)
    view = gallery.view_of(asked, image[None], header, proposal, (0.0, 100.0))
    r0, c0, r1, c1 = view.box
    shown = view.image[r0:r1, c0:c1]
    assert shown.shape == (7, 7) and view.aspect == pytest.approx(2.0)
    assert shown[0, 0] == 255 and shown[-1, -1] == 128  # the patient's right front is top left
    assert view.label is not None and view.label[0, 0] == 2 and view.label[-1, -1] == 1


def test_frames_keep_colour_and_place() -> None:
    image = np.zeros((3, 40, 60), np.float32)
    image[0, 10:20, 5:25] = 300.0  # above 255: clipped, not wrapped
    view = gallery.view_of(region((10, 5), (20, 25)), image, Header((40, 60), (1.0, 1.0), None), None, None)
    r0, c0, r1, c1 = view.box
    assert (view.image[r0:r1, c0:c1] == (255, 0, 0)).all()
    assert view.image.sum() == 255 * 10 * 20 and view.label is None


def test_tile_shows_labels_heat_and_ignored_ground() -> None:
    label = np.full((20, 20), 2, np.uint8)
    label[:, 10:] = IGNORE
    heat = np.zeros((20, 20), np.float32)
    heat[:10] = 1
    view = gallery.View(np.full((40, 40), 100, np.uint8), (10, 10, 30, 30), 1.0, label, heat)
    tile = gallery.draw_tile(view, top=1.0)
    side = gallery.PANEL[0]
    assert tile.shape == (side, 3 * side + 2 * gallery.GAP, 4)
    assert tile[0, side + 1, 3] == 0  # the gap is clear
    quarter, inner = side // 4, side // 8
    left, right = side + gallery.GAP + quarter + inner, side + gallery.GAP + 2 * quarter + inner
    assert (tile[side // 2, right, :3] == 100).all()  # ignored ground keeps the image
    tint = 0.65 * 100 + 0.35 * np.array(rgb(CLASS_COLOURS[1]))
    assert np.abs(tile[side // 2, left, :3] - tint).max() <= 1
    third = 2 * (side + gallery.GAP) + side // 2
    assert tile[quarter + inner, third, :3].sum() > tile[3 * quarter - inner, third, :3].sum() + 200
    alone = gallery.draw_tile(gallery.View(view.image, view.box), top=0.0)
    assert alone.shape == (side, side, 4)


def test_tile_shows_predicted_boxes_where_they_lie_in_the_colour_of_their_class() -> None:
    asked = QueryRegion(id="r01-000", image_id="a", kind="crop", start=(20, 40), stop=(60, 100), score=1, seconds=1)
    table = np.array([[30.0, 50.0, 50.0, 80.0, 2.0, 0.0]])
    proposal = Proposal(table, np.zeros((40, 60), np.float32), np.array([1.0]))
    view = gallery.view_of(
        asked, np.zeros((3, 100, 160), np.float32), Header((100, 160), (1.0, 1.0), None), proposal, None
    )
    assert view.found is not None and view.label is None
    picture = gallery.draw_tile(view, top=1.0)
    width = (picture.shape[1] - 2 * gallery.GAP) // 3
    scale = width / view.image.shape[1]
    panel = picture[:, width + gallery.GAP : 2 * width + gallery.GAP, :3]
    left, top = view.box[1] + 10, view.box[0] + 10  # the box lies 10 rows and 10 columns into the region
    assert panel[round((top + 10) * scale), round(left * scale)].tolist() == list(rgb(CLASS_COLOURS[1]))
    assert panel[round((top + 10) * scale), round((left + 15) * scale)].tolist() == [0, 0, 0]  # hollow


def test_tiles_of_a_query_skip_what_cannot_be_read(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8))
    (tmp_path / "b.jpg").touch()
    names = {"a": "a.png", "b": "b.jpg"}
    pool = {i: ImageRecord(i, (tmp_path / f,), tmp_path, i, None, 2) for i, f in names.items()}
    first, second = region((0, 0), (16, 16), "r01-000"), region((20, 20), (36, 52), "r01-002")
    broken = region((0, 0), (16, 16), "r01-001").model_copy(update={"image_id": "b"})
    query = Query(round=1, strategy="hybrid", seed=0, regions=(first, broken, second))
    proposals = {"r01-000": Proposal(np.ones((16, 16), np.uint8), np.full((16, 16), 0.5, np.float32))}
    paths = gallery.tiles_for_query(query, pool, proposals, ("sky", "car"), tmp_path / "gallery", background=False)
    assert [p.name for p in paths] == ["r01-000.png", "r01-002.png"]
    key = json.loads((tmp_path / "gallery" / "legend-1.json").read_text())
    assert key == {"classes": class_colours(("sky", "car"), background=False), "uncertainty_max": 0.5}
    wide, alone = (cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in paths)
    assert wide.shape[2] == 4 and wide.shape[1] > 2 * alone.shape[0] and alone.shape[1] <= gallery.PANEL[1]
    assert not list((tmp_path / "gallery").glob("*.part"))
