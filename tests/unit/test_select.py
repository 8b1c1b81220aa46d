"""Selection algorithms against brute force in float64."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dal_dense import noise
from dal_dense.select import (
    FacilityLocation,
    KCenter,
    Picker,
    ProbCover,
    badge,
    k_means,
    k_means_picker,
    pick,
    pure_radius,
    typiclust,
)
from dal_dense.select import blocks as sizes
from dal_dense.select import k_center as center_module
from dal_dense.select.typiclust import typicality

MEANS = sys.modules["dal_dense.select.k_means"]  # the package's name of it is the function
SEEDS = sys.modules["dal_dense.select.seeding"]
TYPICAL = sys.modules["dal_dense.select.typiclust"]

SHAPES = st.tuples(st.integers(0, 10**6), st.integers(2, 40), st.integers(1, 6), st.booleans())
"""Seed, rows, width, and whether the points lie on a small grid, so that copies and ties abound."""


def points(shape: tuple[int, int, int, bool]) -> Tensor:
    seed, n, width, grid = shape
    x = torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) * 2
    return x.round() if grid else x


def free(x: Tensor, but: int = 0) -> Tensor:
    return torch.arange(len(x)) >= but


def blobs(sizes_of: list[int], width: int = 4, spread: float = 0.1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows around points that are 20 apart, and which."""
    gen = torch.Generator().manual_seed(seed)
    which = torch.cat([torch.full((n,), c) for c, n in enumerate(sizes_of)])
    place = torch.stack([torch.arange(len(sizes_of)) * 20.0, *[torch.zeros(len(sizes_of))] * (width - 1)], 1)
    return place[which] + spread * torch.randn(len(which), width, generator=gen), which


# --- k-centre


@pytest.mark.parametrize("scale", [1e20, math.inf, math.nan])
@pytest.mark.parametrize("where", ["rows", "centres"])
def test_features_whose_squares_overflow_are_refused(scale: float, where: str) -> None:
    x = points((0, 50, 4, False))
    large = torch.cat([x, x[:1] * scale])
    with pytest.raises(ValueError, match=r"exceed float32.*scale the features down"):
        pick(KCenter(large, x[:1]) if where == "rows" else KCenter(x, large[-1:]), free(x, 1), 3)


@pytest.mark.parametrize("eager", [(), ("cpu",)])
def test_the_largest_features_that_are_let_through_are_compared(
    eager: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(center_module, "EAGER", eager)
    x = torch.tensor([[6.5e18], [-6.5e18], [3e18], [-3e18]])
    for labelled in (0, 1):
        picker = KCenter(x, x[:labelled])
        assert pick(picker, free(x, labelled), 4).tolist() == farthest_first(x, labelled, 4 - labelled)
    for large in (6.6e18, 9e18):
        with pytest.raises(ValueError, match="exceed float32"):
            KCenter(torch.tensor([[large], [-large]]), x[:0])


def farthest_first(x: Tensor, labelled: int, count: int) -> list[int]:
    """By all differences, in float64; rows before `labelled` are centres."""
    x = x.double()
    apart = (x[:, None] - x).square().sum(-1)
    middle = x.float().double().mean(0).float().double()
    near = apart[:labelled].amin(0) if labelled else (x - middle).square().sum(1)
    rows: list[int] = []
    for _ in range(count):
        near[list(range(labelled)) + rows] = -1
        rows.append(int(near.argmax()))
        near = torch.minimum(near, apart[rows[-1]]) if labelled or len(rows) > 1 else apart[rows[-1]].clone()
    return rows


@given(SHAPES, st.integers(0, 3), st.sampled_from([1, 3, 2048]), st.integers(-3, 3), st.sampled_from(["cpu", "cuda"]))
@settings(max_examples=200, deadline=None)
def test_k_center_is_that_of_float64(
    shape: tuple[int, int, int, bool], labelled: int, group: int, offset: int, eager: str
) -> None:
    x = points(shape) + 100.0 * offset  # an offset costs products their digits unless it is taken away
    labelled = min(labelled, len(x) - 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sizes.GROUP, "cpu", group)
        patch.setattr(center_module, "EAGER", (eager,))  # "cpu": as it is done on a GPU
        rows = pick(KCenter(x, x[:labelled]), free(x, labelled), len(x)).tolist()
    assert rows == farthest_first(x, labelled, len(x) - labelled)


@pytest.mark.parametrize("eager", [(), ("cpu",)])
def test_k_center_with_a_group_that_is_made_anew(eager: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(center_module, "EAGER", eager)
    x = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))  # so few axes that every pick lowers many
    monkeypatch.setitem(sizes.GROUP, "cpu", 64)
    made, again = 0, KCenter._regroup

    def counted(self: KCenter, allowed: Tensor) -> None:
        nonlocal made
        made += 1
        again(self, allowed)

    monkeypatch.setattr(KCenter, "_regroup", counted)
    assert pick(KCenter(x, x[:5]), free(x, 5), 200).tolist() == farthest_first(x, 5, 200)
    assert 5 < made < 200


def test_k_center_of_copies_takes_the_first() -> None:
    assert pick(KCenter(torch.ones(3000, 4), torch.zeros(0, 4)), free(torch.ones(3000)), 4).tolist() == [0, 1, 2, 3]


