"""The tensors in whatever a network returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Return every tensor in lists, tuples, mappings, data classes and other objects, in order.

    PyTorch's own `tree_leaves` looks into kinds that were registered with it, and no others.
    """
    found: list[torch.Tensor] = []
    _collect(value, found, set())
    return found


def _collect(value: Any, found: list[torch.Tensor], seen: set[int]) -> None:
    if isinstance(value, torch.Tensor):
        found.append(value)
        return
    if id(value) in seen or isinstance(value, (str, bytes, int, float, complex, type, nn.Module)):
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        inside = list(value.values())
    elif isinstance(value, (list, tuple, set, frozenset)):
        inside = list(value)
    else:
        names = [
            n for kind in type(value).__mro__ for n in getattr(kind, "__slots__", ()) if hasattr(value, n)
        ]
        inside = [*getattr(value, "__dict__", {}).values(), *(getattr(value, name) for name in names)]
    for one in inside:
        _collect(one, found, seen)
