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
        keep=keep or range(1, len(boxes) + 1), train=train, spacing=(1.0,) * len(shape), classes=3, seed=0,
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
    pieces = cut_pieces(image, field, numbers, keep=[1], train=settings_, spacing=(1.0, 2.0), classes=3, seed=0)
    crops = Crops(tuple(pieces), settings_, (1,), False, 0)
    warped = 0
    for i in range(6):
        x, y = crops.batch(i, CPU)
        whole = (x[:, 0] - x[:, 0].round()).abs() < 1e-4
        warped += int((~whole).any())
        agree = (x[:, 0].round() == y)[whole & (y != 255)]
        assert agree.float().mean() > 0.99
    assert warped > 0


class Extreme(np.random.Generator):
    """Every uniform draw is one of its two ends."""

    def uniform(self, low, high, size=None):
        return self.choice([low, high], size)


@pytest.mark.parametrize("degrees,scale", [(0.0, 0.0), (10.0, 0.1), (35.0, 0.3), (120.0, 0.0)])
@pytest.mark.parametrize("place", [20, 0, 37], ids=["middle", "start", "stop"])
@pytest.mark.parametrize(
    "spacing,patch",
    [((1.0, 1.0), (16, 16)), ((1.0, 6.0), (16, 16)), ((5.0, 1.0), (8, 24)), ((1.0, 1.0, 1.0), (8, 8, 8)),
     ((1.0, 1.0, 5.0), (12, 12, 8)), ((0.7, 3.0, 0.7), (12, 8, 16))],
)  # fmt: skip
def test_crops_find_all_the_ground_that_the_image_has(monkeypatch, spacing, patch, place, degrees, scale):
    """The image holds its coordinates and a one; where a crop reads less than one, it must lie outside the image."""
    shape, n = (40,) * len(patch), len(patch)
    places = np.stack(np.meshgrid(*[np.arange(m) for m in shape], indexing="ij"))
    image = torch.from_numpy(np.concatenate([places, np.ones((1, *shape))]).astype(np.float32))
    label, numbers = torch.full(shape, 255, dtype=torch.uint8), torch.zeros(shape, dtype=torch.int32)
    core = (slice(place, place + 3),) * n
    label[core], numbers[core] = 1, 1
    settings_ = train(patch, rotate_degrees=degrees, scale=scale, batch=16)
    pieces = cut_pieces(image, label, numbers, keep=[1], train=settings_, spacing=spacing, classes=2, seed=0)
    matrix = Crops._matrix
    monkeypatch.setattr(Crops, "_matrix", lambda self, rng, *more: matrix(self, Extreme(rng.bit_generator), *more))
    crops = Crops(tuple(pieces), settings_, tuple(range(n)), False, 1)
    index = np.stack(np.meshgrid(*[np.arange(m) for m in patch], indexing="ij")).reshape(n, -1)
    index = np.concatenate([index, np.ones((1, index.shape[1]))]).T
    for crop in (c for i in range(6) for c in crops.batch(i, CPU)[0]):
        *where, read = crop.reshape(n + 1, -1).double().numpy()
        whole = np.abs(read - 1) < 1e-5
        affine, _, rank, _ = np.linalg.lstsq(index[whole], np.stack(where, 1)[whole], rcond=None)
        if rank <= n:
            continue  # at a corner of the image, turned right round: too little of it is left to tell
        true = index @ affine
        inside = ((true > 0.01) & (true < np.array(shape) - 1.01)).all(1)
        assert read[inside].min() > 0.999


def test_the_same_iteration_is_the_same_batch_and_others_differ():
    crops = crops_of((30, 30), [((0, 0), (30, 30))], TrainConfig(patch=(8, 8), batch=4), flips=(0,))
    again = crops_of((30, 30), [((0, 0), (30, 30))], TrainConfig(patch=(8, 8), batch=4), flips=(0,))
    crops.batch(3, CPU)  # what was asked before changes nothing
    assert all(torch.equal(a, b) for a, b in zip(crops.batch(7, CPU), again.batch(7, CPU), strict=True))
    assert not torch.equal(crops.batch(7, CPU)[0], crops.batch(8, CPU)[0])


def test_memory_follows_labelled_ground_not_the_image():
    image, label, numbers = world((400, 400), [((10, 10), (20, 20)), ((350, 300), (360, 310))])
    pieces = cut_pieces(
        image, label, numbers, keep=[1, 2], train=train((16, 16)), spacing=(1.0, 1.0), classes=3, seed=0
    )
    assert len(pieces) == 2
    assert sum(p.label.numel() for p in pieces) < 5000
    assert sum(int(p.counts.sum()) for p in pieces) == 200
    near = cut_pieces(*world((60, 60), [((10, 10), (20, 20)), ((10, 20), (20, 30))]),
                      keep=[1, 2], train=train((16, 16)), spacing=(1.0, 1.0), classes=3, seed=0)  # fmt: skip
    assert len(near) == 1


def test_regions_that_are_not_kept_show_no_label():
    image, label, numbers = world((40, 40), [((5, 5), (10, 10)), ((10, 5), (15, 10))])
    (piece,) = cut_pieces(image, label, numbers, keep=[2], train=train((16, 16)), spacing=(1.0, 1.0), classes=3, seed=0)
    assert int((piece.label != 255).sum()) == 25 == int(piece.counts.sum())


def test_crops_are_aimed_at_classes_with_equal_chance():
    field = torch.zeros(64, 64, dtype=torch.uint8)
    field[30:32, 30:32] = 1
    pieces = cut_pieces(
        field[None].float(),
        field,
        torch.ones(64, 64, dtype=torch.int32),
        keep=[1],
        train=train((8, 8)),
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
