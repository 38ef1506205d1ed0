"""What rules have in common: channels that meet element by element, that are mixed, or that lie along one dimension."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from penjing_prune.labels import Ids, Layer, Layers, aligned, broadcast, collapse, overlapping, varying

if TYPE_CHECKING:
    from penjing_prune.trace import _Tracer


def meet(tracer: _Tracer, name: str, tensors: list[torch.Tensor], ndim: int) -> list[Layer]:
    """Return the layers of tensors that are combined element by element, joined where they meet."""
    merged: list[Layer] = []
    for tensor in tensors:
        for layer in tracer.layers(tensor):
            one = aligned(layer, ndim)
            position = next((i for i, m in enumerate(merged) if set(varying(m)) & set(varying(one))), None)
            if position is None:
                merged.append(one)
                continue
            both = broadcast(merged[position], one)
            tracer.join_layers(merged[position], one)
            if merged[position].shape != both[0].shape:
                merged[position] = collapse(torch.from_numpy(both[0].copy()))
    for layer in merged:
        dims = varying(layer)
        for tensor in tensors:
            shape = (1,) * (ndim - tensor.ndim) + tuple(tensor.shape)
            known = [aligned(own, ndim) for own in tracer.layers(tensor)]
            if any(shape[d] > 1 for d in dims) and overlapping(known, dims) is None:
                tracer.doubt(layer, name)
    return merged


def mix(tracer: _Tracer, name: str, layer: Layer, dims: tuple[int, ...]) -> None:
    """Tie channels that an operator mixes: removing some would change what it makes of the others."""
    tracer.tie(layer, dims)
    if set(varying(layer)) <= set(dims):
        tracer.fix((layer,), f"{name} mixes all of them in {tracer.site()}")


def vector(tracer: _Tracer, layers: Layers, dim: int, name: str, size: int) -> Ids | None:
    """Return the ids along one dimension, where that is all there is to know; what cannot be followed is fixed."""
    found = None
    for layer in layers:
        if dim in varying(layer) and found is None:
            found = lines(tracer, layer, tuple(d for d in varying(layer) if d != dim)).numpy().ravel()
        else:
            tracer.fix((layer,), f"{name} mixes them in {tracer.site()}")
    return found


def lines(tracer: _Tracer, layer: Layer, across: tuple[int, ...]) -> Layer:
    """Tie what lies along some dimensions, as shuffled pixels do, and return one id for each of the rest."""
    if across:
        tracer.tie(layer, across)
    for d in across:
        layer = layer.narrow(d, 0, 1)
    return layer


def meet_ids(tracer: _Tracer, first: Ids | None, second: Ids | None, name: str) -> None:
    """Join two vectors of ids; one without partner is fixed."""
    if first is not None and second is not None:
        tracer.join(first, second)
    else:
        for one in (first, second):
            if one is not None:
                tracer.fix_ids(one, f"{name} combines them with a tensor of fixed size in {tracer.site()}")
