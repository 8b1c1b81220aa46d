"""Rules that look at few rows choose what the plain rule chooses, which looks at every row for every pick."""

import math
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dal_dense import noise
from dal_dense.acquire import (
    STRATEGIES,
    Basket,
    Budget,
    Ranking,
    Round,
    Selection,
    Whole,
    acquire,
    acquire_shards,
    choose,
    shard_of,
)
from dal_dense.acquire.base import Aim
from dal_dense.acquire.hybrid import Hybrid
from dal_dense.acquire.hybrid_scales import Scales
from dal_dense.acquire.hybrid_shard import HybridShard
from dal_dense.acquire.matching import matching_distance
from dal_dense.acquire.shards import BasketShard, LocalShard, Stock
from dal_dense.acquire.shortlist import Candidates, InTurn, Picks
from dal_dense.acquire.spend import purchases
from dal_dense.acquire.survey import sample_draw, surveyed
from dal_dense.acquire.turns import TurnShard
from dal_dense.acquire.values import summed_score
from dal_dense.config import StrategyConfig, StrategyName
from dal_dense.errors import BudgetError, PoolExhausted
from dal_dense.noise import derive_seed
from dal_dense.offers import Offers, concat
from dal_dense.regions import Regions
from tests.conformance.test_strategies import Case, cases, clashes, random_offers

RANKINGS = {name: rule for name, rule in STRATEGIES.items() if isinstance(rule, Ranking)}
QUOTA = (1, 2)
CPU = torch.device("cpu")


@contextmanager
def few_at_once(count: int, part: int) -> Iterator[None]:
    """Shortlists of `count` rows from columns read `part` rows at a time, so that small pools need many."""
    with (
        mock.patch("dal_dense.acquire.shortlist.COUNT", count),
        mock.patch("dal_dense.acquire.shortlist.LEAST", 1),
        mock.patch("dal_dense.acquire.turns.COUNT", count),
        mock.patch("dal_dense.acquire.turns.LEAST", 1),
        mock.patch("dal_dense.acquire.shards.PART", part),
        mock.patch("dal_dense.acquire.ranking.PART", part),
        mock.patch("dal_dense.acquire.hybrid.SAMPLE", 4 * part),
        mock.patch("dal_dense.acquire.coreset.SAMPLE", 4 * part),
        mock.patch("dal_dense.acquire.ppal.AT_MOST", 4 * part),
        mock.patch("dal_dense.acquire.uniform.PART", part),
        mock.patch("dal_dense.select.seeding.GROUP", {"cpu": count, "gpu": count}),
        mock.patch("dal_dense.select.seeding.BLOCK", part),
        mock.patch.dict(
            STRATEGIES, {n: replace(s, most=4 * part) for n, s in STRATEGIES.items() if isinstance(s, Whole)}
        ),
    ):
        yield


def plain_hybrid(offers: Offers, budget: Budget, when: Round, options: StrategyConfig, sample: int) -> Basket:
    """The formula at the head of hybrid.py, for every row and every pick; means and median of so many rows."""
    basket = Basket(offers, budget)
    seed, quota = derive_seed(when.seed, when.number, "hybrid"), [*QUOTA]
    beta = options.beta * (options.beta_end / options.beta) ** when.progress
    draw = torch.where(offers.labelled, torch.inf, noise.uniform(offers.key, seed, "sample"))
    stand = (draw.argsort().argsort() < sample) & ~offers.labelled
    amount = offers.extent if offers.parts is None else offers.objects.double()
    mass = offers.shares.double()[:, quota] * amount[:, None]
    ground = [*offers.labelled.nonzero()[:, 0].tolist()]
    score, by_class = offers.score.double(), offers.class_score.double()[:, quota]
    while True:
        share = mass[ground].sum(0)
        share = share + 0.01 * share.sum().clamp_min(1e-30)
        wanted = by_class @ (share.mean() / share) ** options.balance
        relative = [v / m if (m := v[stand].mean()) > 0 else 0 * v for v in (score, wanted)]
        value = (1 - options.class_share) * relative[0] + options.class_share * relative[1]
        utility = noise.gumbel(offers.key, seed, "hybrid") / beta + value.clamp_min(1e-30).log()
        utility += offers.extent.log() - options.cost_power * basket.price.clamp_min(1e-30).log()
        if ground and offers.embedding.shape[1]:
            apart = offers.embedding.double()[:, None] - offers.embedding[ground].double()
            far = apart.square().sum(2).amin(1).sqrt()
            middle = far[stand].median().clamp_min(1e-30)
            utility += options.diversity * (far / middle).clamp(0.05, 1).log()
        row = basket.best(utility)
        if row is None:
            return basket
        basket.take(row, utility[row])
        ground.append(row)


