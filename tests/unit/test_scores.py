"""Box means and greedy choice against brute force."""

import itertools
import math
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dal_dense import window_sums
from dal_dense.regions import Regions, slices
from dal_dense.scores import box_means, coarse_stride, fitted, means_in, peaks, starts, topk_in, topk_means

SEEDS = st.integers(0, 2**31)


@st.composite
def windows(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    axes = draw(st.sampled_from([2, 3]))
    sides = st.integers(1, 9 if axes == 2 else 6)
    shape, size = (tuple(draw(sides) for _ in range(axes)) for _ in range(2))
    return shape, size, tuple(draw(st.integers(1, 4)) for _ in range(axes))


def grid(seed: int, shape: tuple[int, ...], levels: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if levels is not None:  # few values, so that there are ties
        return torch.randint(0, levels, shape, generator=generator).float()
    return torch.rand(shape, generator=generator)


def boxes_of(shape: tuple[int, ...], size: tuple[int, ...], stride: tuple[int, ...]) -> Regions:
    side = fitted(size, shape)
    pairs = [
        (p, tuple(a + s for a, s in zip(p, side, strict=True))) for p in itertools.product(*starts(shape, size, stride))
    ]
    return Regions.of(pairs, len(shape))


@settings(deadline=None)
@given(windows(), SEEDS, st.booleans(), st.sampled_from([1, 30, 1 << 17]), st.booleans())
def test_box_means_equal_brute_force(window: tuple, seed: int, weighted: bool, slab: int, turned: bool) -> None:
    shape, size, stride = window
    values = grid(seed, shape[::-1]).T if turned and len(shape) == 2 else grid(seed, shape)
    weight = grid(seed + 1, shape) if weighted else None
    product = values.double() * (1 if weight is None else weight.double())
    expected = torch.stack([product[slices(b)].mean() for b in boxes_of(*window).boxes()])
    with mock.patch.object(window_sums, "ON_CPU", slab):  # slabs of a plane, of a few, of all
        got = box_means(values, size, stride, weight)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.flatten().double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 3), (3, 2)])
def test_box_means_of_a_map_whose_axes_were_swapped(size: tuple[int, int]) -> None:
    values = grid(3, (5, 4)).T
    for slab in (1, 1 << 17):
        with mock.patch.object(window_sums, "ON_CPU", slab):  # one row of it is a strided view
            torch.testing.assert_close(box_means(values, size), box_means(values.contiguous(), size))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_box_means_of_other_types_are_added_up_in_float32(dtype: torch.dtype) -> None:
    values = (2000 * grid(1, (40, 50))).to(dtype)
    got = box_means(values, (31, 32))
    assert got.dtype == torch.float32
    assert got[4, 5].item() == pytest.approx(values[4:35, 5:37].double().mean().item(), rel=1e-6)


def test_boxes_of_equal_content_have_equal_means_in_any_slab() -> None:
    """Ties are broken by position, so two equal boxes must not differ by where the image was cut."""
    values = grid(2, (11, 7, 9)).repeat(3, 3, 3)
    means = [box_means(values, (11, 7, 9))]
    for slab in (1, 200, 5000):
        with mock.patch.object(window_sums, "ON_CPU", slab):
            means.append(box_means(values, (11, 7, 9)))
    assert all(torch.equal(means[0], other) for other in means)
    corners = means[0][::11, ::7, ::9]
    assert (corners == corners[0, 0, 0]).all()


@settings(deadline=None)
@given(windows(), SEEDS, st.floats(0.01, 1))
def test_topk_means_equal_brute_force(window: tuple, seed: int, share: float) -> None:
    shape, size, stride = window
    values = grid(seed, shape)
    boxes = boxes_of(*window)
    expected = []
    for box in boxes.boxes():
        voxels = sorted(values[slices(box)].flatten().tolist(), reverse=True)
        top = voxels[: max(1, math.ceil(share * len(voxels)))]
        expected.append(sum(top) / len(top))
    torch.testing.assert_close(topk_means(values, size, stride, share).flatten(), torch.tensor(expected))
    torch.testing.assert_close(topk_in(values, boxes, share), torch.tensor(expected))


@settings(deadline=None)
@given(windows())
def test_positions_reach_every_voxel_when_the_stride_is_no_longer_than_the_box(window: tuple) -> None:
    shape, size, stride = window
    for n, s, step, column in zip(shape, fitted(size, shape), stride, starts(*window), strict=True):
        assert column[0] == 0 and column[-1] == n - s and column == sorted(set(column))
        if step <= s:
            assert {v for p in column for v in range(p, p + s)} == set(range(n))


def test_box_means_do_not_drift() -> None:
    """float32 with a large offset far away: a running total over the axis would lose the small values."""
    values = torch.zeros(4096, 4)
    values[0] = 1e8
    values[-8:] = 1e-3
    got = box_means(values, (8, 4))
    assert got[1:4081].count_nonzero() == 0
    assert got[-1, 0].item() == pytest.approx(1e-3, rel=1e-6)


def test_one_bad_voxel_spoils_only_its_own_boxes() -> None:
    values = torch.zeros(20, 20)
    values[10, 10] = math.nan
    got = box_means(values, (3, 3))
    assert got.isnan().sum() == 9


@pytest.mark.parametrize("size", [(5, 5, 5), (7, 13, 11), (21, 10, 22), (1, 6, 23)])
def test_box_means_equal_average_pooling(size: tuple[int, int, int]) -> None:
    """Sides with many binary digits, where earlier sums are wanted again late."""
    values = grid(4, (25, 26, 27))
    expected = torch.nn.functional.avg_pool3d(values.double()[None, None], size, 1)[0, 0]
    torch.testing.assert_close(box_means(values, size).double(), expected, atol=1e-6, rtol=1e-6)


