"""Class-conditional matching against a loop over pairs, written from the paper; and PPAL upon it."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dal_dense.acquire import Budget, Round, acquire, shard_of
from dal_dense.acquire import matching as module
from dal_dense.acquire import ppal as module_of_ppal
from dal_dense.acquire.matching import matching_distance
from dal_dense.acquire.ppal import candidates, medoids
from dal_dense.acquire.shortlist import InTurn
from dal_dense.config import StrategyConfig
from dal_dense.errors import ConfigError
from dal_dense.offers import KINDS, Offers, Parts, concat
from dal_dense.regions import Regions
from dal_dense.select import blocks


def parts_of(rows: list[list[tuple[int, float, list[float]]]], width: int = 3) -> Parts:
    """From each row's list of (class, weight, embedding)."""
    flat = [(r, *item) for r, items in enumerate(rows) for item in items]
    return Parts(
        torch.tensor([f[0] for f in flat], dtype=torch.int64),
        torch.tensor([f[1] for f in flat], dtype=torch.int64),
        torch.tensor([f[2] for f in flat]),
        torch.tensor([f[3] for f in flat]).reshape(-1, width),
    )


def drawn(seed: int, rows: int, objects: int, classes: int, width: int = 3) -> Parts:
    gen = torch.Generator().manual_seed(seed)
    return Parts(
        torch.randint(0, rows, (objects,), generator=gen),
        torch.randint(1, classes + 1, (objects,), generator=gen),
        torch.rand(objects, generator=gen),
        torch.randn(objects, width, generator=gen),
    )


def by_loops(parts: Parts, rows: int) -> Tensor:
    one_way = torch.zeros(rows, rows, dtype=torch.float64)
    for i in range(rows):
        for j in range(rows):
            mine, theirs = (parts.row == i).nonzero()[:, 0].tolist(), (parts.row == j).nonzero()[:, 0].tolist()
            if not mine:
                one_way[i, j] = 2.0 if theirs else 0.0
                continue
            distances, weights = [], []
            for a in mine:
                alike = [
                    float(torch.cosine_similarity(parts.embedding[a].double(), parts.embedding[b].double(), dim=0))
                    for b in theirs
                    if parts.classes[b] == parts.classes[a]
                ]
                distances.append(1 - max(alike) if alike else 2.0)
                weights.append(float(parts.weight[a]))
            one_way[i, j] = sum(d * w for d, w in zip(distances, weights, strict=True)) / sum(weights)
    both = (one_way + one_way.T) / 2
    both.fill_diagonal_(0)
    return both


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(0, 14), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_as_a_loop_over_pairs_says(seed: int, rows: int, objects: int, classes: int) -> None:
    parts = drawn(seed, rows, objects, classes)
    apart = matching_distance(parts, rows)
    torch.testing.assert_close(apart.double(), by_loops(parts, rows), atol=2e-6, rtol=0)
    assert torch.equal(apart, apart.T) and (apart.diagonal() == 0).all()
    assert apart.min() >= 0 and apart.max() <= 2 + 1e-6


def test_in_blocks_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = drawn(3, 5, 40, 2)
    whole = matching_distance(parts, 5)
    monkeypatch.setitem(module.BLOCK, "cpu", 5)
    torch.testing.assert_close(matching_distance(parts, 5), whole)


@pytest.mark.parametrize("block", [50, 1 << 13])
def test_on_a_device_it_is_the_same(block: int, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.BLOCK, "gpu", block)
    parts = drawn(3, 40, 600, 3, 8)
    found = matching_distance(parts.to(device), 45)  # the last rows have no objects
    assert found.is_cuda and torch.equal(found, matching_distance(parts.to(device), 45))
    torch.testing.assert_close(found.cpu(), matching_distance(parts, 45), atol=1e-5, rtol=0)


def test_objects_of_equal_rank_are_not_identical() -> None:
    """The published code sets the similarity of the k-th objects of any two frames to that of an object with itself."""
    first, second = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]
    apart = matching_distance(parts_of([[(1, 0.9, first)], [(1, 0.9, second)], [(1, 0.4, first)]]), 3)
    assert apart[0, 1] == pytest.approx(1.0) and apart[0, 2] == pytest.approx(0.0)
    opposite = matching_distance(parts_of([[(1, 1.0, first)], [(1, 1.0, [-1.0, 0.0, 0.0])]]), 2)
    assert opposite[0, 1] == pytest.approx(2.0)


def test_other_classes_do_not_match_and_sure_objects_weigh_more() -> None:
    same = [1.0, 0.0, 0.0]
    assert matching_distance(parts_of([[(1, 1.0, same)], [(2, 1.0, same)]]), 2)[0, 1] == 2
    # one way .75 * 0 + .25 * 2 = .5, back 0
    apart = matching_distance(parts_of([[(1, 0.75, same), (2, 0.25, same)], [(1, 1.0, same)]]), 2)
    assert apart[0, 1] == pytest.approx(0.25)


