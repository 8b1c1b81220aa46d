"""Segmentation in bfloat16, as on a GPU that has it: on the CPU, whose autocast follows the same rules."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dal_dense.config import IntensityConfig, NetworkConfig, QueryConfig, TaskConfig, TrainConfig, UncertaintyConfig
from dal_dense.costs import PRESETS
from dal_dense.offer_maps import DensePrediction
from dal_dense.tasks import monai_fit, monai_infer
from dal_dense.tasks.base import Hooks
from dal_dense.tasks.monai_segmentation import MonaiSegmentation
from dal_dense.tasks.weights import load_state

sys.path.insert(0, str(Path(__file__).parent))
from toy_pool import CLASSES, known, toy_record

SHAPES = {2: (40, 52), 3: (20, 18, 14)}


def adapter(name: str, ndim: int, iterations: int) -> MonaiSegmentation:
    return MonaiSegmentation(
        task=TaskConfig(
            network=NetworkConfig(name=name, channels=(8, 16, 32) if ndim == 2 else (4, 8, 16)),  # type: ignore[arg-type]
            intensity=IntensityConfig(kind="rgb" if ndim == 2 else "zscore"),
            train=TrainConfig(iterations=iterations, batch=2, patch=(16, 16, 8)[:ndim], lr=1e-2 * (ndim - 1)),
        ),
        uncertainty=UncertaintyConfig(draws="mc_dropout", count=2),
        query=QueryConfig(sizes=((8, 6, 4)[:ndim],)),
        costs=PRESETS["ct_contour"],
        classes=CLASSES,
        ndim=ndim,
        in_channels=1 if ndim == 3 else 3,
        device=torch.device("cpu"),
        mask_of=lambda record: None,
    )


@contextmanager
def bfloat16() -> Iterator[list[torch.dtype]]:
    """Fits and passes run in mixed precision; gives the types that convolutions worked in."""
    seen: list[torch.dtype] = []

    def look(module: nn.Module, given: object, result: object) -> None:
        if isinstance(module, nn.Conv2d | nn.Conv3d) and isinstance(result, Tensor):
            seen.append(result.dtype)

    watch = nn.modules.module.register_module_forward_hook(look)
    with pytest.MonkeyPatch.context() as patch:
        for module in (monai_fit, monai_infer):
            patch.setattr(module, "mixed_precision", lambda device: torch.autocast("cpu", dtype=torch.bfloat16))
        try:
            yield seen
        finally:
            watch.remove()


def numbers(found: DensePrediction) -> dict[str, Tensor]:
    assert found.features is not None
    return {"mean": found.mean, "features": found.features, **found.maps}


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", ["unet", "dynunet", "segresnet"])
def test_networks_learn_and_predict_in_bfloat16(name: str, ndim: int, tmp_path: Path) -> None:
    record, truth = toy_record(tmp_path, "one", SHAPES[ndim], 0)
    other, expected = toy_record(tmp_path, "two", SHAPES[ndim], 2)
    task = adapter(name, ndim, 60)
    labelled = [known(record, truth, [((0,) * ndim, SHAPES[ndim])])]
    with bfloat16() as seen:
        task.fit(labelled, seed=0, out=tmp_path / "fit", previous=None, hooks=Hooks())
        assert set(seen) == {torch.bfloat16}
        seen.clear()
        half = numbers(task.predict(task.load(tmp_path / "fit"), other))
        assert set(seen) == {torch.bfloat16}
    weights = load_state(tmp_path / "fit" / "member_00.safetensors")
    assert all(torch.isfinite(t).all() and t.dtype == torch.float32 for t in weights.values())
    again = adapter(name, ndim, 60)  # which has kept no prediction
    full = numbers(again.predict(again.load(tmp_path / "fit"), other))
    assert all(half[k].dtype == torch.float32 for k in half)
    assert torch.allclose(half["mean"].sum(0), torch.ones(SHAPES[ndim]), atol=1e-5)
    assert not torch.equal(half["mean"], full["mean"])
    assert all((half[k] - full[k]).abs().mean() < 0.02 * full[k].abs().max() for k in half)
    right = (half["mean"].argmax(0) == torch.as_tensor(expected)).float()
    assert right.mean() > 0.9, float(right.mean())
    objects = right[torch.as_tensor(expected) > 0].mean()  # background alone is 0.93 of a volume
    assert objects > 0.6, float(objects)