class Largest(TorchDispatchMode):
    """How many numbers the largest matrix holds that an operation makes."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [
            t
            for t in tree_leaves(out)
            if isinstance(t, Tensor) and t.dim() == 2 and t.shape[1] > 1 and not t._is_view()
        ]
        self.most = max([self.most, *(t.numel() for t in made)])
        return out


@pytest.mark.parametrize("apart", [0.0, 1e-4])
def test_k_center_needs_little_memory_where_rows_are_alike(apart: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but a few are copies, or closer together than float32 tells: none of them can be left out of the group."""
    monkeypatch.setitem(sizes.CELLS, "cpu", 1 << 12)
    monkeypatch.setitem(sizes.GROUP, "cpu", 32)
    x = 10 + apart * torch.randn(2000, 16, generator=torch.Generator().manual_seed(0))
    x[::100] += 50 * torch.randn(20, 16, generator=torch.Generator().manual_seed(1))
    with Largest() as largest:
        rows = pick(KCenter(x, x[:1]), free(x, 1), 40).tolist()
    assert rows == farthest_first(x, 1, 40)
    assert largest.most <= 2 << 12  # of rivals there are as many pairs as distances in a block


@pytest.mark.parametrize("eager", [(), ("cpu",)])
def test_k_center_names_distances_and_minds_what_is_allowed(
    eager: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(center_module, "EAGER", eager)
    x = torch.tensor([[0.0], [1.0], [4.0], [9.0], [9.5]])
    picker = KCenter(x, x[:1])
    allowed = torch.tensor([False, True, True, True, False])
    assert picker.next(allowed) == (3, 9.0)
    picker.add(4)  # another than it named
    assert picker.next(allowed) == (2, 4.0)
    allowed[2] = False
    assert picker.next(allowed) == (1, 1.0)


def test_six_points_that_mislead_an_index() -> None:
    """small-text 1.4.1 re-uses positions among the unlabelled as rows of all, and picks rows 5 and 4 here."""
    x = torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.0, 0.1], [6.0, 0.0], [9.9, 0.0], [10.0, 0.0]])
    unlabelled = torch.tensor([2, 3, 4, 5])
    allowed = torch.isin(torch.arange(6), unlabelled)
    assert pick(KCenter(x, x[~allowed]), allowed, 2).tolist() == [5, 3]


# --- facility location