def plain_uniform(offers: Offers, budget: Budget, when: Round) -> Basket:
    """The criteria one after the other, from all that is asked, for every row and every pick."""
    basket = Basket(offers, budget)
    draw = noise.uniform(offers.key, derive_seed(when.seed, when.number, "uniform"), "order").tolist()
    image, group = offers.image.tolist(), offers.group.tolist()
    start, stop = offers.regions.start.tolist(), offers.regions.stop.tolist()
    asked = offers.labelled.nonzero()[:, 0].tolist()

    def apart(row: int, other: int) -> float:
        boxes = zip(start[row], stop[row], start[other], stop[other], strict=True)
        return math.sqrt(sum((((a + b) / 2 - (c + d) / 2) / (d - c)) ** 2 for a, b, c, d in boxes))

    def crowd(row: int) -> tuple[float, ...]:
        mates = [other for other in asked if group[other] == group[row]]
        inside = [other for other in mates if image[other] == image[row]]
        steps = min((abs(image[row] - image[other]) for other in mates), default=math.inf)
        near = min((apart(row, other) for other in inside), default=math.inf)
        return len(mates), len(inside), -steps, -near, -draw[row]

    while rows := basket.affordable().nonzero()[:, 0].tolist():
        row = min(rows, key=crowd)
        basket.take(row, draw[row])
        asked.append(row)
    return basket


def plain_coreset(offers: Offers, budget: Budget, when: Round, sample: int) -> Basket:
    """The farthest of all rows by all distances in float64; at first from the mean of the sample."""
    basket, x = Basket(offers, budget), offers.embedding.double()
    draw = noise.uniform(offers.key, derive_seed(when.seed, when.number, "hybrid"), "sample")
    centres = [*x[offers.labelled]]
    if not centres:
        first = torch.where(offers.labelled, torch.inf, draw).argsort()[:sample].sort().values
        mean = x[first].mean(0).float().double()
        far = (x - mean).square().sum(1)
        row = basket.best(far)
        if row is None:
            return basket
        basket.take(row, far[row].sqrt())
        centres = [x[row]]
    while True:
        far = (x[:, None] - torch.stack(centres)).square().sum(2).amin(1)
        row = basket.best(far)
        if row is None:
            return basket
        basket.take(row, far[row].sqrt())
        centres.append(x[row])


def fixed(x: torch.Tensor) -> torch.Tensor:
    """Rows rounded to multiples of their last bit, so that inner products are exact in float64."""
    bits, rows = (53 - math.ceil(math.log2(x.shape[1]))) // 2, []
    for row in x.tolist():
        last = math.ldexp(1, math.frexp(max(map(abs, row)))[1] - bits)
        rows.append([round(value / last) * last for value in row])
    return torch.tensor(rows, dtype=torch.float64)


def plain_badge(offers: Offers, budget: Budget, when: Round) -> Basket:
    """The race on gradients that are written out, in float64: who has risen to its variate first, of all rows."""
    basket = Basket(offers, budget)
    gradient = torch.einsum("nc,ne->nce", fixed(offers.class_score), fixed(offers.embedding)).flatten(1)
    goal = -noise.uniform(offers.key, derive_seed(when.seed, when.number, "badge"), "race").log()
    allowed, risen, rate = basket.affordable(), torch.zeros_like(goal), goal
    value, wait = gradient.square().sum(1), -gradient.square().sum(1)
    while allowed.any():
        row = int(torch.where(allowed, wait, torch.inf).argmin())
        if basket.rows:
            risen = risen + rate * wait[row]
        basket.take(row, value[row])
        value = (gradient - gradient[basket.rows][:, None]).square().sum(2).amin(0)
        rate = value.clamp_min(1e-30)
        wait = (goal - risen) / rate
        allowed &= basket.affordable()
    return basket


def plain_quotas(offers: Offers, budget: Budget, when: Round, options: StrategyConfig) -> Basket:
    """clasp and foreground_random: whose turn it is, and the best of all rows for it, pick by pick."""
    name, basket = options.name, Basket(offers, budget)
    seed, share = derive_seed(when.seed, when.number, name), options.class_share if name == "clasp" else 0.66
    beta = options.beta * (options.beta_end / options.beta) ** when.progress if name == "clasp" else 1.0
    blind = torch.ones_like(offers.labelled) if name == "clasp" else offers.extra["random"] > 0
    amount = offers.objects if offers.parts is not None else offers.extent
    score = offers.class_score if name == "clasp" else offers.shares * amount[:, None]
    value = [
        s.double().clamp_min(1e-30).log() + noise.gumbel(offers.key, seed, f"class {c}") / beta
        for c, s in enumerate(score.unbind(1))
    ]
    left, seconds = list(QUOTA), {c: [0.0] for c in QUOTA}
    while left and basket.spent < share * budget.seconds:
        if name == "clasp":
            c = min(left, key=lambda c: (sum(seconds[c]), derive_seed(seed, "class", c)))
        else:
            c = left[derive_seed(seed, "class", len(basket.rows), len(left)) % len(left)]
        row = basket.best(value[c], among=blind & (score[:, c] > 0))
        if row is None:
            left.remove(c)
        else:
            seconds[c].append(basket.take(row, value[c][row]))
    rest = offers.score.double().clamp_min(1e-30).log() + noise.gumbel(offers.key, seed, "all") / beta
    rest = rest if name == "clasp" else blind + noise.uniform(offers.key, seed, "order")
    while (row := basket.best(rest)) is not None:
        basket.take(row, rest[row])
    return basket


