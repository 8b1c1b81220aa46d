"""Networks by name, 2-D and 3-D: UNet, DynUNet, SegResNet; all fit a batch of one.

Instance or group norm only, so that a draw with dropout never moves a running mean. Dropout is set
by us, on the deep levels: there it says most about what the network does not know (Kendall, Badrinarayanan
& Cipolla 2015, Bayesian SegNet), and it costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from monai.networks.nets import DynUNet, SegResNet, UNet
from torch import Tensor, nn

from dal_dense.config import NetworkConfig

FEATURES = 64
"""Widest feature map kept for embeddings; wider ones are projected down."""


class Network(nn.Module):
    """A segmentation network with dropout on its deep levels, whose deepest features come out in the same pass.

    Args:
        body: MONAI's network.
        deepest: its layer of lowest resolution; its output gives the features.
        deep: further layers below the finest level; dropout follows these and the deepest.
        dropout: rate.
        factor: edges of the input must be multiples of this.
    """

    def __init__(
        self, body: nn.Module, deepest: nn.Module, deep: Sequence[nn.Module], *, dropout: float, factor: int
    ) -> None:
        super().__init__()
        self.body = body
        self.dropout = nn.Dropout(dropout)
        self.factor = factor
        self._features: Tensor | None = None
        self._wanted = False
        deepest.register_forward_hook(self._keep)
        for layer in (deepest, *deep):
            layer.register_forward_hook(self._drop)

    def _keep(self, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        if self._wanted:
            self._features = output

    def _drop(self, layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        dropped: Tensor = self.dropout(output)
        return dropped

    def forward(self, x: Float[Tensor, "batch channels *grid"]) -> Float[Tensor, "batch classes *grid"]:
        """Logits."""
        logits: Tensor = self.body(x)
        return logits

    def with_features(
        self, x: Float[Tensor, "batch channels *grid"]
    ) -> tuple[Float[Tensor, "batch classes *grid"], Float[Tensor, "batch features *deep"]]:
        """Logits and the deepest feature map, at most `FEATURES` channels, float32, before dropout."""
        self._wanted = True
        try:
            logits = self.body(x)
            deep = self._features
        finally:
            self._wanted, self._features = False, None
        if deep is None:
            raise RuntimeError("the network's deepest layer was not reached")
        return logits, _narrow(deep.float())

    @contextmanager
    def dropping(self) -> Iterator[None]:
        """Dropout as in training, everything else (norm layers) as in evaluation."""
        self.dropout.train()
        try:
            yield
        finally:
            self.dropout.eval()


def _narrow(features: Float[Tensor, "batch wide *deep"]) -> Float[Tensor, "batch narrow *deep"]:
    """At most `FEATURES` channels, by a fixed random projection (Johnson & Lindenstrauss 1984)."""
    wide = features.shape[1]
    if wide <= FEATURES:
        return features
    generator = torch.Generator().manual_seed(wide)
    matrix = torch.randn(FEATURES, wide, generator=generator).to(features.device) / FEATURES**0.5
    return torch.einsum("bc...,fc->bf...", features, matrix)


def build_network(settings: NetworkConfig, *, ndim: int, in_channels: int, classes: int, seed: int) -> Network:
    """A fresh network; its first weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _BUILDERS[settings.name](settings, ndim, in_channels, classes)


def _norm(settings: NetworkConfig, ndim: int) -> tuple[str, dict[str, Any]]:
    """Instance norm for volumes; for frames group norm, which keeps how bright and of what colour a crop is.

    Short fits, group against instance norm: CamVid mIoU .18 against .14 (one seed, 250 iterations);
    OpenKBP Dice .43 against .53, MSD hippocampus .78 against .81 (two seeds each).
    """
    if ndim == 3:
        return "INSTANCE", {"affine": True}
    groups = next(n for n in (4, 2, 1) if all(c % n == 0 for c in settings.channels))
    return "GROUP", {"num_groups": groups}


def _unet(settings: NetworkConfig, ndim: int, in_channels: int, classes: int) -> Network:
    first, levels = settings.channels[0], len(settings.channels)
    norm = _norm(settings, ndim)
    body = UNet(ndim, in_channels, first, settings.channels, (2,) * (levels - 1), num_res_units=2, norm=norm)
    # logits by one upsampling convolution: MONAI's residual unit on `classes` channels at full resolution
    # takes a seventh of the time and made Dice no better (MSD hippocampus, 20 crops, 2 seeds, with three taps:
    # .79 with, .81 without);
    # four taps at stride 2 overlap evenly, where three print a chequerboard on the uncertainty (Odena et al. 2016)
    wide = body.model[2][0].conv.in_channels
    upsample = nn.ConvTranspose3d if ndim == 3 else nn.ConvTranspose2d
    body.model[2] = upsample(wide, classes, 4, stride=2, padding=1)
    level, deep = body.model, []  # a level is (down, skip around the deeper level, up)
    for _ in range(levels - 2):
        level = level[1].submodule
        deep.append(level[2])
    return Network(body, level[1].submodule, deep, dropout=settings.dropout, factor=2 ** (levels - 1))


def _dynunet(settings: NetworkConfig, ndim: int, in_channels: int, classes: int) -> Network:
    levels = len(settings.channels)
    body = DynUNet(
        ndim,
        in_channels,
        classes,
        kernel_size=[3] * levels,
        strides=[1] + [2] * (levels - 1),
        upsample_kernel_size=[2] * (levels - 1),
        filters=settings.channels,
        norm_name=_norm(settings, ndim),
    )
    deep = list(body.upsamples)[:-1]
    return Network(body, body.bottleneck, deep, dropout=settings.dropout, factor=2 ** (levels - 1))


def _segresnet(settings: NetworkConfig, ndim: int, in_channels: int, classes: int) -> Network:
    first, levels = settings.channels[0], len(settings.channels)
    groups = next(n for n in (8, 4, 2, 1) if first % n == 0)
    body = SegResNet(
        ndim,
        first,
        in_channels,
        classes,
        blocks_down=(1,) + (2,) * (levels - 1),
        blocks_up=(1,) * (levels - 1),
        norm=("GROUP", {"num_groups": groups}),
        upsample_mode="deconv",  # the gradient of linear upsampling differs from run to run on CUDA
    )
    deep = list(body.up_layers)[:-1]
    return Network(body, body.down_layers[-1], deep, dropout=settings.dropout, factor=2 ** (levels - 1))


_BUILDERS: dict[str, Callable[[NetworkConfig, int, int, int], Network]] = {
    "unet": _unet,
    "dynunet": _dynunet,
    "segresnet": _segresnet,
}
