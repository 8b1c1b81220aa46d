"""A stand-in for a GPU: tensors that say they are on `cuda:0` and are worked on by the CPU.

It finds what the CPU alone does not: tensors of two devices in one operation, NumPy on a tensor of the device, blocks
of the sizes meant for a GPU. It knows nothing of kernels, speed, memory or rounding; tests marked `gpu` do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("cuda:0")
CROSSES = {"aten::copy_", "aten::_to_copy"}
INDEXES = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
ITEMS = (Tensor.__getitem__, Tensor.__setitem__)


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """The device, for as long as the context lasts."""
    with patch("torch.cuda._lazy_init", lambda: None), Operations(), Calls():
        yield DEVICE


class Far(Tensor):
    """A tensor of the device. C++ takes it for one of `meta`, so that no driver is asked."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Far:
        """`held`: its values, on the CPU."""
        made = Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device="meta"
        )
        made.held = held
        return made

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)

    def __repr__(self, *_: Any, **__: Any) -> str:
        return f"Far({self.held})"

    def tolist(self) -> Any:
        """The values."""
        return self.held.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        """Refused, as on a GPU."""
        raise TypeError("NumPy cannot read a tensor of a device; use Tensor.cpu() first")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return done(func, args, kwargs or {})


class Operations(TorchDispatchMode):
    """What makes a tensor of the device out of nothing, or of one of the CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return done(func, args, kwargs) if Far in types or is_far(kwargs.get("device")) else func(*args, **kwargs)


class Calls(TorchFunctionMode):
    """What torch settles before it comes to operations: literals on the device, and lists as indices."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and is_far(kwargs.get("device")):
            return Far(func(*args, **{**kwargs, "device": "cpu"}))
        if func is Tensor.new_tensor and isinstance(args[0], Far):
            return Far(args[0].held.new_tensor(*args[1:], **kwargs))
        if func in ITEMS:
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            args = (args[0], tuple(torch.tensor(p) if isinstance(p, list) else p for p in places), *args[2:])
        return func(*args, **kwargs)


def is_far(device: Any) -> bool:
    """Is it the device? `meta` is what C++ says, where it makes one tensor like another."""
    return device is not None and torch.device(device).type in ("cuda", "meta")


def done(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The result of an operation, on the device if one of its tensors is or if that was asked.

    Raises:
        RuntimeError: if it has tensors of two devices; if this stand-in does not know how torch came here.
    """
    tensors = [x for x in tree_leaves((args, dict(kwargs))) if isinstance(x, Tensor)]
    if any(x.device.type == "meta" for x in tensors):
        raise RuntimeError(f"{func}: values are lost; `Calls` must treat what called this")
    far = [x for x in tensors if isinstance(x, Far)]
    _refuse_two_devices(func, args, tensors)
    name, asked = func._schema.name, kwargs.get("device")  # type: ignore[attr-defined]
    there = is_far(asked) if asked is not None else isinstance(args[0], Far) if name == "aten::copy_" else bool(far)
    changed = {"device": torch.device("cpu")} if asked is not None else {}
    held, named = tree_map_only(Far, lambda x: x.held, (tuple(args), {**kwargs, **changed}))
    result = func(*held, **named)
    same = {id(x.held): x for x in far}  # what an operation in place gives back
    return tree_map_only(Tensor, lambda x: same[id(x)] if id(x) in same else Far(x), result) if there else result


def _refuse_two_devices(func: Any, args: Sequence[Any], tensors: Sequence[Tensor]) -> None:
    name = func._schema.name
    if name in CROSSES:
        return
    if name in INDEXES and isinstance(args[0], Far):  # whose indices may be on the CPU
        tensors = [x for x in (args[0], *args[2:3]) if isinstance(x, Tensor)]
    here = any(x.dim() for x in tensors if not isinstance(x, Far))  # a tensor of one number may be anywhere
    if here and any(isinstance(x, Far) for x in tensors):
        raise RuntimeError(f"{func}: expected all tensors on one device, got {[x.device for x in tensors]}")