def plain_ppal(offers: Offers, budget: Budget, most: int) -> Basket:
    """Candidates for four budgets, k-centre greedy, k-medoids, k-centre greedy, by score; all rows in one place."""
    value = summed_score(offers)
    large = Basket(offers, replace(budget, seconds=4 * budget.seconds, max_per_image=None, max_per_group=None))
    among = Basket(offers, budget).affordable()
    while (row := large.best(value, among)) is not None and len(large.rows) < most:
        large.take(row, value[row])
    rows = sorted(large.rows, key=lambda r: (-float(value[r]), int(offers.key[r])))
    parts = offers[torch.tensor(rows, dtype=torch.int64)].parts
    assert parts is not None
    apart = matching_distance(parts, len(rows)).tolist()
    number = {row: i for i, row in enumerate(rows)}

    def spread(basket: Basket) -> Basket:
        while free := [i for i, row in enumerate(rows) if basket.affordable()[row]]:
            taken = [number[row] for row in basket.rows]
            best = max(free, key=lambda i: min(apart[j][i] for j in taken)) if taken else free[0]
            basket.take(rows[best], value[rows[best]])
        return basket

    centres, before = [number[row] for row in spread(Basket(offers, budget)).rows], None
    while centres != before:
        before, clusters = centres, {c: [] for c in range(len(centres))}
        for i in range(len(rows)):
            clusters[min(clusters, key=lambda c: apart[before[c]][i])].append(i)
        centres = [
            min(m, key=lambda i: math.fsum(apart[i][j] for j in m)) if m else before[c] for c, m in clusters.items()
        ]
    basket = Basket(offers, budget)
    for row in [rows[c] for c in centres]:
        if basket.affordable()[row]:
            basket.take(row, value[row])
    spread(basket)
    while (row := basket.best(value)) is not None:
        basket.take(row, value[row])
    return basket


def plain_whole(
    rule: Whole, offers: Offers, budget: Budget, when: Round, options: StrategyConfig, sample: int
) -> tuple[list[int], list[float], list[float]]:
    """The strategy over what is labelled and so many other rows, first of those that may be bought; then the draw."""
    draw = noise.uniform(offers.key, derive_seed(when.seed, when.number, "hybrid"), "sample")
    draw = torch.where(offers.labelled, -1, draw + (Basket(offers, budget).price > budget.seconds))
    few = offers[draw.argsort().argsort() < sample + offers.labelled.sum()]
    first, basket = Basket(few, budget), Basket(offers, budget)
    rule.strategy(first, Aim(budget, options, when, QUOTA, CPU))
    for row, value in zip(first.rows, first.values, strict=True):
        basket.take(int((offers.key == few.key[row]).nonzero()), value)
    while len(few) < len(offers) and (row := basket.best(-draw)) is not None:
        basket.take(row, -draw[row])
    return as_reported(offers, basket)


def plain(
    options: StrategyConfig, offers: Offers, budget: Budget, when: Round, sample: int = 1 << 20
) -> tuple[list[int], list[float], list[float]]:
    """The rule as it is written: all rows are looked at for each pick. Keys, seconds and values."""
    offers, name = offers[offers.key.argsort()], options.name
    if name == "hybrid":
        basket = plain_hybrid(offers, budget, when, options, sample)
        return offers.key[basket.rows].tolist(), basket.seconds, basket.values
    if name == "uniform":
        return as_reported(offers, plain_uniform(offers, budget, when))
    if name == "coreset":
        return as_reported(offers, plain_coreset(offers, budget, when, sample))
    if name == "ppal":
        return as_reported(offers, plain_ppal(offers, budget, sample))
    if name == "badge":
        return as_reported(offers, plain_badge(offers, budget, when))
    if name in ("clasp", "foreground_random"):
        return as_reported(offers, plain_quotas(offers, budget, when, options))
    rule = STRATEGIES[options.name]
    if isinstance(rule, Whole):
        return plain_whole(rule, offers, budget, when, options, sample)
    worth = RANKINGS[name].worth(offers, options, when).double()

    def filled(basket: Basket) -> Basket:
        while True:
            rank = worth / basket.price.clamp_min(1e-9) if name == "per_second" else worth
            row = basket.best(rank)
            if row is None:
                return basket
            basket.take(row, rank[row])

    basket = filled(Basket(offers, budget))
    if name == "per_second":
        other = Basket(offers, budget)
        single = other.best(worth)
        if single is not None and float(worth[single]) > float(worth[basket.rows].sum()):
            other.take(single, worth[single] / other.price[single].clamp_min(1e-9))
            basket = filled(other)
    return as_reported(offers, basket)


