"""Draws belong to (seed, stream, region): no order, chunk or shard changes them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dal_dense import noise
from dal_dense.regions import Regions

KEYS = torch.randint(0, 2**63 - 1, (5003,), generator=torch.Generator().manual_seed(0))
DRAWS = (noise.uniform, noise.gumbel)


def splitmix64(state: int) -> int:
    """Steele, Lea & Flood (2014), in Python's own integers."""
    z = (state + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_the_mixer_is_splitmix64() -> None:
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]  # for seed 1234567
    state = 1234567
    for number in published:
        assert splitmix64(state) == number
        assert int(noise._mix(torch.tensor(noise._signed(state)))) % 2**64 == number
        state = (state + 0x9E3779B97F4A7C15) % 2**64


def test_draws_are_what_the_mixer_says_on_any_machine() -> None:
    seed = noise.derive_seed(5, "power")
    assert seed == 5641127225742418380  # b2sum -l 64 of "5/power", without the top bit
    wanted = [((splitmix64(int(k) ^ seed) >> 11) + 0.5) * 2.0**-53 for k in KEYS[:50]]
    assert noise.uniform(KEYS[:50], 5, "power").tolist() == wanted
    gumbel = [-math.log(-math.log(u)) for u in wanted]
    assert noise.gumbel(KEYS[:50], 5, "power").tolist() == pytest.approx(gumbel, rel=1e-12)


def test_the_largest_draw_is_below_one() -> None:
    largest = torch.tensor([4643069256314092908])  # whose 53 bits are all ones
    assert noise.uniform(largest, 0, "power").tolist() == [1 - 2.0**-53]
    assert noise.gumbel(largest, 0, "power").tolist() == [pytest.approx(53 * math.log(2))]


@pytest.mark.parametrize("draw", DRAWS)
@given(size=st.integers(1, 5003), shuffle=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_order_and_chunk_size_change_no_bit(draw: object, size: int, shuffle: int) -> None:
    assert callable(draw)
    whole = draw(KEYS, 3, "a")
    mixed = torch.randperm(len(KEYS), generator=torch.Generator().manual_seed(shuffle))
    parts = torch.cat([draw(KEYS[part], 3, "a") for part in mixed.split(size)])
    assert torch.equal(parts, whole[mixed])


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("shards", [2, 3, 7])
def test_shards_change_no_bit(draw: object, shards: int) -> None:
    assert callable(draw)
    whole = draw(KEYS, 3, "a")
    for rank in range(shards):  # every so manieth row, as ranks share a pool: a view with steps in memory
        assert torch.equal(draw(KEYS[rank::shards], 3, "a"), whole[rank::shards])


def test_keys_belong_to_image_and_box_alone() -> None:
    start = torch.randint(0, 500, (300, 3), generator=torch.Generator().manual_seed(1))
    boxes = Regions(start, start + torch.randint(1, 50, (300, 3), generator=torch.Generator().manual_seed(2)))
    keys = noise.region_keys("case", boxes)
    mixed = torch.randperm(300, generator=torch.Generator().manual_seed(3))
    parts = torch.cat([noise.region_keys("case", boxes[part]) for part in mixed.split(7)])
    assert torch.equal(parts, keys[mixed])
    assert len(keys.unique()) == 300 and int(keys.min()) >= 0
    assert not torch.isin(noise.region_keys("other", boxes), keys).any()
    assert not torch.isin(noise.region_keys("case", Regions(start, boxes.stop + 50)), keys).any()
    swapped = Regions(boxes.start.flip(1), boxes.stop.flip(1))
    assert not torch.isin(noise.region_keys("case", swapped), keys)[boxes.start[:, 0] != boxes.start[:, 2]].any()


def test_draws_are_even_and_streams_know_nothing_of_each_other() -> None:
    rows = torch.arange(100_000)  # keys in a row: the mixer must hide it
    draws = torch.stack([noise.uniform(rows, 1, "a"), noise.uniform(rows, 1, "b"), noise.uniform(rows, 2, "a")])
    counts = torch.histc(draws[0], 100, 0, 1)
    chi2 = float(((counts - 1000) ** 2 / 1000).sum())
    assert 60 < chi2 < 150  # 99 degrees of freedom: 0.1 % lies beyond either end
    after = draws[0].roll(1)
    assert (torch.corrcoef(torch.cat([draws, after[None]])) - torch.eye(4)).abs().max() < 0.02
    gumbel = noise.gumbel(rows, 1, "a")
    assert float(gumbel.mean()) == pytest.approx(0.5772, abs=0.02)  # Euler's constant
    assert float(gumbel.var()) == pytest.approx(math.pi**2 / 6, abs=0.04)