def test_rows_without_objects() -> None:
    apart = matching_distance(parts_of([[(1, 1.0, [1.0, 0, 0])], [], []]), 3)
    assert apart.tolist() == [[0, 2, 2], [2, 0, 0], [2, 0, 0]]
    assert matching_distance(parts_of([]), 2).tolist() == [[0, 0], [0, 0]]


def test_length_of_features_does_not_matter_nor_the_order_of_objects() -> None:
    parts = drawn(1, 4, 12, 2)
    longer = replace(parts, embedding=parts.embedding * torch.rand(12, 1).add(0.5))
    torch.testing.assert_close(matching_distance(longer, 4), matching_distance(parts, 4))
    mixed = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    shuffled = Parts(parts.row[mixed], parts.classes[mixed], parts.weight[mixed], parts.embedding[mixed])
    torch.testing.assert_close(matching_distance(shuffled, 4), matching_distance(parts, 4))


# --- parts of offers


@given(st.integers(0, 10**6), st.lists(st.integers(0, 5), max_size=6, unique=True))
@settings(max_examples=30)
def test_parts_follow_their_rows(seed: int, rows: list[int]) -> None:
    parts = drawn(seed, 6, 10, 2)
    kept = parts.of_rows(torch.tensor(rows, dtype=torch.int64), 6)
    for new, old in enumerate(rows):
        assert torch.equal(kept.embedding[kept.row == new], parts.embedding[parts.row == old])
        assert torch.equal(kept.classes[kept.row == new], parts.classes[parts.row == old])
    assert len(kept.row) == sum(int((parts.row == r).sum()) for r in rows)
    mask = torch.zeros(6, dtype=torch.bool)
    mask[rows] = True
    by_mask, by_rows = parts.of_rows(mask, 6), parts.of_rows(torch.tensor(sorted(rows), dtype=torch.int64), 6)
    assert torch.equal(by_mask.row, by_rows.row) and torch.equal(by_mask.weight, by_rows.weight)


def frames(objects: list[list[tuple[int, float, list[float]]]], **columns: list[float]) -> Offers:
    """One whole frame a row, 1 s each."""
    n = len(objects)
    regions = Regions(torch.zeros(n, 2, dtype=torch.int64), torch.ones(n, 2, dtype=torch.int64))
    one = torch.ones(n)
    return Offers(
        image=torch.arange(n),
        group=torch.zeros(n, dtype=torch.int64),
        regions=regions,
        kind=torch.full((n,), KINDS.index("image"), dtype=torch.uint8),
        key=torch.arange(n),
        score=torch.tensor(columns.get("score", [1.0] * n)),
        class_score=torch.ones(n, 3),
        shares=torch.ones(n, 3) / 3,
        boundary=one,
        objects=torch.tensor([float(len(o)) for o in objects]),
        area=one,
        seconds=torch.tensor(columns.get("seconds", [1.0] * n)),
        image_seconds=0 * one,
        embedding=torch.zeros(n, 1),
        labelled=torch.zeros(n, dtype=torch.bool),
        parts=parts_of(objects),
    )


def test_concat_numbers_parts_through_and_drops_them_where_some_have_none() -> None:
    a, b = frames([[(1, 0.5, [1.0, 0, 0])], []]), frames([[], [(2, 0.25, [0.0, 1, 0])]])
    joined = concat([a, b]).parts
    assert joined is not None and joined.row.tolist() == [0, 3] and joined.classes.tolist() == [1, 2]
    assert concat([a, replace(b, parts=None)]).parts is None


def test_a_single_box_is_worth_its_score_and_a_window_its_pixels() -> None:
    offers = frames([[], []])
    offers = replace(
        offers,
        kind=torch.tensor([KINDS.index("box"), KINDS.index("crop")], dtype=torch.uint8),
        regions=Regions(torch.zeros(2, 2, dtype=torch.int64), torch.tensor([[3, 4], [3, 4]])),
    )
    assert offers.extent.tolist() == [1, 12] and offers.extent.dtype == torch.float64


# --- PPAL

EAST, NORTH, UP = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]
FIRST = Round(1, 1, 0)


def ppal(offers: Offers, seconds: float) -> list[int]:
    return acquire(offers, Budget(seconds), StrategyConfig(name="ppal"), FIRST, quota_classes=(1,)).rows.tolist()


def candidate_rows(offers: Offers, budget: Budget) -> list[int]:
    shard = shard_of(offers, budget, StrategyConfig(name="ppal"), FIRST, quota_classes=(1,))
    return candidates(InTurn([shard]), budget).taken.row.tolist()


def test_one_of_each_kind_of_frame_is_taken() -> None:
    kinds = [EAST, EAST, EAST, NORTH, UP, EAST, NORTH]
    offers = frames([[(1, 0.9, k)] for k in kinds], score=[9.0, 8, 7, 3, 2, 6, 1])
    chosen = ppal(offers, 3.0)
    assert sorted(kinds[r] for r in chosen) == sorted([EAST, NORTH, UP])
    assert ppal(offers, 3.0) == chosen


