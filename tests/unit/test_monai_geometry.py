import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dal_dense.config import IntensityConfig
from dal_dense.records import Header
from dal_dense.tasks.monai_geometry import Geometry, turn_back
from dal_dense.tasks.monai_thin import put_back

PLAIN = IntensityConfig(kind="window", low=0.0, high=1.0)


def header(shape: tuple[int, ...], *, order=(0, 1, 2), signs=(1, 1, 1), spacing=(1.0, 1.0, 1.0), tilt=0.0) -> Header:
    """A volume whose array axis a runs along world axis order[a], perhaps backwards, perhaps oblique."""
    affine = np.eye(4)
    matrix = np.zeros((3, 3))
    for axis, (world, sign, step) in enumerate(zip(order, signs, spacing, strict=True)):
        matrix[world, axis] = sign * step
    turn = np.eye(3)
    turn[:2, :2] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
    affine[:3, :3] = turn @ matrix
    affine[:3, 3] = (5.0, -7.0, 11.0)
    return Header(tuple(int(n) for n in shape), tuple(float(s) for s in spacing), affine)


@settings(max_examples=25, deadline=None)
@given(
    st.permutations([0, 1, 2]),
    st.tuples(*[st.sampled_from([-1, 1])] * 3),
    st.floats(-0.3, 0.3),
    st.tuples(*[st.integers(1, 7)] * 3),
)
def test_without_resampling_every_voxel_comes_back_bit_exact(order, signs, tilt, shape):
    head = header(shape, order=order, signs=signs, tilt=tilt)
    image = np.random.default_rng(0).random((1, *shape), dtype=np.float32)
    geometry = Geometry(intensity=PLAIN)
    moved, grid = geometry.image(image, head)
    assert torch.equal(geometry.values_back(moved, grid), torch.from_numpy(image))
    both = (np.stack([image[0], image[0] ** 2]) * 5).astype(np.uint16)
    carried = geometry.labels(both, head)
    assert torch.equal(geometry.values_back(carried.float(), grid), torch.from_numpy(both.astype(np.float32)))
    assert sorted(moved.shape[1:]) == sorted(shape)


@pytest.mark.parametrize("signs,spacing", [((1, 1, 1), None), ((-1, 1, 1), None), ((1, 1, 1), (2.0, 1.0, 1.0))])
def test_what_comes_back_is_copied_only_where_the_grids_differ(signs, spacing):
    geometry = Geometry(spacing=spacing, intensity=PLAIN)
    image, grid = geometry.image(np.zeros((1, 4, 5, 6), np.float32), header((4, 5, 6), signs=signs))
    values = torch.rand(3, *image.shape[1:])
    back = geometry.values_back(values, grid)
    assert (back is values) == (signs == (1, 1, 1) and spacing is None)
    assert back.is_contiguous() and tuple(back.shape) == (3, 4, 5, 6)
    one_by_one = torch.cat([geometry.values_back(v[None], grid) for v in values])
    assert torch.equal(back, one_by_one)


@pytest.mark.parametrize(
    "order,signs", list(itertools.product(itertools.permutations(range(3)), [(1, -1, 1), (-1, -1, -1)]))
)
def test_model_grid_is_ras(order, signs):
    """The mark in the world corner (right, front, top) lies at the last index of each model axis."""
    shape = tuple((4, 5, 6)[world] for world in order)
    image = np.zeros((1, *shape), dtype=np.float32)
    image[(0, *((n - 1 if s > 0 else 0) for n, s in zip(shape, signs, strict=True)))] = 1
    moved, grid = Geometry(intensity=PLAIN).image(image, header(shape, order=order, signs=signs))
    assert tuple(moved.shape) == (1, 4, 5, 6)
    assert moved[0, -1, -1, -1] == 1
    coarse = moved[:, ::2, ::2, ::2]  # 2, 3, 3
    turned = turn_back(coarse, grid)
    assert tuple(turned.shape[1:]) == tuple((2, 3, 3)[world] for world in order)


