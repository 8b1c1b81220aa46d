from contextlib import contextmanager
from itertools import product

import pytest
import torch
from torch import nn

from dal_dense.config import NetworkConfig, UncertaintyConfig
from dal_dense.tasks import monai_infer
from dal_dense.tasks.monai_infer import FeatureCells, Pass, Windows, draw_sums, pass_logits, passes, window_logits
from dal_dense.tasks.monai_networks import Network, build_network
from dal_dense.tasks.monai_weights import Model, ModelCard

CPU = torch.device("cpu")
WINDOWS = Windows((8, 8), 0.25, CPU)


def model(count: int = 1, dropout: float = 0.5) -> Model:
    settings = NetworkConfig(channels=(4, 8), dropout=dropout)
    networks = tuple(build_network(settings, ndim=2, in_channels=1, classes=3, seed=s).eval() for s in range(count))
    card = ModelCard(
        network=settings, ndim=2, in_channels=1, classes=("a", "b", "c"), temperature=1.0,
        role="members", files=(), inputs="",
    )  # fmt: skip
    return Model(card, networks, "sha")


class Pointwise(nn.Module):
    """A network without context: windows must not matter."""

    def __init__(self):
        super().__init__()
        self.pool = nn.AvgPool2d(4)

    def forward(self, x):
        self.pool(x)
        return torch.cat([x, 2 * x, -x], 1)


def pointwise() -> Network:
    body = Pointwise()
    return Network(body, body.pool, [], dropout=0.0, factor=1)


@pytest.mark.parametrize("shape", [(8, 8), (5, 30), (19, 23), (3, 3)])
def test_windows_are_blended_without_seams_on_any_size(shape):
    image = torch.randn(1, *shape)
    assert torch.allclose(window_logits(pointwise(), image, WINDOWS), torch.cat([image, 2 * image, -image]), atol=1e-5)


