"""What any acquisition strategy in the table must do, whatever it is after."""

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from math import floor

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dal_dense.acquire import STRATEGIES, Budget, Round, Selection, acquire
from dal_dense.config import StrategyConfig
from dal_dense.errors import BudgetError, ConfigError, DataError
from dal_dense.noise import region_keys
from dal_dense.offers import KINDS, LARGEST, Offers, Parts, concat
from dal_dense.regions import Regions

CLASSES = 3
MEASURING = ("coreset", "facility_location", "badge", "kmeans", "typiclust", "probcover")
"""Strategies that need embeddings."""
QUOTA = (1, 2)


def image_offers(
    image: int, rows: int, gen: torch.Generator, *, axes: int, embedding: int = 4, single: bool = False
) -> Offers:
    """Random boxes of one image, many of them overlapping; every tenth is labelled ground.

    `single`: most are predicted boxes, as a detector offers them, and frames know their time.
    """
    start = torch.randint(0, 12, (rows, axes), generator=gen)
    regions = Regions(start, start + torch.randint(1, 7, (rows, axes), generator=gen))
    shares = torch.rand(rows, CLASSES, generator=gen) + 1e-3
    score = torch.rand(rows, generator=gen) * (torch.rand(rows, generator=gen) > 0.1)
    shares = shares / shares.sum(1, keepdim=True)
    seconds = torch.rand(rows, generator=gen) * 20 * (torch.rand(rows, generator=gen) > 0.1)
    alone = (torch.rand(rows, generator=gen) < 0.8) & single
    time = torch.full((rows,), float(torch.randint(0, 6, (1,), generator=gen)), dtype=torch.float64)
    time[:] = torch.nan if float(torch.rand(1, generator=gen)) < 0.2 else time
    found = 2 * rows
    return Offers(
        image=torch.full((rows,), image),
        group=torch.full((rows,), image // 2),
        regions=regions,
        kind=torch.where(alone, KINDS.index("box"), 0).to(torch.uint8),
        key=region_keys(f"image {image}", regions),
        score=score,
        class_score=shares * score[:, None],
        shares=shares,
        boundary=torch.rand(rows, generator=gen),
        objects=torch.rand(rows, generator=gen),
        area=regions.volume().float(),
        seconds=seconds,
        image_seconds=torch.full((rows,), float(torch.rand(1, generator=gen) * 10)),
        embedding=torch.rand(rows, embedding, generator=gen),
        labelled=torch.rand(rows, generator=gen) < 0.1,
        extra={"time": time},
        parts=Parts(
            row=torch.randint(0, rows, (found,), generator=gen),
            classes=torch.randint(1, CLASSES, (found,), generator=gen),
            weight=torch.rand(found, generator=gen),
            embedding=torch.randn(found, 4, generator=gen),
        ),
    )


def random_offers(seed: int, images: int, rows: int, axes: int = 2, single: bool = False) -> Offers:
    gen = torch.Generator().manual_seed(seed)
    made = concat([image_offers(i, rows, gen, axes=axes, single=single) for i in range(images)])
    first = {int(k): n for n, k in reversed(list(enumerate(made.key)))}  # offers hold a box once
    return made[torch.tensor(sorted(first.values()))]


Case = tuple[tuple[int, int, int, int, bool], Budget, Round]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """(seed, images, rows, axes, single) for `random_offers`, a budget and a round."""
    recipe = (
        draw(st.integers(0, 2**20)),
        draw(st.integers(1, 6)),
        draw(st.integers(1, 12)),
        *draw(st.sampled_from([(2, False), (3, False), (2, True)])),
    )
    cap = st.none() | st.integers(1, 3)
    budget = Budget(draw(st.floats(0.5, 120)), draw(cap), draw(cap), draw(st.none() | st.sampled_from([0.5, 1.0, 3.0])))
    total = draw(st.integers(1, 5))
    return recipe, budget, Round(draw(st.integers(1, total)), total, draw(st.integers(0, 2**31)))


def choose(name: str, offers: Offers, budget: Budget, when: Round, **options: float) -> Selection:
    return acquire(offers, budget, StrategyConfig(name=name, **options), when, quota_classes=QUOTA)


def prices(offers: Offers, rows: list[int]) -> torch.Tensor:
    """Seconds of rows in this order, in whole ticks, written a second time and differently."""
    opened: set[int] = set()
    paid = []
    for row in rows:
        image = int(offers.image[row])
        ticks = floor(Fraction(float(offers.seconds[row])) * 2**20)
        if image not in opened:
            ticks += floor(Fraction(float(offers.image_seconds[row])) * 2**20)
        paid.append(float(Fraction(ticks, 2**20)))
        opened.add(image)
    return torch.tensor(paid, dtype=torch.float64)


def clashes(offers: Offers) -> torch.Tensor:
    """Which two rows share ground (N, N), voxel by voxel.

    Of two single boxes, which mean one object; of a single box and whole ground, where half of the box lies on it.
    """
    ground = torch.zeros(len(offers), *offers.regions.stop.amax(0).tolist())
    for row, box in enumerate(offers.regions.boxes()):
        ground[(row, *(slice(a, b) for a, b in zip(*box, strict=True)))] = 1
    ground = ground.flatten(1)
    shared = (ground @ ground.T) * (offers.image[:, None] == offers.image)
    single = offers.kind == KINDS.index("box")
    of_single = ground.sum(1) * single
    union = of_single[:, None] + of_single - shared * (single[:, None] & single)
    return shared >= torch.where(single[:, None] | single, union / 2, 1)


def too_near(offers: Offers, budget: Budget) -> torch.Tensor:
    """Which two rows lie in different frames of a group, less than the least gap apart (N, N)."""
    time = offers.extra["time"]
    if budget.min_gap is None:
        return torch.zeros(len(offers), len(offers), dtype=torch.bool)
    close = (time[:, None] - time[None]).abs() < budget.min_gap
    return close & (offers.group[:, None] == offers.group[None]) & (offers.image[:, None] != offers.image[None])


def may_still_take(offers: Offers, budget: Budget, chosen: list[int]) -> list[int]:
    """Rows that could be added without breaking a promise, by brute force."""
    taken_ground = chosen + offers.labelled.nonzero()[:, 0].tolist()
    spent = float(prices(offers, chosen).double().sum())
    images = Counter(offers.image[chosen].tolist())
    groups = Counter(offers.group[chosen].tolist())
    overlap, near = clashes(offers), too_near(offers, budget)
    found = []
    for row in range(len(offers)):
        image, group = int(offers.image[row]), int(offers.group[row])
        clash = bool(overlap[row, taken_ground].any()) or bool(near[row, taken_ground].any())
        full = images[image] == budget.max_per_image or groups[group] == budget.max_per_group
        price = float(prices(offers, [*chosen, row])[-1])
        if not clash and not full and spent + price <= budget.seconds:
            found.append(row)
    return found


@pytest.fixture(params=sorted(STRATEGIES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_table_holds_every_name_of_the_config() -> None:
    allowed = StrategyConfig.model_json_schema()["properties"]["name"]["enum"]
    assert sorted(allowed) == sorted(STRATEGIES)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@settings(max_examples=12, deadline=None)
@given(case=cases())
def test_keeps_budget_caps_and_ground(name: str, case: Case) -> None:
    recipe, budget, when = case
    offers = random_offers(*recipe)
    try:
        selection = choose(name, offers, budget, when)
    except BudgetError:
        free = [r for r in range(len(offers)) if not offers.labelled[r]]
        assert not free or not _affordable_at_first(offers, budget)
        return
    rows = selection.rows.tolist()
    assert rows and len(set(rows)) == len(rows)
    assert not offers.labelled[rows].any()
    assert torch.equal(selection.seconds, prices(offers, rows))
    assert selection.total <= budget.seconds and sum(selection.seconds.tolist()) <= budget.seconds
    assert selection.value.isfinite().all()
    ground = rows + offers.labelled.nonzero()[:, 0].tolist()
    assert int(clashes(offers)[rows][:, ground].sum()) == len(rows)  # each with itself
    assert not too_near(offers, budget)[rows][:, ground].any()
    assert max(Counter(offers.image[rows].tolist()).values()) <= (budget.max_per_image or len(rows))
    assert max(Counter(offers.group[rows].tolist()).values()) <= (budget.max_per_group or len(rows))
    assert not may_still_take(offers, budget, rows), "stopped while something allowed was affordable"


def _affordable_at_first(offers: Offers, budget: Budget) -> list[int]:
    cheap = offers.seconds + offers.image_seconds <= budget.seconds
    barred = clashes(offers) | too_near(offers, budget)
    return (cheap & ~barred[:, offers.labelled].any(1)).nonzero()[:, 0].tolist()


def tied(case: Case) -> tuple[Offers, Budget, Round]:
    """The case with equal numbers everywhere, so that ties decide."""
    recipe, budget, when = case
    offers = random_offers(*recipe)
    assume(_affordable_at_first(offers, budget))
    tied = replace(offers, score=(offers.score * 2).round(), embedding=(offers.embedding * 2).round())
    return tied, budget, when


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@settings(max_examples=10, deadline=None)
@given(case=cases(), shuffle=st.integers(0, 1000))
def test_order_of_rows_does_not_matter(name: str, case: Case, shuffle: int) -> None:
    offers, budget, when = tied(case)
    mixed = torch.randperm(len(offers), generator=torch.Generator().manual_seed(shuffle))
    one = choose(name, offers, budget, when)
    two = choose(name, offers[mixed], budget, when)
    assert offers.key[one.rows].tolist() == offers.key[mixed][two.rows].tolist()
    assert torch.equal(one.value, two.value) and torch.equal(one.seconds, two.seconds)


def renumbered(name: str, offers: Offers, gen: torch.Generator) -> Offers:
    """The same rows from another listing: images and groups have other numbers, and rows come in that order.

    To `uniform` numbers near each other mean frames near in time: the images of a group keep their order for it.
    """
    count = int(offers.image.max()) + 1
    group = torch.randperm((count + 1) // 2, generator=gen)
    image = torch.randperm(count, generator=gen)
    if name == "uniform":
        image = 2 * group.repeat_interleave(2) + torch.arange(2).repeat(len(group))
    offers = replace(offers, image=image[offers.image], group=group[offers.group])
    return offers[offers.image.argsort(stable=True)]


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@settings(max_examples=10, deadline=None)
@given(case=cases(), shuffle=st.integers(0, 1000))
def test_numbers_of_images_and_groups_do_not_matter(name: str, case: Case, shuffle: int) -> None:
    offers, budget, when = tied(case)
    other = renumbered(name, offers, torch.Generator().manual_seed(shuffle))
    one, two = (choose(name, o, budget, when) for o in (offers, other))
    assert offers.key[one.rows].tolist() == other.key[two.rows].tolist()
    assert torch.equal(one.value, two.value) and torch.equal(one.seconds, two.seconds)


def test_repeats_itself_and_leaves_the_offers_alone(name: str) -> None:
    offers = random_offers(1, 5, 10)
    before = offers.to("cpu")[torch.arange(len(offers))]
    one, two = (choose(name, offers, Budget(60.0), Round(2, 4, 7)) for _ in range(2))
    assert torch.equal(one.rows, two.rows) and torch.equal(one.value, two.value)
    for column in ("seconds", "image_seconds", "score", "key", "labelled"):
        assert torch.equal(getattr(offers, column), getattr(before, column))


def test_units_do_not_matter(name: str) -> None:
    """Seconds or minutes, nats or bits, any scale of the features: the same regions."""
    offers = random_offers(3, 6, 12)
    scaled = replace(
        offers,
        score=offers.score * 64,
        class_score=offers.class_score * 4096,
        embedding=offers.embedding * 0.25,
        seconds=offers.seconds * 8,
        image_seconds=offers.image_seconds * 8,
    )
    assert torch.equal(
        choose(name, offers, Budget(90.0), Round(2, 4, 7)).rows,
        choose(name, scaled, Budget(90.0 * 8), Round(2, 4, 7)).rows,
    )


def test_budget_that_buys_nothing(name: str) -> None:
    offers = random_offers(2, 2, 5)
    offers = replace(offers, seconds=offers.seconds + 14)
    with pytest.raises(BudgetError, match=r"budget 5 s buys nothing: the cheapest of \d+ regions costs .*raise budget"):
        choose(name, offers, Budget(5.0), Round(1, 2, 0))


def test_nothing_on_offer(name: str) -> None:
    offers = random_offers(2, 2, 5)
    for empty in (
        offers[torch.zeros(0, dtype=torch.int64)],
        replace(offers, labelled=torch.ones_like(offers.labelled)),
    ):
        with pytest.raises(BudgetError, match="nothing is left to ask"):
            choose(name, empty, Budget(50.0), Round(1, 2, 0))


@pytest.mark.parametrize(
    "column", ["score", "class_score", "shares", "objects", "seconds", "image_seconds", "embedding"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none(name: str, column: str, value: float) -> None:
    offers = random_offers(2, 2, 5)
    getattr(offers, column)[3] = value
    with pytest.raises(DataError, match=f"Offers.{column} must be finite.*row 3"):
        choose(name, offers, Budget(50.0), Round(1, 2, 0))


@pytest.mark.parametrize(
    ("column", "value"),
    [("weight", float("nan")), ("weight", -1.0), ("embedding", float("inf")), ("embedding", -1e20)],
)
def test_objects_whose_numbers_are_none(name: str, column: str, value: float) -> None:
    offers = random_offers(2, 2, 5)
    assert offers.parts is not None
    getattr(offers.parts, column)[3] = value
    row = int(offers.parts.row[3])
    with pytest.raises(DataError, match=rf"Offers.parts.{column} must be finite and .*; object 3 of row {row} \(image"):
        choose(name, offers, Budget(50.0), Round(1, 2, 0))


def test_features_too_large_to_be_squared_are_refused_and_the_largest_work(name: str) -> None:
    offers = random_offers(2, 4, 8)
    wide = torch.randn(len(offers), 2048, generator=torch.Generator().manual_seed(0)).sign() * LARGEST
    assert len(choose(name, replace(offers, embedding=wide), Budget(50.0), Round(1, 2, 0)))
    with pytest.raises(
        DataError,
        match=r"Offers.embedding must be finite and within 5e\+16 of 0; row 0 \(image row \d+\) holds -?5e\+19; ",
    ):
        choose(name, replace(offers, embedding=wide * 1e3), Budget(50.0), Round(1, 2, 0))


def test_without_embedding_it_works_or_says_so(name: str) -> None:
    offers = random_offers(4, 4, 8)
    offers = replace(offers, embedding=offers.embedding[:, :0])
    if name in MEASURING:
        with pytest.raises(ConfigError, match=rf"{name} measures distances.*choose another strategy.name"):
            choose(name, offers, Budget(50.0), Round(1, 2, 0))
    else:
        assert len(choose(name, offers, Budget(50.0), Round(1, 2, 0)))


def test_degenerate_columns(name: str) -> None:
    """All scores, features and seconds zero: still a valid choice of finite values."""
    offers = random_offers(5, 3, 6)
    flat = {c: torch.zeros_like(getattr(offers, c)) for c in ("score", "class_score", "seconds", "image_seconds")}
    offers = replace(offers, **flat, embedding=torch.zeros_like(offers.embedding))
    selection = choose(name, offers, Budget(1.0, max_per_image=2), Round(1, 1, 0))
    assert len(selection) and selection.value.isfinite().all() and selection.total == 0


def test_without_objects_it_works_or_says_so(name: str) -> None:
    offers = replace(random_offers(4, 4, 8), parts=None)
    if name == "ppal":
        with pytest.raises(ConfigError, match=r"ppal compares detected objects.*use hybrid"):
            choose(name, offers, Budget(50.0), Round(1, 2, 0))
    else:
        assert len(choose(name, offers, Budget(50.0), Round(1, 2, 0)))


def test_no_quota_classes(name: str) -> None:
    offers = random_offers(6, 4, 8)
    assert len(acquire(offers, Budget(50.0), StrategyConfig(name=name), Round(1, 2, 0), quota_classes=()))


def test_a_device_chooses_the_same(name: str, device: torch.device) -> None:
    offers = random_offers(7, 6, 12)
    here = choose(name, offers, Budget(90.0), Round(2, 4, 7))
    there = choose(name, offers.to(device), Budget(90.0), Round(2, 4, 7))
    assert there.rows.is_cuda and here.rows.tolist() == there.rows.tolist()
