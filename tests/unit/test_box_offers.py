"""One frame's offers: exact sums, the best windows by brute force, nothing on ground that is taken."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_predictions import COSTS, NOTHING, SHAPE, boxed, offers, prediction, singles, spec

from dal_dense.acquire import STRATEGIES, Budget, Round, acquire
from dal_dense.box_offers import SAME, box_spec, frame_offers, overlap
from dal_dense.box_proposals import frame_proposals
from dal_dense.box_scores import box_scores
from dal_dense.config import QueryConfig, StrategyConfig, UncertaintyConfig
from dal_dense.detections import FramePrediction
from dal_dense.errors import DataError
from dal_dense.noise import region_keys
from dal_dense.offers import KINDS, concat
from dal_dense.records import Header
from dal_dense.regions import Regions, slices


def centres_in(pred: FramePrediction, box: tuple[tuple[int, ...], tuple[int, ...]]) -> list[int]:
    inside = []
    for n, (top, left, bottom, right) in enumerate(pred.found.corners.tolist()):
        row, column = (top + bottom) / 2, (left + right) / 2
        if box[0][0] <= row < box[1][0] and box[0][1] <= column < box[1][1]:
            inside.append(n)
    return inside


def centred(pred: FramePrediction, windows: Regions) -> torch.Tensor:
    """1 where a box is centred in a window, a row each; as `centres_in`."""
    middle = (pred.found.corners[:, :2].double() + pred.found.corners[:, 2:].double()) / 2
    return ((middle >= windows.start[:, None]) & (middle < windows.stop[:, None])).all(-1).double()


def every_window(stride: int) -> Regions:
    """All places of a window of 8 x 12."""
    rows = {*range(0, SHAPE[0] - 8 + 1, stride), SHAPE[0] - 8}
    columns = {*range(0, SHAPE[1] - 12 + 1, stride), SHAPE[1] - 12}
    return Regions.of([((r, c), (r + 8, c + 12)) for r in rows for c in columns], 2)


# --- windows


@given(st.integers(0, 10**6), st.integers(0, 12), st.sampled_from(["sum", "mean", "max"]))
@settings(max_examples=25, deadline=None)
def test_a_windows_figures_are_those_of_the_boxes_centred_in_it(seed: int, boxes: int, combine: str) -> None:
    pred = prediction(seed, boxes)
    made = offers(pred, spec(combine=combine, sizes=((8, 12), (16, 40))))
    values = box_scores("predictive_entropy", pred.found, pred.difficulty)
    assert len(made) and made.parts is not None
    for n, box in enumerate(made.regions.boxes()):
        rows = centres_in(pred, box)
        of = [float(values[r]) for r in rows]
        whole = {
            "sum": sum(of) + float(hum(pred, made.regions[n : n + 1], values)),
            "mean": sum(of) / max(len(of), 1),
            "max": max(of, default=0.0),
        }[combine]
        pixels = (box[1][0] - box[0][0]) * (box[1][1] - box[0][1])
        assert float(made.score[n] * made.extent[n]) == pytest.approx(whole, abs=1e-5)
        by_class = float(made.class_score[n].sum())
        assert by_class == pytest.approx(float(made.score[n]) if rows else 0.0, abs=1e-6)
        assert float(made.objects[n]) == pytest.approx(float(pred.found.scores[rows].sum()), abs=1e-5)
        assert float(made.seconds[n]) == pytest.approx(1 + 0.03 * pixels / 1000 + 7 * float(made.objects[n]), abs=1e-4)
        assert float(made.area[n]) == pixels and float(made.image_seconds[n]) == 5 and float(made.boundary[n]) == 0
        mass = pred.found.probs[rows].sum(0)
        shares = [1.0, 0.0, 0.0] if not rows else [0.0, *(mass[1:] / mass[1:].sum()).tolist()]
        assert made.shares[n].tolist() == pytest.approx(shares, abs=1e-5)
        of_row = made.parts.of_rows(torch.tensor([n]), len(made))
        assert torch.equal(of_row.embedding, pred.found.embedding[rows])
        assert torch.equal(of_row.classes, pred.found.classes[rows])
        assert torch.equal(of_row.weight, pred.found.scores[rows])


def hum(pred: FramePrediction, windows: Regions, values: torch.Tensor) -> torch.Tensor:
    """What the dense map adds to each window: a twentieth of a box where it is highest."""
    full = pred.dense.repeat_interleave(SHAPE[0] // pred.dense.shape[0], 0)
    full = full.repeat_interleave(SHAPE[1] // pred.dense.shape[1], 1)
    typical = values.mean() if len(values) else 1.0
    return 0.05 * typical * torch.stack([full[slices(box)].mean() for box in windows.boxes()]) / full.max()


@given(st.integers(0, 10**6), st.sampled_from([1, 3]), st.booleans())
@settings(max_examples=15, deadline=None)
def test_the_best_window_is_the_best_of_all(seed: int, stride: int, taken: bool) -> None:
    pred = prediction(seed, 10)
    blocked = Regions.of([((4, 8), (12, 20))] if taken else [], 2)
    values = box_scores("predictive_entropy", pred.found, pred.difficulty)
    made = offers(pred, spec(stride=stride), blocked=blocked)
    windows = every_window(stride)
    free = windows[~windows.overlaps(blocked).any(1)]
    best = float((centred(pred, free) @ values.double() + hum(pred, free, values)).max())
    found = float((made.score * made.extent).max())
    assert found >= best - 1e-4
    sought = made[made.extra["random"] == 0]  # those that were drawn blindly may lie between the steps
    assert not len(sought) or float((sought.score * sought.extent).max()) <= best + 1e-5


def combined(pred: FramePrediction, windows: Regions, combine: str, share: torch.Tensor) -> torch.Tensor:
    """Worth of each window, of which the boxes' values have this share (1: in all; of a class: its part)."""
    values = box_scores("predictive_entropy", pred.found, pred.difficulty).double()
    inside = centred(pred, windows)
    summed, count = inside @ values, inside.sum(1)
    whole = summed / count if combine == "mean" else (inside * values).amax(1)
    return torch.where(count > 0, whole * (inside @ (values * share)) / summed, 0.0)