def as_reported(offers: Offers, basket: Basket) -> tuple[list[int], list[float], list[float]]:
    """Keys, seconds and values of what was taken, these in float32."""
    seconds, values = basket.seconds, torch.tensor(basket.values, dtype=torch.float32).tolist()
    return offers.key[basket.rows].tolist(), seconds, values


def seen(offers: Offers, chosen: Selection) -> tuple[list[int], list[float], list[float]]:
    return offers.key[chosen.rows].tolist(), chosen.seconds.tolist(), chosen.value.tolist()


def same_choice(
    options: StrategyConfig,
    case: Case,
    shards: int,
    shuffle: int,
    at_once: tuple[int, int],
    ties: bool = False,
    offers: Offers | None = None,
) -> tuple[Any, Any]:
    """What the plain rule takes, and what is taken from shuffled shards. `offers`: instead of those of the case."""
    recipe, budget, when = case
    offers = random_offers(*recipe) if offers is None else offers
    if ties:
        offers = replace(offers, score=offers.score.round(), seconds=offers.seconds.round(), objects=offers.score)
        offers = replace(offers, embedding=offers.embedding.round())
        if offers.parts is not None:
            offers = replace(offers, parts=replace(offers.parts, embedding=offers.parts.embedding.round()))
    gen = torch.Generator().manual_seed(shuffle)
    offers = replace(offers, extra={**offers.extra, "random": (offers.boundary > 0.4).float()})
    offers = offers[torch.randperm(len(offers), generator=gen)]
    shard_of = torch.randint(0, shards, (int(offers.image.max()) + 1,), generator=gen)[offers.image]
    parts = [offers[shard_of == i] for i in range(shards)]
    with few_at_once(*at_once):
        try:
            chosen = acquire_shards(parts, budget, options, when, quota_classes=QUOTA)
        except BudgetError:
            return plain(options, offers, budget, when)[0], []
    wanted, got = plain(options, offers, budget, when, 4 * at_once[1]), seen(concat(parts), chosen)
    if options.name == "hybrid":  # its values are sums of logarithms, here in another order
        return (*wanted[:2], pytest.approx(wanted[2], abs=1e-4)), got
    if options.name == "badge":  # sums of squares, here of gradients that are written out
        return (*wanted[:2], pytest.approx(wanted[2], rel=1e-6, abs=0)), got
    return wanted, got


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@settings(max_examples=14, deadline=None)
@given(
    case=cases(),
    shards=st.integers(1, 4),
    shuffle=st.integers(0, 1000),
    at_once=st.tuples(st.integers(1, 12), st.integers(1, 20)),
    ties=st.booleans(),
)
def test_any_order_shards_and_shortlist_give_the_plain_rule(
    name: str, case: Case, shards: int, shuffle: int, at_once: tuple[int, int], ties: bool
) -> None:
    wanted, got = same_choice(StrategyConfig(name=name), case, shards, shuffle, at_once, ties)
    assert got == wanted


@settings(max_examples=25, deadline=None)
@given(
    case=cases(),
    images=st.integers(1, 12),
    groups=st.integers(1, 4),
    share=st.sampled_from([0.2, 0.5, 0.8]),
    shards=st.integers(1, 4),
    part=st.integers(1, 20),
)
def test_uniform_where_much_is_labelled_and_groups_lie_across_each_other(
    case: Case, images: int, groups: int, share: float, shards: int, part: int
) -> None:
    (seed, _, rows, axes, single), _, _ = case
    gen = torch.Generator().manual_seed(seed)
    offers = random_offers(seed, images, rows, axes, single)
    number = torch.randperm(3 * images, generator=gen)[:images]  # gaps in the listing, and images in any order
    offers = replace(
        offers,
        image=number[offers.image],
        group=torch.randint(0, groups, (images,), generator=gen)[offers.image],
        labelled=torch.rand(len(offers), generator=gen) < share,
    )
    wanted, got = same_choice(StrategyConfig(name="uniform"), case, shards, seed % 1000, (1, part), offers=offers)
    assert got == wanted


@settings(max_examples=30, deadline=None)
@given(
    case=cases(),
    shards=st.integers(1, 3),
    at_once=st.tuples(st.integers(1, 12), st.integers(1, 20)),
    share=st.sampled_from([0, 0.5, 1]),
    powers=st.tuples(*[st.sampled_from([0, 0.5, 2])] * 3),
)
def test_hybrid_with_any_of_its_options_is_the_formula(
    case: Case, shards: int, at_once: tuple[int, int], share: float, powers: tuple[float, float, float]
) -> None:
    diversity, balance, cost = powers
    options = StrategyConfig(class_share=share, diversity=diversity, balance=balance, cost_power=cost, beta_end=3)
    wanted, got = same_choice(options, case, shards, 0, at_once, False)
    assert got == wanted


