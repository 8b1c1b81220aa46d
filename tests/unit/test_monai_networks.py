import pytest
import torch
from torch import nn

from dal_dense.config import NetworkConfig
from dal_dense.tasks.monai_networks import FEATURES, build_network

NAMES = ("unet", "dynunet", "segresnet")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ndim", [2, 3])
def test_logits_and_features_of_a_batch_of_one(name, ndim):
    settings = NetworkConfig(name=name, channels=(4, 8, 16), dropout=0.2)
    net = build_network(settings, ndim=ndim, in_channels=2, classes=3, seed=5)
    x = torch.randn(1, 2, *(16, 8, 8)[:ndim])
    logits, features = net.eval().with_features(x)
    assert tuple(logits.shape) == (1, 3, *x.shape[2:])
    assert tuple(features.shape[2:]) == tuple(n // 4 for n in x.shape[2:])
    assert features.shape[1] <= FEATURES
    assert torch.equal(logits, net(x))
    again = build_network(settings, ndim=ndim, in_channels=2, classes=3, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    assert not list(net.buffers())  # no running statistics that a dropout pass could move


@pytest.mark.parametrize("name", NAMES)
def test_dropout_is_there_and_nothing_else_is_random(name):
    net = build_network(
        NetworkConfig(name=name, channels=(4, 8, 16), dropout=0.5), ndim=2, in_channels=1, classes=3, seed=0
    )
    net.eval()
    x = torch.randn(1, 1, 16, 16)
    plain = net(x)
    with net.dropping(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        one, two = net(x), net(x)
    assert not torch.equal(one, two)
    assert torch.equal(net(x), plain)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ndim", [2, 3])
def test_no_layer_has_a_gradient_that_differs_from_run_to_run_on_cuda(name, ndim):
    """Linear upsampling adds up its gradient atomically; transposed convolutions have a deterministic way."""
    net = build_network(NetworkConfig(name=name, channels=(4, 8, 16)), ndim=ndim, in_channels=1, classes=3, seed=0)
    assert not [m for m in net.modules() if isinstance(m, nn.Upsample)]


def test_building_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    build_network(NetworkConfig(channels=(4, 8)), ndim=2, in_channels=1, classes=2, seed=9)
    assert torch.equal(before, torch.get_rng_state())


def test_wide_features_are_projected():
    net = build_network(NetworkConfig(channels=(8, 96)), ndim=2, in_channels=1, classes=2, seed=0)
    assert net.with_features(torch.randn(1, 1, 8, 8))[1].shape[1] == FEATURES
