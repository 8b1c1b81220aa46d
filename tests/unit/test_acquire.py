"""Each strategy against brute force or a case worked by hand. What all must do is in tests/conformance."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dal_dense.acquire import STRATEGIES, Basket, Budget, Round, Selection, acquire, acquire_shards
from dal_dense.acquire.distance import nearest
from dal_dense.acquire.rows_by_image import RowsByImage
from dal_dense.acquire.values import scheduled_beta
from dal_dense.config import StrategyConfig, StrategyName
from dal_dense.errors import BudgetError, ConfigError, DataError
from dal_dense.offers import KINDS, Offers, Parts
from dal_dense.regions import Regions

FIRST = Round(1, 1, 0)


def table(
    n: int,
    *,
    image: Sequence[int] | None = None,
    group: Sequence[int] | None = None,
    start: Sequence[int] | None = None,
    side: Sequence[int] | None = None,
    score: Sequence[float] | None = None,
    class_score: Sequence[Sequence[float]] | None = None,
    shares: Sequence[Sequence[float]] | None = None,
    seconds: Sequence[float] | None = None,
    opening: Sequence[float] | None = None,
    embedding: Sequence[Sequence[float]] | None = None,
    labelled: Sequence[int] = (),
) -> Offers:
    """Boxes in a row along one axis; by default one an image, 1 s each, score 1, key = row."""
    first = torch.tensor(start or [0] * n)[:, None] * torch.tensor([1, 0])
    size = torch.tensor(side or [1] * n)[:, None]
    one = torch.ones(n)
    by_class = torch.tensor(class_score or [[0.5, 0.5]] * n)
    return Offers(
        image=torch.tensor(image or range(n)),
        group=torch.tensor(group or [0] * n),
        regions=Regions(first, first + size),
        kind=torch.zeros(n, dtype=torch.uint8),
        key=torch.arange(n),
        score=torch.tensor(score or [1.0] * n, dtype=torch.float32),
        class_score=by_class,
        shares=torch.tensor(shares) if shares else torch.full_like(by_class, 1 / by_class.shape[1]),
        boundary=one,
        objects=one,
        area=one,
        seconds=torch.tensor(seconds or [1.0] * n, dtype=torch.float32),
        image_seconds=torch.tensor(opening or [0.0] * n, dtype=torch.float32),
        embedding=torch.tensor(embedding or [[0.0]] * n),
        labelled=torch.isin(torch.arange(n), torch.tensor(labelled, dtype=torch.int64)),
    )


def choose(
    name: str, offers: Offers, seconds: float, when: Round = FIRST, quota: Sequence[int] = (1,), **options: float
) -> Selection:
    return acquire(offers, Budget(seconds), StrategyConfig(name=name, **options), when, quota_classes=quota)


# --- basket ---------------------------------------------------------------------------------


def test_opening_is_charged_once_and_waived_for_the_rest() -> None:
    offers = table(3, image=[0, 0, 1], start=[0, 5, 0], seconds=[1, 2, 1], opening=[10, 10, 3], score=[3, 2, 1])
    selection = choose("greedy", offers, 17.0)
    assert selection.rows.tolist() == [0, 1, 2]
    assert selection.seconds.tolist() == [11, 2, 4]
    assert choose("greedy", offers, 16.9).rows.tolist() == [0, 1]


def test_budget_is_met_to_the_last_bit() -> None:
    """0.1 as float32 is above 0.1, but is counted in whole ticks, so that 0.3 buys three, as does their exact sum."""
    offers = table(3, seconds=[0.1, 0.1, 0.1])
    enough = 3 * math.floor(0.1 * 2**20) / 2**20
    assert choose("greedy", offers, 0.3).total == enough < 0.3
    assert len(choose("greedy", offers, enough)) == 3
    assert len(choose("greedy", offers, math.nextafter(enough, 0))) == 2


def test_what_is_reported_is_what_was_compared() -> None:
    """Opening and region are counted in ticks each; added in float32 this sum would be rounded up."""
    offers = table(1, seconds=[16.0], opening=[1.5 * 2.0**-20])
    exact = 16 + 2.0**-20
    with pytest.raises(BudgetError, match="buys nothing"):
        choose("greedy", offers, math.nextafter(exact, 0))
    assert choose("greedy", offers, exact).seconds.tolist() == [exact]


OPENING, NEXT = 10.1, 1 / 7
"""Added in float32 they are more than their exact sum."""


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"ppal"}))
def test_what_is_affordable_once_its_image_is_open_was_so_before(name: str) -> None:
    """A region that costs nothing opens the image; the money left is the price of the next one, to the last bit."""
    opening, seconds = torch.tensor([OPENING, NEXT]).double().tolist()
    offers = table(
        2,
        image=[0, 0],
        start=[0, 5],
        seconds=[0.0, NEXT],
        opening=[OPENING] * 2,
        embedding=[[9.0], [0.0]],
        score=[9, 1],
    )
    assert float(offers.seconds[1] + offers.image_seconds[1]) > opening + seconds
    budget = Budget(opening + seconds)
    basket = Basket(offers, budget)
    assert basket.affordable().tolist() == [True, True]
    basket.take(0, 1.0)
    assert basket.affordable().tolist() == [False, True]
    assert len(choose(name, offers, budget.seconds)) == 2


def test_the_best_single_region_is_sought_among_those_that_the_budget_buys() -> None:
    """10.1 as float32 is more than 10.1; whichever way it is counted, shards must not hide the next best."""
    offers = table(3, seconds=[10.1, 10.0, 0.5], score=[10, 9, 1], side=[2] * 3)
    for seconds in (10.1, math.nextafter(math.floor(10.1 * 2**20) / 2**20, 0)):
        one, two = (
            acquire_shards(parts, Budget(seconds), StrategyConfig(name="per_second"), FIRST, quota_classes=(1,))
            for parts in ([offers], [offers[:2], offers[2:]])
        )
        assert one.rows.tolist() == two.rows.tolist() and len(one) == 1 and one.rows[0] != 2


def test_rows_beside_labelled_ground_are_free_and_rows_on_it_are_not() -> None:
    offers = table(5, image=[0, 0, 0, 0, 1], start=[0, 3, 4, 8, 3], side=[4] * 5, labelled=[1])
    assert sorted(choose("greedy", offers, 9.0).rows.tolist()) == [3, 4]  # half-open: 3..7 leaves 8..12


def test_caps_count_chosen_rows_only() -> None:
    offers = table(6, image=[0, 0, 0, 1, 1, 2], group=[0, 0, 0, 0, 0, 1], start=[0, 1, 2, 0, 1, 0], labelled=[0])
    config = StrategyConfig(name="greedy")
    for budget, rows in [
        (Budget(9.0, 1), [1, 3, 5]),
        (Budget(9.0, 2, 3), [1, 2, 3, 5]),
        (Budget(9.0, None, 1), [1, 5]),
    ]:
        assert acquire(offers, budget, config, FIRST, quota_classes=()).rows.tolist() == rows


@pytest.mark.parametrize("seconds", [math.inf, math.nan])
def test_a_budget_is_a_number(seconds: float) -> None:
    """An infinite one would buy what may not be bought, for ever."""
    with pytest.raises(ConfigError, match="needs a finite number of seconds, and got"):
        Budget(seconds)


@pytest.mark.parametrize("caps", [{"max_per_image": 0}, {"max_per_group": -1}])
def test_a_cap_allows_something(caps: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(caps))}: a budget allows 1 region or more, and got"):
        Budget(9.0, **caps)


def test_columns_of_another_type_are_refused() -> None:
    """In half precision, distances are others without a word."""
    offers = replace(table(3), embedding=torch.ones(3, 4, dtype=torch.float16))
    with pytest.raises(DataError, match=r"Offers.embedding must be float32, and is torch.float16; convert it"):
        acquire(offers, Budget(9.0), StrategyConfig(name="coreset"), FIRST, quota_classes=())


def test_a_gap_needs_times() -> None:
    timed = replace(table(2), extra={"time": torch.zeros(2, dtype=torch.float64)})
    bare = replace(table(2), extra={})
    for shards in ([bare], [timed, bare], [bare, timed]):
        with pytest.raises(ConfigError, match="min_gap: these rows have no times"):
            acquire_shards(shards, Budget(9.0, min_gap=1.0), StrategyConfig(), FIRST, quota_classes=())


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_gap_holds_beside_a_shard_without_rows_and_times(name: StrategyName) -> None:
    offers = replace(
        table(8, image=[*range(8)], group=[0] * 8),
        embedding=torch.randn(8, 4, generator=torch.Generator().manual_seed(0)),
        extra={"time": torch.arange(8).double(), "random": torch.ones(8)},
    )
    offers = replace(offers, parts=Parts(torch.arange(8), torch.ones(8).long(), torch.ones(8), offers.embedding))
    none = replace(offers[torch.zeros(0, dtype=torch.int64)], extra={})
    budget, config = Budget(40.0, min_gap=3.0), StrategyConfig(name=name)
    alone = acquire_shards([offers], budget, config, Round(1, 2, 0), quota_classes=(1,))
    beside = acquire_shards([offers[:5], none, offers[5:]], budget, config, Round(1, 2, 0), quota_classes=(1,))
    assert alone.rows.tolist() == beside.rows.tolist() and 1 < len(alone) < 4


def test_basket_refuses_what_is_not_affordable() -> None:
    basket = Basket(table(2, seconds=[1, 5]), Budget(3.0))
    basket.take(0, 1.0)
    for row in (0, 1):
        with pytest.raises(ValueError, match="may not be taken"):
            basket.take(row, 1.0)


def test_copy_of_a_basket_is_independent() -> None:
    basket = Basket(table(4, image=[0, 0, 1, 1], start=[0, 1, 0, 1]), Budget(9.0, 1, 1))
    basket.copy().take(0, 1.0)
    assert basket.spent == 0 and basket.rows == [] and basket.affordable().all()
    basket.take(0, 1.0)
    assert basket.rows == [0]


def test_quota_class_that_is_none() -> None:
    with pytest.raises(ConfigError, match=r"quota classes must lie in 0\.\.1; got \[2\]"):
        choose("clasp", table(2), 5.0, quota=(1, 2))


def test_start_set_uses_its_own_strategy() -> None:
    offers = table(6, score=[6, 5, 4, 3, 2, 1], group=[0, 0, 0, 0, 0, 1])
    greedy = StrategyConfig(name="greedy", start="uniform")
    for number, groups in [(0, {0, 1}), (1, {0})]:
        chosen = acquire(offers, Budget(2.0), greedy, Round(number, 3, 0), quota_classes=()).rows
        assert set(offers.group[chosen].tolist()) == groups


def singles(offers: Offers, rows: Sequence[int]) -> Offers:
    kind = offers.kind.clone()
    kind[list(rows)] = KINDS.index("box")
    return replace(offers, kind=kind)


def test_single_boxes_clash_only_where_they_mean_one_object() -> None:
    # squares of side 4 along one line: shifted by 1 they share 12 of 20 pixels, by 2 they share 8 of 24
    offers = table(5, image=[0] * 5, start=[0, 1, 2, 3, 20], side=[4] * 5, score=[5, 4, 3, 2, 1])
    assert choose("greedy", offers, 9.0).rows.tolist() == [0, 4]
    assert choose("greedy", singles(offers, range(5)), 9.0).rows.tolist() == [0, 2, 4]


def test_two_boxes_that_share_exactly_half_mean_one_object() -> None:
    offers = table(2, image=[0, 0], start=[0, 1], side=[3, 3])  # 6 of 12 pixels
    assert len(choose("greedy", singles(offers, [0, 1]), 9.0)) == 1
    wider = table(2, image=[0, 0], start=[0, 2], side=[5, 5])  # 15 of 35
    assert len(choose("greedy", singles(wider, [0, 1]), 9.0)) == 2


def test_a_single_box_may_lie_on_a_window_by_less_than_half() -> None:
    # 0..4, 2..6 and 3..7 of one line, squares: row 1 lies on row 0 by half, row 2 by a quarter
    offers = table(3, image=[0] * 3, start=[0, 2, 3], side=[4] * 3, score=[3, 2, 1])
    assert choose("greedy", singles(offers, [1]), 9.0).rows.tolist() == [0]
    assert choose("greedy", singles(offers, [0]), 9.0).rows.tolist() == [0, 2]
    first = torch.tensor([True, False, False])
    for alone, left in (([], []), ([1, 2], [2]), ([0, 1, 2], [1])):  # row 2 means what row 1 means
        known = singles(replace(offers, labelled=first), alone)
        if left:
            assert choose("greedy", known, 9.0).rows.tolist() == left, alone
        else:
            with pytest.raises(BudgetError):
                choose("greedy", known, 9.0)


def test_it_is_half_of_the_single_box_whichever_was_there_first() -> None:
    """A window of 2 x 2 that lies wholly on a box of 9 x 9 is no ground that holds the box."""
    offers = table(2, image=[0, 0], start=[0, 3], side=[9, 2])
    for scores in ([2.0, 1.0], [1.0, 2.0]):
        made = replace(singles(offers, [0]), score=torch.tensor(scores))
        assert sorted(choose("greedy", made, 9.0).rows.tolist()) == [0, 1]
        other = replace(singles(offers, [1]), score=torch.tensor(scores))
        assert len(choose("greedy", other, 9.0)) == 1


def test_frames_that_follow_each_other_are_not_asked_in_one_round() -> None:
    n = math.nan
    offers = table(8, image=[0, 1, 2, 3, 4, 5, 6, 0], group=[0, 0, 0, 0, 1, 0, 0, 0], start=[0] * 7 + [5])
    offers = replace(
        offers,
        score=torch.arange(8, 0, -1).float(),
        extra={"time": torch.tensor([10.0, 11.9, 12.0, 8.5, 10.1, n, n, 10.0], dtype=torch.float64)},
    )
    config = StrategyConfig(name="greedy")

    def rows(gap: float | None, these: Offers = offers) -> list[int]:
        return acquire(these, Budget(9.0, min_gap=gap), config, FIRST, quota_classes=()).rows.tolist()

    assert rows(None) == list(range(8))
    # 1 and 3 are too near to 0, 2 is exactly far enough; another group, unknown times and the frame itself are free
    assert rows(2.0) == [0, 2, 4, 5, 6, 7]
    assert rows(2.0, replace(offers, labelled=torch.arange(8) == 0)) == [
        2,
        4,
        5,
        6,
        7,
    ]  # labelled earlier: as if it were taken


def test_a_tried_plan_leaves_times_alone() -> None:
    offers = replace(table(2), extra={"time": torch.tensor([0.0, 1.0], dtype=torch.float64)})
    basket = Basket(offers, Budget(9.0, min_gap=5.0))
    basket.copy().take(0, 1.0)
    assert basket.affordable().all()
    basket.take(0, 1.0)
    assert not basket.affordable().any()


def test_box_count_takes_the_most_objects_and_ignores_score() -> None:
    offers = replace(table(4, score=[9.0, 1, 1, 1], seconds=[1.0, 3, 1, 1]), objects=torch.tensor([0.5, 9, 3, 4]))
    assert choose("box_count", offers, 5.0).rows.tolist() == [1, 3, 2]
    assert choose("box_count", offers, 2.0).rows.tolist() == [3, 2]
    assert choose("box_count", offers, 5.0).value.tolist() == [9, 4, 3]


# --- random, power --------------------------------------------------------------------------


def won(name: str, offers: Offers, quota: Sequence[int] = (1,), **options: float) -> Tensor:
    """How often each row wins of 400 draws: 20 seeds, 20 images. One that is chosen bars the others of its image."""
    rows = torch.arange(len(offers)).repeat(20)
    image = torch.arange(20).repeat_interleave(len(offers))
    many = replace(offers[rows], image=image, key=torch.arange(len(rows)) * 7919)
    taken = [choose(name, many, 99.0, Round(1, 2, s), quota, **options).rows.sort().values for s in range(20)]
    assert all(torch.equal(many.image[t], torch.arange(20)) for t in taken)
    assert len({tuple(t.tolist()) for t in taken}) == 20  # no seed draws what another does
    return rows[torch.cat(taken)].bincount(minlength=len(offers))


def test_random_is_fair_and_changes_with_round_and_seed() -> None:
    assert all(abs(n - 80) < 37 for n in won("random", table(5)).tolist())  # 4.6 standard deviations
    offers = replace(table(5), key=torch.arange(5) * 7919)
    orders = {tuple(choose("random", offers, 9.0, Round(n, 9, 0)).rows.tolist()) for n in range(1, 9)}
    assert len(orders) > 4


@given(st.integers(0, 500), st.floats(0, 0.999))
@settings(max_examples=6, deadline=None)
def test_more_budget_buys_the_same_and_more_when_all_cost_the_same(seed: int, left: float) -> None:
    offers = table(12)
    for name in ("random", "power", "greedy", "coreset", "uniform"):
        bought = {n: choose(name, offers, n + left, Round(1, 1, seed)).rows.tolist() for n in (1, 2, 5, 11, 13)}
        assert all(rows == bought[13][:n] for n, rows in bought.items()) and len(bought[13]) == 12


def test_power_draws_in_proportion_to_score_to_beta() -> None:
    offers = table(3, score=[1.0, 2.0, 4.0])
    for beta in (1.0, 2.0):
        first = won("power", offers, beta=beta)
        weight = [1.0, 2.0**beta, 4.0**beta]
        for row in range(3):
            p = weight[row] / sum(weight)
            assert abs(first[row] / 400 - p) < 4 * math.sqrt(p * (1 - p) / 400)
    first = won("power", table(9, score=[8.0] + 8 * [1.0]))  # with the noise taken off instead of added, 0.72
    assert abs(first[0] / 400 - 0.5) < 0.1


# --- uniform --------------------------------------------------------------------------------


def test_uniform_spreads_over_groups_then_time_then_space() -> None:
    # two drives of 9 frames, 3 boxes a frame
    image = [i for i in range(18) for _ in range(3)]
    offers = table(54, image=image, group=[i // 9 for i in image], start=[0, 10, 20] * 18)
    for seed in range(5):
        rows = choose("uniform", offers, 54.0, Round(1, 1, seed)).rows.tolist()
        groups = [image[r] // 9 for r in rows]
        assert all(abs(groups[:k].count(0) - groups[:k].count(1)) <= 1 for k in range(55))
        frames = [[image[r] % 9 for r in rows if image[r] // 9 == g] for g in (0, 1)]
        for seen in frames:
            assert sorted(seen[:9]) == list(range(9))  # every frame once before any frame twice
            # farthest first by brute force, wherever the first one fell
            for k in range(1, 9):
                gap = {f: min(abs(f - s) for s in seen[:k]) for f in set(range(9)) - set(seen[:k])}
                assert gap[seen[k]] == max(gap.values())
        second = {image[r]: r % 3 for r in rows[:18]}
        for r in rows[18:36]:  # the second box of a frame lies as far from the first as it can
            assert abs(r % 3 - second[image[r]]) == max(second[image[r]], 2 - second[image[r]])


def test_uniform_counts_labelled_ground_as_asked() -> None:
    offers = table(6, group=[0, 0, 0, 0, 0, 1], labelled=[0])
    rows = choose("uniform", offers, 2.0).rows.tolist()
    assert rows == [5, 4]  # first the group without labels, then the frame farthest from frame 0


def test_uniform_looks_up_rows_as_often_however_many_are_labelled() -> None:
    found = []
    for every in (40, 2):
        offers = table(400, group=[i // 100 for i in range(400)], labelled=range(0, 400, every))
        with mock.patch.object(RowsByImage, "rows_of", autospec=True, side_effect=RowsByImage.rows_of) as rows_of:
            assert len(choose("uniform", offers, 3.0)) == 3
        found.append(rows_of.call_count)
    assert found[0] == found[1]


# --- foreground_random, clasp ---------------------------------------------------------------


def test_foreground_random_draws_by_predicted_volume() -> None:
    offers = table(4, shares=[[1, 0], [0.5, 0.5], [0.0, 1.0], [0.5, 0.5]], side=[1, 1, 1, 2])
    first = won("foreground_random", offers)  # the share of foreground, 0.66 of 99 s, buys of every image
    assert first[0] == 0
    for row, p in [(1, 0.5 / 3.5), (2, 1 / 3.5), (3, 2 / 3.5)]:
        assert abs(first[row] / 400 - p) < 4 * math.sqrt(p * (1 - p) / 400)


def test_foreground_random_balances_classes_and_leaves_a_third_to_chance() -> None:
    shares = [[0.0, 1.0, 0.0]] * 50 + [[0.0, 0.0, 1.0]] * 950 + [[1.0, 0.0, 0.0]] * 9000
    offers = table(10000, shares=shares, class_score=shares)
    rows = torch.stack([choose("foreground_random", offers, 90.0, Round(1, 1, s), (1, 2)).rows for s in range(6)])
    rare, common, none = ((rows < 50).sum(), ((rows >= 50) & (rows < 1000)).sum(), (rows >= 1000).sum())
    assert 0.25 < none / rows.numel() < 0.35  # a third of the draws, a tenth of which meet foreground by chance
    assert 0.6 < rare / common < 1.4


def test_foreground_random_leaves_boxes_that_a_score_sought_out() -> None:
    offers = table(40, shares=[[0.5, 0.5]] * 40)
    blind = (torch.arange(40) % 2).float()
    picked = choose("foreground_random", replace(offers, extra={"random": blind}), 12.0).rows
    assert len(picked) == 12 and (blind[picked] == 1).all()


def test_clasp_splits_seconds_equally_and_passes_on_what_a_class_cannot_use() -> None:
    # classes: background, one with two cheap regions, one with dear ones, one with none at all
    class_score = [[0.0, 1.0, 0.0, 0.0]] * 2 + [[0.0, 0.0, 1.0, 0.0]] * 20 + [[1.0, 0.0, 0.0, 0.0]] * 20
    offers = table(42, class_score=class_score, seconds=[1.0] * 2 + [2.0] * 20 + [1.0] * 20, score=[1] * 22 + [9] * 20)
    rows = choose("clasp", offers, 20.0, quota=(1, 2, 3), class_share=0.6, beta=1e6, beta_end=1e6).rows.tolist()
    assert sum(r < 2 for r in rows) == 2  # both of the scarce class
    assert sum(2 <= r < 22 for r in rows) == 5  # 12 s of quota: 2 s, the other 10 s passed on
    assert sum(r >= 22 for r in rows) == 8 and all(r >= 22 for r in rows[-8:])  # then by score


def test_clasp_serves_classes_by_seconds_not_by_count() -> None:
    class_score = [[0.0, 1.0, 0.0]] * 40 + [[0.0, 0.0, 1.0]] * 40
    offers = table(80, class_score=class_score, seconds=[1.0] * 40 + [3.0] * 40)
    chosen = choose("clasp", offers, 24.0, quota=(1, 2), class_share=1.0)
    spent = [float(chosen.seconds[(chosen.rows < 40) == cheap].sum()) for cheap in (True, False)]
    assert abs(spent[0] - spent[1]) <= 3


def test_beta_schedule_of_the_paper() -> None:
    """nnActive's class_power_pe66_exp: 1, 3.2, 10, 31.6, 100 over five loops."""
    options = StrategyConfig(name="clasp", beta=1.0, beta_end=100.0)
    betas = [scheduled_beta(options, Round(n, 5, 0)) for n in range(1, 6)]
    assert betas == pytest.approx([1, 10**0.5, 10, 10**1.5, 100])
    assert scheduled_beta(options, Round(1, 1, 0)) == 1 and scheduled_beta(options, Round(9, 5, 0)) == 100