def flat(n: int, seed: int) -> Offers:
    """One region an image, all of one size, price and opening."""
    offers = random_offers(seed, 1, n * 4)
    offers = offers[torch.arange(len(offers))[:n]]
    one = torch.ones(len(offers))
    whole = replace(offers.regions, start=torch.zeros_like(offers.regions.start), stop=offers.regions.stop * 0 + 3)
    return replace(
        offers,
        image=torch.arange(len(offers)),
        regions=whole,
        kind=torch.zeros_like(offers.kind),
        seconds=2 * one,
        image_seconds=one,
        labelled=torch.zeros_like(offers.labelled),
    )


@given(n=st.integers(5, 40), seed=st.integers(0, 1000), bought=st.integers(1, 30), count=st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_at_equal_cost_it_is_the_highest_scores(n: int, seed: int, bought: int, count: int) -> None:
    offers = flat(n, seed)
    by_score = sorted(range(n), key=lambda i: (-float(offers.score[i]), int(offers.key[i])))
    for name in ("greedy", "per_second"):
        with few_at_once(count, 7):
            chosen = acquire(
                offers, Budget(3.0 * bought), StrategyConfig(name=name), Round(1, 1, 0), quota_classes=QUOTA
            )
        assert chosen.rows.tolist() == by_score[:bought]


def brute_force(offers: Offers, worth: torch.Tensor, budget: Budget) -> float:
    """The most that any set of rows within the budget and the caps is worth."""
    n = len(offers)
    sets = (torch.arange(1 << n)[:, None] >> torch.arange(n)) & 1  # (sets, rows)
    clash = (clashes(offers) & (offers.image[:, None] == offers.image[None])).fill_diagonal_(False)
    allowed = ((sets @ clash.long()) * sets).sum(1) == 0
    cost = sets.double() @ offers.seconds.double()
    for column, cap in ((offers.image, budget.max_per_image), (offers.group, budget.max_per_group)):
        for number in column.unique():
            held = sets[:, column == number].sum(1)
            allowed &= held <= (n if cap is None else cap)
            if column is offers.image:
                cost += (held > 0) * float(offers.image_seconds[column == number].max())
    return float((sets.double() @ worth)[allowed & (cost <= budget.seconds)].max())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("moved", ["class weights", "median distance", "distances", "prices", "prices of near rows"])
def test_hybrid_where_what_ranks_rows_moves_most(moved: str, seed: int) -> None:
    """Shortlists of three rows among some hundred, without noise, so that few picks overturn the order."""
    still = {"beta": 1e9, "beta_end": 1e9, "class_share": 0, "diversity": 0, "balance": 3, "cost_power": 0}
    moves = {
        "class weights": {"class_share": 1},
        "prices": {"cost_power": 1},
        "prices of near rows": {"cost_power": 1, "diversity": 1},
    }
    options = StrategyConfig(**{**still, **moves.get(moved, {"diversity": 1})})
    offers = random_offers(seed, 12, 12)
    offers = replace(offers, extra={}, labelled=offers.labelled & (offers.key % 4 == 0))
    if moved == "prices of near rows":  # most are copies of ground: what is thought best at first is not
        offers = replace(offers, embedding=offers.embedding.round(), image_seconds=3 * offers.image_seconds)
    elif moved != "prices":
        offers = replace(
            offers, score=1 + 0.1 * offers.score, class_score=offers.shares * (1 + 0.1 * offers.score[:, None])
        )
    if moved == "median distance":  # distances shrink at once where few rows lie in the middle of all others
        offers = replace(offers, embedding=offers.embedding * torch.where(offers.score < 1.02, 0.1, 1.0)[:, None])
    wanted, got = same_choice(
        options, ((0, 0, 0, 2, False), Budget(400.0), Round(1, 2, seed)), 2, seed, (3, 25), False, offers
    )
    assert got == wanted and len(got[0]) > 20


@st.composite
def purses(draw: st.DrawFn) -> tuple[list[tuple[int, int]], float]:
    """Score and seconds of some rows, and a budget.

    Half of them are the worst case of a rule that goes by score a second alone: one row that takes the whole budget,
    beside tiny ones that are better by that rule, leave no room for it and are worth little.
    """
    seconds = draw(st.floats(20, 60))
    if draw(st.booleans()):
        return draw(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20)), min_size=1, max_size=12)), seconds
    tiny = draw(st.lists(st.tuples(st.integers(1, 3), st.just(1)), min_size=1, max_size=11))
    most = int(seconds)
    return [(draw(st.integers(most // 2, most - 1)), most), *tiny], seconds


@given(purse=purses(), seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_better_of_two_is_worth_half_the_optimum(purse: tuple[list[tuple[int, int]], float], seed: int) -> None:
    rows, seconds = purse
    offers = flat(len(rows), seed)
    rows = rows[: len(offers)]  # those in one place are drawn once
    offers = replace(
        offers,
        score=torch.tensor([float(score) for score, _ in rows]),
        seconds=torch.tensor([float(cost) for _, cost in rows]),
        image_seconds=torch.zeros(len(offers)),
    )
    worth = RANKINGS["per_second"].worth(offers, StrategyConfig(), Round(1, 1, 0)).double()
    with few_at_once(2, 5):
        chosen = acquire(
            offers, Budget(seconds), StrategyConfig(name="per_second"), Round(1, 1, 0), quota_classes=QUOTA
        )
    assert float(worth[chosen.rows].sum()) >= brute_force(offers, worth, Budget(seconds)) / 2


@given(case=cases(), rows=st.integers(1, 12))
@settings(max_examples=20, deadline=None)
def test_with_openings_overlaps_and_caps_it_lies_between_the_best_single_and_the_optimum(case: Case, rows: int) -> None:
    recipe, budget, when = case
    offers = random_offers(*recipe)
    offers = replace(offers, labelled=torch.zeros_like(offers.labelled))[torch.arange(min(rows, len(offers)))]
    budget = replace(budget, min_gap=None)
    worth = RANKINGS["per_second"].worth(offers, StrategyConfig(), when).double()
    cheap = (offers.seconds + offers.image_seconds).double() <= budget.seconds
    if not cheap.any():
        return
    with few_at_once(2, 5):
        chosen = acquire(offers, budget, StrategyConfig(name="per_second"), when, quota_classes=QUOTA)
    total = float(worth[chosen.rows].sum())
    assert float(worth[cheap].max()) <= total + 1e-9
    assert total <= brute_force(offers, worth, replace(budget, seconds=budget.seconds + 1e-4)) + 1e-9


def two_plans() -> Offers:
    """For 100 s: by worth a second rows of images 0 and 1; or the best single one, row 9 of image 2, and then row 0."""
    n = 8
    offers = flat(n + 2, 0)
    return replace(
        offers,
        image=torch.cat([torch.zeros(n, dtype=torch.int64), torch.tensor([1, 2])]),  # all of image 0 in one place
        key=torch.arange(n + 2),
        score=torch.tensor([10.0] * n + [6.0, 50.0]),
        seconds=torch.tensor([1.0] * n + [10.0, 95.0]),
        image_seconds=torch.zeros(n + 2),
    )


def test_a_plan_as_long_as_the_one_before_is_another_plan() -> None:
    """The plan by worth a second has bought one row when the shard is last asked; the best single comes instead."""
    offers = two_plans()
    for count in (4, 100):
        with few_at_once(count, 100):
            chosen = acquire(
                offers, Budget(100.0), StrategyConfig(name="per_second"), Round(1, 2, 0), quota_classes=QUOTA
            )
        assert chosen.rows.tolist() == [9, 0]


@pytest.mark.parametrize(("name", "kind"), [("greedy", LocalShard), ("clasp", TurnShard)])
def test_passes_are_few_where_a_cap_closes_the_best_rows(name: StrategyName, kind: type[BasketShard]) -> None:
    """Drives of 200 rows of which the hardest rank above all others: of each the cap leaves one row."""
    drives, asked = 20, 0
    offers = flat(200 * drives, 0)
    drive = torch.arange(len(offers)) // 200
    offers = replace(offers, group=drive, score=drive + offers.score / 2)
    budget, when = Budget(1e6, max_per_group=1), Round(1, 1, 0)
    options = StrategyConfig(name=name, class_share=0, beta=1e6, beta_end=1e6)

    def counted(shard: BasketShard, *args: Any) -> Any:
        nonlocal asked
        asked += 1
        return call(shard, *args)

    call = kind.__call__
    with few_at_once(128, 1000), mock.patch.object(kind, "__call__", counted):
        acquire(offers, Budget(30.0), options, when, quota_classes=QUOTA)
        assert asked == 2  # one list holds all that can be bought, and then there is no other
        asked = 0
        chosen = acquire(offers, budget, options, when, quota_classes=QUOTA)
        assert len(chosen) == drives and asked < 6
        with mock.patch("dal_dense.acquire.shortlist.MOST", 500), mock.patch("dal_dense.acquire.turns.MOST", 500):
            asked = 0
            assert torch.equal(acquire(offers, budget, options, when, quota_classes=QUOTA).rows, chosen.rows)
            assert 6 <= asked < 12
    assert torch.equal(acquire(offers, budget, options, when, quota_classes=QUOTA).rows, chosen.rows)


@given(case=cases(), at_once=st.tuples(st.integers(1, 12), st.integers(1, 20)))
@settings(max_examples=30, deadline=None)
def test_purchases_are_those_of_the_plain_rule(case: Case, at_once: tuple[int, int]) -> None:
    recipe, budget, when = case
    offers = random_offers(*recipe)
    offers = replace(offers, score=offers.score.round(decimals=1))[offers.key.argsort()]
    plan, draw = Basket(offers, budget), noise.uniform(offers.key, when.seed, "purchases")
    while (row := plan.best(draw)) is not None:
        plan.take(row, draw[row])
    with few_at_once(*at_once):
        assert purchases(Basket(offers, budget), when.seed) == max(1, len(plan.rows))


@dataclass
class Watched:
    """A shard of hybrid, alone, and what it was asked and handed over."""

    shard: HybridShard
    asked: list[tuple[int, Scales | None]] = field(default_factory=list)
    handed: list[Candidates] = field(default_factory=list)

    def __len__(self) -> int:
        return 1

    def __call__(self, picks: Picks, count: int, ask: Scales | None) -> list[Candidates]:
        self.asked.append((count, ask))
        self.handed.append(self.shard(picks, count, ask))
        return self.handed[-1:]


def test_a_shard_of_hybrid_hands_over_few_rows_and_nothing_else() -> None:
    """Also where all rows had to be measured: four of ten lie near labelled ground, and seem worth most until then."""
    offers = random_offers(3, 70, 12)
    near = torch.arange(len(offers)) % 10 < 4
    worth = torch.where(near, 10.0, 1.0)
    offers = replace(
        offers,
        score=worth,
        class_score=offers.shares * worth[:, None],
        embedding=torch.where(near[:, None], 0.01 * offers.embedding, 100 * offers.embedding),
        labelled=torch.arange(len(offers)) == 1,
        seconds=torch.full((len(offers),), 5.0),
        image_seconds=torch.zeros(len(offers)),
    )
    aim = Aim(Budget(300.0, max_per_image=1), StrategyConfig(beta=100), Round(1, 2, 0), QUOTA, CPU)
    with few_at_once(16, 64):
        shard = Watched(HybridShard(offers, aim))
        assert len(Hybrid().choose(shard, aim)) > 10
        first = shard.asked[1]
        fresh, again = (s(Picks(), *first) for s in (HybridShard(offers, aim), shard.shard))
    for (count, _), found in zip(shard.asked[1:], shard.handed[1:], strict=True):
        images = len(found.rows.offers.image.unique())
        assert len(found.rows.row) <= 12 * min(count, images) and images <= count
    assert max(len(pickle.dumps(c)) / (10 + len(c.rows.row)) for c in shard.handed) < 1000  # bytes; 200 are columns
    assert torch.equal(fresh.rows.row, again.rows.row) and torch.equal(fresh.rows.worth, again.rows.worth)


def test_the_sample_of_hybrid_is_that_of_all_shards_however_unequal_they_are() -> None:
    offers, when = random_offers(5, 40, 8), Round(1, 2, 3)
    parts = [offers[offers.image < 38], offers[offers.image == 38], offers[offers.image == 39]]
    shards = [
        HybridShard(part, Aim(Budget(9.0), StrategyConfig(), when, QUOTA, CPU), i) for i, part in enumerate(parts)
    ]
    free = offers.key[~offers.labelled]
    with few_at_once(16, 15):
        found = surveyed(InTurn(shards), when, 60)
        wanted = free[sample_draw(free, when).argsort()[:60]]
    assert torch.isin(wanted, found.key).all() and len(found) < len(offers)
    assert found.labelled.sum() == offers.labelled.sum() > 0


@pytest.mark.parametrize("name", [name for name, rule in STRATEGIES.items() if isinstance(rule, Whole)])
def test_the_sample_is_of_rows_that_may_be_bought_where_there_are_any(name: StrategyName) -> None:
    offers, when = random_offers(5, 20, 8), Round(1, 2, 3)
    last = int(torch.where(offers.labelled, -1, sample_draw(offers.key, when)).argmax())
    seconds = torch.where(torch.arange(len(offers)) == last, 1.0, 1000.0)
    offers = replace(offers, seconds=seconds, image_seconds=torch.zeros_like(seconds))
    with few_at_once(16, 2):
        found = acquire(offers, Budget(50.0), StrategyConfig(name=name), when, quota_classes=QUOTA)
    assert found.rows.tolist() == [last]


def test_a_sample_that_lies_in_one_of_several_shards_is_found() -> None:
    offers, config, when = random_offers(5, 60, 12), StrategyConfig(name="kmeans"), Round(1, 2, 3)
    parts = [offers[offers.image < 57], *(offers[offers.image == i] for i in (57, 58, 59))]
    with few_at_once(16, 60):  # a shard is asked for a fifth more than its part of 240, and 64
        assert len(parts[0]) > 2 * 240
        alone = acquire(offers, Budget(90.0), config, when, quota_classes=QUOTA)
        shared = acquire_shards(parts, Budget(90.0), config, when, quota_classes=QUOTA)
    assert concat(parts).key[shared.rows].tolist() == offers.key[alone.rows].tolist()


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_shards_without_rows(name: StrategyName) -> None:
    offers = random_offers(1, 3, 5)
    none = offers[torch.zeros(0, dtype=torch.int64)]
    config, when = StrategyConfig(name=name), Round(1, 2, 0)
    alone = acquire(offers, Budget(50.0), config, when, quota_classes=QUOTA)
    beside = acquire_shards([none, offers, none], Budget(50.0), config, when, quota_classes=QUOTA)
    assert torch.equal(alone.rows, beside.rows)
    with pytest.raises(PoolExhausted):
        acquire_shards([none, none], Budget(50.0), config, when, quota_classes=QUOTA)


def test_rows_of_an_image_that_is_opened_go_with_the_row_that_opens_it() -> None:
    offers = random_offers(1, 1, 4)
    start = torch.tensor([[0, 0], [50, 0], [0, 0], [0, 0]])
    numbers = {
        "score": torch.tensor([10.0, 5.0, 0.8, 0.7]),
        "area": torch.ones(4),
        "seconds": torch.ones(4),
        "image_seconds": torch.tensor([10.0, 10.0, 0.0, 0.0]),
    }
    image, none = torch.tensor([0, 0, 1, 2]), torch.zeros(4, dtype=torch.bool)
    offers = replace(
        offers, regions=Regions(start, start + 1), image=image, labelled=none, kind=offers.kind * 0, **numbers
    )
    with few_at_once(2, 1 << 18):
        found = acquire(offers, Budget(12.0), StrategyConfig(name="per_second"), Round(1, 2, 3), quota_classes=QUOTA)
    assert found.rows.tolist() == [0, 1]  # the second costs 1 s once the first has opened their image, and ranks third


@pytest.mark.parametrize("name", [name for name, rule in STRATEGIES.items() if isinstance(rule, Whole)])
def test_money_that_the_sample_leaves_buys_rows_outside_it(name: StrategyName) -> None:
    """Nine of ten rows lie on each other, so that a sample holds few that may be bought together."""
    offers, when = random_offers(5, 2, 100), Round(1, 2, 3)
    start = torch.zeros_like(offers.regions.start)
    start[:20, 0] = 100 * torch.arange(20)
    one = torch.ones(len(offers))
    offers = replace(offers, regions=Regions(start, start + 10), labelled=offers.labelled & False, kind=offers.kind * 0)
    offers = replace(offers, image=offers.image * 0, seconds=one, image_seconds=0 * one)
    with few_at_once(16, 4):
        found = acquire(offers, Budget(15.0), StrategyConfig(name=name), when, quota_classes=QUOTA)
    assert found.total == 15 == len(found)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_the_same_shards_choose_the_same_again(name: StrategyName) -> None:
    aim = Aim(Budget(50.0), StrategyConfig(name=name), Round(1, 2, 0), QUOTA, CPU)
    offers = [random_offers(seed, 3, 5) for seed in range(2)]
    offers = [replace(o, extra={**o.extra, "random": (o.boundary > 0.4).float()}) for o in offers]
    with few_at_once(16, 2):
        rule = STRATEGIES[name]
        shards = InTurn([rule.shard(part, aim, number, None) for number, part in enumerate(offers)])
        first, again = (rule.choose(shards, aim) for _ in range(2))
    assert torch.equal(first.taken.offers.key, again.taken.offers.key) and first.values == again.values


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_large_pool_on_a_device_gives_the_choice_of_the_cpu(name: StrategyName, device: torch.device) -> None:
    offers = random_offers(7, 24, 12)
    budget, config, when = Budget(80.0, 2, 9), StrategyConfig(name=name), Round(2, 4, 7)
    with few_at_once(16, 60):
        here = acquire(offers, budget, config, when, quota_classes=QUOTA)
        there = acquire(offers.to(device), budget, config, when, quota_classes=QUOTA)
    assert there.rows.is_cuda and here.rows.tolist() == there.rows.tolist()


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_shards_on_the_cpu_are_compared_on_a_device(name: StrategyName, device: torch.device) -> None:
    """As the program does where the network is on a GPU."""
    offers = random_offers(8, 16, 12)
    budget, config, when = Budget(60.0, 2, 9), StrategyConfig(name=name), Round(2, 4, 7)
    here = acquire(offers, budget, config, when, quota_classes=QUOTA)
    parts = [offers[offers.image < 7], offers[offers.image >= 7]]
    shards = [shard_of(o, budget, config, when, quota_classes=QUOTA, number=i) for i, o in enumerate(parts)]
    picks = choose(InTurn(shards), [Stock.of(s.basket) for s in shards], budget, config, when, QUOTA, device)
    assert picks.taken.offers.key.tolist() == offers.key[here.rows].tolist()
