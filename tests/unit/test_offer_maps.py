"""From maps to offers: the rows are right, lie on free ground, and are the same whenever they are asked for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dal_dense import candidates
from dal_dense.contours import contour_length, object_count
from dal_dense.costs import PRESETS, PRIORS
from dal_dense.errors import ConfigError, DataError
from dal_dense.noise import region_keys
from dal_dense.offer_maps import RANDOM, DensePrediction, OfferSpec, geometry_offers, offers_from_maps
from dal_dense.offers import KINDS, Offers, concat
from dal_dense.regions import Regions, slices, tile
from dal_dense.uncertainty import MAPS, DrawSums

SHAPE = (12, 14, 10)
SPEC = OfferSpec(
    kind="crop",
    sizes=((4, 5, 3),),
    spacing=(1.0, 2.0, 3.0),
    axial_axis=2,
    costs=PRESETS["ct_contour"],
    per_image=4,
    quota_classes=(1, 2),
)
NONE = Regions.of([], 3)


def prediction(seed: int = 0, shape: tuple[int, ...] = SHAPE, classes: int = 3) -> DensePrediction:
    generator = torch.Generator().manual_seed(seed)
    sums = DrawSums()
    for _ in range(2):
        sums.add(torch.softmax(2 * torch.randn(classes, *shape, generator=generator), 0))
    features = torch.randn(5, *(-(-n // 4) for n in shape), generator=generator)
    return DensePrediction(*sums.finish(MAPS), features)


def offers(
    pred: DensePrediction, spec: OfferSpec = SPEC, labelled: Regions = NONE, blocked: Regions = NONE, seed: int = 0
) -> Offers:
    return offers_from_maps(
        pred, spec, image_id="case", image=3, group=2, labelled=labelled, blocked=blocked, seed=seed
    )


def same(one: Offers, other: Offers) -> bool:
    return torch.equal(one.key, other.key) and torch.equal(one.score, other.score)


def test_every_figure_of_a_row() -> None:
    pred = prediction()
    got = offers(pred)
    entropy = pred.maps["predictive_entropy"]
    assert len(got) > SPEC.per_image
    for i, box in enumerate(got.regions.boxes()):
        inside = slices(box)
        probs = pred.mean[(slice(None), *inside)].double()
        near = {"atol": 1e-5, "rtol": 1e-5}
        torch.testing.assert_close(got.score[i].double(), entropy[inside].double().mean(), **near)
        torch.testing.assert_close(got.shares[i].double(), probs.flatten(1).mean(1), **near)
        split = (probs * entropy[inside]).flatten(1).mean(1)
        torch.testing.assert_close(got.class_score[i].double(), split, **near)
        for name, values in pred.maps.items():
            torch.testing.assert_close(got.extra[name][i].double(), values[inside].double().mean(), **near)
        length = contour_length(probs, SPEC.spacing, SPEC.axial_axis)
        torch.testing.assert_close(got.boundary[i], length, **near)
        assert got.objects[i] == object_count(probs.argmax(0).numpy().astype(np.uint8), 2, 0)
        assert got.area[i] == 4 * 5 * 3 * 2.0
        expected = SPEC.costs.seconds(got.area[i].item(), got.boundary[i].item(), got.objects[i].item())
        assert got.seconds[i].item() == pytest.approx(expected, rel=1e-5)
        assert pred.features is not None
        cells = tuple(
            slice(a * c // n, -(-b * c // n)) for a, b, n, c in zip(*box, SHAPE, pred.features.shape[1:], strict=True)
        )
        torch.testing.assert_close(got.embedding[i], pred.features[(slice(None), *cells)].flatten(1).mean(1), **near)
    assert (got.image == 3).all() and (got.group == 2).all() and (got.image_seconds == 15).all()
    assert torch.equal(got.key, region_keys("case", got.regions))
    assert not got.labelled.any()
    assert {c.dtype for c in (got.score, got.shares, got.boundary, got.objects, got.area, got.seconds)} == {
        torch.float32
    }
    torch.testing.assert_close(got.class_score.sum(1), got.extra["predictive_entropy"])


TILES = tile(SHAPE, (5, 6, 4))
GROUND = st.lists(st.sampled_from(["free", "free", "labelled", "blocked"]), min_size=len(TILES), max_size=len(TILES))


@settings(deadline=None, max_examples=40)
@given(GROUND, st.sampled_from(KINDS[:3]), st.booleans(), st.integers(1, 3))
def test_no_offer_lies_on_taken_ground(ground: list[str], kind: str, topk: bool, stride: int) -> None:
    labelled, blocked, taken = (
        TILES[torch.tensor([g in words for g in ground])]
        for words in (("labelled",), ("blocked",), ("labelled", "blocked"))
    )
    spec = replace(SPEC, kind=kind, stride=stride, pooling="topk" if topk else "mean", sizes=((4, 5, 3), (99, 2, 2)))
    got = offers(prediction(1), spec, labelled, blocked)
    fresh = got[~got.labelled]
    assert not fresh.regions.overlaps(taken).any()
    assert len(set(got.key.tolist())) == len(got)
    assert len(fresh.regions.clip(SHAPE)) == len(fresh) and (fresh.regions.stop <= torch.tensor(SHAPE)).all()
    assert list(got[got.labelled].regions.boxes()) == list(labelled.boxes())
    assert got.labelled.tolist() == sorted(got.labelled.tolist())  # they come last
    assert (got.kind == KINDS.index(kind)).all()
    free = geometry_offers(
        "case", SHAPE, spec, PRIORS["ct_contour"],
        seed=1, image=0, group=0, labelled=labelled, blocked=blocked, classes=3,
    )  # fmt: skip
    assert not free[~free.labelled].regions.overlaps(taken).any()
    assert len(free[~free.labelled]) <= 2 * spec.per_image
    if kind == "image":
        assert len(fresh) == (0 if len(taken) else 1) == len(free[~free.labelled])


def test_an_image_wholly_labelled_has_labelled_rows_only() -> None:
    got = offers(prediction(), labelled=Regions.of([((0, 0, 0), SHAPE)], 3))
    assert got.labelled.tolist() == [True]
    assert got.seconds.item() == got.image_seconds.item() == got.score.item() == 0
    torch.testing.assert_close(got.shares.sum(1), torch.ones(1))
    assert got.embedding.shape == (1, 5) and got.embedding.count_nonzero() == 5


def test_candidates_hold_the_best_box_the_best_of_each_class_and_random_ones() -> None:
    pred = prediction(4)
    got = offers(pred)
    best = candidates.peak_boxes(pred.maps["predictive_entropy"], (4, 5, 3), 1, 4, NONE)
    assert set(region_keys("case", best).tolist()) <= set(got.key.tolist())
    for c in SPEC.quota_classes:
        of_class = pred.mean[c] * pred.maps["predictive_entropy"]
        best = candidates.peak_boxes(of_class, (4, 5, 3), 1, 2, NONE)
        assert set(region_keys("case", best).tolist()) <= set(got.key.tolist())
    assert got.extra[RANDOM].sum() == SPEC.per_image
    assert got.score.max() == got.score[0]


def test_slices_and_images() -> None:
    slice_ = offers(prediction(), replace(SPEC, kind="slice"))
    assert all((stop[0], stop[1], stop[2] - start[2]) == (12, 14, 1) for start, stop in slice_.regions.boxes())
    sagittal = offers(prediction(), replace(SPEC, kind="slice", axial_axis=0))
    assert all((stop[0] - start[0], stop[1], stop[2]) == (1, 14, 10) for start, stop in sagittal.regions.boxes())
    whole = offers(prediction(), replace(SPEC, kind="image", sizes=((1,),)))
    assert list(whole.regions.boxes()) == [((0, 0, 0), SHAPE)]


def test_frames() -> None:
    spec = replace(SPEC, sizes=((6, 8),), spacing=(1.0, 1.0), axial_axis=None, quota_classes=(0, 1, 2))
    got = offers_from_maps(
        prediction(0, (30, 40)),
        spec,
        image_id="f",
        image=0,
        group=0,
        labelled=Regions.of([], 2),
        blocked=Regions.of([], 2),
    )
    assert got.regions.axes == 2 and (got.area == 48).all()
    assert spec.background is None and SPEC.background == 0
    assert (got.objects >= 1).all()  # without background, any ground is something


def test_topk_scores_the_top_share() -> None:
    pred = prediction()
    got = offers(pred, replace(SPEC, pooling="topk", topk=0.2))
    box = next(got.regions.boxes())
    top = pred.maps["predictive_entropy"][slices(box)].flatten().topk(12).values
    torch.testing.assert_close(got.score[0], top.mean())


def test_shares_sum_to_1_although_blended_windows_do_only_nearly() -> None:
    pred = prediction()
    got = offers(replace(pred, mean=0.98 * pred.mean))
    torch.testing.assert_close(got.shares.sum(1), torch.ones(len(got)))


def test_an_embedding_is_not_needed() -> None:
    pred = replace(prediction(), features=None)
    got = offers(pred, labelled=Regions.of([((0, 0, 0), (2, 2, 2))], 3))
    assert got.embedding.shape == (len(got), 0)


def test_same_again_and_another_seed_for_the_random_boxes() -> None:
    assert same(offers(prediction()), offers(prediction()))
    assert not same(offers(prediction()), offers(prediction(), seed=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": "bald"}, "uncertainty.score: bald is not among the maps"),
        ({"sizes": ((3, 3),)}, "query.sizes: .* give 3 numbers"),
        ({"kind": "slice", "axial_axis": None}, "query.kind: slice needs volumes"),
    ],
)
def test_settings_that_do_not_fit(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        offers(prediction(), replace(SPEC, **change))


def test_nan_in_the_models_output_is_told_with_the_image() -> None:
    pred = prediction()
    pred.maps["predictive_entropy"][3, 3, 3] = float("nan")
    with pytest.raises(DataError, match=r"image case: .* NaN"):
        offers(pred)


def geometry(seed: int = 0, image_id: str = "case", labelled: Regions = NONE, **change: object) -> Offers:
    return geometry_offers(
        image_id, SHAPE, replace(SPEC, **change), PRIORS["ct_contour"],
        seed=seed, image=1, group=1, labelled=labelled, blocked=NONE, classes=3,
    )  # fmt: skip


def test_geometry_offers_are_drawn_by_seed_and_id_and_priced_by_the_prior() -> None:
    got = geometry()
    assert len(got) == SPEC.per_image
    assert same(got, geometry())
    boxes = list(got.regions.boxes())
    assert boxes != list(geometry(seed=1).regions.boxes())
    assert boxes != list(geometry(image_id="other").regions.boxes())
    prior = PRIORS["ct_contour"]
    torch.testing.assert_close(got.boundary, got.area * prior.boundary / 1000)
    torch.testing.assert_close(got.objects, got.area * prior.objects / 1000)
    torch.testing.assert_close(got.seconds, SPEC.costs.seconds(got.area, got.boundary, got.objects))
    assert not got.score.any() and got.embedding.shape == (4, 0)
    torch.testing.assert_close(got.shares, torch.full((4, 3), 1 / 3))


def test_geometry_offers_join_labelled_rows_and_other_images() -> None:
    one, other = geometry(labelled=Regions.of([((0, 0, 0), (6, 7, 5))], 3)), geometry(image_id="other")
    both = concat([one, other])
    assert len(both) == 9 and both.labelled.sum() == 1


def test_random_boxes_share_no_ground_while_tiles_last() -> None:
    boxes = candidates.random_boxes("a", (40, 40), (8, 8), 10, Regions.of([], 2), 0)
    assert len(boxes) == 10 and boxes.overlaps(boxes).sum() == 10
    more = candidates.random_boxes("a", (10, 10), (8, 8), 10, Regions.of([], 2), 0)
    assert 1 < len(more) <= 10


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_random_boxes_use_the_room_there_is(length: int, side: int, seed: int) -> None:
    boxes = candidates.random_boxes("a", (length, 1), (side, 1), 99, Regions.of([], 2), seed)
    tiles = boxes[~boxes.overlaps(boxes).triu(1).any(0)]
    assert len(tiles) == max(1, length // side)


def test_random_boxes_go_everywhere() -> None:
    """Every voxel of the middle is asked for about equally often over seeds, and the border is reached."""
    hits = torch.zeros(24)
    for seed in range(300):
        boxes = candidates.random_boxes("a", (24, 1), (6, 1), 2, Regions.of([], 2), seed)
        for start, stop in boxes.boxes():
            hits[start[0] : stop[0]] += 1
    assert hits.min() > 0
    assert hits[6:18].max() < 1.35 * hits[6:18].min()


def test_free_ground_off_the_tiling_is_found() -> None:
    """Only one place is free, and most tilings miss it."""
    walls = Regions.of([((0,) * 2, (20, 7)), ((0, 12), (20, 20))], 2)
    found = [len(candidates.random_boxes("a", (20, 20), (5, 5), 3, walls, seed)) for seed in range(20)]
    assert sum(n > 0 for n in found) >= 15


@pytest.mark.parametrize("pooling", ["mean", "topk"])
def test_offers_from_maps_on_a_device_are_those_of_the_cpu(pooling: str, device: torch.device) -> None:
    pred, spec = prediction(), replace(SPEC, pooling=pooling)
    assert pred.features is not None
    maps = {name: values.to(device) for name, values in pred.maps.items()}
    labelled, blocked = (Regions.of([((z, 0, 0), (z + 3, 4, 5))], 3) for z in (0, 6))
    here = offers(pred, spec, labelled, blocked)
    found = offers(DensePrediction(pred.mean.to(device), maps, pred.features.to(device)), spec, labelled, blocked)
    assert found.device.type == "cuda" and {v.device.type for v in found.extra.values()} == {"cuda"}
    there = found.to("cpu")
    assert len(here) > 2 * SPEC.per_image and list(there.regions.boxes()) == list(here.regions.boxes())
    for name in ("image", "group", "kind", "key", "labelled"):
        assert torch.equal(getattr(there, name), getattr(here, name)), name
    figures = ("score", "class_score", "shares", "boundary", "objects", "area", "seconds", "image_seconds", "embedding")
    for name in figures:
        torch.testing.assert_close(
            getattr(there, name), getattr(here, name), atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    torch.testing.assert_close(there.extra, here.extra, atol=1e-5, rtol=1e-5)