# --- coreset --------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(3, 9), st.integers(1, 4), st.booleans())
@settings(max_examples=40, deadline=None)
def test_coreset_covers_within_twice_the_best_radius(seed: int, n: int, k: int, labelled: bool) -> None:
    points = torch.rand(n, 3, generator=torch.Generator().manual_seed(seed))
    k = min(k, n - labelled)
    fixed = [0] if labelled else []
    offers = table(n, embedding=points.tolist(), labelled=fixed)
    centres = fixed + choose("coreset", offers, float(k)).rows.tolist()
    assert len(centres) == k + len(fixed)
    apart = (points[:, None] - points[None]).norm(dim=-1)
    best = min(float(apart[[*fixed, *c]].amin(0).max()) for c in itertools.combinations(range(n), k))
    assert float(apart[centres].amin(0).max()) <= 2 * best + 1e-5


def test_coreset_walks_away_from_labels() -> None:
    offers = table(5, embedding=[[0.0], [1.0], [4.0], [9.0], [9.5]], labelled=[0])
    chosen = choose("coreset", offers, 3.0)
    assert chosen.rows.tolist() == [4, 2, 1]
    assert chosen.value.tolist() == [9.5, 4.0, 1.0]
    unlabelled = table(5, embedding=[[0.0], [1.0], [4.0], [9.0], [9.5]])
    assert choose("coreset", unlabelled, 2.0).rows.tolist() == [4, 0]  # mean 4.7: 9.5 is farther than 0


