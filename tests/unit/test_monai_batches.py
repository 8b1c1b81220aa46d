import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dal_dense.config import TrainConfig
from dal_dense.errors import DataError
from dal_dense.tasks.monai_batches import Crops, cut_pieces

CPU = torch.device("cpu")


def world(shape: tuple[int, ...], boxes, seed: int = 0):
    """An image whose voxels name their own place, so that a crop can be traced back, and labels equal to it mod 3."""
    image = torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(1, *shape) + 1
    label = torch.full(shape, 255, dtype=torch.uint8)
    numbers = torch.zeros(shape, dtype=torch.int32)
    for n, (start, stop) in enumerate(boxes, start=1):
        cut = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        label[cut] = (image[0][cut] % 3).to(torch.uint8)
        numbers[cut] = n
    return image, label, numbers


def crops_of(shape, boxes, train: TrainConfig, *, flips=(), background=False, keep=None, seed=3) -> Crops:
    image, label, numbers = world(shape, boxes)
    pieces = cut_pieces(
        image, label, numbers,
        keep=keep or range(1, len(boxes) + 1), patch=train.patch, spacing=(1.0,) * len(shape), classes=3, seed=0,
    )  # fmt: skip
    return Crops(tuple(pieces), train, tuple(flips), background, seed)


def train(patch, **more) -> TrainConfig:
    return TrainConfig(**{"patch": patch, "batch": 6, "rotate_degrees": 0.0, "scale": 0.0, "intensity": 0.0, **more})


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(), (0,), (0, 1)]))
def test_labels_follow_the_image_through_flips_and_borders(iteration, flips):
    crops = crops_of((9, 23), [((2, 3), (6, 9)), ((5, 15), (9, 23))], train((8, 8)), flips=flips)
    image, label = crops.batch(iteration, CPU)
    known = label != 255
    assert known.flatten(1).any(1).all()  # every crop holds labelled ground
    assert torch.equal(image[:, 0][known].round() % 3, label[known].float())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_a_turned_crop_stays_on_labelled_ground_even_one_slice_thick(iteration):
    crops = crops_of(
        (10, 12, 11), [((0, 0, 5), (10, 12, 6))], train((8, 8, 8), rotate_degrees=40.0, scale=0.3), flips=(0, 2)
    )
    _, label = crops.batch(iteration, CPU)
    assert (label != 255).flatten(1).any(1).all()


def test_a_turned_crop_shows_image_and_label_of_the_same_place():
    """The image is the label's own blocky map: linear and nearest must agree away from its edges."""
    shape = (40, 40)
    field = torch.zeros(shape, dtype=torch.uint8)
    field[10:30, 5:20] = 1
    field[15:35, 20:33] = 2
    image, numbers = field[None].float(), torch.ones(shape, dtype=torch.int32)
    settings_ = train((24, 24), rotate_degrees=30.0, scale=0.2, batch=8)
    pieces = cut_pieces(image, field, numbers, keep=[1], patch=(24, 24), spacing=(1.0, 2.0), classes=3, seed=0)
    crops = Crops(tuple(pieces), settings_, (1,), False, 0)
    warped = 0
    for i in range(6):
        x, y = crops.batch(i, CPU)
        whole = (x[:, 0] - x[:, 0].round()).abs() < 1e-4
        warped += int((~whole).any())
        agree = (x[:, 0].round() == y)[whole & (y != 255)]
        assert agree.float().mean() > 0.99
    assert warped > 0


def test_the_same_iteration_is_the_same_batch_and_others_differ():
    crops = crops_of((30, 30), [((0, 0), (30, 30))], TrainConfig(patch=(8, 8), batch=4), flips=(0,))
    again = crops_of((30, 30), [((0, 0), (30, 30))], TrainConfig(patch=(8, 8), batch=4), flips=(0,))
    crops.batch(3, CPU)  # what was asked before changes nothing
    assert all(torch.equal(a, b) for a, b in zip(crops.batch(7, CPU), again.batch(7, CPU), strict=True))
    assert not torch.equal(crops.batch(7, CPU)[0], crops.batch(8, CPU)[0])


def test_memory_follows_labelled_ground_not_the_image():
    image, label, numbers = world((400, 400), [((10, 10), (20, 20)), ((350, 300), (360, 310))])
    pieces = cut_pieces(image, label, numbers, keep=[1, 2], patch=(16, 16), spacing=(1.0, 1.0), classes=3, seed=0)
    assert len(pieces) == 2
    assert sum(p.label.numel() for p in pieces) < 5000
    assert sum(int(p.counts.sum()) for p in pieces) == 200
    near = cut_pieces(*world((60, 60), [((10, 10), (20, 20)), ((10, 20), (20, 30))]),
                      keep=[1, 2], patch=(16, 16), spacing=(1.0, 1.0), classes=3, seed=0)  # fmt: skip
    assert len(near) == 1


def test_regions_that_are_not_kept_show_no_label():
    image, label, numbers = world((40, 40), [((5, 5), (10, 10)), ((10, 5), (15, 10))])
    (piece,) = cut_pieces(image, label, numbers, keep=[2], patch=(16, 16), spacing=(1.0, 1.0), classes=3, seed=0)
    assert int((piece.label != 255).sum()) == 25 == int(piece.counts.sum())


def test_crops_are_aimed_at_classes_with_equal_chance():
    field = torch.zeros(64, 64, dtype=torch.uint8)
    field[30:32, 30:32] = 1
    pieces = cut_pieces(
        field[None].float(),
        field,
        torch.ones(64, 64, dtype=torch.int32),
        keep=[1],
        patch=(8, 8),
        spacing=(1.0, 1.0),
        classes=3,
        seed=0,
    )
    hits = {}
    for share in (0.0, 1.0):
        crops = Crops(tuple(pieces), train((8, 8), batch=8, foreground=share), (), True, 0)
        hits[share] = sum(int((crops.batch(i, CPU)[1] == 1).flatten(1).any(1).sum()) for i in range(10))
    assert hits[1.0] == 80 and hits[0.0] < 20


def test_nothing_labelled_is_an_error_with_a_remedy():
    with pytest.raises(DataError, match=r"no labelled voxel is left.*label something"):
        crops_of((10, 10), [((0, 0), (5, 5))], train((8, 8)), keep=[7])
