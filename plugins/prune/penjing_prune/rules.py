"""What each operator does to channel ids. An operator without a rule fixes the channels that reach it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from penjing_prune.labels import (
    Ids,
    Layer,
    along,
    broadcast,
    collapse,
    overlapping,
    varying,
)
from penjing_prune.meeting import lines, meet, mix, vector
from penjing_prune.norms import BATCH_NORMS, batch_norm, group_norm, layer_norm, tensors_of, weight_norm
from penjing_prune.pieces import CUTTING, align_pieces, col2im, cut_dim, im2col, pad, select
from penjing_prune.products import bmm, convolution, matrix_product, sdpa, vector_product
from penjing_prune.trace import Cut

if TYPE_CHECKING:
    from penjing_prune.trace import _Tracer

Args = tuple[Any, ...]

#: operators that hand elements on, in another shape or order
SHAPES = frozenset({
    "view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t", "expand", "squeeze", "unsqueeze",
    "slice", "select", "split", "split_with_sizes", "unbind", "flip", "roll", "index", "index_select", "repeat",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "movedim", "narrow", "chunk",
    "unsafe_split", "unsafe_chunk", "diagonal",
})  # fmt: skip
VIEWS = frozenset({"view", "_unsafe_view", "reshape", "_reshape_alias"})
#: those that cut channels at numbers that the code may have written down
CUTS = frozenset({
    "view", "_unsafe_view", "reshape", "_reshape_alias", "slice", "split", "split_with_sizes", "repeat",
    "unsafe_split", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "expand", "narrow",
})  # fmt: skip
#: operators that pick elements along a dimension by number
PICKS = frozenset({"index", "index_select", "select", "roll", "flip", "unbind"})
#: what returns its first argument's elements, each in its place
SAME = frozenset({
    "clone", "alias", "detach", "_to_copy", "contiguous", "lift_fresh", "lift_fresh_copy", "bernoulli",
    "native_dropout",
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "zero", "fill", "hardswish",
    "relu", "relu6", "celu", "elu", "uniform", "normal", "softplus", "rrelu_with_noise", "hardtanh", "leaky_relu",
    "hardsigmoid", "mish", "silu", "gelu", "sigmoid", "tanh", "clamp", "dropout",
})  # fmt: skip
#: what works on each channel of [N, C, …] alone
SPATIAL = frozenset({
    "max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "adaptive_avg_pool2d", "adaptive_avg_pool1d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
    "_upsample_nearest_exact2d", "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d",
    "upsample_linear1d",
    "upsample_trilinear3d", "_upsample_bicubic2d_aa", "reflection_pad1d", "reflection_pad2d", "replication_pad1d",
    "replication_pad2d", "grid_sampler_2d", "mkldnn_max_pool2d", "roi_align", "roi_pool",
})  # fmt: skip
#: what mixes all elements along some dimensions, and so needs all channels there
REDUCTIONS = frozenset({
    "mean", "sum", "amax", "amin", "max", "min", "var_mean", "var", "std", "std_mean", "prod", "linalg_vector_norm",
    "norm", "logsumexp", "argmax", "argmin", "any", "all", "median",
})  # fmt: skip
NORMALISERS = frozenset(
    {"_softmax", "_safe_softmax", "_log_softmax", "softmax", "log_softmax", "cumsum", "cumprod", "sort"}
)


def learn(
    tracer: _Tracer, func: Any, args: Args, kwargs: dict[str, Any], tensors: list[torch.Tensor], out: Any
) -> None:
    """Note what `func(*args)` did to the channels of its arguments, at least one of which has some."""
    name = func.overloadpacket.__name__
    name = name[:-1] if name[:-1] in SAME | SPATIAL else name
    rule = _RULES.get(name)
    if rule is not None:
        rule(tracer, name, func, args, kwargs, out)
    elif name in SHAPES:
        _shape(tracer, name, func, args, kwargs, out)
    elif name in SAME:
        for result in tensors_of(out):
            if result.shape == args[0].shape:
                tracer.label(result, tracer.layers(args[0]))
    elif name in SPATIAL:
        _spatial(tracer, name, args, out)
    elif name in REDUCTIONS:
        _reduce(tracer, name, args, kwargs, out)
    elif torch.Tag.pointwise in func.tags or name in ("copy_", "where", "add_", "mul_", "lerp"):
        _pointwise(tracer, name, args, tensors, out)
    elif (
        not name.startswith(("new_", "sym_", "_local_scalar", "is_", "_assert"))
        or name == "_local_scalar_dense"
    ):
        for tensor in tensors:
            tracer.fix(tensor, f"they reach {name}, for which there is no rule, in {tracer.site()}")


def _pointwise(tracer: _Tracer, name: str, args: Args, tensors: list[torch.Tensor], out: Any) -> None:
    """Join what meets element by element."""
    results = tensors_of(out)
    if not results:
        return
    ndim = results[0].ndim
    unlabelled = not tracer.layers(results[0])
    merged = meet(tracer, name, [t for t in tensors if t.ndim <= ndim], ndim)
    for result in results:
        if merged and unlabelled and name.endswith("_") and _is_part(result):
            tracer.fix(tuple(merged), f"they are written into a part of a tensor in {tracer.site()}")
        tracer.label(result, tuple(merged))


def _is_part(tensor: torch.Tensor) -> bool:
    return tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()


def _shape(tracer: _Tracer, name: str, func: Any, args: Args, kwargs: dict[str, Any], out: Any) -> None:
    """Push ids through the very same operator."""
    source: torch.Tensor = args[0]
    results = tensors_of(out)
    found: list[list[Layer]] = [[] for _ in results]
    followed: list[Layer] = []
    for layer in tracer.layers(source):
        if name in PICKS and _picks(name, args, layer):
            if name == "select" and len(varying(layer)) < 2:
                select(tracer, args, layer)
            elif name not in ("unbind", "select") or len(varying(layer)) < 2:
                tracer.fix((layer,), f"{name} picks some of them by number in {tracer.site()}")
                continue
        if name in CUTTING:
            align_pieces(tracer, name, args, layer, results)
        followed.append(layer)
        full = layer.expand(source.shape)
        ids = [full.reshape(args[1])] if name in VIEWS else tensors_of(func(full, *args[1:], **kwargs))
        for kept, result in zip(found, ids, strict=True):
            kept.append(collapse(result))
        if name in CUTS:
            _note_cut(tracer, name, args, layer, [kept[-1] for kept in found])
    for result, layers in zip(results, found, strict=True):
        tracer.label(result, tuple(_merged(tracer, followed, layers)))


def _merged(tracer: _Tracer, before: list[Layer], after: list[Layer]) -> list[Layer]:
    """Return the layers of a result, two whose dimensions a view made one (heads, and the depth of each) as a grid."""
    for i, j in combinations(range(len(after)), 2):
        if (
            overlapping([after[i]], varying(after[j])) is None
            or overlapping([before[i]], varying(before[j])) is not None
        ):
            continue
        both = broadcast(after[i], after[j])
        grid = tracer.union.fresh(both[0].size).reshape(both[0].shape)
        tracer.result.shared += [(grid, one) for one in both]
        rest = [layer for number, layer in enumerate(after) if number not in (i, j)]
        return [torch.from_numpy(grid), *rest]
    return after


def _picks(name: str, args: Args, layer: Layer) -> bool:
    if name == "index":
        return any(index is not None and layer.shape[d] > 1 for d, index in enumerate(args[1]))
    dims = args[2] if name == "roll" and len(args) > 2 else args[1] if len(args) > 1 else 0
    dims = dims if isinstance(dims, (list, tuple)) else [dims]
    return any(layer.shape[d] > 1 for d in dims)


def _note_cut(tracer: _Tracer, name: str, args: Args, before: Layer, after: list[Layer]) -> None:
    """Remember an operator whose numbers may have to change with the channels."""
    ids = np.unique(before.numpy())
    parts: tuple[Ids, ...] = ()
    if len(after) > 1:
        dim = cut_dim(name, args)
        parts = tuple(np.moveaxis(one.numpy(), dim, 0).reshape(one.shape[dim], -1)[:, 0] for one in after)
    for layer in after:
        tracer.result.cuts.append(Cut(tracer.site(), name, ids, layer, parts))


def _spatial(tracer: _Tracer, name: str, args: Args, out: Any) -> None:
    """Keep the labels of the leading dimensions, and tie what lies within one image of a channel."""
    spatial = next((n for n in (1, 3) if f"{n}d" in name), 2)
    found = []
    for layer in tracer.layers(args[0]):
        across = tuple(d for d in varying(layer) if d >= layer.ndim - spatial)
        if len(across) == len(varying(layer)):
            tracer.fix((layer,), f"{name} mixes them in {tracer.site()}")
        else:
            found.append(lines(tracer, layer, across))
    for result in tensors_of(out):
        if result.ndim == args[0].ndim:
            tracer.label(result, tuple(found))


def _reduce(tracer: _Tracer, name: str, args: Args, kwargs: dict[str, Any], out: Any) -> None:
    source: torch.Tensor = args[0]
    if len(args) > 1 and isinstance(args[1], torch.Tensor):  # max and min of two tensors
        _pointwise(tracer, name, args, [t for t in args if isinstance(t, torch.Tensor)], out)
        return
    position = 2 if name in ("linalg_vector_norm", "norm") else 1
    dims = kwargs.get("dim", args[position] if len(args) > position else None)
    dims = list(range(source.ndim)) if dims is None or dims == [] else dims
    wanted = [d % source.ndim for d in (dims if isinstance(dims, (list, tuple)) else [dims])]
    results = tensors_of(out)
    keep = bool(results) and results[0].ndim == source.ndim
    found = []
    for layer in tracer.layers(source):
        inside = tuple(d for d in varying(layer) if d in wanted)
        if inside and name in ("sum", "norm", "linalg_vector_norm") and inside == varying(layer):
            tracer.doubt(layer, name)  # zeros add nothing, where removed channels would be zeros here
        elif inside:
            mix(tracer, name, layer, inside)
        left = layer
        for d in sorted(wanted, reverse=True):
            left = left.narrow(d, 0, 1)
            left = left if keep else left.squeeze(d)
        found.append(left)
    for result in results:
        tracer.label(result, tuple(found))


def _softmax(tracer: _Tracer, name: str, func: Any, args: Args, kwargs: dict[str, Any], out: Any) -> None:
    dim = args[1] if len(args) > 1 else -1
    for layer in tracer.layers(args[0]):
        if layer.shape[dim] > 1:
            mix(tracer, name.strip("_"), layer, (dim % args[0].ndim,))
    for result in tensors_of(out):
        tracer.label(result, tracer.layers(args[0]))


def _cat(tracer: _Tracer, name: str, func: Any, args: Args, kwargs: dict[str, Any], out: Any) -> None:
    """Label what is put side by side; a piece without labels has a size that cannot change."""
    pieces = [t for t in args[0] if t.numel() or t.ndim == out.ndim]
    dim = (args[1] if len(args) > 1 else 0) % out.ndim
    if name == "stack":
        shapes = [tuple(t.unsqueeze(dim).shape) for t in pieces]
        layers = [[one.unsqueeze(dim) for one in tracer.layers(t)] for t in pieces]
    else:
        shapes = [tuple(t.shape) for t in pieces]
        layers = [list(tracer.layers(t)) for t in pieces]
    across: list[Layer] = []
    for own in layers:
        for layer in [one for one in own if one.shape[dim] == 1]:
            partner = overlapping(across, varying(layer))
            if partner is None:
                across.append(layer)
            else:
                tracer.join(*broadcast(partner, layer))
    for layer in across:
        if any(overlapping(own, varying(layer)) is None for own in layers):
            tracer.fix((layer,), f"{name} puts a tensor of fixed size beside them in {tracer.site()}")
    if any(one.shape[dim] > 1 for own in layers for one in own):
        across = [_side_by_side(tracer, layers, shapes, dim), *across]
    tracer.label(out, tuple(across))


def _side_by_side(
    tracer: _Tracer, layers: list[list[Layer]], shapes: list[tuple[int, ...]], dim: int
) -> Layer:
    parts, unions = (
        [],
        {d for own in layers for one in own if one.shape[dim] > 1 for d in varying(one)} | {dim},
    )
    for own, shape in zip(layers, shapes, strict=True):
        least = [size if d in unions else 1 for d, size in enumerate(shape)]
        labelled = [one for one in own if one.shape[dim] > 1]
        if labelled:
            parts.append(labelled[0].expand(least))
            for extra in labelled[1:]:
                tracer.fix((extra,), f"they are labelled twice in {tracer.site()}")
        else:
            fixed = tracer.union.fresh(shape[dim])
            tracer.doubt(torch.from_numpy(fixed), "cat")
            view = [1] * len(shape)
            view[dim] = shape[dim]
            parts.append(torch.from_numpy(fixed).reshape(view).expand(least))
    return collapse(torch.cat(parts, dim))


def _embedding(tracer: _Tracer, name: str, func: Any, args: Args, kwargs: dict[str, Any], out: Any) -> None:
    table = args[0]
    for layer in tracer.layers(table):
        if layer.shape[0] > 1:
            tracer.fix((layer,), f"rows are looked up by number in {tracer.site()}")
    ids = vector(
        tracer, tuple(one for one in tracer.layers(table) if one.shape[0] == 1), 1, name, table.shape[1]
    )
    if ids is not None:
        tracer.label(out, along(ids, out.ndim - 1, out.ndim))


def _prelu(tracer: _Tracer, name: str, func: Any, args: Args, kwargs: dict[str, Any], out: Any) -> None:
    """Join channels with their slopes, whose number the module holds."""
    _pointwise(tracer, name, args, list(args), out)
    for layer in tracer.layers(args[1]):
        ids = layer.numpy().ravel()
        for leaf in tracer.result.leaves:
            if len(leaf.ids) == 1 and np.array_equal(leaf.ids[0], ids):
                tracer.count(leaf, "num_parameters", ids)


def _glu(tracer: _Tracer, name: str, func: Any, args: Args, kwargs: dict[str, Any], out: Any) -> None:
    """Join each channel with the one that gates it, half the channels further on."""
    dim = (args[1] if len(args) > 1 else -1) % args[0].ndim
    found: list[Layer] = []
    for layer in tracer.layers(args[0]):
        if layer.shape[dim] > 1:
            values, gates = layer.chunk(2, dim)
            tracer.join(values.numpy(), gates.numpy())
            found.append(collapse(values))
        else:
            found.append(layer)
    tracer.label(out, tuple(found))


def _unpool(tracer: _Tracer, name: str, func: Any, args: Args, kwargs: dict[str, Any], out: Any) -> None:
    """Join channels with the places that a pooling of as many remembered for them."""
    tracer.label(out, tuple(meet(tracer, name, list(args[:2]), out.ndim)))


Rule = Callable[["_Tracer", str, Any, Args, dict[str, Any], Any], None]
_RULES: dict[str, Rule] = {
    "cat": _cat,
    "stack": _cat,
    "constant_pad_nd": pad,
    "native_layer_norm": layer_norm,
    "_weight_norm_interface": weight_norm,
    "native_group_norm": group_norm,
    "embedding": _embedding,
    "_prelu_kernel": _prelu,
    "glu": _glu,
    "max_unpool2d": _unpool,
    "max_unpool3d": _unpool,
    **dict.fromkeys(BATCH_NORMS, batch_norm),
    **dict.fromkeys(NORMALISERS, _softmax),
    "convolution": convolution,
    "_convolution": convolution,
    "mm": matrix_product,
    "addmm": matrix_product,
    "mv": vector_product,
    "dot": vector_product,
    "vdot": vector_product,
    "im2col": im2col,
    "col2im": col2im,
    "bmm": bmm,
    "baddbmm": bmm,
    "_scaled_dot_product_flash_attention_for_cpu": sdpa,
    "_scaled_dot_product_flash_attention": sdpa,
    "_scaled_dot_product_efficient_attention": sdpa,
    "_scaled_dot_product_cudnn_attention": sdpa,
    "_scaled_dot_product_fused_attention_overrideable": sdpa,
}
