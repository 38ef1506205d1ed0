"""Masks and norms of weights, which hooks compute before each call, folded into the weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
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
            _forget(part)


def _forget(part: nn.Module) -> None:
    """Remove the hook that looks for what spectral norm saved; torch's own removal overlooks it."""
    from torch.nn.utils.spectral_norm import SpectralNormLoadStateDictPreHook

    for key, hook in list(part._load_state_dict_pre_hooks.items()):
        if isinstance(getattr(hook, "hook", hook), SpectralNormLoadStateDictPreHook):
            del part._load_state_dict_pre_hooks[key]


def fold_weights(
    weights: dict[str, torch.Tensor], path: Path, wanted: Collection[str] = ()
) -> dict[str, torch.Tensor]:
    """Return weights by the names of a network without masks and norms, computed as their hooks do.

    `torch.nn.utils.prune` left `_orig` and `_mask`, weight norm `_g` and `_v`, spectral norm `_orig`, `_u` and `_v`.
    `path` is the file they came from; names that are `wanted` stay as they are. Raises InputError for parts that do
    not belong together.
    """
    result = dict(weights)
    for parts, compute in _FORMS:
        for base in [name.removesuffix(parts[0]) for name in weights if name.endswith(parts[0])]:
            names = [f"{base}{part}" for part in parts]
            if not all(name in result and name not in wanted for name in names):
                continue
            folded = compute(*(result[name] for name in names))
            if folded is None:
                raise InputError(
                    f"{path}: {' and '.join(f'{name} is {list(result[name].shape)}' for name in names)}; "
                    "they do not belong together.",
                    hint="Make masks and norms permanent before saving, with torch's own remove functions.",
                )
            for name in names:
                del result[name]
            result[base] = folded
    return result


def _masked(mask: torch.Tensor, weight: torch.Tensor) -> torch.Tensor | None:
    return weight * mask if weight.shape == mask.shape else None


def _length_times_direction(length: torch.Tensor, direction: torch.Tensor) -> torch.Tensor | None:
    if length.numel() == 1:
        one: torch.Tensor = direction * (length / direction.norm())
        return one
    dims = [d for d, size in enumerate(length.shape) if size != 1]
    if length.ndim != direction.ndim or len(dims) != 1 or length.shape[dims[0]] != direction.shape[dims[0]]:
        return None
    rest = [d for d in range(direction.ndim) if d != dims[0]]
    each: torch.Tensor = direction * (length / direction.square().sum(rest, keepdim=True).sqrt())
    return each


def _over_largest_singular_value(
    left: torch.Tensor, right: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor | None:
    for dim in range(min(2, weight.ndim)):  # transposed convolutions are normalised along the second
        matrix = weight.movedim(dim, 0).flatten(1)
        if matrix.shape == (left.numel(), right.numel()):
            normal: torch.Tensor = weight / (left.flatten() @ matrix @ right.flatten())
            return normal
    return None


#: endings of names that belong together, and what computes the weight from them
_FORMS: tuple[tuple[tuple[str, ...], Callable[..., torch.Tensor | None]], ...] = (
    (("_mask", "_orig"), _masked),
    (("_g", "_v"), _length_times_direction),
    (("_u", "_v", "_orig"), _over_largest_singular_value),
)
