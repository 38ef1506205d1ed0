"""What convolutions and matrix products do to channel ids: they take some up and bring others forth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from penjing_prune.labels import Ids, Layer, Layers, aligned, along, broadcast, varying
from penjing_prune.meeting import meet, meet_ids, vector
from penjing_prune.trace import Leaf, Product

if TYPE_CHECKING:
    from penjing_prune.trace import _Tracer

Args = tuple[Any, ...]


def convolution(tracer: _Tracer, name: str, func: Any, args: Args, kwargs: dict[str, Any], out: Any) -> None:
    """Take up the channels of the input and bring forth those of the output.

    Groups stay of equal size: where there are more groups than channels in one, whole groups go and the others
    stay as they are; else the same channel of every group goes. What was decided before stays decided.
    """
    source, weight, bias = args[0], args[1], args[2]
    transposed, groups = args[6], args[8]
    leaf = tracer.origin(weight)
    inputs = vector(tracer, tracer.layers(source), 1, "a convolution", source.shape[1])
    rows, columns = (_side(tracer, weight, d) for d in (0, 1))
    outputs: Ids | None
    if groups == 1:
        taken, outputs = (rows, columns) if transposed else (columns, rows)
        meet_ids(tracer, inputs, taken, "a convolution")
    else:
        inputs, outputs = _grouped(tracer, weight, inputs, rows, columns, groups, transposed, out.shape[1])
    if bias is not None:
        meet_ids(tracer, outputs, _side(tracer, bias, 0), "a convolution")
    if inputs is not None:
        tracer.count(leaf, "in_channels", inputs)
    if outputs is not None:
        tracer.count(leaf, "out_channels", outputs)
        tracer.label(out, along(outputs, 1, out.ndim))
    _note_product(tracer, weight, source if transposed else out, out, (rows, columns), args)


def _note_product(
    tracer: _Tracer, weight: torch.Tensor, places: torch.Tensor, out: torch.Tensor, sides: Any, args: Args
) -> None:
    leaf = tracer.origin(weight)
    known = tuple(side for side in sides if side is not None)
    each = places.numel() / places.shape[1] * weight.numel() / np.prod([len(side) for side in known] or [1])
    about = (
        ("kind", "convolution"),
        ("input", tuple(args[0].shape)),
        ("weight", tuple(weight.shape)),
        *zip(("stride", "padding", "dilation"), (tuple(a) for a in args[3:6]), strict=True),
        ("transposed", args[6]),
        ("groups", args[8]),
        ("whole_groups", args[8] > 1 and tracer.result.whole_groups[leaf.names[0] if leaf else ""]),
        ("sides", tuple(side is not None for side in sides)),
    )
    name = leaf.names[0] if leaf else ""
    tracer.result.products.append(Product(float(each), known, name, tuple(out.shape), about))


def _side(tracer: _Tracer, tensor: torch.Tensor, dim: int) -> Ids | None:
    """Return the ids along one dimension of a weight, or of what was computed from weights."""
    for layer in tracer.layers(tensor):
        if varying(layer) == (dim,):
            return layer.numpy().ravel()
        if dim in varying(layer):
            tracer.fix((layer,), f"the weight is computed in a way not followed in {tracer.site()}")
    return None


def _grouped(
    tracer: _Tracer,
    weight: torch.Tensor,
    inputs: Ids | None,
    rows: Ids | None,
    columns: Ids | None,
    groups: int,
    transposed: bool,
    width: int,
) -> tuple[Ids | None, Ids | None]:
    """Join channels so that groups stay equal; return those of the input and of the output."""
    leaf = tracer.origin(weight)
    each = 0 if inputs is None else len(inputs) // groups
    wholly = tracer.result.whole_groups.setdefault(leaf.names[0] if leaf else "", groups >= each)
    named = any(getattr(module, "groups", None) == groups for _, module in tracer.owners(leaf))
    outputs = tracer.union.fresh(width) if transposed else rows
    if inputs is not None and rows is None and groups == len(inputs) == width:
        outputs = rows = inputs  # a filter that is the same for every channel
        named = False
    if inputs is None or rows is None or outputs is None:
        for one in (inputs, rows, columns, outputs):
            if one is not None:
                tracer.fix_ids(one, f"the number of groups is fixed in {tracer.site()}")
        return inputs, outputs
    if wholly and not named:  # the code may take it from a shape or an attribute
        tracer.doubt(torch.from_numpy(inputs.reshape(groups, -1)[:, 0].copy()), "a convolution with groups")
    one, other = inputs.reshape(groups, -1), outputs.reshape(groups, -1)
    if transposed:
        tracer.join(inputs, rows)
    if wholly:
        for side in (one, other):
            tracer.join(side, np.broadcast_to(one[:, :1], side.shape))
        tracer.count(leaf, "groups", one[:, 0])
        if columns is not None:
            tracer.fix_ids(columns, "they are the same for every group")
        return inputs, outputs
    for side in (one, other):
        tracer.join(side, np.broadcast_to(side[:1], side.shape))
    if columns is not None:
        tracer.join((other if transposed else one)[0], columns)
    else:
        tracer.fix_ids(other if transposed else one, "a group has one channel of them")
    return inputs, outputs


def matrix_product(
    tracer: _Tracer, name: str, func: Any, args: Args, kwargs: dict[str, Any], out: Any
) -> None:
    """Take up ids along the inner dimension and bring forth those of the outer ones: a [n, k] times b [k, m]."""
    bias, (a, b) = (args[0], args[1:3]) if name == "addmm" else (None, args[:2])
    inner = _side(tracer, a, 1), _side(tracer, b, 0)
    meet_ids(tracer, *inner, "a matrix product")
    outer = _side(tracer, a, 0), _side(tracer, b, 1)
    _fix_rest(tracer, (a, b))
    layers = [layer for d, ids in enumerate(outer) if ids is not None for layer in along(ids, d, 2)]
    tracer.label(out, tuple(layers))
    if bias is not None and (tracer.layers(bias) or layers):
        tracer.label(out, tuple(meet(tracer, name, [out, bias], 2)))
    found = _weight_in(tracer, a, b)
    leaf, side, turned = found or (None, 1, False)
    mine, others = (outer[1], inner[1]) if side else (outer[0], inner[0])
    if found is not None and side and not turned and others is not None:
        tracer.count(leaf, "in_features", others)
    if found is not None and side and not turned and mine is not None:
        tracer.count(leaf, "out_features", mine)
    known = [ids for ids in (*outer, inner[1]) if ids is not None]
    macs = a.shape[0] * a.shape[1] * b.shape[1]
    sizes = (b.shape[1], b.shape[0]) if side else (a.shape[0], a.shape[1])
    about = (
        ("kind", "linear"),
        ("rows", a.shape[0] if side else b.shape[1]),
        ("weight", sizes),
        ("sides", (mine is not None, others is not None)),
        ("transposed", turned),
    )
    sides = tuple(ids for ids in (mine, others) if ids is not None) if leaf else tuple(known)
    each = macs / float(np.prod([len(ids) for ids in sides] or [1]))
    tracer.result.products.append(
        Product(each, sides, leaf.names[0] if leaf else "", tuple(out.shape), about if leaf else ())
    )


def _weight_in(tracer: _Tracer, a: torch.Tensor, b: torch.Tensor) -> tuple[Leaf, int, bool] | None:
    """Return the parameter that a product multiplies with: on which side, and whether inputs lie along its rows."""
    for tensor, side, turned in ((b, 1, False), (b, 1, True), (a, 0, False)):
        leaf = tracer.origin(tensor) if turned == bool(side) else tracer.weight_of(tensor)
        if leaf is not None and leaf.parameter:
            return leaf, side, turned
    return None


def vector_product(
    tracer: _Tracer, name: str, func: Any, args: Args, kwargs: dict[str, Any], out: Any
) -> None:
    """Join the ids of two vectors, or those along the columns of a matrix with a vector's; the rows are left."""
    a, b = args[:2]
    meet_ids(tracer, _side(tracer, a, a.ndim - 1), _side(tracer, b, 0), "a product")
    rows = _side(tracer, a, 0) if a.ndim == 2 else None
    if rows is not None:
        tracer.label(out, along(rows, 0, 1))