@given(st.integers(0, 10**6), st.sampled_from(["mean", "max"]), st.sampled_from([1, 3]), st.booleans())
@settings(max_examples=20, deadline=None)
def test_windows_are_sought_by_the_combination_asked_for(seed: int, combine: str, stride: int, taken: bool) -> None:
    """Each pick is the best of all windows that are still free, in all and for each class."""
    pred = prediction(seed, 10)
    blocked = Regions.of([((4, 8), (12, 20))] if taken else [], 2)
    made = offers(pred, spec(combine=combine, stride=stride, per_image=2), blocked=blocked)
    parts = [torch.ones(10), *(pred.found.probs[:, 1:] / pred.found.probs[:, 1:].sum(1, keepdim=True)).T]
    windows = every_window(stride)
    free = windows[~windows.overlaps(blocked).any(1)]
    for n in range(min(2, len(made))):
        pick = made.regions[n : n + 1]
        best = combined(pred, free, combine, parts[0]).max()
        assert combined(pred, pick, combine, parts[0]) >= best - 1e-4
        free = free[~free.overlaps(pick).any(1)]
    free = windows[~windows.overlaps(blocked).any(1)]
    for c in (1, 2):
        best = float(combined(pred, free, combine, parts[c]).max())
        assert float((made.class_score[:, c] * made.extent).max()) >= best - 1e-4


@pytest.mark.parametrize("combine", ["mean", "max"])
def test_of_windows_with_an_equal_score_the_fuller_one_comes_first(combine: str) -> None:
    pred = boxed([2.0, 2, 4, 4], [16.0, 20, 18, 22], [19.0, 26, 21, 28])  # all of one score; two share a window
    first = next(offers(pred, spec(combine=combine)).regions.boxes())
    assert centres_in(pred, first) == [1, 2]
    bare = boxed()
    bare.dense.fill_(0.1)
    bare.dense[3, 6] = 0.9  # rows 12..16, columns 24..28: no box, so the dense map speaks
    first = next(offers(bare, spec(combine=combine)).regions.boxes())
    assert first[0][0] <= 12 and first[1][0] >= 16 and first[0][1] <= 24 and first[1][1] >= 28