def served(x: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    return (unit @ unit.T).clamp_min(0)


@given(SHAPES, st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_facility_location_takes_the_greatest_gain(shape: tuple[int, int, int, bool], labelled: int) -> None:
    x = points(shape)
    labelled = min(labelled, len(x) - 1)
    alike = served(x)
    held = alike[:labelled].amax(0) if labelled else torch.zeros(len(x), dtype=torch.float64)
    picker, allowed = FacilityLocation(x, x[:labelled]), free(x, labelled)
    while allowed.any():
        gain = (alike - held).clamp_min(0).sum(1)
        row, value = picker.next(allowed)
        best = float(gain[allowed].max())
        assert allowed[row] and value == pytest.approx(float(gain[row]), abs=1e-4)
        assert float(gain[row]) >= best - 1e-4
        assert not (allowed & (gain >= best - 1e-7))[:row].any(), "of equals the smaller row"
        picker.add(row)
        allowed[row] = False
        held = torch.maximum(held, alike[row])


@given(st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_facility_location_by_parts_is_the_same(seed: int) -> None:
    x, _ = blobs([40, 30, 20], seed=seed, spread=3.0)
    whole = pick(FacilityLocation(x, x[:5]), free(x, 5), 20).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sizes.SIDE, "cpu", 7)
        patch.setitem(sizes.STRIP, "cpu", 5)
        patch.setitem(sizes.CELLS, "cpu", 50)
        assert pick(FacilityLocation(x, x[:5]), free(x, 5), 20).tolist() == whole


def test_facility_location_looks_only_at_near_rows_for_the_well_served(monkeypatch: pytest.MonkeyPatch) -> None:
    gen = torch.Generator().manual_seed(0)
    x = (3 * torch.eye(40)).repeat_interleave(50, 0) + 0.1 * torch.randn(2000, 40, generator=gen)
    picker, alike = FacilityLocation(x, x[::50]), served(x)  # a row of each of 40 clusters is labelled
    looked: list[int] = []
    of = FacilityLocation._of

    def counted(self: FacilityLocation, rows: Tensor, few: Tensor, low: Tensor, top: Tensor) -> Tensor:
        looked.append(len(rows) * len(few))
        return of(self, rows, few, low, top)

    monkeypatch.setattr(FacilityLocation, "_of", counted)
    rows = pick(picker, free(x), 30)
    held = alike[::50].amax(0)
    for row in rows.tolist():
        gain = (alike - held).clamp_min(0).sum(1)
        assert float(gain[row]) >= float(gain.max()) - 1e-4
        held = torch.maximum(held, alike[row])
    assert 0 < sum(looked) < 30 * 50 * len(x) / 20  # a twentieth of what all rows would cost: a cluster is a fortieth


def large_and_small_clusters() -> Tensor:
    gen = torch.Generator().manual_seed(0)
    sizes_of = torch.tensor([300, 300, 100, 100, 50, 50, 25, 25, 25, 25])
    centres = torch.nn.functional.pad(torch.randn(10, 20, generator=gen), (0, 30))
    x = (2 * centres + 0.1 * torch.randn(10, 50, generator=gen)).repeat_interleave(sizes_of, 0)
    return x + 0.2 * torch.randn(x.shape, generator=gen)


@pytest.mark.parametrize("allowed_from", [0, 600])
def test_facility_location_leaves_rows_alone_until_they_could_be_chosen(
    allowed_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clusters from large to small: when the turn of rows around picks comes, few are compared with those elsewhere.

    What is not allowed, here the large clusters, does not make all that is allowed small.
    """
    x = large_and_small_clusters()
    renewed: list[int] = []
    looked: list[int] = []
    renew, of = FacilityLocation._renew, FacilityLocation._of

    def counted(self: FacilityLocation, rows: Tensor, few: Tensor, low: Tensor, top: Tensor) -> Tensor:
        looked.append(len(rows) * len(few))
        return of(self, rows, few, low, top)

    def renewing(self: FacilityLocation, those: Tensor) -> None:
        renewed.append(int(those.sum()))
        with monkeypatch.context() as patch:
            patch.setattr(FacilityLocation, "_of", counted)
            renew(self, those)

    monkeypatch.setattr(FacilityLocation, "_renew", renewing)
    picker, alike, allowed = FacilityLocation(x, x[:0]), served(x), free(x, allowed_from)
    held, waited = torch.zeros(len(x), dtype=torch.float64), 0
    for _ in range(40):
        gain = (alike - held).clamp_min(0).sum(1)
        row, value = picker.next(allowed)
        assert value == pytest.approx(float(gain[row]), abs=2e-6 * len(x))
        assert float(gain[row]) >= float(gain[allowed].max()) - 2e-6 * len(x)
        picker.add(row)
        allowed[row] = False
        held = torch.maximum(held, alike[row])
        waited = max(waited, int(picker._late.sum()))
    assert waited > 100 and 1 <= len(renewed) <= 6, (waited, renewed)
    assert 0 < sum(looked) < 0.8 * sum(renewed) * len(x)  # without the triangle inequality all


def test_facility_location_lets_no_row_wait_while_labelled_rows_serve_most() -> None:
    """Rows that a labelled one serves best are compared with all that are worked out anew."""
    gen = torch.Generator().manual_seed(1)
    share = 0.9 ** torch.arange(50.0)
    x = 2 * torch.randn(50, 64, generator=gen)[torch.multinomial(share, 1000, True, generator=gen)]
    x = x + torch.randn(x.shape, generator=gen)
    picker, waited = FacilityLocation(x, x[::20]), []
    for row in pick(FacilityLocation(x, x[::20]), free(x), 100).tolist():
        picker.add(row)
        waited.append(bool(picker._late.any()))
        assert not waited[-1] or 2 * int((picker._pick >= 0).sum()) > len(x)
    assert waited[-1] and not waited[0], "the rule was never needed"


@pytest.mark.parametrize("threads", [2, 3])
def test_facility_location_is_the_same_on_any_number_of_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for some, size in ((sizes.CELLS, 1000), (sizes.SIDE, 64), (sizes.STRIP, 32)):
        monkeypatch.setitem(some, "cpu", size)
    x, _ = blobs([300, 250, 200, 180], spread=1.0)
    one = FacilityLocation(x, x[:0])
    rows = pick(one, free(x), 40)
    before = threading.active_count()
    torch.set_num_threads(threads)
    try:
        many = FacilityLocation(x, x[:0])
        assert before < threading.active_count() <= before + threads
        assert pick(many, free(x), 40).tolist() == rows.tolist() and torch.equal(many._gain, one._gain)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)


MEASURED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "facility_location": lambda x, key: FacilityLocation(x, x[:37])._gain,
    "k_means": lambda x, key: k_means(x, 40, key, 0).label,
    "typicality": lambda x, key: typicality(x[:1000]),
    "prob_cover": lambda x, key: ProbCover(x, 5**0.5 / 3, x[:37])._covered,
    "pure_radius": lambda x, key: torch.tensor(pure_radius(x, key % 2, key)),
}


@pytest.mark.parametrize("cells", [sizes.CELLS["cpu"], 1000])
@pytest.mark.parametrize("name", MEASURED)
def test_distances_are_the_same_on_any_number_of_threads(
    name: str, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's threads share one product, and its last bits hang on how many they are: rows between clusters move.

    Blocks of few cells go to threads of our own.
    """
    monkeypatch.setitem(sizes.CELLS, "cpu", cells)
    x = torch.randint(-2, 3, (3001, 8), generator=torch.Generator().manual_seed(0)) / 3  # many as near to two centres
    found = []
    for threads in (1, 3, 4):
        torch.set_num_threads(threads)
        try:
            found.append(MEASURED[name](x, torch.arange(len(x))))
        finally:
            torch.set_num_threads(1)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_thread_of_a_team_computes_as_the_one_that_asks() -> None:
    """A thread that torch has not set up gives a product to several cores, and a small one has other last bits then."""
    code = (
        "import torch; from dal_dense.select import FacilityLocation\n"
        "x = torch.randn(1285, 64, generator=torch.Generator().manual_seed(0)); gains = []\n"
        "for threads in (1, 2): torch.set_num_threads(threads); gains.append(FacilityLocation(x, x[:0])._gain)\n"
        "assert torch.equal(*gains), (gains[0] - gains[1]).abs().max()"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_facility_location_takes_no_copy_where_all_rows_are_alike() -> None:
    """The first pick takes nearly all there is; its roundings must not hide what is left."""
    gen = torch.Generator().manual_seed(0)
    x = (0.002 * torch.randn(1000, 64, generator=gen) + 1).repeat(2, 1)  # every row twice
    picker, allowed, alike = FacilityLocation(x, x[:0]), free(x), served(x)
    held = torch.zeros(len(x), dtype=torch.float64)
    for _ in range(300):
        row, _value = picker.next(allowed)
        if float((alike[row] - held).clamp_min(0).sum()) < 1e-6:
            assert float((alike - held)[allowed].clamp_min(0).sum(1).max()) < 1e-4
        picker.add(row)
        allowed[row] = False
        held = torch.maximum(held, alike[row])


# --- BADGE


def explicit_seeds(x: Tensor, first: int, key: Tensor, seed: int, count: int) -> list[int]:
    """k-means++ in float64 from this row on, every arrival up to date."""
    rows, length = [first], x.square().sum(1)
    far = torch.full_like(length, torch.inf)
    left = -noise.uniform(key, seed, "race").log()
    for _ in range(1, count):
        apart = (x - x[rows[-1]]).square().sum(1)
        far = torch.minimum(far, torch.where(apart > 1e-6 * (length + length[rows[-1]]), apart, 0)).clamp_min(1e-30)
        arrival = left / far
        arrival[rows] = torch.inf
        rows.append(int(arrival.argmin()))
        left = left - far * arrival[rows[-1]]
    return rows


def explicit_badge(residual: Tensor, x: Tensor, key: Tensor, seed: int, count: int) -> list[int]:
    """On gradients that are written out; the longest comes first, of copies that of the smallest key."""
    gradient = (residual.double()[:, :, None] * x.double()[:, None]).flatten(1)
    length = gradient.square().sum(1)
    first = min(range(len(x)), key=lambda row: (-float(length[row]), int(key[row])))
    return explicit_seeds(gradient, first, key, seed, count)


@given(st.integers(0, 10**6), st.integers(3, 40), st.integers(1, 4), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_badge_draws_what_explicit_gradients_draw(seed: int, n: int, classes: int, width: int) -> None:
    gen = torch.Generator().manual_seed(seed)
    residual, x = torch.randn(n, classes, generator=gen), torch.randn(n, width, generator=gen) + 1
    residual[n // 2], x[n // 2] = residual[0], x[0]  # a copy
    key = torch.randint(0, 2**62, (n,), generator=gen)
    gradient = (residual[:, :, None] * x[:, None]).flatten(1).double()
    length = gradient.square().sum(1)
    apart = (gradient[:, None] - gradient).square().sum(2) / (length[:, None] + length)
    assume(bool(((apart == 0) | (apart > 1e-4)).all()))  # nearly copies: rounding decides in float32
    wanted = explicit_badge(residual, x, key, seed, n - 1)
    assert pick(badge(residual, x, key, seed), free(x), n - 1).tolist() == wanted


def test_badge_draws_in_proportion_to_squared_distance() -> None:
    x, residual = torch.tensor([[10.0, 0.0], [10.0, 1.0], [10.0, 2.0], [10.0, 3.0]]), torch.ones(4, 1)
    picker = badge(residual, x, torch.arange(4), 0)
    assert picker.next(torch.ones(4, dtype=torch.bool))[0] == 3  # the longest
    drawn = torch.zeros(4)
    second = torch.zeros(4)
    for seed in range(2000):
        picker = badge(residual, x, torch.arange(4), seed)
        picker.add(0)
        row, _ = picker.next(torch.tensor([False, True, True, True]))
        drawn[row] += 1
        if row == 1:
            continue
        assert picker.next(torch.tensor([False, True, True, True]))[0] == row  # nothing was taken: nothing changes
        picker.add(row)
        far = picker.next(torch.arange(4) == 1)[1]
        assert far == pytest.approx(1)  # of row 1: row 0 is the nearest, or row 2
        if row == 2:  # left are rows 1 and 3, each at distance 1 from it
            second[picker.next(torch.tensor([False, True, False, True]))[0]] += 1
    for row, share in ((1, 1 / 14), (2, 4 / 14), (3, 9 / 14)):
        assert abs(float(drawn[row]) / 2000 - share) < 4.5 * math.sqrt(share * (1 - share) / 2000)
    assert abs(float(second[1] / second.sum()) - 1 / 2) < 4.5 * math.sqrt(0.25 / float(second.sum()))


def race_in_parts(columns: tuple[Tensor, Tensor, Tensor], parts: list[Tensor], count: int) -> list[tuple[float, ...]]:
    """Rows taken from all parts, of which each knows its own rows and what was taken; D^2 and time of arrival."""
    races = [badge(*(c[rows] for c in columns), 7) for rows in parts]  # type: ignore[arg-type]
    allowed = [torch.ones_like(rows, dtype=torch.bool) for rows in parts]
    taken: list[tuple[float, ...]] = []
    for _ in range(count):
        found = []
        for part, (rows, race, left) in enumerate(zip(parts, races, allowed, strict=True)):
            if left.any():
                row, far, time = race.soonest(left)
                found.append((time, int(columns[2][rows[row]]), int(rows[row]), far, part, row))
        time, _, which, far, part, row = min(found)
        allowed[part][row] = False
        for race in races:
            race.include([c[which : which + 1] for c in columns[:2]], time)
        taken.append((which, far, time))
    return taken


@given(
    shape=SHAPES,
    classes=st.integers(1, 3),
    parts=st.integers(1, 4),
    at_once=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(10, 200)),
)
@settings(max_examples=60, deadline=None)
def test_the_race_in_parts_is_the_same_to_the_last_bit(
    shape: tuple[int, int, int, bool], classes: int, parts: int, at_once: tuple[int, int, int]
) -> None:
    x, gen = points(shape), torch.Generator().manual_seed(shape[0])
    residual = torch.rand(len(x), classes, generator=gen)
    residual = residual.round(decimals=1) if shape[3] else residual
    key = torch.randint(0, 2**62, (len(x),), generator=gen)
    whole = race_in_parts((residual, x, key), [torch.arange(len(x))], len(x))
    mixed = torch.randperm(len(x), generator=gen)
    part = torch.randint(0, parts, (len(x),), generator=gen)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sizes.GROUP, "cpu", at_once[0])
        patch.setattr(SEEDS, "BLOCK", at_once[1])
        patch.setitem(sizes.CELLS, "cpu", at_once[2])
        assert race_in_parts((residual, x, key), [mixed[part == i] for i in range(parts)], len(x)) == whole


def test_of_rows_that_arrive_together_the_smaller_key_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "uniform", lambda keys, *_: torch.full_like(keys, 0.5, dtype=torch.float64))
    key = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    copies = torch.ones(30, 1), torch.ones(30, 2), key
    for parts in (torch.arange(30).split(30), torch.arange(30).split(7)):
        assert key[[int(row) for row, *_ in race_in_parts(copies, list(parts), 30)]].tolist() == list(range(30))
    assert key[pick(badge(*copies, 0), free(key), 30)].tolist() == list(range(30))


@pytest.mark.parametrize("width", [1, 2, 7, 256, 1500])
def test_inner_products_in_fixed_point_are_exact(width: int) -> None:
    gen = torch.Generator().manual_seed(width)
    x = torch.cat([torch.randn(10, width, generator=gen), 1 - torch.rand(10, width, generator=gen) / 64])  # long sums
    x *= torch.logspace(-9, 9, 20)[:, None]
    x[3], x[4] = 0, 1 - 2.0**-24  # which is rounded up to a power of two
    wide = SEEDS.fixed_point(x)
    exact = [[sum(map(Fraction.__mul__, a, b)) for b in map(fractions, wide)] for a in map(fractions, wide)]
    assert (wide @ wide.T).tolist() == exact and (wide.flip(1) @ wide.flip(1).T).tolist() == exact
    off = (wide - x.double()).abs().amax(1) / x.abs().amax(1).double().clamp_min(1e-30)
    assert float(off.max()) <= (2.0**-22 if width <= 256 else 2.0**-21)


def test_rows_of_any_float_type_are_left_as_they_are() -> None:
    for x in (torch.rand(5, 3, dtype=torch.float64), torch.rand(5, 3), torch.rand(5, 3).half(), torch.rand(5, 0)):
        before = x.clone()
        assert SEEDS.fixed_point(x).shape == x.shape and torch.equal(x, before)


def fractions(row: Tensor) -> list[Fraction]:
    return [Fraction(value) for value in row.tolist()]


def test_badge_draws_the_same_at_any_scale() -> None:
    """Squared lengths of these gradients are beyond float32."""
    gen = torch.Generator().manual_seed(0)
    residual, x, key = torch.rand(50, 3, generator=gen), torch.randn(50, 5, generator=gen), torch.arange(50)
    small, large = badge(residual, x, key, 1), badge(residual * 2.0**40, x * 2.0**50, key, 1)
    assert pick(small, free(x), 50).tolist() == pick(large, free(x), 50).tolist()


def test_badge_looks_at_all_rows_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    x, gen = blobs([500] * 10)[0], torch.Generator().manual_seed(0)
    residual, looks = torch.rand(len(x), 3, generator=gen), 0
    race = badge(residual, x, torch.arange(len(x)), 0)
    gather = race._gather

    def counted(allowed: Tensor) -> None:
        nonlocal looks
        looks += 1
        gather(allowed)

    monkeypatch.setattr(race, "_gather", counted)
    pick(race, free(x), 100)
    assert looks < 5


# --- k-means, TypiClust


@given(SHAPES, st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_k_means_never_gets_worse_and_repeats_itself(shape: tuple[int, int, int, bool], count: int) -> None:
    x = points(shape)
    key, inertia = torch.arange(len(x)) * 7919, [math.inf]
    for rounds in range(6):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MEANS, "ROUNDS", rounds)
            found = k_means(x, count, key, shape[0])
        inertia.append(float(found.squared.double().sum()))
        assert inertia[-1] <= inertia[-2] + 1e-3
        apart = (x.double()[:, None] - found.centres.double()).square().sum(-1)
        mine = apart.gather(1, found.label[:, None])[:, 0]
        assert (mine <= apart.amin(1) + 1e-4).all()
        torch.testing.assert_close(found.squared.double(), mine, atol=1e-4, rtol=1e-4)
    again, found = k_means(x, count, key, shape[0]), k_means(x, count, key, shape[0])
    assert torch.equal(again.label, found.label) and torch.equal(again.centres, found.centres)


def lloyd(x: Tensor, count: int, key: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Centres, and squared distances from them (N, K), by all differences in float64; for rows without near ties."""
    x = x.double()
    first = int(noise.uniform(key, seed, "first").argmax())
    centres = x[explicit_seeds(x - x.mean(0), first, key, seed, min(count, len(x)))]
    label = None
    while True:
        apart = (x[:, None] - centres).square().sum(2)
        near = apart.topk(min(2, len(centres)), largest=False).values
        assume(bool((near[:, -1] - near[:, 0] > 1e-4).all()) or len(centres) == 1)
        if label is not None and torch.equal(label, apart.argmin(1)):
            return centres, apart
        label = apart.argmin(1)
        for c in label.unique().tolist():
            centres[c] = x[label == c].mean(0)


def are_by_turns(rows: list[int], label: Tensor, worth: Tensor, had: Tensor, within: float) -> None:
    """Each row is the best left of the cluster whose turn it is: fewest had, then largest, then the smaller number."""
    count, size = had.tolist(), torch.bincount(label, minlength=len(had)).tolist()
    left = [row for row in range(len(label)) if worth[row] > -math.inf]
    for row in rows:
        turn = min({int(label[r]) for r in left}, key=lambda c: (count[c], -size[c], c))
        assert label[row] == turn and row in left
        assert worth[row] >= max(float(worth[r]) for r in left if label[r] == turn) - within
        left.remove(row)
        count[turn] += 1


DISTINCT = st.tuples(st.integers(0, 10**6), st.integers(2, 40), st.integers(2, 6), st.just(False))


@given(DISTINCT, st.integers(1, 8), st.integers(0, 3), st.integers(-3, 3))
@settings(max_examples=60, deadline=None)
def test_k_means_and_its_picks_are_those_of_float64(
    shape: tuple[int, int, int, bool], count: int, labelled: int, offset: int
) -> None:
    x = points(shape) + 100.0 * offset
    labelled = min(labelled, len(x) - 1)
    key, among = torch.arange(len(x)) * 7919, free(x, labelled)
    centres, apart = lloyd(x[labelled:], count, key[labelled:], shape[0])
    squared, label = apart.min(1)
    found = k_means(x[labelled:], count, key[labelled:], shape[0])
    assert torch.equal(found.label, label)
    torch.testing.assert_close(found.centres.double(), centres, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.squared.double(), squared, atol=1e-3, rtol=0)
    rows = pick(k_means_picker(x, among, count, key, shape[0]), among, len(x))
    assert len(rows) == len(x) - labelled
    none_had = torch.zeros(len(centres), dtype=torch.int64)
    are_by_turns((rows - labelled).tolist(), label, -squared, none_had, 1e-3)


@given(DISTINCT, st.integers(1, 6), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_typiclust_picks_are_those_of_float64(shape: tuple[int, int, int, bool], count: int, labelled: int) -> None:
    x, seed = points(shape), shape[0]
    labelled = min(labelled, len(x) - 1)
    key, known = torch.arange(len(x)) * 7919, ~free(x, labelled)
    label = lloyd(x, labelled + count, key, seed)[1].argmin(1)
    between = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
    between.fill_diagonal_(math.inf)
    assume(bool((between > 0.05).all()))  # of a product a small distance has few digits
    worth = torch.full((len(x),), -math.inf, dtype=torch.float64)
    for row in range(labelled, len(x)):
        mine = between[row, (label == label[row]) & ~known]
        near = mine[mine < math.inf].sort().values[:3]
        worth[row] = -near.mean() if len(near) else 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TYPICAL, "NEIGHBOURS", 3)  # fewer than a cluster has
        rows = pick(typiclust(x, known, count, key, seed), ~known, len(x))
    assert len(rows) == len(x) - labelled
    had = torch.bincount(label[known], minlength=labelled + count)
    are_by_turns(rows.tolist(), label, worth, had, 1e-3)


def test_k_means_leaves_an_empty_cluster_where_it_is() -> None:
    x = torch.zeros(5, 2)
    found = k_means(x, 3, torch.arange(5), 0)
    assert found.label.tolist() == [0] * 5 and not found.squared.any() and found.centres.isfinite().all()
    centres = torch.arange(6.0).view(3, 2)
    assert MEANS._means(x + 7, torch.ones(5, dtype=torch.int64), centres).tolist() == [[0, 1], [7, 7], [4, 5]]


def test_k_means_picks_the_middle_of_each_blob_the_largest_first() -> None:
    x, which = blobs([30, 20, 25, 10])
    picker = k_means_picker(x, free(x), 4, torch.arange(len(x)), 0)
    rows = pick(picker, free(x), 6)
    assert which[rows].tolist() == [0, 2, 1, 3, 0, 2]  # and by turns again
    for row in rows[:4].tolist():
        mine = which == which[row]
        middle = x[mine].mean(0)
        assert row == int((x - middle).norm(dim=1).masked_fill(~mine, math.inf).argmin())


def test_k_means_leaves_labelled_rows_aside() -> None:
    x, which = blobs([30, 20])
    picker = k_means_picker(x, which == 1, 2, torch.arange(len(x)), 0)
    assert (which[pick(picker, which == 1, 20)] == 1).all()


@pytest.mark.parametrize("seed", range(5))
def test_typiclust_takes_a_typical_row_of_each_blob_without_a_label(seed: int) -> None:
    x, which = blobs([40, 10, 30, 20], seed=seed)
    labelled = torch.arange(len(x)) == 3  # in the largest
    picker = typiclust(x, labelled, 3, torch.arange(len(x)), seed)
    rows = pick(picker, ~labelled, 4)
    assert which[rows].tolist() == [2, 3, 1, 0]
    for row in rows.tolist():
        mine = ((which == which[row]) & ~labelled).nonzero()[:, 0]
        apart = torch.cdist(x[mine].double(), x[mine].double())
        near = apart.sort(dim=1).values[:, 1 : 1 + min(20, len(mine) - 1)].mean(1)
        assert row == int(mine[near.argmin()])


def test_typicality_by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)) + 50
    apart = torch.cdist(x.double(), x.double()).sort(dim=1).values[:, 1:21].mean(1)
    torch.testing.assert_close(-typicality(x).double(), apart, atol=1e-4, rtol=0)
    monkeypatch.setitem(sizes.CELLS, "cpu", 200)
    torch.testing.assert_close(-typicality(x).double(), apart, atol=1e-4, rtol=0)
    assert typicality(x[:1]).tolist() == [0]


# --- ProbCover


def cover_by_graph(x: Tensor, radius: float, labelled: int, count: int) -> list[int]:
    """From the whole graph, in float64."""
    edge = (x.double()[:, None] - x.double()).norm(dim=-1) < radius
    covered, rows = edge[:labelled].any(0), list[int]()
    for _ in range(count):
        gain = (edge & ~covered).sum(1)
        gain[list(range(labelled)) + rows] = -1
        rows.append(int(gain.argmax()))
        covered |= edge[rows[-1]]
    return rows


@given(SHAPES, st.integers(0, 3), st.sampled_from([0.3, 1.2, 2.1, 3.3]), st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_prob_cover_is_that_of_the_graph(
    shape: tuple[int, int, int, bool], labelled: int, radius: float, side: int
) -> None:
    x = points(shape)  # the squared radius is no whole number: on the grid no distance equals it
    assume(((torch.cdist(x, x) - radius).abs() > 1e-3).all())
    labelled = min(labelled, len(x) - 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sizes.SIDE, "cpu", side)
        rows = pick(ProbCover(x, radius, x[:labelled]), free(x, labelled), len(x)).tolist()
    assert rows == cover_by_graph(x, radius, labelled, len(x) - labelled)


def test_prob_cover_leaves_no_row_out() -> None:
    """The published code's loop over blocks of 500 leaves out the last N mod 500 rows."""
    x = torch.cat([torch.arange(1000.0)[:, None] * 5, torch.full((30, 1), -50.0)])
    assert pick(ProbCover(x, 1.0, x[:0]), free(x), 1).tolist() == [1000]


def test_pure_radius_is_the_largest_whose_balls_are_pure() -> None:
    x = torch.cat([torch.arange(100.0), 150 + torch.arange(100.0)])[:, None]  # nearest row of the other: 51 to 150
    label = (torch.arange(200) >= 100).long()
    radius = pure_radius(x, label, torch.arange(200))
    apart = torch.cdist(x, x)
    pure = [float(((apart < r) <= (label[:, None] == label)).all(1).double().mean()) for r in (radius, radius + 1)]
    assert pure[0] >= 0.95 > pure[1]
    assert pure_radius(x, 0 * label, torch.arange(50)) == math.inf
    assert pure_radius(x, label, label[:0]) == pure_radius(x[:0], label[:0], label[:0]) == math.inf


def purity(x: Tensor, label: Tensor, radius: float) -> float:
    """Share of balls that hold one cluster only."""
    return float(((torch.cdist(x, x) < radius) <= (label[:, None] == label)).all(1).double().mean())


def test_of_few_balls_all_are_pure() -> None:
    x = torch.tensor([0.0, 1, 2, 5, 9])[:, None]
    label = torch.tensor([0, 0, 0, 1, 1])
    radius = pure_radius(x, label, torch.arange(5))
    assert 2.99 < radius < 3
    assert purity(x, label, radius) == 1


@pytest.mark.parametrize("many", [3, 40])
def test_copies_in_two_clusters_do_not_make_the_radius_nothing(many: int) -> None:
    place = torch.tensor([0.1234567, 98.7654321])  # whose products are not exact
    x = torch.cat([place.repeat(2, 1), place + torch.rand(many, 2), place - 20 - torch.rand(many, 2)])
    label = torch.tensor([0, 1, *[0] * many, *[1] * many])
    near = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
    near = near.masked_fill(label[:, None] == label, math.inf).amin(1)
    radius = pure_radius(x, label, torch.arange(len(x)))
    assert 0 < radius < float(near[near > 0].sort().values[max(0, len(x) // 20 - 2)]) + 1e-4
    assert pure_radius(x[:2], label[:2], torch.arange(2)) == 0  # nothing but copies


def covered_by_all(x: Tensor, radius: float) -> ProbCover:
    picker = ProbCover(x, radius, x[:0])
    assert len(pick(picker, free(x), len(x))) == len(x)
    return picker


@pytest.mark.parametrize("pairs", [10, 20, 30])
def test_rows_that_are_each_others_nearest_enemy_do_not_make_their_distance_the_radius(pairs: int) -> None:
    gen = torch.Generator().manual_seed(0)
    place = 30 * torch.randn(pairs, 4, generator=gen) + torch.arange(pairs)[:, None] * 50.0
    apart = 1 + 0.1 * torch.arange(pairs)  # of two rows each, so every distance is there twice
    step = torch.nn.functional.normalize(torch.randn(pairs, 4, generator=gen), dim=1) * apart[:, None]
    x, label = torch.cat([place, place + step]), torch.arange(2 * pairs) // pairs
    radius = pure_radius(x, label, torch.arange(len(x)))
    assert radius == pytest.approx(0.999 if pairs == 10 else 1.05, abs=2e-4)  # below the first, or the first two
    assert not covered_by_all(x, radius)._count.any()


@pytest.mark.parametrize("scale", [0.1, 1 / 3])
@pytest.mark.parametrize("offset", [0, 100])
def test_counts_of_prob_cover_end_at_nothing(scale: float, offset: int) -> None:
    """On a grid most distances are equal, but for their rounding; a radius among them counts some rows by chance."""
    for seed in range(16):
        x, gen = points((seed, 120, 1 + seed % 4, True)) * scale + offset, torch.Generator().manual_seed(seed)
        radius = pure_radius(x, torch.randint(0, 3, (len(x),), generator=gen), torch.arange(len(x)))
        assert not covered_by_all(x, radius)._count.any()


# --- all


def made(name: str, x: Tensor, key: Tensor) -> Picker:
    return {
        "k_center": lambda: KCenter(x, x[:0]),
        "facility_location": lambda: FacilityLocation(x, x[:0]),
        "badge": lambda: badge(x[:, :2].abs() if x.shape[1] else torch.ones(len(x), 2), x, key, 5),
        "k_means": lambda: k_means_picker(x, free(x), 4, key, 5),
        "typiclust": lambda: typiclust(x, torch.zeros_like(key, dtype=torch.bool), 4, key, 5),
        "prob_cover": lambda: ProbCover(x, 2.0, x[:0]),
    }[name]()


NAMES = ("k_center", "facility_location", "badge", "k_means", "typiclust", "prob_cover")


@pytest.mark.parametrize("name", (*NAMES, "pure_radius"))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_features_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    x, key = points((0, 50, 4, False)), torch.arange(50)
    x[30, 3] = bad
    with pytest.raises(ValueError, match=r"a feature is not finite.*look for NaN"):
        pure_radius(x, key, key) if name == "pure_radius" else made(name, x, key)


@pytest.mark.parametrize("name", ["facility_location", "k_means", "typiclust", "prob_cover"])
def test_features_whose_squares_overflow_are_refused_by_all_that_square_them(name: str) -> None:
    x, key = points((0, 50, 4, False)), torch.arange(50)
    with pytest.raises(ValueError, match="exceed float32"):
        made(name, x * 1e19, key)
    rows = pick(made(name, x * 2.0**58, key), free(x), 50)  # 3e17, and any power of two is exact
    assert len(rows.unique()) == 50
    if name != "prob_cover":  # whose radius is not scaled
        assert rows.tolist() == pick(made(name, x, key), free(x), 50).tolist()


@pytest.mark.parametrize("kind", [KCenter, FacilityLocation, lambda x, c: ProbCover(x, 1.0, c)])
def test_centres_that_are_not_finite_are_refused(kind: Callable[[Tensor, Tensor], Picker]) -> None:
    x = points((0, 50, 4, False))
    for bad in (math.nan, math.inf, 1e20):
        with pytest.raises(ValueError, match="a feature is not finite"):
            kind(x, x[:2] * bad)


@pytest.mark.parametrize("name", (*NAMES, "pure_radius"))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_other_types_are_refused(name: str, dtype: torch.dtype) -> None:
    x, key = points((0, 50, 4, False)).to(dtype), torch.arange(50)
    word = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=rf"must be float32; got {word}; call \.float\(\)"):
        pure_radius(x, key, key) if name == "pure_radius" else made(name, x, key)


@pytest.mark.parametrize("name", NAMES)
def test_features_of_no_width_are_all_alike(name: str) -> None:
    x, key = torch.zeros(30, 0), torch.arange(30)
    assert sorted(pick(made(name, x, key), free(x), 30).tolist()) == list(range(30))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_neither_order_nor_blocks_matter(name: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = blobs([30, 25, 20, 18], spread=5.0, seed=seed)
    key = torch.randint(0, 2**62, (len(x),), generator=torch.Generator().manual_seed(seed))
    rows = pick(made(name, x, key), free(x), 12)
    if name != "prob_cover":  # counts are equal by chance, and of equals the smaller row is taken
        mixed = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        assert rows.tolist() == mixed[pick(made(name, x[mixed], key[mixed]), free(x), 12)].tolist()
    monkeypatch.setitem(sizes.SIDE, "cpu", 7)
    monkeypatch.setitem(sizes.STRIP, "cpu", 5)
    monkeypatch.setitem(sizes.CELLS, "cpu", 60)
    assert pick(made(name, x, key), free(x), 12).tolist() == rows.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_a_device_picks_the_same(name: str, device: torch.device) -> None:
    x, _ = blobs([300, 250, 200, 180], spread=1.0)
    key = torch.arange(len(x))
    here = pick(made(name, x, key), free(x), 40)
    there = pick(made(name, x.to(device), key.to(device)), free(x).to(device), 40)
    assert there.is_cuda and here.tolist() == there.tolist()


def test_facility_location_on_a_device_works_out_anew_what_waited(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, renewed = large_and_small_clusters(), []
    renew = FacilityLocation._renew

    def renewing(self: FacilityLocation, those: Tensor) -> None:
        renewed.append(those.is_cuda)
        renew(self, those)

    here = pick(FacilityLocation(x, x[:0]), free(x), 40)
    monkeypatch.setattr(FacilityLocation, "_renew", renewing)
    there = pick(FacilityLocation(x.to(device), x[:0].to(device)), free(x).to(device), 40)
    assert renewed and all(renewed) and here.tolist() == there.tolist()
