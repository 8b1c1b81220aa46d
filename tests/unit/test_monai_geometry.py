import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dal_dense.config import IntensityConfig
from dal_dense.records import Header
from dal_dense.tasks.monai_geometry import Geometry, turn_back

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
    label = torch.from_numpy((image[0] * 5).astype(np.uint8))
    carried = geometry.labels(label.numpy()[None], head)[0]
    assert torch.equal(geometry.labels_back(carried, grid), label.int())
    assert sorted(moved.shape[1:]) == sorted(shape)


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
    label = np.full((1, 12, 10, 9), 255, np.uint8)
    label[0, 3:9, 2:8, 2:7] = 2
    carried = geometry.labels(label, head)
    assert set(carried.unique().tolist()) == {2, 255}
    again = geometry.labels_back(carried[0], grid)
    assert (again.numpy() == label[0]).mean() > 0.8


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