def test_nearest_is_exact_between_close_points_and_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.rand(50, 8) + 1000
    assert nearest(rows, rows[7:8])[7] == 0
    whole = nearest(rows, rows[:9])
    assert torch.equal(whole[:9], torch.zeros(9))
    monkeypatch.setattr("dal_dense.acquire.distance._PAIRS", 30)
    assert torch.equal(nearest(rows, rows[:9]), whole)
    assert nearest(rows, rows[:0]).isinf().all()


# --- per_second -----------------------------------------------------------------------------


def best_possible(offers: Offers, budget: float) -> float:
    """The most summed score that any affordable, disjoint set of rows has."""
    value = (offers.score * offers.regions.volume()).tolist()
    same = offers.image[:, None] == offers.image[None]
    clash = offers.regions.overlaps(offers.regions) & same
    best = 0.0
    for k in range(1, len(offers) + 1):
        for rows in itertools.combinations(range(len(offers)), k):
            if any(bool(clash[a, b]) for a, b in itertools.combinations(rows, 2)):
                continue
            opened = {int(offers.image[r]): float(offers.image_seconds[r]) for r in rows}
            if sum(float(offers.seconds[r]) for r in rows) + sum(opened.values()) <= budget:
                best = max(best, sum(value[r] for r in rows))
    return best


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20)), min_size=1, max_size=9), st.integers(20, 60))
@settings(max_examples=60, deadline=None)
def test_per_second_is_worth_half_the_optimum(items: list[tuple[int, int]], budget: int) -> None:
    offers = table(len(items), score=[float(v) for v, _ in items], seconds=[float(s) for _, s in items])
    chosen = choose("per_second", offers, float(budget))
    assert float(offers.score[chosen.rows].sum()) >= best_possible(offers, float(budget)) / 2


