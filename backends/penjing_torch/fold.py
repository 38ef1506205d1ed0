"""Masks and norms of weights, which hooks compute before each call, folded into the weights."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from penjing.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn


def folded(network: Any) -> Any:
    """Return a copy with masks of `torch.nn.utils.prune`, weight and spectral norms folded into its weights.

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
        _fold(part)
    return copied


def _computed(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and not value.is_leaf


def _fold(part: nn.Module) -> None:
    """Make permanent what hooks compute, and remove them."""
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


def fold_masks(weights: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """Return weights by the names of an unmasked network, where `torch.nn.utils.prune` left `_orig` and `_mask`.

    `path` is the file they came from. Raises InputError for a mask of another shape than what it masks.
    """
    result = dict(weights)
    for name, mask in weights.items():
        base = name.removesuffix("_mask")
        if base == name or f"{base}_orig" not in weights:
            continue
        masked = weights[f"{base}_orig"]
        if masked.shape != mask.shape:
            raise InputError(
                f"{path}: {name} is {list(mask.shape)}, and what it masks is {list(masked.shape)}.",
                hint="Make masks permanent before saving: torch.nn.utils.prune.remove(module, 'weight').",
            )
        del result[name], result[f"{base}_orig"]
        result[base] = masked * mask
    return result