def test_values_of_large_boxes_are_exact_to_float32() -> None:
    values = grid(0, (60, 70, 50))
    got = box_means(values, (48, 48, 48))[5, 7, 1]
    assert got.item() == pytest.approx(values[5:53, 7:55, 1:49].double().mean().item(), rel=3e-7)
    whole = means_in(values[None], Regions.of([((0, 0, 0), tuple(values.shape))], 3))
    assert whole.item() == pytest.approx(values.double().mean().item(), rel=3e-7)


def brute_peaks(scores: torch.Tensor, boxes: Regions, count: int, blocked: Regions) -> list[int]:
    free = ~boxes.overlaps(blocked).any(1)
    chosen: list[int] = []
    values = scores.flatten().tolist()
    while len(chosen) < count:
        open_rows = [i for i in range(len(boxes)) if free[i] and values[i] > -math.inf]
        if not open_rows:
            break
        best = max(open_rows, key=lambda i: (values[i], -i))
        chosen.append(best)
        free &= ~boxes.overlaps(boxes[torch.tensor([best])])[:, 0]
    return chosen


@settings(deadline=None)
@given(windows(), SEEDS, st.integers(0, 6), st.integers(0, 3), st.booleans())
def test_peaks_equal_brute_force(window: tuple, seed: int, count: int, walls: int, ties: bool) -> None:
    shape, size, stride = window
    boxes = boxes_of(*window)
    lattice = tuple(len(c) for c in starts(*window))
    scores = grid(seed, lattice, levels=3 if ties else None)
    generator = torch.Generator().manual_seed(seed + 1)
    low = torch.stack([torch.randint(0, n, (walls,), generator=generator) for n in shape], 1)
    blocked = Regions(low, torch.minimum(low + 2, torch.tensor(shape)))
    expected = brute_peaks(scores, boxes, count, blocked)
    found, values = peaks(scores.clone(), size, stride, count, blocked, shape)
    assert list(found.boxes()) == [list(boxes.boxes())[i] for i in expected]
    assert values.tolist() == [scores.flatten()[i].item() for i in expected]
    assert not found.overlaps(blocked).any()
    assert found.overlaps(found).sum() == len(found)


def test_peaks_stop_when_nothing_is_left() -> None:
    scores = torch.tensor([[1.0, -math.inf], [2.0, 3.0]])
    found, values = peaks(scores, (1, 1), 1, 10, Regions.of([], 2), (2, 2))
    assert values.tolist() == [3, 2, 1]
    assert len(found) == 3


@settings(deadline=None)
@given(windows(), SEEDS, st.booleans())
def test_means_in_boxes_equal_brute_force(window: tuple, seed: int, weighted: bool) -> None:
    values = torch.stack([grid(seed + c, window[0]) for c in range(3)])
    weight = grid(seed + 9, window[0]) if weighted else None
    product = values.double() * (1 if weight is None else weight.double())
    boxes = boxes_of(*window)
    expected = torch.stack([product[(slice(None), *slices(b))].flatten(1).mean(1) for b in boxes.boxes()])
    got = means_in(values, boxes, weight)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, atol=1e-6, rtol=1e-6)


def test_a_box_larger_than_the_image_is_cut_to_it() -> None:
    assert box_means(torch.ones(4, 6), (9, 2)).shape == (1, 5)
    found, _ = peaks(torch.ones(1, 5), (9, 2), 1, 9, Regions.of([], 2), (4, 6))
    assert list(found.boxes()) == [((0, 0), (4, 2)), ((0, 2), (4, 4)), ((0, 4), (4, 6))]


def test_coarse_stride_is_half_a_box_or_the_stride() -> None:
    assert coarse_stride((48, 1, 7), 4) == (24, 4, 4)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"box size \(2,\) does not fit"):
        fitted((2,), (4, 4))
    with pytest.raises(ValueError, match="stride 0"):
        starts((4, 4), (2, 2), 0)
    with pytest.raises(ValueError, match=r"scores are \(2, 2\), positions \(3, 3\)"):
        peaks(torch.ones(2, 2), (2, 2), 1, 1, Regions.of([], 2), (4, 4))


def test_no_boxes_give_no_rows() -> None:
    none = Regions.of([], 2)
    assert means_in(torch.ones(3, 4, 4), none).shape == (0, 3)
    assert topk_in(torch.ones(4, 4), none, 0.5).shape == (0,)


def test_boxes_on_a_device_are_those_of_the_cpu(device: torch.device) -> None:
    shape, size, stride = (70, 80, 90), (13, 8, 21), (1, 2, 1)
    values, weight = grid(0, shape), grid(1, shape)
    here, there = box_means(values, size, stride, weight), box_means(values.to(device), size, stride, weight.to(device))
    assert torch.equal(here, there.cpu())
    wall = Regions.of([((30, 30, 30), (40, 40, 40))], 3)
    one = peaks(here, size, stride, 9, wall, shape)
    other = peaks(there, size, stride, 9, wall.to(device), shape)
    assert list(one[0].boxes()) == list(other[0].boxes()) and other[0].start.is_cuda
    both = means_in(values[None], one[0], weight), means_in(values[None].to(device), other[0], weight.to(device))
    torch.testing.assert_close(both[0], both[1].cpu())