def _fix_rest(tracer: _Tracer, tensors: tuple[torch.Tensor, ...]) -> None:
    for tensor in tensors:
        for layer in tracer.layers(tensor):
            if len(varying(layer)) > 1:
                tracer.fix((layer,), f"a matrix product mixes them in {tracer.site()}")


def bmm(tracer: _Tracer, name: str, func: Any, args: Args, kwargs: dict[str, Any], out: Any) -> None:
    """Take up ids along the inner dimension; what belongs to one matrix of the batch (a head) goes together."""
    bias, (a, b) = (args[0], args[1:3]) if name == "baddbmm" else (None, args[:2])
    if a.shape[0] == 1 and bias is None:  # as einsum has it
        _single(tracer, func, a, b, out)
        return
    free = _contract(tracer, tracer.layers(a), tracer.layers(b), (2, 1), (1, 2))
    heads = _tie_heads(tracer, [*tracer.layers(a), *tracer.layers(b)], 0)
    if heads is not None and not all(any(0 in varying(one) for one in tracer.layers(x)) for x in (a, b)):
        tracer.doubt(heads, name)
    layers = free + ([heads] if heads is not None and not any(0 in varying(f) for f in free) else [])
    tracer.label(out, tuple(layers))
    if bias is not None:
        tracer.label(out, tuple(meet(tracer, name, [out, bias], out.ndim)))
    _note_attention(tracer, a.shape[0], heads, float(a.shape[1] * a.shape[2] * b.shape[2]), out)