def test_resampled_probabilities_come_back_smooth_and_labels_stay_whole():
    head = header((12, 10, 9), order=(1, 0, 2), signs=(-1, 1, 1), spacing=(1.0, 2.0, 3.0), tilt=0.1)
    ramp = np.linspace(0, 1, 12, dtype=np.float32)[None, :, None, None] * np.ones((1, 12, 10, 9), np.float32)
    geometry = Geometry(spacing=(2.0, 2.0, 2.0), intensity=PLAIN)
    moved, grid = geometry.image(ramp, head)
    assert grid.spacing == pytest.approx((2.0, 2.0, 2.0))
    assert tuple(moved.shape[1:]) != (10, 12, 9)
    back = geometry.values_back(moved, grid)
    assert tuple(back.shape) == ramp.shape
    assert np.abs(back.numpy() - ramp)[:, 1:-1].max() < 0.03
    both = np.zeros((2, 12, 10, 9), np.uint16)
    both[0] = 255
    both[:, 3:9, 2:8, 2:7] = np.array([2, 1])[:, None, None, None]
    carried = geometry.labels(both, head)
    assert set(carried[0].unique().tolist()) == {2, 255} and torch.equal(carried[0] == 2, carried[1] == 1)
    again = geometry.values_back(carried[1:].float(), grid)[0] > 0.5
    assert (again.numpy() == both[1]).mean() > 0.9


PLACES = IntensityConfig(kind="window", low=0.0, high=64.0)


def check_survivors(geometry: Geometry, head: Header, boxes: list[tuple[slice, ...]], reach: tuple[float, ...]) -> None:
    """Every region is on the grid, with labels of its own voxels, where the image shows its ground.

    `reach`: half a grid voxel, in source voxels.
    """
    places = np.stack(np.meshgrid(*[np.arange(n) for n in head.shape], indexing="ij"))
    both = np.zeros((2, *head.shape), np.uint16)
    both[0] = 255
    for n, box in enumerate(boxes, 1):
        both[0][box], both[1][box] = places.sum(0)[box] % 3, n
    carried = geometry.labels(both, head).numpy()
    shown = 64 * geometry.image(places.astype(np.float32), head)[0]
    assert set(np.unique(carried[1])) - {0} == set(range(1, len(boxes) + 1))
    assert ((carried[1] == 0) == (carried[0] == 255)).all()
    for n in range(1, len(boxes) + 1):
        mine = places[:, both[1] == n].T
        here = carried[1] == n
        for place, label in zip(shown[:, torch.from_numpy(here)].numpy().T, carried[0][here], strict=True):
            near = (np.abs(mine - place) <= np.array(reach) + 0.51).all(1)
            assert label in both[0][tuple(mine[near].T)]


@settings(max_examples=15, deadline=None)
@given(st.permutations([0, 1, 2]), st.tuples(*[st.sampled_from([-1, 1])] * 3), st.floats(-0.5, 0.5), st.integers(0, 2))
def test_one_slice_regions_survive_a_coarser_spacing(order, signs, tilt, axis):
    head = header((13, 14, 15), order=order, signs=signs, spacing=(1.0, 1.2, 0.8), tilt=tilt)
    boxes = [tuple(slice(i, i + 1) if a == axis else slice(2, 12) for a in range(3)) for i in range(1, 13)]
    check_survivors(Geometry(spacing=(3.0, 3.0, 3.0), intensity=PLACES), head, boxes, (1.5, 1.25, 1.875))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(*[st.integers(1, 2)] * 3), min_size=27, max_size=27), st.floats(-0.5, 0.5))
def test_tiny_crops_survive_a_coarser_spacing(sizes, tilt):
    head = header((12, 12, 12), order=(2, 0, 1), signs=(1, -1, 1), tilt=tilt)
    corners = itertools.product((0, 4, 8), repeat=3)
    boxes = [
        tuple(slice(s, s + n) for s, n in zip(corner, size, strict=True))
        for corner, size in zip(corners, sizes, strict=True)
    ]
    check_survivors(Geometry(spacing=(3.0, 3.0, 3.0), intensity=PLACES), head, boxes, (1.5, 1.5, 1.5))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(*[st.integers(1, 3)] * 2), min_size=20, max_size=20), st.sampled_from([(6, 11), (7, 9)]))
def test_thin_regions_of_frames_survive_a_smaller_size(sizes, frame_size):
    head = Header((22, 29), (1.0, 1.0), None)
    corners = itertools.product((0, 5, 11, 17), (0, 6, 12, 18, 24))
    boxes = [
        tuple(slice(s, s + n) for s, n in zip(corner, size, strict=True))
        for corner, size in zip(corners, sizes, strict=True)
    ]
    reach = tuple(n / m / 2 for n, m in zip(head.shape, frame_size, strict=True))
    check_survivors(Geometry(frame_size=frame_size, intensity=PLACES), head, boxes, reach)


