"""Modes: a network as it is in use, and while it is trained."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from penjing.errors import first_line
from torch import Tensor, nn

from penjing_training.objective import as_tuple


@contextmanager
def evaluating(network: nn.Module) -> Iterator[nn.Module]:
    """Put a network into eval mode meanwhile."""
    modes: dict[Any, bool] = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield network
    finally:
        for module, mode in modes.items():
            module.training = mode


def train_layers_only(network: nn.Module) -> None:
    """Put layers into training mode (norms, dropouts, all that has no parts), and what they make up into eval mode.

    The network's own code then runs as it does in use.
    """
    for module in network.modules():
        module.training = not _has_parts(module)


def other_in_training(network: nn.Module, inputs: Tensor) -> str:
    """Return what a network in training mode does that it does not in use, for an example of inputs; "" for nothing.

    A detector may leave its boxes undecoded then, or an auxiliary head may come first. More outputs behind those in
    use are no matter, nor are values that chance changes. What its code raises in training mode counts as well.
    """
    probe = copy.deepcopy(network).eval()
    varied = torch.rand(inputs.shape, generator=torch.Generator().manual_seed(0)).to(inputs)
    with torch.no_grad(), torch.random.fork_rng([inputs.device] if inputs.is_cuda else []):
        used = as_tuple(probe(varied))
        for module in probe.modules():
            module.training = _has_parts(module)  # norms and dropouts leave the values as they are
        try:
            found = as_tuple(probe(varied))
        except Exception as error:  # whatever somebody's network raises
            return f"it fails ({type(error).__name__}: {first_line(error)})"
    if any(a.shape != b.shape for a, b in zip(found, used, strict=False)) or len(found) < len(used):
        return "its outputs have other shapes"
    same = [[_alike(a, b) for b in found] for a in used]
    # in another place, and not in its own
    return (
        "its outputs come in another order"
        if any(any(row) and not row[i] for i, row in enumerate(same))
        else ""
    )


def _has_parts(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.float(), other.float(), rtol=1e-3, atol=1e-5)
