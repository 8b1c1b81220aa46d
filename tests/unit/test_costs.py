"""Cost models, their corrections, and what there is to draw in a box."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from dal_dense.config import CostConfig
from dal_dense.contours import CROFTON, IGNORE
from dal_dense.costs import (
    PRESETS,
    PRIORS,
    CostModel,
    CostPrior,
    area_of,
    contour_length,
    cost_model,
    object_count,
    refit,
)
from dal_dense.regions import Regions
from dal_dense.tasks import base


@dataclass(frozen=True)
class Entry:
    """Stands in for the ledger's row."""

    round: int
    arrived: int
    predicted_seconds: float
    charged_seconds: float
    boundary: float | None = None
    objects: float | None = None
    area: float | None = None


def one_hot(label: np.ndarray, classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.from_numpy(label).long(), classes).movedim(-1, 0).float()


def ellipse(shape: tuple[int, int], radii: tuple[float, float]) -> np.ndarray:
    rows, cols = np.ogrid[: shape[0], : shape[1]]
    centre = ((shape[0] - 1) / 2 + 0.3, (shape[1] - 1) / 2 - 0.2)
    return (((rows - centre[0]) / radii[0]) ** 2 + ((cols - centre[1]) / radii[1]) ** 2 <= 1).astype(np.uint8)


def test_ignore_is_the_tasks_ignore() -> None:
    assert IGNORE == base.IGNORE


# --- contours


@pytest.mark.parametrize("radius", [12.0, 30.5, 60.0])
def test_length_of_a_disc(radius: float) -> None:
    length = contour_length(ellipse((140, 140), (radius, radius)), (1.0, 1.0), None)
    assert length.item() == pytest.approx(2 * math.pi * radius, rel=0.03)


def test_length_of_a_disc_in_mm_on_unequal_voxels() -> None:
    """A circle of 30 mm on voxels of 0.5 x 1.5 mm."""
    length = contour_length(ellipse((140, 60), (60, 20)), (0.5, 1.5), None)
    assert length.item() == pytest.approx(2 * math.pi * 30, rel=0.03)


def test_rectangle_is_its_staircase_times_pi_over_four() -> None:
    label = np.zeros((20, 30), np.uint8)
    label[5:12, 10:14] = 1
    assert contour_length(label, (2.0, 3.0), None).item() == pytest.approx(CROFTON * 2 * (7 * 2 + 4 * 3))


def test_volumes_are_drawn_slice_by_slice() -> None:
    label = np.zeros((20, 6, 30), np.uint8)
    label[5:12, 2:5, 10:14] = 1
    want = 3 * CROFTON * 2 * (7 * 2 + 4 * 3)
    assert contour_length(label, (2.0, 9.0, 3.0), 1).item() == pytest.approx(want)
    assert contour_length(label.swapaxes(1, 2), (2.0, 3.0, 9.0), 2).item() == pytest.approx(want)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([((5, 7), None), ((4, 5, 6), 0), ((4, 5, 6), 2)]))
def test_one_hot_truth_and_labels_agree(seed: int, where: tuple[tuple[int, ...], int | None]) -> None:
    shape, axial = where
    label = np.random.default_rng(seed).integers(0, 4, shape).astype(np.uint8)
    spacing = (0.7, 1.3, 2.1)[: len(shape)]
    torch.testing.assert_close(contour_length(one_hot(label, 4), spacing, axial), contour_length(label, spacing, axial))


def test_a_blurred_edge_is_as_long_as_the_edge() -> None:
    """Co-area: the mean over thresholds of the level sets' perimeter, whatever the blur."""
    ramp = torch.linspace(0, 1, 30).clamp(0.2, 0.8).sub(0.2).div(0.6).expand(40, 30)
    probs = torch.stack([1 - ramp, ramp])
    assert contour_length(probs, (1.0, 1.0), None).item() == pytest.approx(CROFTON * 40, rel=1e-5)
    half = torch.stack([1 - 0.5 * ramp, 0.5 * ramp])  # an object that is there with chance 1/2
    assert contour_length(half, (1.0, 1.0), None).item() == pytest.approx(CROFTON * 20, rel=1e-5)


def test_steps_to_unlabelled_ground_are_no_contour() -> None:
    label = np.zeros((8, 8), np.uint8)
    label[:, 4:] = IGNORE
    label[0, 0] = 1
    assert contour_length(label, (1.0, 1.0), None).item() == pytest.approx(CROFTON * 2)


def test_only_steps_inside_the_box_count() -> None:
    label = np.zeros((10, 10), np.uint8)
    label[5:] = 1
    for box, steps in (((0, 5, 0, 10), 0), ((4, 6, 0, 3), 3), ((0, 10, 0, 10), 10)):
        inside = one_hot(label, 2)[:, box[0] : box[1], box[2] : box[3]]  # a view, as a box of an image is
        assert contour_length(inside, (1.0, 1.0), None).item() == pytest.approx(CROFTON * steps)


