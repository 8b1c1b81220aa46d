"""Cases of strategies that shards answer in ways of their own, against every row for every pick."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import torch

from dal_dense import noise
from dal_dense.acquire import STRATEGIES, Basket, Selection, Whole, acquire
from dal_dense.acquire.base import Aim
from dal_dense.acquire.matching import matching_distance
from dal_dense.acquire.ppal import thin, wide
from dal_dense.acquire.shortlist import InTurn
from dal_dense.acquire.values import log_of, scheduled_beta, summed_score
from dal_dense.acquire.whole import SAMPLE
from dal_dense.config import StrategyConfig, StrategyName
from dal_dense.offers import Offers, Parts
from engine_bench.case import Case, Way
from engine_bench.hybrid import CLASSES, QUOTA, WHEN, chunks, frames
from engine_bench.scale import BUDGET, bought, fixed, over_disk, stored_figures

UNIFORM, CLASP, PPAL, BADGE = (StrategyConfig(name=name) for name in ("uniform", "clasp", "ppal", "badge"))
OBJECTS = 2
"""Objects a region."""
JUDGES = 4096
"""Rows by which it is judged how well a choice stands for the pool."""


def ours(rule: StrategyConfig) -> Callable[[Offers], Selection]:
    """`acquire`."""
    return lambda offers: acquire(offers, BUDGET, rule, WHEN, quota_classes=QUOTA, checked=True)


def taken(basket: Basket) -> Selection:
    """What is in a basket."""
    return Selection(
        torch.tensor(basket.rows), torch.tensor(basket.seconds, dtype=torch.float64), torch.tensor(basket.values)
    )


def every_row_uniform(o: Offers) -> Selection:
    """The criteria one after the other, of all rows after each pick."""
    basket, draw = Basket(o, BUDGET), noise.uniform(o.key, WHEN.seed_for("uniform"), "order")
    in_group, in_image = torch.zeros_like(o.image), torch.zeros_like(o.image)
    in_time = torch.full_like(draw, -torch.inf)
    in_space = in_time.clone()
    centre, side = (o.regions.start + o.regions.stop) / 2, o.regions.stop - o.regions.start

    def add(row: int) -> None:
        group, image = o.group == o.group[row], o.image == o.image[row]
        in_group.add_(group)
        in_image.add_(image)
        in_time[group] = torch.maximum(in_time, -(o.image - o.image[row]).abs().double())[group]
        apart = ((centre - centre[row]) / side[row]).double().norm(dim=1)
        in_space[image] = torch.maximum(in_space, -apart)[image]

    for row in o.labelled.nonzero()[:, 0].tolist():
        add(row)
    while (ok := basket.affordable()).any():
        for level in (in_group, in_image, in_time, in_space):
            ok &= level == level[ok].min()
        row = int(torch.where(ok, draw, -1.0).argmax())
        basket.take(row, draw[row])
        add(row)
    return taken(basket)


def every_row_clasp(o: Offers) -> Selection:
    """A class's value of all rows at each pick, worked out once a class."""
    basket, seed, beta = Basket(o, BUDGET), WHEN.seed_for("clasp"), scheduled_beta(CLASP, WHEN)
    values = {c: log_of(o.class_score[:, c]) + noise.gumbel(o.key, seed, f"class {c}") / beta for c in QUOTA}
    had = dict.fromkeys(sorted(QUOTA, key=lambda c: noise.derive_seed(seed, "class", c)), 0.0)
    while had and basket.spent < CLASP.class_share * BUDGET.seconds:
        c = min(had, key=had.__getitem__)
        row = basket.best(values[c], among=o.class_score[:, c] > 0)
        if row is None:
            del had[c]
        else:
            had[c] += basket.take(row, values[c][row])
    rest = log_of(o.score) + noise.gumbel(o.key, seed, "all") / beta
    while (row := basket.best(rest)) is not None:
        basket.take(row, rest[row])
    return taken(basket)


def crowded(rows: int, device: str) -> Offers:
    """`frames` with objects of any class, like the region that they lie in."""
    offers, gen = frames(rows, 0), torch.Generator().manual_seed(0)
    row = torch.arange(rows).repeat_interleave(OBJECTS)
    features = offers.embedding[row] + 0.5 * torch.randn(len(row), offers.embedding.shape[1], generator=gen)
    classes = torch.randint(1, CLASSES, (len(row),), generator=gen)
    return replace(offers, parts=Parts(row, classes, torch.rand(len(row), generator=gen), features)).to(device)


def every_row_ppal(o: Offers) -> Selection:
    """The score of all rows at each pick, of candidates and of what the rest of the money buys."""
    basket, pool, value = Basket(o, BUDGET), Basket(o, wide(BUDGET)), summed_score(o)
    among = basket.affordable()
    while (row := pool.best(value, among)) is not None:
        pool.take(row, value[row])
    rows = torch.tensor(pool.rows, device=o.device)
    few = o[rows]
    chosen = Basket(few, BUDGET)
    thin(chosen, matching_distance(few.parts, len(rows)).to(o.device), value[rows])
    for row in rows[chosen.rows].tolist():
        basket.take(row, value[row])
    while (row := basket.best(value)) is not None:
        basket.take(row, value[row])
    return taken(basket)


