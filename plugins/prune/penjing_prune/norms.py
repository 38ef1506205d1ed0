"""What normalising does to channel ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from penjing_prune.labels import varying
from penjing_prune.meeting import meet, meet_ids, mix, vector

if TYPE_CHECKING:
    from penjing_prune.trace import _Tracer

Args = tuple[Any, ...]

BATCH_NORMS = frozenset({
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "_batch_norm_with_update", "miopen_batch_norm", "batch_norm",
})  # fmt: skip


def tensors_of(out: Any) -> list[torch.Tensor]:
    """Return the tensors that an operator returned."""
    return [result for result in tree_leaves(out) if isinstance(result, torch.Tensor)]


def batch_norm(tracer: _Tracer, name: str, func: Any, args: Args, kwargs: dict[str, Any], out: Any) -> None:
    """Join channels with their scale, shift, mean and variance."""
    source = args[0]
    layers = tracer.layers(source)
    ids = vector(tracer, layers, 1, name, source.shape[1])
    for tensor in [t for t in args[1:5] if isinstance(t, torch.Tensor) and t.ndim == 1]:
        own = vector(tracer, tracer.layers(tensor), 0, name, tensor.shape[0])
        meet_ids(tracer, ids, own, name)
        leaf = tracer.leaf(tensor)
        if leaf and own is not None:
            tracer.count(leaf, "num_features", own)
            if tensor is args[1]:
                tracer.result.scales.add(leaf.names[0])
    tracer.label(tensors_of(out)[0], layers)


def weight_norm(tracer: _Tracer, name: str, func: Any, args: Args, kwargs: dict[str, Any], out: Any) -> None:
    """Join directions with their lengths, g v / |v|: zeros add nothing to the norm of a slice."""
    direction, length = args[0], args[1]
    tracer.label(tensors_of(out)[0], tuple(meet(tracer, name, [direction, length], direction.ndim)))


def layer_norm(tracer: _Tracer, name: str, func: Any, args: Args, kwargs: dict[str, Any], out: Any) -> None:
    """Tie all channels: mean and variance depend on each of them."""
    source, shape = args[0], args[1]
    dims = tuple(range(source.ndim - len(shape), source.ndim))
    for layer in tracer.layers(source):
        if inside := tuple(d for d in varying(layer) if d in dims):
            mix(tracer, "layer norm", layer, inside)
    tensors = [t for t in (source, *args[2:4]) if isinstance(t, torch.Tensor)]
    for tensor in tensors[1:]:
        tracer.fix(tensor, f"layer norm mixes all of them in {tracer.site()}")
    tracer.label(tensors_of(out)[0], tuple(meet(tracer, "layer norm", tensors, source.ndim)))


def group_norm(tracer: _Tracer, name: str, func: Any, args: Args, kwargs: dict[str, Any], out: Any) -> None:
    """Tie the channels of each group, and count the groups."""
    source, weight, bias, groups = args[0], args[1], args[2], args[6]
    ids = vector(tracer, tracer.layers(source), 1, "group norm", source.shape[1])
    for tensor in (weight, bias):
        if tensor is not None:
            own = vector(tracer, tracer.layers(tensor), 0, "group norm", source.shape[1])
            meet_ids(tracer, ids, own, "group norm")
            if own is not None and (leaf := tracer.leaf(tensor)):
                tracer.count(leaf, "num_channels", own)
    if ids is not None:
        grouped = ids.reshape(groups, -1)
        tracer.join(grouped, np.broadcast_to(grouped[:, :1], grouped.shape))
        if groups == 1 or not tracer.count(tracer.leaf(weight), "num_groups", grouped[:, 0]):
            tracer.fix_ids(ids, f"group norm mixes all of them in {tracer.site()}")
    tracer.label(tensors_of(out)[0], tracer.layers(source))