def _single(tracer: _Tracer, func: Any, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """Do for a batch of one product what is done for a product."""
    one, other, result = (tensor.squeeze(0) for tensor in (a, b, out))
    for tensor, whole in ((one, a), (other, b)):
        tracer.label(tensor, tuple(layer.squeeze(0) for layer in tracer.layers(whole)))
    matrix_product(tracer, "mm", func, (one, other), {}, result)
    tracer.label(out, tuple(layer.unsqueeze(0) for layer in tracer.layers(result)))


def _note_attention(tracer: _Tracer, batch: int, heads: Layer | None, macs: float, out: torch.Tensor) -> None:
    sides = () if heads is None else (heads.numpy().ravel(),)
    each = macs * (1 if sides else batch)
    tracer.result.products.append(Product(each, sides, "", tuple(out.shape)))


def _contract(
    tracer: _Tracer, left: Layers, right: Layers, inner: tuple[int, int], outer: tuple[int, int]
) -> list[Layer]:
    """Join the ids along the inner dimensions, and return the layers that are left for the result."""
    ends: list[list[Layer]] = [[], []]
    free: list[Layer] = []
    for side, (layers, dim, out_dim) in enumerate(zip((left, right), inner, outer, strict=True)):
        for layer in layers:
            dims = varying(layer)
            if dim in dims and out_dim in dims:
                tracer.fix((layer,), f"a matrix product mixes them in {tracer.site()}")
            elif dim in dims:
                ends[side].append(layer)
            elif out_dim in dims:
                free.append(layer)
    if ends[0] and ends[1]:
        for one in ends[0]:
            for other in ends[1]:
                tracer.join_layers(one.transpose(*inner), other)
    else:
        for layer in ends[0] + ends[1]:
            if 0 in varying(layer):  # all of a head goes, so that none is missed within the others
                continue
            tracer.fix((layer,), f"a matrix product combines them with a fixed size in {tracer.site()}")
    return free


def _tie_heads(tracer: _Tracer, layers: list[Layer], dim: int) -> Layer | None:
    """Tie what has the same index along the batch dimension; return one id for each index."""
    tied: Layer | None = None
    for layer in layers:
        if layer.shape[dim] == 1:
            continue
        rest = tuple(d for d in varying(layer) if d != dim)
        tracer.tie(layer, rest)
        one = layer
        for d in rest:
            one = one.narrow(d, 0, 1)
        if tied is not None:
            tracer.join(*broadcast(tied, one))
        tied = one if tied is None else tied
    return tied


def sdpa(tracer: _Tracer, name: str, func: Any, args: Args, kwargs: dict[str, Any], out: Any) -> None:
    """Attention in one operator, q, k, v [B, heads, N, D]: whole heads go together."""
    q, k, v = args[:3]
    result = out[0]
    times = q.shape[1] // k.shape[1]  # several heads of q may have one of k and v
    ends = [tracer.layers(q), _repeated(tracer.layers(k), times)]
    values = _repeated(tracer.layers(v), times)
    for one in ends[0]:
        for other in ends[1]:
            if 3 in varying(one) and 3 in varying(other):
                tracer.join_layers(one, other)
    layers = [*ends[0], *ends[1], *values]
    several = any(1 in varying(layer) for layer in layers)
    why = "keeps what is the same for every head" if several else "with a single head stays whole"
    for layer in layers:
        if not {2, 0}.isdisjoint(varying(layer)):
            tracer.fix((layer,), f"attention mixes them in {tracer.site()}")
        if 1 not in varying(layer):
            tracer.fix((layer,), f"attention {why} in {tracer.site()}")
    heads = _tie_heads(tracer, layers, 1)
    _meet_bias(tracer, heads, [kwargs.get("attn_mask"), args[3] if len(args) > 3 else None])
    made = [one for one in values if 1 in varying(one)]
    tracer.label(result, tuple(made or ([] if heads is None else [heads])))
    batch, count, rows, depth = q.shape
    macs = float(batch * rows * k.shape[2] * (depth + v.shape[3]))
    _note_attention(tracer, count, heads, macs, result)


def _repeated(layers: Layers, times: int) -> Layers:
    """Return the layers of [B, heads, N, D] where each head is repeated."""
    return tuple(one.repeat_interleave(times, 1) if one.shape[1] > 1 else one for one in layers)


def _meet_bias(tracer: _Tracer, heads: Layer | None, given: list[Any]) -> None:
    """Join each head with what is added to its scores [B, heads, N, M]."""
    for bias in given:
        if isinstance(bias, torch.Tensor):
            for layer in tracer.layers(bias):
                one = aligned(layer, 4)
                if varying(one) == (1,) and heads is not None:
                    tracer.join(*broadcast(heads, one))
                else:
                    tracer.fix((layer,), f"attention mixes them in {tracer.site()}")