def every_row_badge(o: Offers) -> Selection:
    """The race of k-means++ on gradients that are never built; squared distances of all rows after each pick."""
    basket, seed = Basket(o, BUDGET), WHEN.seed_for("badge")
    left = -noise.uniform(o.key, seed, "race").log()
    length = o.class_score.square().sum(1) * o.embedding.square().sum(1)
    row, far = basket.best(length), torch.full_like(left, torch.inf)
    value = length
    while row is not None:
        basket.take(row, value[row])
        inner = (o.class_score @ o.class_score[row]) * (o.embedding @ o.embedding[row])
        far = torch.minimum(far, (length + length[row] - 2 * inner).clamp_min(1e-30).double())
        value, wait = far, left / far
        row = basket.best(-wait)
        left = left - far * wait[row] if row is not None else left
    return taken(basket)


def case(
    rule: StrategyConfig,
    plain: Callable[[Offers], Selection],
    rows: int,
    make: Callable[[int, str], Offers] = lambda rows, device: frames(rows, 0).to(device),
) -> Case:
    """One strategy, from so many rows."""
    return Case(
        name=f"{rule.name} 10^{len(str(rows)) - 1}",
        work=f"{rule.name} from {rows:,} regions with {CLASSES} classes, 4 h",
        goal="the same choice, many times faster where rows are many",
        make=lambda device: make(rows, device),
        ways={"ours": Way(ours(rule), cuda=True), "every row for every pick": Way(plain, cuda=True)},
        judge=bought,
    )


def seeing(name: StrategyName, most: int) -> Callable[[Offers], Selection]:
    """The choice where so many rows on offer are weighed by each other."""
    rule = STRATEGIES[name]
    assert isinstance(rule, Whole)
    rule = replace(rule, most=most)

    def run(offers: Offers) -> Selection:
        aim = Aim(BUDGET, StrategyConfig(name=name), WHEN, QUOTA, offers.device)
        picks = rule.choose(InTurn([rule.shard(offers, aim, 0, None)]), aim)
        return picks.selection(picks.taken.row.to(offers.device))

    return run


def stands_for(o: Offers, chosen: Selection) -> dict[str, float]:
    """How near the choice and what is labelled are to rows of the pool, by the mean."""
    some = o.embedding[o.key.argsort()[:JUDGES]]
    centres = torch.cat([o.embedding[o.labelled], o.embedding[chosen.rows]])
    cosine = torch.nn.functional.normalize(some, dim=1) @ torch.nn.functional.normalize(centres, dim=1).T
    apart = torch.cdist(some, centres).amin(1)
    nearest = {"cosine of the nearest": float(cosine.amax(1).mean()), "distance of the nearest": float(apart.mean())}
    return {**nearest, "regions": float(len(chosen)), "seconds": chosen.total}


def of_a_sample(name: StrategyName, rows: int, most: int, *, beside_all: bool) -> Case:
    """A strategy that weighs rows by each other, from so many rows of which it sees `most`."""
    all_rows = {"all rows": Way(seeing(name, sys.maxsize), cuda=True)} if beside_all else {}
    return Case(
        name=f"{name} {rows:,}",
        work=f"{name} from {rows:,} regions with 32 features, 4 h, of which {most:,} are weighed by each other",
        goal="a choice that stands for the pool as well as one from all rows",
        make=lambda device: frames(rows, 0).to(device),
        ways={"ours": Way(seeing(name, most), cuda=True), **all_rows},
        judge=stands_for,
    )


CASES: tuple[Case, ...] = (
    case(UNIFORM, every_row_uniform, 10**4),
    case(UNIFORM, every_row_uniform, 10**6),
    case(CLASP, every_row_clasp, 10**6),
    case(PPAL, every_row_ppal, 10**6, crowded),
    case(BADGE, every_row_badge, 10**6),
    of_a_sample("kmeans", 10**6, SAMPLE, beside_all=True),
    of_a_sample("typiclust", 10**6, SAMPLE, beside_all=True),
    of_a_sample("probcover", 10**6, SAMPLE, beside_all=False),
    of_a_sample("facility_location", 10**6, SAMPLE, beside_all=False),
    of_a_sample("facility_location", SAMPLE, SAMPLE // 8, beside_all=True),
    of_a_sample("probcover", SAMPLE, SAMPLE // 8, beside_all=True),
    Case(
        name="kmeans 10,000,000",
        work=f"kmeans from 10,000,000 such regions, from chunks: kept in files, read back, {SAMPLE:,} clustered",
        goal="private memory within 1 GiB",
        make=fixed(10**7),
        ways={"ours": Way(lambda rows: over_disk(rows, chunks, seeing("kmeans", SAMPLE)))},
        judge=stored_figures,
    ),
)
