"""The stand-in for a GPU refuses what a GPU refuses, and computes what the CPU computes."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.elsewhere import Far, elsewhere


@pytest.mark.parametrize(
    "mixes",
    [
        lambda far, near: far + near,
        lambda far, near: near @ far,
        lambda far, near: far.index_put_((torch.tensor([0]),), near[:1]),
        lambda far, near: near[far[0].long()],
        lambda far, near: torch.cat([far, near]),
        lambda far, near: torch.where(far > 0, near, 0),
    ],
)
def test_tensors_of_two_devices_are_refused(mixes: Callable[[Tensor, Tensor], Tensor]) -> None:
    near = torch.eye(3)
    with elsewhere() as device, pytest.raises(RuntimeError, match="device"):
        mixes(near.to(device), near)


@pytest.mark.parametrize("reads", [lambda x: x.numpy(), np.asarray])
def test_numpy_is_refused(reads: Callable[[Tensor], object]) -> None:
    with elsewhere() as device, pytest.raises(TypeError, match="NumPy"):
        reads(torch.ones(2, device=device))


def test_results_are_those_of_the_cpu() -> None:
    near = torch.arange(12.0).view(3, 4)
    with elsewhere() as device:
        far = near.to(device)
        part = far[1]
        part += far[0]  # a view and its tensor share memory
        assert far.tolist() == [[0, 1, 2, 3], [4, 6, 8, 10], [8, 9, 10, 11]] and near[1].tolist() == [4, 5, 6, 7]
        made = [
            torch.zeros(2, device=device),
            torch.zeros_like(far),
            torch.tensor([1], device=device),
            far.new_tensor([1]),
        ]
        assert all(isinstance(x, Far) and x.is_cuda and x.device == device for x in (*made, far[[0, 2]], far.max(1)[0]))
        assert far[[0, 2]].tolist() == far[torch.tensor([0, 2])].tolist() == far.cpu()[[0, 2]].tolist()
        assert float(far.sum()) == 72 and bool(far.any()) and far.cpu().device.type == "cpu"