def test_a_region_without_free_ground_takes_one_voxel_of_a_neighbour_that_has_many():
    source = np.zeros((2, 4, 12), np.uint16)
    source[0] = 255
    source[:, 0, :], source[:, 1, :], source[:, 2, :] = ([[1], [n]] for n in (1, 2, 3))
    source[0, 2, 7:9] = 2
    moved = np.full((2, 2, 6), 255, np.int32)
    moved[1] = 0
    moved[0, 0], moved[1, 0] = 1, 1
    put_back(moved, source, np.array([[0.1, 0, 0], [0, 0.5, 0], [0, 0, 1]]))  # all rows fall on row 0
    assert np.bincount(moved[1].ravel(), minlength=4).tolist() == [6, 4, 1, 1]
    assert moved[0][moved[1] == 3].tolist() == [2]  # its rarest class, which the others lack
    alone = np.zeros((2, 4, 4), np.uint16)
    alone[1, :, 0] = [1, 2, 3, 4]
    alone[0, :, 0] = [5, 255, 6, 7]
    alone[1, 1, 1], alone[0, 1, 1] = 2, 9
    grid = np.zeros((2, 1, 2), np.int32)
    put_back(grid, alone, np.array([[0.1, 0, 0], [0, 1, 0], [0, 0, 1]]))
    assert grid[1].tolist() == [[1, 2]] and grid[0].tolist() == [[5, 9]]  # two voxels hold no more than two regions


def test_of_many_source_voxels_the_nearest_known_one_counts():
    source = np.zeros((2, 1, 9), np.uint16)
    source[1] = 1
    source[0] = [[0, 1, 2, 255, 255, 255, 6, 255, 8]]  # middles of the three grid voxels: 1, 4, 7
    moved = np.zeros((2, 1, 3), np.int32)
    put_back(moved, source, np.array([[1, 0, 0], [0, 1 / 3, -1 / 3], [0, 0, 1]]))
    assert moved[0].tolist() == [[1, 255, 6]] and (moved[1] == 1).all()


def test_frames_are_resized_and_come_back():
    frame = np.random.default_rng(1).random((3, 20, 31), dtype=np.float32) * 255
    geometry = Geometry(frame_size=(10, 16), intensity=IntensityConfig(kind="rgb"))
    moved, grid = geometry.image(frame, Header((20, 31), (1.0, 1.0), None))
    assert tuple(moved.shape) == (3, 10, 16)
    assert moved.min() >= -1 and moved.max() <= 1
    assert tuple(geometry.values_back(moved, grid).shape) == (3, 20, 31)
    same, grid = Geometry(frame_size=(20, 31), intensity=IntensityConfig(kind="rgb")).image(
        frame, Header((20, 31), (1.0, 1.0), None)
    )
    assert not grid.operations and tuple(same.shape) == (3, 20, 31)


def test_equal_spacing_is_not_resampled():
    head = header((5, 6, 7), spacing=(2.0, 2.0, 2.0))
    image = np.random.default_rng(2).random((1, 5, 6, 7), dtype=np.float32)
    moved, _ = Geometry(spacing=(2.0, 2.0005, 2.0), intensity=PLAIN).image(image, head)
    assert torch.equal(moved, torch.from_numpy(image))


def test_intensities():
    head = Header((4, 4), (1.0, 1.0), None)
    raw = np.array([-1000.0, -250.0, 175.0, 3000.0], np.float32).repeat(4).reshape(1, 4, 4)
    window, _ = Geometry(intensity=IntensityConfig(kind="window", low=-250, high=600)).image(raw, head)
    assert window[0, :, 0].tolist() == pytest.approx([0, 0, 0.5, 1])
    score, _ = Geometry(intensity=IntensityConfig(kind="zscore")).image(raw, head)
    assert float(score.mean()) == pytest.approx(0, abs=1e-5)
    assert float(score.std(correction=0)) == pytest.approx(1, abs=1e-4)
    flat, _ = Geometry(intensity=IntensityConfig(kind="zscore")).image(np.ones((1, 4, 4), np.float32), head)
    assert torch.isfinite(flat).all()
