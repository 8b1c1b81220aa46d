"""Cases of strategies whose ranking changes from pick to pick: uniform and clasp, against every row for every pick."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dal_dense import noise
from dal_dense.acquire import Basket, Selection, acquire
from dal_dense.acquire.values import log_of, scheduled_beta
from dal_dense.config import StrategyConfig
from dal_dense.offers import Offers
from engine_bench.case import Case, Way
from engine_bench.hybrid import CLASSES, QUOTA, WHEN, frames
from engine_bench.scale import BUDGET, bought

UNIFORM, CLASP = StrategyConfig(name="uniform"), StrategyConfig(name="clasp")


def ours(rule: StrategyConfig) -> Callable[[Offers], Selection]:
    """`acquire`."""
    return lambda offers: acquire(offers, BUDGET, rule, WHEN, quota_classes=QUOTA, checked=True)


def taken(basket: Basket) -> Selection:
    """What is in a basket."""
    return Selection(torch.tensor(basket.rows), torch.tensor(basket.seconds), torch.tensor(basket.values))


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


def case(rule: StrategyConfig, plain: Callable[[Offers], Selection], rows: int) -> Case:
    """One strategy, from so many rows."""
    return Case(
        name=f"{rule.name} 10^{len(str(rows)) - 1}",
        work=f"{rule.name} from {rows:,} regions with {CLASSES} classes, 4 h",
        goal="the same choice, many times faster where rows are many",
        make=lambda device: frames(rows, 0).to(device),
        ways={"ours": Way(ours(rule), cuda=True), "every row for every pick": Way(plain, cuda=True)},
        judge=bought,
    )


CASES: tuple[Case, ...] = (
    case(UNIFORM, every_row_uniform, 10**4),
    case(UNIFORM, every_row_uniform, 10**6),
    case(CLASP, every_row_clasp, 10**6),
)