def test_candidates_are_the_best_that_four_budgets_buy() -> None:
    n = 40
    offers = frames([[(1, 0.9, [float(i), 1.0, 0.0])] for i in range(n)], score=[float(n - i) for i in range(n)])
    assert candidate_rows(offers, Budget(3.0)) == list(range(12))
    assert set(ppal(offers, 3.0)) <= set(range(12)) and len(ppal(offers, 3.0)) == 3
    dear = replace(offers, seconds=torch.full((n,), 2.9))
    assert len(candidate_rows(dear, Budget(3.0))) == 4


def crops(seed: int, images: int, each: int) -> Offers:
    """Windows of 4 x 4 anywhere in frames of 12 x 12: most of them overlap others."""
    n, gen = images * each, torch.Generator().manual_seed(seed)
    start = torch.randint(0, 9, (n, 2), generator=gen)
    offers = frames([[(1, 0.9, torch.randn(3, generator=gen).tolist())] for _ in range(n)])
    return replace(
        offers,
        image=torch.arange(n) // each,
        regions=Regions(start, start + 4),
        kind=torch.full((n,), KINDS.index("crop"), dtype=torch.uint8),
        score=torch.rand(n, generator=gen) / 16,
        seconds=1 + 2 * torch.rand(n, generator=gen),
        image_seconds=torch.full((n,), 2.0),
    )


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_candidates_are_of_different_ground_worth_four_budgets(seed: int) -> None:
    offers = crops(seed, 6, 40)
    value, budget = offers.score.double(), Budget(12.0, max_per_image=1)
    price = offers.seconds + offers.image_seconds
    rows = torch.tensor(candidate_rows(offers, budget))
    same = offers.image[:, None] == offers.image[None]
    clash = offers.regions.overlaps(offers.regions) & same
    clash.fill_diagonal_(False)
    assert not clash[rows][:, rows].any()
    seconds = float(offers.seconds[rows].sum()) + 2.0 * len(offers.image[rows].unique())  # an opening is paid once
    assert 44 < seconds <= 48
    assert int(torch.bincount(offers.image[rows]).max()) > 1  # the cap binds the choice, not the candidates
    for row in (value > value[rows].min()).nonzero()[:, 0].tolist():  # whoever is left out lies on better ground
        better = rows[value[rows] >= value[row]]
        assert row in rows.tolist() or clash[row, better].any() or seconds + float(price[row]) > 48


def test_neighbours_in_time_are_no_candidates_together() -> None:
    offers = replace(frames([[(1, 0.9, EAST)]] * 4, score=[4.0, 3, 2, 1]), extra={"time": torch.arange(4.0).double()})
    assert candidate_rows(offers, Budget(4.0, min_gap=2.0)) == [0, 2]


def test_money_that_no_candidate_can_use_is_spent_by_score() -> None:
    offers = frames([[(1, 0.9, EAST)]] * 9, seconds=[4.0] * 6 + [1.0] * 3, score=[9.0, 8, 7, 6, 5, 4, 1, 3, 2])
    assert candidate_rows(offers, Budget(6.0)) == [0, 1, 2, 3, 4, 5]
    rows = ppal(offers, 6.0)
    assert rows[0] < 6 and rows[1:] == [7, 8]


def test_medoids_are_the_middles_of_their_clusters() -> None:
    line = torch.tensor([0.0, 1.0, 2.0, 10.0, 11.0, 12.0])
    apart = (line[:, None] - line[None]).abs()
    assert sorted(medoids(apart, [0, 5])) == [1, 4]
    assert medoids(apart, [2]) in ([2], [3])


def test_distances_are_the_same_on_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(blocks.CELLS, "cpu", 1000)  # so that threads are given work
    parts, found = drawn(0, 211, 3001, 3, width=8), []
    for threads in (1, 3, 4):
        torch.set_num_threads(threads)
        try:
            found.append(matching_distance(parts, 211))
        finally:
            torch.set_num_threads(1)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_task_without_objects_is_told() -> None:
    with pytest.raises(ConfigError, match=r"strategy\.name ppal compares detected objects.*use hybrid"):
        ppal(replace(frames([[], []]), parts=None), 5.0)


def test_frames_in_which_nothing_is_found_do_no_harm() -> None:
    offers = frames([[], [], [(1, 0.5, EAST)], []])
    assert sorted(ppal(offers, 4.0)) == [0, 1, 2, 3] and len(ppal(offers, 2.0)) == 2


def test_candidates_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_of_ppal, "AT_MOST", 5)
    offers = frames([[(1, 0.9, EAST)]] * 20)
    assert len(candidate_rows(offers, Budget(9.0))) == 5
    assert len(ppal(offers, 9.0)) == 9
