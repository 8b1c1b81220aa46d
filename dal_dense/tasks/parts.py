"""The gradient of an optimiser step, cut into parts that several processes may share.

The batch of a step is cut into `task.train.parts` equal parts. Each has its own crops, its own
dropout and its own loss, all functions of (seed, iteration, part); the gradient of the step is the
mean of theirs, added up in the order of the parts. So it is the same to the last bit for one
process, which takes the parts one after the other, and for N processes, each of which takes
parts / N of them under `DistributedDataParallel`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dal_dense.errors import ConfigError
from dal_dense.noise import derive_seed
from dal_dense.ranks import Ranks


def part_seed(seed: int, use: str, iteration: int, part: int) -> int:
    """The seed of one use in one part of a step; that of part 0 is the seed of a step that is not cut."""
    return derive_seed(seed, use, iteration, *([part] if part else []))


class Parts:
    """The steps of one network's training.

    Args:
        network: what is trained; the same weights in every process.
        loss_of: (iteration, part) to the part's loss.
        parts: in how many parts a step is cut; the number of processes divides it.
        ranks: who shares them; all of them make this object and take every step together.

    Raises:
        ConfigError: if the network keeps running statistics, which would depend on who saw which part.
    """

    def __init__(self, network: nn.Module, loss_of: Callable[[int, int], Tensor], parts: int, ranks: Ranks) -> None:
        self._loss_of, self._parts, self._ranks = loss_of, parts, ranks
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        if parts > 1:
            _check_norms(network, parts)
        self._part, self._sum = _Part(self._parameters, loss_of, parts), _OrderedSum(ranks)
        self._shared: DistributedDataParallel | None = None
        if ranks.size > 1:
            self._shared = DistributedDataParallel(self._part, process_group=ranks.training)
            # the hook must not hold `self`, which holds what holds the hook; and torch refuses a hook with postponed
            # annotations, so it has no name
            self._shared.register_comm_hook(self._sum, lambda total, bucket: total.of(bucket))

    def gradient(self, iteration: int) -> Float[Tensor, ""]:
        """Leave the gradient of a step in the network's parameters.

        Returns:
            The step's loss, still on the device.

        Raises:
            RankError: if another process died.
        """
        self._forget()
        if self._parts == 1:
            loss = self._loss_of(iteration, 0)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()
        if self._shared is not None:
            return self._shared_losses(self._shared, iteration).sum()
        losses = []
        for part in range(self._parts):
            loss = self._part(iteration, part)
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def _shared_losses(self, shared: DistributedDataParallel, iteration: int) -> Float[Tensor, " parts"]:
        """Of all parts, in order. The last of this process's own parts sends the gradients of all of them."""
        each = self._parts // self._ranks.size
        mine = range(self._ranks.rank * each, (self._ranks.rank + 1) * each)
        losses = []
        for part in mine[:-1]:
            with shared.no_sync():
                losses.append(shared(iteration, part))
                losses[-1].backward()
            self._sum.earlier.append({p: p.grad for p in self._parameters if p.grad is not None})
            self._forget()
        losses.append(shared(iteration, mine[-1]))
        self._ranks.agreed(False)  # who has failed says so now; from here on each waits for the others' gradients
        with self._ranks.exchanging():
            losses[-1].backward()
            own = torch.stack([loss.detach() for loss in losses])
            everyone = [torch.empty_like(own) for _ in range(self._ranks.size)]
            dist.all_gather(everyone, own, group=self._ranks.training)
        self._sum.earlier.clear()
        return torch.cat(everyone)

    def _forget(self) -> None:
        for p in self._parameters:
            p.grad = None


class _OrderedSum:
    """The gradients of a step, added up in the order of its parts.

    Args:
        ranks: who shares the parts.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self.earlier: list[dict[Tensor, Tensor]] = []  # of this process's parts but the last

    def of(self, bucket: Any) -> torch.futures.Future[Tensor]:
        """Sum of a bucket's gradients over all parts, one after the other: every process sends each of its parts."""
        views = bucket.gradients()
        rows = [[before[p] for p in bucket.parameters()] for before in self.earlier] + [views]
        own = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
        everyone = [torch.empty_like(own) for _ in range(self._ranks.size)]
        work = dist.all_gather(everyone, own, group=self._ranks.training, async_op=True)

        def added(done: torch.futures.Future[list[Tensor]]) -> Tensor:
            done.wait()  # raises what went wrong
            total, *others = torch.cat(everyone)
            for row in others:
                total = total + row
            for view, values in zip(views, total.split([v.numel() for v in views]), strict=True):
                view.copy_(values.view(view.shape))
            buffer: Tensor = bucket.buffer()
            return buffer

        future: torch.futures.Future[Tensor] = work.get_future().then(added)
        return future


class _Part(nn.Module):
    """A part's share of the loss, as `DistributedDataParallel` wraps it.

    It holds the parameters only, not the network: buffers need not be sent around. Every parameter gets a
    gradient, if only of zeros, for each process waits for all of them.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], loss_of: Callable[[int, int], Tensor], parts: int) -> None:
        super().__init__()
        self.held = nn.ParameterList(parameters)
        self._loss_of, self._parts = loss_of, parts

    def forward(self, iteration: int, part: int) -> Tensor:
        nothing = torch.stack([p.flatten()[:0].sum() for p in self.held]).sum()
        return self._loss_of(iteration, part) / self._parts + nothing


def _check_norms(network: nn.Module, parts: int) -> None:
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats for m in network.modules()):
        raise ConfigError(
            f"task.train.parts: batch norm keeps running statistics, which {parts} parts would disagree on; "
            "set task.detection.norm to group or frozen, or task.train.parts to 1"
        )