def test_a_single_row_has_steps_along_itself_only() -> None:
    label = np.array([[0, 0, 1, 1, 0]], np.uint8)
    for array in (label, label.T):
        assert contour_length(one_hot(array, 2), (1.0, 1.0), None).item() == pytest.approx(CROFTON * 2)


def test_read_only_labels_are_taken() -> None:
    label = np.frombuffer(bytes([0, 1, 0, 1]), np.uint8).reshape(2, 2)
    assert contour_length(label[::-1], (1.0, 1.0), None).item() == pytest.approx(CROFTON * 2)


def test_length_refuses_an_array_of_another_grid() -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 4\) does not fit a grid with spacing"):
        contour_length(np.zeros((4, 4), np.uint8), (1.0,) * 4, None)


# --- objects, area


def test_objects_are_counted_by_class_and_slice() -> None:
    label = np.zeros((6, 8, 3), np.uint8)
    label[0:2, 0:2, :] = 1  # one object in each of three slices
    label[4:6, 4:6, 1] = 1
    label[0:2, 2:4, 0] = 2  # touches class 1, and is another object
    label[5, 0, 2] = IGNORE
    assert object_count(label, 2, 0) == 3 + 1 + 1
    assert object_count(label, 2, None) == 5 + 3  # and the background, in one piece a slice
    assert object_count(label.transpose(2, 0, 1), 0, 0) == 5
    assert object_count(label[:, :, 0], None, 0) == 2


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 2), st.sampled_from([None, 0, 2]))
def test_objects_equal_those_of_each_slice_by_itself(seed: int, axis: int, background: int | None) -> None:
    label = np.random.default_rng(seed).choice([0, 1, 2, IGNORE], (5, 6, 4)).astype(np.uint8)
    expected = 0
    for plane in np.moveaxis(label, axis, 0):
        classes = set(np.unique(plane).tolist()) - {IGNORE, background}
        expected += sum(ndimage.label(plane == c, np.ones((3, 3)))[1] for c in classes)
        assert object_count(plane, None, background) == sum(
            ndimage.label(plane == c, np.ones((3, 3)))[1] for c in classes
        )
    assert object_count(label, axis, background) == expected


def test_objects_that_touch_by_a_corner_are_one() -> None:
    assert object_count(np.eye(4, dtype=np.uint8), None, 0) == 1


def test_nothing_but_background_or_unlabelled_ground_is_no_object() -> None:
    assert object_count(np.zeros((4, 4), np.uint8), None, 0) == 0
    assert object_count(np.full((4, 4), IGNORE, np.uint8), None, None) == 0


def test_area_is_summed_over_slices() -> None:
    boxes = Regions.of([((0, 0, 0), (10, 4, 20)), ((1, 1, 1), (2, 2, 2))], 3)
    torch.testing.assert_close(area_of(boxes, (0.5, 3.0, 2.0), 1), torch.tensor([800.0, 1.0]))
    torch.testing.assert_close(area_of(Regions.of([((0, 0), (6, 7))], 2), (1.0, 1.0), None), torch.tensor([42.0]))


# --- cost models


def test_an_empty_region_costs_its_search() -> None:
    model = PRESETS["ct_contour"]
    assert model.seconds(10_000.0, 0.0, 0.0) == pytest.approx(5 + 0.05 * 10)
    both = model.seconds(torch.tensor([10_000.0, 0.0]), torch.tensor([0.0, 100.0]), torch.tensor([0.0, 2.0]))
    torch.testing.assert_close(both, torch.tensor([5.5, 5 + 23 + 10.0]))


def test_cityscapes_frame_takes_about_an_hour_and_a_half() -> None:
    """1,599 polygon clicks, 12 pixels apart, and 114 class clicks in 2048 x 1024 pixels."""
    for name in ("frame_clicks", "frame_polygon"):
        model = PRESETS[name]
        frame = model.image_seconds + model.seconds(2048.0 * 1024, 1599 * 12.0, 114.0)
        assert 0.97 <= frame / 5400 <= 1.06


def test_abdominal_organ_takes_half_an_hour_to_an_hour() -> None:
    """10.4 m of contour in 57 slices, as derived in docs/concepts/costs.md."""
    model = PRESETS["ct_contour"]
    assert 1800 <= model.seconds(0.0, 10_400.0, 57.0) <= 3600


@pytest.mark.parametrize("name", PRESETS)
def test_priors_and_settings_know_every_preset(name: str) -> None:
    assert cost_model(CostConfig(preset=name)) == PRESETS[name]
    prior = CostPrior.of(CostConfig(preset=name))
    assert (prior.boundary, prior.objects) == pytest.approx((PRIORS[name].boundary, PRIORS[name].objects))


