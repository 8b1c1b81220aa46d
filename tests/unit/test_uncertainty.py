"""Streamed maps against the definitions in float64, and against values worked out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dal_dense import uncertainty
from dal_dense.uncertainty import MAPS, DrawSums

SEEDS = st.integers(0, 2**31)


def stack(seed: int, draws: int, classes: int, grid: tuple[int, ...], sharp: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(draws, classes, *grid, generator=generator, dtype=torch.float64)
    return torch.softmax(sharp * logits, 1)


def streamed(draws: torch.Tensor) -> DrawSums:
    sums = DrawSums()
    for draw in draws:
        sums.add(draw)
    return sums


@settings(deadline=None)
@given(SEEDS, st.integers(1, 8), st.integers(2, 6), st.sampled_from([(7,), (3, 5), (2, 3, 4)]), st.floats(0.1, 20))
def test_streamed_maps_equal_the_definitions(seed: int, n: int, classes: int, grid: tuple[int, ...], s: float) -> None:
    draws = stack(seed, n, classes, grid, s)
    maps = streamed(draws.float()).maps(MAPS)
    top = draws.mean(0).topk(2, 0).values
    expected = {
        "predictive_entropy": uncertainty.predictive_entropy(draws),
        "expected_entropy": uncertainty.expected_entropy(draws),
        "mutual_information": uncertainty.mutual_information(draws),
        "margin": 1 - (top[0] - top[1]),
        "least_confidence": 1 - top[0],
    }
    assert set(maps) == set(expected)
    for name, values in maps.items():
        assert values.dtype == torch.float32
        assert (values >= 0).all()
        torch.testing.assert_close(
            values.double(), expected[name], atol=3e-6, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_values_by_hand() -> None:
    """Two draws that are sure of opposite classes; two that agree on a fair coin; one voxel that is sure."""
    first = torch.tensor([[1.0, 0.5, 1.0], [0.0, 0.5, 0.0]])
    second = torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.5, 0.0]])
    maps = streamed(torch.stack([first, second])).maps(MAPS)
    ln2 = math.log(2)
    torch.testing.assert_close(maps["predictive_entropy"], torch.tensor([ln2, ln2, 0.0]))
    torch.testing.assert_close(maps["expected_entropy"], torch.tensor([0.0, ln2, 0.0]))
    torch.testing.assert_close(maps["mutual_information"], torch.tensor([ln2, 0.0, 0.0]))
    torch.testing.assert_close(maps["margin"], torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(maps["least_confidence"], torch.tensor([0.5, 0.5, 0.0]))


def test_three_classes_by_hand() -> None:
    maps = streamed(torch.tensor([[[0.5], [0.3], [0.2]]])).maps(MAPS)
    assert maps["predictive_entropy"].item() == pytest.approx(1.0296530, abs=1e-6)
    assert maps["margin"].item() == pytest.approx(0.8)
    assert maps["least_confidence"].item() == pytest.approx(0.5)


@settings(deadline=None)
@given(SEEDS)
def test_class_entropy_adds_up_to_the_entropy(seed: int) -> None:
    mean = stack(seed, 1, 5, (4, 6)).float()[0]
    entropy = uncertainty.entropy(mean)
    shares = torch.stack([uncertainty.class_entropy(p, entropy) for p in mean])
    torch.testing.assert_close(shares.sum(0), entropy)
    torch.testing.assert_close(shares / shares.sum(0), mean)


@settings(deadline=None)
@given(SEEDS, st.integers(2, 5))
def test_likeliest_is_argmax_with_ties_to_the_lower_class(seed: int, classes: int) -> None:
    probs = torch.randint(0, 3, (classes, 50), generator=torch.Generator().manual_seed(seed)).float()
    assert torch.equal(uncertainty.likeliest(probs).long(), probs.argmax(0))


def test_many_equal_draws_have_no_mutual_information() -> None:
    """256 float32 sums keep their accuracy; without the clamp some values would lie below 0."""
    draw = stack(0, 1, 4, (1000,)).float()[0]
    maps = streamed(draw.expand(256, -1, -1)).maps(["mutual_information"])
    assert maps["mutual_information"].min() >= 0
    assert maps["mutual_information"].max() < 1e-5


def test_draws_are_not_kept_nor_changed() -> None:
    draw = stack(0, 1, 3, (4, 4)).float()[0]
    before = draw.clone()
    sums = DrawSums()
    sums.add(draw)
    sums.add(draw)
    sums.maps(MAPS)
    assert torch.equal(draw, before)
    torch.testing.assert_close(sums.mean(), before)
    single = DrawSums()
    single.add(draw)
    draw.zero_()
    torch.testing.assert_close(single.mean(), before)


def test_half_precision_draws_are_summed_in_float32() -> None:
    draws = stack(1, 64, 3, (500,)).to(torch.bfloat16)
    torch.testing.assert_close(streamed(draws).mean(), draws.float().mean(0), atol=1e-6, rtol=0)


def test_refusals() -> None:
    sums = DrawSums()
    with pytest.raises(ValueError, match="no draw was added"):
        sums.mean()
    with pytest.raises(ValueError, match="classes >= 2"):
        sums.add(torch.ones(1, 4))
    sums.add(torch.ones(2, 4) / 2)
    with pytest.raises(ValueError, match=r"draw 1 is \(2, 5\), the first \(2, 4\)"):
        sums.add(torch.ones(2, 5) / 2)
    with pytest.raises(ValueError, match="no uncertainty map is called 'bald'; there are predictive_entropy"):
        sums.maps(["bald"])
