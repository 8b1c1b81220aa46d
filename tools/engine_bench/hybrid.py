"""Cases of the default strategy: its formula for every row after every pick, against bounds; and from files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from dal_dense import noise
from dal_dense.acquire import Basket, Round, Selection, acquire
from dal_dense.acquire.distance import nearest
from dal_dense.acquire.values import log_of, scheduled_beta
from dal_dense.config import StrategyConfig
from dal_dense.offers import Offers
from engine_bench.case import Case, Way
from engine_bench.scale import BUDGET, CHUNK, PER_IMAGE, Stored, bought, driving_pool, fixed, over_disk, stored_figures

CLASSES, WIDTH, KINDS_OF_FRAME = 8, 32, 200
QUOTA = tuple(range(1, CLASSES))
RULE = StrategyConfig(name="hybrid")
WHEN = Round(3, 5, 0)


def frames(rows: int, seed: int, first: int = 0) -> Offers:
    """`driving_pool` with classes of very unequal size and the features of so many kinds of frame."""
    offers = driving_pool(rows, seed, first=first)
    kinds = torch.randn(KINDS_OF_FRAME, WIDTH, generator=torch.Generator().manual_seed(0))
    gen = torch.Generator().manual_seed(seed + 1)
    shares = torch.rand(rows, CLASSES, generator=gen) ** torch.arange(1, CLASSES + 1)
    shares /= shares.sum(1, keepdim=True)
    kind = torch.randint(0, KINDS_OF_FRAME, (rows // PER_IMAGE + 2,), generator=gen)[offers.image - offers.image[0]]
    features = kinds[kind] + 0.5 * torch.randn(rows, WIDTH, generator=gen)
    return replace(offers, class_score=shares * offers.score[:, None], shares=shares, embedding=features)


def chunks(rows: int) -> Iterator[Offers]:
    """Such frames as they come from the network."""
    step = CHUNK // PER_IMAGE * PER_IMAGE
    for number, first in enumerate(range(0, rows, step)):
        yield frames(min(step, rows - first), number, first)


def ours(offers: Offers) -> Selection:
    """`acquire`."""
    return acquire(offers, BUDGET, RULE, WHEN, quota_classes=QUOTA, checked=True)


def every_row(offers: Offers) -> Selection:
    """The formula as it is written: all rows are looked at for each pick; means and median of all rows."""
    basket, free, quota = Basket(offers, BUDGET), ~offers.labelled, list(QUOTA)
    seed = WHEN.seed_for("hybrid")
    fixed_part = noise.gumbel(offers.key, seed, "hybrid") / scheduled_beta(RULE, WHEN) + log_of(offers.extent)
    by_class, score = offers.class_score[:, quota].double(), offers.score.double()
    mass = offers.shares[:, quota].double() * offers.extent[:, None]
    ground, features = mass[offers.labelled].sum(0), offers.embedding
    far = nearest(features, features[offers.labelled])
    while True:
        share = ground + 0.01 * ground.sum()
        wanted = by_class @ (share.mean() / share) ** RULE.balance
        value = (1 - RULE.class_share) * score / score[free].mean() + RULE.class_share * wanted / wanted[free].mean()
        apart = (far.double() / far[free].median()).clamp(0.05, 1)
        utility = fixed_part + log_of(value) - RULE.cost_power * log_of(basket.price) + RULE.diversity * apart.log()
        row = basket.best(utility)
        if row is None:
            return Selection(
                torch.tensor(basket.rows),
                torch.tensor(basket.seconds, dtype=torch.float64),
                torch.tensor(basket.values),
            )
        basket.take(row, utility[row])
        ground = ground + mass[row]
        far = torch.minimum(far, nearest(features, features[row : row + 1]))


def from_files(rows: int) -> Stored:
    """Append each chunk, map the files, choose."""
    return over_disk(rows, chunks, ours)


CASES: tuple[Case, ...] = (
    Case(
        name="hybrid 10^5",
        work=f"the default strategy from 100,000 regions with {CLASSES} classes and {WIDTH} features, 4 h",
        goal="many times faster; means and median are those of a sample, so the choice differs a little",
        make=lambda device: frames(10**5, 0).to(device),
        ways={"ours": Way(ours, cuda=True), "every row for every pick": Way(every_row, cuda=True)},
        judge=bought,
    ),
    Case(
        name="hybrid 10^7",
        work="the default strategy from 10,000,000 such regions, from chunks: kept in files, read back, chosen from",
        goal="private memory within 1 GiB",
        make=fixed(10**7),
        ways={"ours": Way(from_files)},
        judge=stored_figures,
    ),
)