def test_boxes_cost_what_the_papers_say() -> None:
    clicks, drawing = PRESETS["box_clicks"], PRESETS["box_drawing"]
    assert (clicks.object_seconds, drawing.object_seconds) == (7.0, 25.5)
    for model in (clicks, drawing):
        assert model.verify_seconds == 1.8 and model.fix_seconds == model.object_seconds
        assert (model.boundary_seconds, model.unit) == (0.0, "pixel")
        assert model.seconds(1000.0, 123.0, 2.0) == pytest.approx(
            model.region_seconds + model.search_seconds + 2 * model.object_seconds
        )
    others = [PRESETS[n] for n in PRESETS if not n.startswith("box_")]
    assert all(m.verify_seconds == m.fix_seconds == 0 for m in others)


def test_verifying_and_fixing_can_be_set_and_are_corrected_like_the_rest() -> None:
    model = cost_model(CostConfig(preset="box_clicks", verify_seconds=3, fix_seconds=4.5))
    assert (model.verify_seconds, model.fix_seconds, model.object_seconds) == (3, 4.5, 7)
    twice = model.scaled(2.0)
    assert (twice.verify_seconds, twice.fix_seconds) == (6, 9)


def test_settings_override_the_preset() -> None:
    model = cost_model(CostConfig(preset="frame_clicks", image_seconds=0, boundary_seconds=0.5))
    assert (model.image_seconds, model.boundary_seconds, model.object_seconds) == (0, 0.5, 3.15)
    assert model.source.endswith("set by the user: image_seconds, boundary_seconds")


# --- corrections


def test_no_log_is_no_correction() -> None:
    assert refit(PRESETS["ct_contour"], []) == PRESETS["ct_contour"]


def test_correction_moves_towards_the_log_as_it_grows() -> None:
    def factor(n: int) -> float:
        return refit(PRESETS["ct_contour"], [Entry(0, 0, 60, 120)] * n).correction

    assert factor(8) == pytest.approx(math.sqrt(2))
    assert 1 < factor(1) < factor(8) < factor(800) < 2
    assert factor(800) == pytest.approx(2, rel=0.01)


def test_correction_scales_every_figure() -> None:
    model = refit(PRESETS["ct_contour"], [Entry(0, 0, 60, 120)] * 8)
    base = PRESETS["ct_contour"]
    assert model.seconds(1e4, 50.0, 3.0) == pytest.approx(math.sqrt(2) * base.seconds(1e4, 50.0, 3.0))
    assert model.image_seconds == pytest.approx(math.sqrt(2) * base.image_seconds)


def test_one_lunch_break_changes_little() -> None:
    log = [Entry(0, 0, 60, 60)] * 15
    assert refit(PRESETS["ct_contour"], [*log, Entry(0, 0, 60, 7200)]).correction < 1.15


def test_correction_is_a_ratio_of_sums() -> None:
    """Small regions that were badly predicted weigh little against large ones that were right."""
    log = [Entry(0, 0, 10, 15)] * 4 + [Entry(0, 0, 400, 400)] * 4
    assert refit(PRESETS["ct_contour"], log).correction == pytest.approx((1660 / 1640) ** 0.5)


def test_corrected_predictions_are_not_corrected_twice() -> None:
    """An expert twice as slow as the preset; every round predicts with the factor of its time."""
    model, log = PRESETS["ct_contour"], []
    for number in range(6):
        now = refit(model, log)
        log += [Entry(number, number, 60 * now.correction, 120)] * 10
    n = len(log)
    assert refit(model, log).correction == pytest.approx(2 ** (n / (n + 8)))


def test_late_answers_correct_later_rounds_only() -> None:
    late = [Entry(0, 1, 60, 120)] * 8  # asked in round 0, came back during round 1
    asked_meanwhile = [Entry(1, 1, 60, 60)] * 8  # predicted without knowing of them
    assert refit(PRESETS["ct_contour"], late + asked_meanwhile).correction == pytest.approx(1.5 ** (16 / 24))


def test_prior_is_updated_by_area() -> None:
    prior = PRIORS["ct_contour"]
    area = prior.weight * 1000
    got = CostPrior.of(CostConfig(), [Entry(0, 0, 1, 1, boundary=0.0, objects=0.0, area=area), Entry(0, 0, 1, 1)])
    assert (got.boundary, got.objects) == pytest.approx((prior.boundary / 2, prior.objects / 2))
    assert got.weight == 2 * prior.weight


def test_models_are_values() -> None:
    assert isinstance(PRESETS["ct_contour"], CostModel)
    with pytest.raises(AttributeError):
        PRESETS["ct_contour"].image_seconds = 1  # type: ignore[misc]


def test_settings_override_the_prior_and_answers_still_update_it() -> None:
    config = CostConfig(prior_boundary=1.0, prior_objects=0.5)
    prior = CostPrior.of(config)
    assert (prior.boundary, prior.objects, prior.weight) == (1.0, 0.5, PRIORS["ct_contour"].weight)