def test_each_class_has_windows_of_its_own() -> None:
    """Twenty surer boxes of class 1 on the left hide the one of class 2 from the sum, but not from its quota."""
    many = [[2.0 + 5 * (i % 4), 1.0 + 3 * (i // 4), 5.0 + 5 * (i % 4), 4.0 + 3 * (i // 4)] for i in range(20)]
    pred = boxed(*many, [18.0, 30.0, 22.0, 34.0])
    pred.found.probs[-1] = torch.tensor([0.4, 0.0, 0.6])
    made = offers(pred, spec(per_image=2))
    sought = made[made.extra["random"] == 0]
    assert (sought.class_score[:, 2] > 0).any()


def test_dense_speaks_where_no_box_is_and_instead_of_them_if_asked() -> None:
    pred = boxed()
    pred.dense.fill_(0.1)
    pred.dense[3, 6] = 0.9  # rows 12..16, columns 24..28
    for combine in ("sum", "dense"):
        first = next(offers(pred, spec(combine=combine)).regions.boxes())
        assert first[0][0] <= 12 and first[1][0] >= 16 and first[0][1] <= 24 and first[1][1] >= 28
    with_boxes = replace(pred, found=prediction(0).found)
    made = offers(with_boxes, spec(combine="dense"))
    full = with_boxes.dense.repeat_interleave(4, 0).repeat_interleave(4, 1)
    for n, ((top, left), (bottom, right)) in enumerate(made.regions.boxes()):
        assert float(made.score[n]) == pytest.approx(float(full[top:bottom, left:right].mean()), abs=1e-5)
        assert float(made.class_score[n].sum()) == pytest.approx(
            float(made.score[n]) if centres_in(with_boxes, ((top, left), (bottom, right))) else 0.0, abs=1e-5
        )


def test_no_boxes_at_all() -> None:
    for kind in ("crop", "image", "box"):
        made = offers(boxed(), spec(kind), labelled=Regions.of([((0, 0), (3, 4))], 2))
        free = ~made.labelled
        assert (kind == "image") == (int(free.sum()) == 0) and not len(singles(made))
        # where no box was kept, the dense map says where to look
        assert (made.score[free] > 0).all() and (made.class_score == 0).all()
        assert (made.shares[:, 0] == 1).all() and len(made.parts.row) == 0  # type: ignore[union-attr]
        assert kind != "crop" or int(free.sum()) > 3


def test_a_whole_frame() -> None:
    pred = prediction(2)
    made = offers(pred, spec("image"))
    assert list(made.regions.boxes()) == [((0, 0), SHAPE)] and made.extra["random"].tolist() == [1.0]
    assert KINDS[int(made.kind[0])] == "image" and made.extent.tolist() == [SHAPE[0] * SHAPE[1]]
    assert len(offers(pred, spec("image"), blocked=Regions.of([((0, 0), (1, 1))], 2))) == 0


def test_a_crowd_of_two_thousand() -> None:
    pred = prediction(3, 2000, shape=(300, 500), side=20)
    crops, single = offers(pred, spec(sizes=((64, 96),), stride=4)), offers(pred, spec("box"))
    values = box_scores("predictive_entropy", pred.found, pred.difficulty)
    box = next(crops.regions.boxes())
    assert float(crops.score[0] * crops.extent[0]) == pytest.approx(
        float(values[centres_in(pred, box)].sum()), rel=1e-4
    )
    assert 1990 <= len(singles(single)) <= 2000


# --- taken ground, kinds, alignment


@pytest.mark.parametrize("kind", ["crop", "image", "box"])
@given(st.integers(0, 10**6), st.integers(0, 3), st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_nothing_on_taken_ground_and_everything_in_the_frame(kind: str, seed: int, known: int, asked: int) -> None:
    gen = torch.Generator().manual_seed(seed)
    start = torch.randint(0, 12, (known + asked, 2), generator=gen)
    places = Regions(start, start + torch.tensor([5, 7]))
    labelled, blocked = places[:known], places[known:]
    pred = prediction(seed, 10)
    made = offers(pred, spec(kind), labelled, blocked)
    free = made[~made.labelled]
    ground = torch.zeros(SHAPE)
    for box in places.boxes():
        ground[slices(box)] = 1
    assert all(float(ground[slices(box)].max()) == 0 for box in free[free.kind != KINDS.index("box")].regions.boxes())
    every = singles(offers(pred, spec(kind))).regions.boxes()
    assert {*singles(free).regions.boxes()} == {b for b in every if float(ground[slices(b)].mean()) < 0.5}
    assert (free.regions.start >= 0).all() and (free.regions.stop <= torch.tensor(SHAPE)).all()
    assert made.labelled.tolist() == [False] * len(free) + [True] * known
    assert list(made[made.labelled].regions.boxes()) == list(labelled.boxes())
    kinds = [KINDS[k] for k in free.kind.tolist()]
    assert kinds == ["box"] * len(singles(free)) + [kind if kind == "image" else "crop"] * (
        len(free) - len(singles(free))
    )
    assert torch.equal(made.key, region_keys("f", made.regions)) and len(free.key.unique()) == len(free)
    assert (made.image == 4).all() and (made.group == 2).all()
    assert made.embedding.shape == (len(made), 4) and made.embedding.isfinite().all()
    again = offers(pred, spec(kind), labelled, blocked)
    for column in ("key", "score", "class_score", "seconds", "embedding"):
        assert torch.equal(getattr(again, column), getattr(made, column))


def test_embedding_is_the_mean_of_the_cells_under_a_region() -> None:
    pred = prediction(1)  # 24 x 36 pixels over 3 x 5 cells: 8 rows and 7.2 columns each
    made = offers(pred, spec("image"), labelled=NOTHING)
    torch.testing.assert_close(made.embedding[0], pred.features.mean((1, 2)))
    known = offers(pred, spec(), labelled=Regions.of([((8, 0), (16, 7)), ((7, 0), (9, 8))], 2))
    known = known[known.labelled]
    torch.testing.assert_close(known.embedding[0], pred.features[:, 1, 0])
    torch.testing.assert_close(known.embedding[1], pred.features[:, :2, :2].mean((1, 2)))


def test_single_boxes_are_the_predictions_with_their_price() -> None:
    pred = boxed([2.2, 3.4, 9.6, 12.0], [15.0, 20.0, 23.0, 35.0], sure=0.6)
    made = singles(offers(pred, spec("box")))
    assert list(made.regions.boxes()) == [((2, 3), (10, 12)), ((15, 20), (23, 35))]
    values = box_scores("predictive_entropy", pred.found, pred.difficulty)
    assert torch.equal(made.score, values) and made.extent.tolist() == [1, 1]
    assert made.shares.tolist() == [[0, 1, 0], [0, 1, 0]] and torch.equal(made.class_score.sum(1), values)
    assert made.seconds.tolist() == pytest.approx([1 + 1.8 + 0.24 * 7] * 2) and made.image_seconds.tolist() == [5, 5]
    assert made.objects.tolist() == pytest.approx([0.6, 0.6]) and (made.extra["random"] == 1).all()
    assert made.parts is not None and made.parts.row.tolist() == [0, 1]
    assert torch.equal(made.parts.embedding, pred.found.embedding)


def test_a_judged_box_hides_its_like_and_no_neighbour() -> None:
    pred = boxed([2.0, 2, 10, 10], [2.0, 8, 10, 16])  # IoU 2 / 14
    judged = Regions.of([((2, 3), (10, 11))], 2)
    for rows, ground in enumerate(({"waiting": judged}, {"answered": judged})):
        made = offers(pred, spec("box"), **ground)
        assert list(singles(made).regions.boxes()) == [((2, 8), (10, 16))]
        assert [KINDS[k] for k in made.kind[made.labelled].tolist()] == ["box"] * rows


def test_a_judged_box_of_any_size_is_no_whole_ground() -> None:
    """Of the very size of a crop, and of the frame: a verified lorry does not hide the car before it."""
    pred = boxed([2.0, 2, 5, 5], [0.0, 0, 8, 11])
    for size in (((0, 0), (8, 12)), ((0, 0), SHAPE)):
        made = offers(pred, spec("box"), answered=Regions.of([size], 2))
        assert ((2, 2), (5, 5)) in singles(made).regions.boxes()
    crop = Regions.of([((0, 0), (7, 9))], 2)  # and ground of no size that is asked is whole ground still
    made = offers(pred, spec("box"), labelled=crop, answered=Regions.of([((20, 20), (22, 22))], 2))
    assert not len(singles(made))
    made = made[made.labelled]
    assert [KINDS[k] for k in made.kind.tolist()] == ["crop", "box"]
    assert list(made.regions.boxes()) == [((0, 0), (7, 9)), ((20, 20), (22, 22))]


def test_whole_ground_hides_a_box_of_which_half_lies_on_it() -> None:
    pred = boxed([2.0, 2, 10, 10])
    sliver, half = Regions.of([((0, 0), (24, 5))], 2), Regions.of([((0, 0), (24, 6))], 2)
    halves = Regions.of([((0, 0), (24, 4)), ((0, 8), (24, 12))], 2)  # a quarter each
    for name in ("labelled", "blocked"):
        count = [len(singles(offers(pred, spec("box"), **{name: ground}))) for ground in (sliver, half, halves)]
        assert count == [1, 0, 0]


def test_predictions_that_round_to_one_region_are_asked_once_and_a_speck_is_a_pixel() -> None:
    pred = boxed([2.0, 2, 8, 8], [2.1, 2.2, 7.9, 8.0], [5.6, 9.6, 5.8, 9.8], [23.6, 35.7, 24.0, 36.0])
    made = singles(offers(pred, spec("box")))
    assert list(made.regions.boxes()) == [((2, 2), (8, 8)), ((6, 10), (7, 11)), ((23, 35), (24, 36))]
    assert torch.equal(made.parts.embedding, pred.found.embedding[[0, 2, 3]])  # type: ignore[union-attr]


@given(st.integers(0, 10**6))
@settings(max_examples=20)
def test_overlap_is_that_of_boxes(seed: int) -> None:
    from dal_dense.boxes import iou

    gen = torch.Generator().manual_seed(seed)
    start = torch.randint(0, 9, (7, 2), generator=gen)
    boxes = Regions(start, start + torch.randint(1, 9, (7, 2), generator=gen))
    table = torch.cat([boxes.start, boxes.stop], 1).double().numpy()
    torch.testing.assert_close(overlap(boxes, boxes[:3]).double(), torch.from_numpy(iou(table, table[:3])))
    assert overlap(boxes, boxes[:0]).shape == (7, 0)


@pytest.mark.parametrize("name", ["corners", "probs", "embedding", "dense", "features"])
@pytest.mark.parametrize("kind", ["crop", "box"])
def test_numbers_that_are_none_are_told(name: str, kind: str) -> None:
    pred = prediction(0)
    column = getattr(pred.found, name) if hasattr(pred.found, name) else getattr(pred, name)
    column[0, 0] = float("nan")
    with pytest.raises(DataError, match=f"f: the detector's {name} hold NaN.*task.train.lr"):
        offers(pred, spec(kind))


def test_settings_become_a_spec() -> None:
    header = Header(SHAPE, (1.0, 1.0), None)
    query = QueryConfig(kind="box", sizes=((8, 100), (4, 4)), per_image=5, stride=2)
    made = box_spec(
        query, header, COSTS, uncertainty=UncertaintyConfig(score="margin", combine="max"), classes=3, matching=True
    )
    assert made == spec("box", sizes=((8, 36), (4, 4)), per_image=5, stride=2, score="margin", combine="max")
    image = box_spec(
        query.model_copy(update={"kind": "image"}), header, COSTS, uncertainty=UncertaintyConfig(), classes=3
    )
    assert image.sizes == ()


# --- what is chosen of them


@pytest.mark.parametrize("combine", ["sum", "mean", "max"])
@pytest.mark.parametrize("kind", ["crop", "image", "box"])
def test_on_a_device_they_are_those_of_the_cpu(kind: str, combine: str, device: torch.device) -> None:
    pred = prediction(3, 12)
    found = replace(pred.found, **{f.name: getattr(pred.found, f.name).to(device) for f in fields(pred.found)})
    dense, features = pred.dense.to(device), pred.features.to(device)
    far = replace(pred, found=found, dense=dense, features=features, difficulty=pred.difficulty.to(device))
    blocked = Regions.of([((0, 0), (8, 12))] if kind != "image" else [], 2)
    here, there = (offers(p, spec(kind=kind, combine=combine), blocked=blocked) for p in (pred, far))
    assert there.device.type == "cuda" and torch.equal(there.key.cpu(), here.key)
    for name in ("score", "class_score", "shares", "objects", "seconds", "embedding"):
        torch.testing.assert_close(getattr(there, name).cpu(), getattr(here, name), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@pytest.mark.parametrize("kind", ["crop", "image", "box"])
def test_every_strategy_chooses_among_them(name: str, kind: str) -> None:
    made = [
        frame_offers(
            prediction(i, 8), spec(kind), image_id=f"f{i}", image=i, group=i // 2, labelled=NOTHING, blocked=NOTHING
        )
        for i in range(4)
    ]
    pool = concat(made)
    chosen = acquire(pool, Budget(60.0), StrategyConfig(name=name), Round(1, 2, 3), quota_classes=(1, 2))
    assert len(chosen) and chosen.total <= 60
    picked = pool[chosen.rows]
    share = overlap(picked.regions, picked.regions) * (picked.image[:, None] == picked.image[None])
    share.fill_diagonal_(0)
    assert share.max() < (SAME if kind == "box" else 1e-9)
    mixed = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0))
    again = acquire(pool[mixed], Budget(60.0), StrategyConfig(name=name), Round(1, 2, 3), quota_classes=(1, 2))
    assert pool.key[chosen.rows].tolist() == pool.key[mixed][again.rows].tolist()


# --- proposals


def test_proposals_hold_the_boxes_centred_inside_cut_at_the_border() -> None:
    pred = boxed([2.5, 3, 9, 11], [6.0, 8, 12, 20], [20.0, 30, 23, 35], sure=0.7)
    (first, empty) = frame_proposals(pred, Regions.of([((0, 0), (8, 12)), ((0, 24), (8, 36))], 2))
    assert first.label.tolist() == [[2.5, 3, 8, 11, 1, 0]] and first.scores is not None
    assert first.scores.tolist() == pytest.approx([0.7])
    assert first.uncertainty.shape == (8, 12) and first.uncertainty.dtype.name == "float32"
    full = pred.dense.repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert torch.equal(torch.from_numpy(first.uncertainty), full[:8, :12])
    assert empty.label.shape == (0, 6) and empty.label.dtype.name == "float64"


def test_a_box_query_is_proposed_its_own_box_even_a_speck() -> None:
    pred = boxed([2.0, 2, 8, 8], [2.1, 2.2, 7.9, 8.0], [5.6, 9.6, 5.8, 9.8], [3.0, 3, 7, 7])
    pred.found.probs[0] = torch.tensor([0.1, 0.0, 0.9])
    made = offers(pred, spec("box"))
    found = frame_proposals(pred, singles(made).regions, boxes_only=True)
    assert [p.label.tolist() for p in found] == [
        [[2, 2, 8, 8, 2, 0]],  # the better of two that round alike, as it was offered
        [[6, 10, 7, 11, 1, 0]],
        [[3, 3, 7, 7, 1, 0]],
    ]
    assert [float(p.scores[0]) for p in found if p.scores is not None] == pytest.approx([0.9, 0.8, 0.8])
