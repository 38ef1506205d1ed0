"""A copy of a network whose weights stand for themselves, whatever hooks computed them before."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


def settled(network: Any) -> Any:
    """Return a copy in which masks of `torch.nn.utils.prune` and norms of weights are made permanent.

    Both keep a computed tensor where a parameter was, which no copy can be made of and no state dict holds by its
    name. The copy computes the same. The network itself is left as it is; what is no module is copied plainly.
    """
    from torch import nn

    if not isinstance(network, nn.Module):
        return copy.deepcopy(network)
    memo: dict[int, Any] = {}
    computed = [value for part in network.modules() for value in vars(part).values() if _computed(value)]
    for value in computed:
        memo[id(value)] = value.detach().clone()
    copied = copy.deepcopy(network, memo)
    for part in copied.modules():
        _settle(part)
    return copied


def _computed(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and not value.is_leaf


def _settle(part: nn.Module) -> None:
    """Make permanent what hooks compute before each call."""
    from torch.nn.utils import prune, remove_spectral_norm, remove_weight_norm
    from torch.nn.utils.spectral_norm import SpectralNorm
    from torch.nn.utils.weight_norm import WeightNorm

    for hook in list(part._forward_pre_hooks.values()):
        if isinstance(hook, prune.BasePruningMethod):
            prune.remove(part, hook._tensor_name)  # type: ignore[no-untyped-call]  # torch's own
        elif isinstance(hook, WeightNorm):
            remove_weight_norm(part, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(part, hook.name)


def unmasked(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights by the names of an unmasked network, where `torch.nn.utils.prune` left `_orig` and `_mask`."""
    result = {}
    for name, tensor in weights.items():
        base = name.removesuffix("_orig")
        if base != name and f"{base}_mask" in weights:
            result[base] = tensor * weights[f"{base}_mask"]
        elif not (name.endswith("_mask") and f"{name.removesuffix('_mask')}_orig" in weights):
            result[name] = tensor
    return result