def test_per_second_takes_the_single_region_that_the_ratio_rule_misses() -> None:
    offers = table(2, score=[2.0, 50.0], seconds=[1.0, 60.0])  # 2 a second against 0.83, and room for one
    assert choose("per_second", offers, 60.0).rows.tolist() == [1]
    assert choose("per_second", offers, 61.0).rows.tolist() == [0, 1]


def test_per_second_weighs_volume_and_the_marginal_opening() -> None:
    offers = table(2, score=[1.0, 0.9], side=[1, 3], seconds=[1.0, 4.0])  # 1 a second against 8.1 / 4
    assert choose("per_second", offers, 4.0).rows.tolist() == [1]
    assert choose("greedy", offers, 4.0).rows.tolist() == [0]
    # once image 0 is open its second region beats a better one in an image still to be opened
    offers = table(3, image=[0, 0, 1], start=[0, 5, 0], score=[9.0, 2.0, 4.0], opening=[2.0, 2.0, 2.0])
    assert choose("per_second", offers, 4.0).rows.tolist() == [0, 1]


# --- hybrid ---------------------------------------------------------------------------------

QUIET = {"beta": 1e9, "beta_end": 1e9}


def test_hybrid_without_its_extras_is_value_per_second() -> None:
    gen = torch.Generator().manual_seed(0)
    offers = table(
        30,
        score=torch.rand(30, generator=gen).tolist(),
        side=torch.randint(1, 5, (30,), generator=gen).tolist(),
        seconds=(torch.rand(30, generator=gen) * 9 + 1).tolist(),
        opening=(torch.rand(10, generator=gen) * 9).repeat_interleave(3).tolist(),
        image=[i // 3 for i in range(30)],
        start=[0, 10, 20] * 10,
    )
    hybrid = choose("hybrid", offers, 60.0, class_share=0, diversity=0, **QUIET)
    assert hybrid.rows.tolist() == choose("per_second", offers, 60.0).rows.tolist()


def test_hybrid_balance_prefers_the_class_with_least_labelled_ground() -> None:
    shares = [[0.0, 1.0, 0.0]] * 3 + [[0.0, 0.0, 1.0]] * 3
    for labelled, other in [(0, 3), (3, 0)]:
        offers = table(6, shares=shares, class_score=shares, labelled=[labelled])
        rows = choose("hybrid", offers, 2.0, quota=(1, 2), balance=1.0, diversity=0, **QUIET).rows
        assert int(rows[0]) // 3 == other // 3
        assert int(rows[1]) // 3 != int(rows[0]) // 3 or labelled == 3  # then level: ties go by key
    chosen = choose("hybrid", table(6, shares=shares, class_score=shares), 6.0, quota=(1, 2), diversity=0, **QUIET)
    first = [int(r) // 3 for r in chosen.rows[:4]]
    assert sorted(first) == [0, 0, 1, 1]  # with nothing labelled, by turns


def test_hybrid_shuns_copies_and_does_not_chase_outliers() -> None:
    points = [[0.0], [0.0], [1.0], [1.1], [2.0], [50.0]]
    offers = table(6, embedding=points, score=[1.0, 1.0, 1.0, 1.0, 1.01, 1.0], labelled=[0])
    rows = choose("hybrid", offers, 5.0, quota=(), **QUIET).rows.tolist()
    assert rows[0] == 4  # the better score, though row 5 is 25 times as far
    assert rows[-1] == 1  # the copy of labelled ground comes last
    offers = table(4, embedding=[[0.0], [0.0], [3.0], [6.0]], score=[1.0, 1.0, 0.9, 0.9])
    rows = choose("hybrid", offers, 4.0, quota=(), **QUIET).rows.tolist()
    assert {rows[0], rows[-1]} == {0, 1}  # and so does the copy of a chosen one


def test_hybrid_cost_power_zero_ignores_cost() -> None:
    offers = table(2, score=[1.0, 0.9], seconds=[5.0, 1.0])
    assert int(choose("hybrid", offers, 5.0, quota=(), **QUIET).rows[0]) == 1
    assert int(choose("hybrid", offers, 5.0, quota=(), cost_power=0, **QUIET).rows[0]) == 0


def test_hybrid_does_what_it_combines() -> None:
    """On a pool with a rare class, near-copies and uneven cost it beats greedy on each, for the same seconds."""
    better = Counter[str]()
    seeds = range(5)
    for seed in seeds:
        gen = torch.Generator().manual_seed(seed)
        n, clusters = 300, 30
        cluster = torch.arange(n) % clusters
        rare = cluster % 10 == 0
        middle = torch.randn(clusters, 8, generator=gen) * 3
        score = (1.0 - 0.5 * rare + 0.3 * (cluster < 5)) * (0.8 + 0.2 * torch.rand(n, generator=gen))
        shares = torch.stack([torch.full((n,), 0.2), 0.8 * ~rare, 0.8 * rare], 1)
        offers = table(
            n,
            score=score.tolist(),
            class_score=(shares * score[:, None]).tolist(),
            shares=shares.tolist(),
            seconds=(5 + 20 * torch.rand(n, generator=gen)).tolist(),
            embedding=(middle[cluster] + torch.randn(n, 8, generator=gen) * 0.3).tolist(),
        )
        hybrid, greedy = (choose(s, offers, 300.0, Round(2, 4, seed), (1, 2)).rows for s in ("hybrid", "greedy"))
        better["clusters"] += len(cluster[hybrid].unique()) > len(cluster[greedy].unique())
        better["rare"] += int(rare[hybrid].sum()) > int(rare[greedy].sum())
        better["score"] += float(score[hybrid].sum()) > float(score[greedy].sum())
    assert better == {"clusters": len(seeds), "rare": len(seeds), "score": len(seeds)}
