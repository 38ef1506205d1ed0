"""Several processes that train one network: torch's DistributedDataParallel, gloo on CPUs and NCCL on GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from penjing.ranks import DAYS
from torch import distributed, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from penjing.ranks import Ranks


def device_of(ranks: Ranks) -> torch.device:
    """Return the GPU of this process, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", ranks.local % torch.cuda.device_count())


@contextmanager
def together(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """Let the processes talk to each other meanwhile."""
    if ranks.world == 1:
        yield
        return
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore(f"train-{ranks.turn()}", ranks.store),
        rank=ranks.rank,
        world_size=ranks.world,
        timeout=timedelta(days=DAYS),
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()


def wrap(module: nn.Module, ranks: Ranks, device: torch.device, *example: Any) -> nn.Module:
    """Return `module`, which takes the inputs `example`, so that all processes get the mean of their gradients."""
    if ranks.world == 1:
        return module
    devices = [device] if device.type == "cuda" else None
    unused = _has_unused(module, *example)
    return DistributedDataParallel(module, device_ids=devices, find_unused_parameters=unused)


def _has_unused(module: nn.Module, *example: Any) -> bool:
    """Tell whether some parameters take no part in training: looking for them in every step costs time."""
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.train()(*example).backward()
    unused = any(p.grad is None for p in module.parameters() if p.requires_grad)
    module.zero_grad()
    module.load_state_dict(before)
    return unused


def unsynchronised(module: nn.Module, wanted: bool) -> AbstractContextManager[Any]:
    """Keep gradients to this process while more parts of its batch follow."""
    if wanted and isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return nullcontext()


def spread_buffers(module: nn.Module, ranks: Ranks) -> None:
    """Give all processes the buffers of rank 0, whose batch norms saw other photographs."""
    if ranks.world > 1:
        for buffer in module.buffers():
            distributed.broadcast(buffer, 0)