@pytest.mark.parametrize("shape", [(16, 24), (8, 30), (19, 41), (33, 25), (9, 3)])
def test_features_lie_where_the_image_has_them(shape):
    """Cells divide the image evenly, as `offer_maps` assumes: a ramp's mean is its value in a cell's middle."""
    rows, cols = torch.meshgrid(*[torch.arange(n, dtype=torch.float32) for n in shape], indexing="ij")
    for axis, ramp in enumerate((rows, cols)):
        cells = FeatureCells(shape)
        window_logits(pointwise(), ramp[None], Windows((16, 16), 0.25, CPU), cells)
        coarse = cells.mean()
        count = -(-shape[axis] // 8)
        assert tuple(coarse.shape) == (1, *(-(-n // 8) for n in shape))
        if min(shape) < 16:
            continue  # padding is averaged into the features themselves
        expected = (torch.arange(count) + 0.5) * shape[axis] / count - 0.5
        assert (coarse[0].mean(1 - axis) - expected).abs().max() <= 2.0  # half a deep voxel


@pytest.mark.parametrize(
    "grid,patch,starts",
    [((19, 41), (16, 16), (0, 3, 12, 25)), ((3, 9), (16, 8), (0, 1)), ((24, 17), (12, 8), (0, 5, 9, 12))],
)
def test_cells_average_every_window_over_the_ground_they_share(grid, patch, starts):
    """Against a direct sum on a grid so fine that every edge of a cell or deep voxel lies between two of its dots."""
    deep, shape = (4, 2), [-(-n // 8) for n in grid]
    generator = torch.Generator().manual_seed(0)
    corners = [
        c for c in product(starts, repeat=2) if all(s <= max(0, n - p) for s, n, p in zip(c, grid, patch, strict=True))
    ]
    features = torch.randn(len(corners), 2, *deep, generator=generator)
    cells = FeatureCells(grid)
    cells.add(features, [[slice(s, s + p) for s, p in zip(c, patch, strict=True)] for c in corners])
    size = [n * m for n, m in zip(grid, shape, strict=True)]  # dots an axis: m a voxel, n a cell
    total, count = torch.zeros(2, *size), torch.zeros(size)
    for values, corner in zip(features, corners, strict=True):
        for axis, (p, n, m) in enumerate(zip(patch, deep, shape, strict=True)):
            values = values.repeat_interleave(p * m // n, axis + 1)
        inside = [slice(s * m, min(z, (s + p) * m)) for s, m, z, p in zip(corner, shape, size, patch, strict=True)]
        cut = tuple(slice(0, i.stop - i.start) for i in inside)
        total[(slice(None), *inside)] += values[(slice(None), *cut)]
        count[tuple(inside)] += 1
    assert (count > 0).all()
    blocks = [x for n, m in zip(grid, shape, strict=True) for x in (m, n)]
    direct = total.reshape(2, *blocks).sum((2, 4)) / count.reshape(blocks).sum((1, 3))
    torch.testing.assert_close(cells.mean(), direct)


def test_windows_and_training_share_the_deterministic_setting(monkeypatch):
    entered = []

    @contextmanager
    def noted(device):
        entered.append(device)
        yield

    monkeypatch.setattr(monai_infer, "deterministic", noted)
    window_logits(pointwise(), torch.randn(1, 8, 8), WINDOWS)
    assert entered == [CPU]


def test_flips_are_undone():
    fitted = model(dropout=0.0)
    image = torch.randn(1, 16, 16)
    straight = pass_logits(Pass(fitted.networks[0]), image, WINDOWS)
    turned = pass_logits(Pass(fitted.networks[0], flips=(0, 1)), image.flip([1, 2]), WINDOWS)
    assert torch.allclose(turned.flip([1, 2]), straight, atol=1e-4)


def test_dropout_draws_are_keyed_by_image_and_number_and_leave_norm_alone():
    fitted, image = model(), torch.randn(1, 12, 12)
    settings = UncertaintyConfig(draws="mc_dropout", count=3)
    one = [pass_logits(p, image, WINDOWS) for p in passes(fitted, settings, (), "img")]
    torch.rand(7)
    again = [pass_logits(p, image, WINDOWS) for p in reversed(list(passes(fitted, settings, (), "img")))][::-1]
    other = [pass_logits(p, image, WINDOWS) for p in passes(fitted, settings, (), "other")]
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0], one[1]) and not torch.equal(one[0], other[0])
    assert not any(m.training for m in fitted.networks[0].modules())


def test_inference_leaves_the_global_generator_alone():
    fitted = model()
    before = torch.get_rng_state()
    draws = passes(fitted, UncertaintyConfig(draws="mc_dropout", count=2), (), "img")
    draw_sums(draws, torch.randn(1, 8, 8, generator=torch.Generator()), WINDOWS, 1.0, features=True)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "draws,count,expected",
    [("single", 4, 1), ("flips", 3, 3), ("flips", 9, 4), ("ensemble", 2, 2), ("mc_dropout", 5, 5)],
)
def test_number_of_draws(draws, count, expected):
    fitted = model(2 if draws == "ensemble" else 1)
    found = list(passes(fitted, UncertaintyConfig(draws=draws, count=count), (0, 1), "img"))
    assert len(found) == expected
    assert len({(id(p.network), p.flips, p.dropout) for p in found}) == expected


def test_streamed_maps_equal_stacked_draws_and_temperature_softens():
    fitted, image = model(3, dropout=0.0), torch.randn(1, 10, 11)
    settings = UncertaintyConfig(draws="ensemble", count=3)
    sums, features = draw_sums(passes(fitted, settings, (), "i"), image, WINDOWS, 2.0, features=True)
    stack = torch.stack([torch.softmax(pass_logits(Pass(n), image, WINDOWS) / 2.0, 0) for n in fitted.networks])
    mean, maps = sums.finish(["predictive_entropy", "mutual_information"])
    assert torch.allclose(mean, stack.mean(0), atol=1e-6)
    mutual = torch.special.entr(stack.mean(0)).sum(0) - torch.special.entr(stack).sum(1).mean(0)
    assert torch.allclose(maps["mutual_information"], mutual, atol=1e-5)
    assert features is not None and tuple(features.shape[1:]) == (2, 2)
    sharp, _ = draw_sums(passes(fitted, settings, (), "i"), image, WINDOWS, 1.0, features=False)
    assert maps["predictive_entropy"].mean() > sharp.finish(["predictive_entropy"])[1]["predictive_entropy"].mean()


def test_features_are_those_of_the_unflipped_pass():
    fitted, image = model(dropout=0.0), torch.randn(1, 16, 24)
    one, many = (
        draw_sums(passes(fitted, UncertaintyConfig(draws=d), (0, 1), "i"), image, WINDOWS, 1.0, features=True)[1]
        for d in ("single", "flips")
    )
    assert one is not None and many is not None and torch.equal(one, many)


def test_softmax_a_few_planes_at_a_time_is_the_softmax(monkeypatch):
    logits = torch.randn(3, 7, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.softmax(logits / 1.7, 0)
    for voxels in (1, 45, 1000):
        monkeypatch.setattr(monai_infer, "VOXELS_A_SOFTMAX", voxels)
        own = logits.clone()
        assert monai_infer._softmax_in_place(own, 1.7) is own
        torch.testing.assert_close(own, expected)
