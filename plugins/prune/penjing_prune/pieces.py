"""What cutting tensors into pieces and padding them does to channel ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from penjing_prune.labels import Ids, Layer, along, collapse, varying
from penjing_prune.meeting import vector
from penjing_prune.trace import Count, Cut

if TYPE_CHECKING:
    from penjing_prune.trace import _Tracer

Args = tuple[Any, ...]

#: operators that cut one dimension into pieces
CUTTING = frozenset({"slice", "split", "split_with_sizes", "unsafe_split", "narrow"})


def cut_dim(name: str, args: Args) -> int:
    """Return the dimension that an operator of `CUTTING` cuts, from 0."""
    place = 1 if name in ("slice", "narrow") else 2
    return int(args[place] % args[0].ndim) if len(args) > place else 0


def align_pieces(tracer: _Tracer, name: str, args: Args, layer: Layer, results: list[torch.Tensor]) -> None:
    """Keep equal pieces equal: what has the same place in each goes together.

    Where pieces are unequal each has a number of its own, which the trial of the cut will find or not.
    """
    dim = cut_dim(name, args)
    size, pieces = layer.shape[dim], [result.shape[dim] for result in results]
    if size == 1 or pieces == [size]:
        return
    start = args[2] or 0 if name == "slice" and len(args) > 2 else args[2] if name == "narrow" else 0
    step = args[4] if name == "slice" and len(args) > 4 else 1
    start = start + size if start < 0 else start
    each = pieces[0]
    full = layer.movedim(dim, 0)
    if step != 1:
        if size % step or each != size // step:
            tracer.fix((layer,), f"{name} picks some of them by number in {tracer.site()}")
            return
        parts = full.reshape(each, step, *full.shape[1:]).movedim(1, 0).numpy()
    elif len(set(pieces)) > 1 or size % each or start % each:
        return
    else:
        parts = full.reshape(size // each, each, *full.shape[1:]).numpy()
    tracer.join(parts, np.broadcast_to(parts[:1], parts.shape))


def select(tracer: _Tracer, args: Args, layer: Layer) -> None:
    """Fix the channel that is selected by number, and those that it is counted over."""
    dim, index = args[1] % layer.ndim, args[2]
    counted = layer.movedim(dim, 0)
    counted = counted[: index + 1] if index >= 0 else counted[index:]
    tracer.fix((counted,), f"select picks one of them by number in {tracer.site()}")


def pad(tracer: _Tracer, name: str, func: Any, args: Args, kwargs: dict[str, Any], out: Any) -> None:
    """Label channels that are padded; their number is an attribute of the module, or tried out."""
    source, amounts = args[0], list(args[1])
    found: list[Layer] = []
    for layer in tracer.layers(source):
        one, padded = layer, False
        for i in range(len(amounts) // 2):
            dim, (low, high) = source.ndim - 1 - i, amounts[2 * i : 2 * i + 2]
            if one.shape[dim] == 1 or (low == 0 and high == 0):
                continue
            if low < 0 or high < 0:
                tracer.fix((one,), f"they are cropped in {tracer.site()}")
                break
            one, padded = _padded(tracer, one, dim, low, high), True
        if padded:
            tracer.result.cuts.append(Cut(tracer.site(), name, np.unique(one.numpy()), one))
        found.append(one)
    tracer.label(out, tuple(found))


def _padded(tracer: _Tracer, layer: Layer, dim: int, low: int, high: int) -> Layer:
    """Return a layer with fresh ids at both ends, which go in pairs where there are as many at each."""
    sides = []
    for count in (low, high):
        shape = [*layer.shape[:dim], count, *layer.shape[dim + 1 :]]
        sides.append(torch.from_numpy(tracer.union.fresh(int(np.prod(shape))).reshape(shape)))
    before, after = (side.numpy() for side in sides)
    if low == high:
        tracer.join(before, after)
    if len(varying(layer)) == 1:
        for side in (before.ravel(), after.ravel()):
            if len(side):
                _count_by_value(tracer, side)
    return collapse(torch.cat([sides[0], layer, sides[1]], dim))


def _count_by_value(tracer: _Tracer, ids: Ids) -> None:
    """Find the one attribute of the module at work that holds the number of `ids`, which has to change with them."""
    name = tracer.site().module
    module = tracer.part(name)
    holders = [key for key, value in vars(module).items() if type(value) is int and value == len(ids)]
    holders = [key for key in holders if "pad" in key.lower()] or holders
    if len(holders) == 1:
        tracer.result.counts.append(Count(name, holders[0], ids))


def im2col(tracer: _Tracer, name: str, func: Any, args: Args, kwargs: dict[str, Any], out: Any) -> None:
    """Label the patches of nn.Unfold: each channel makes one row for each place in the kernel."""
    ids = vector(tracer, tracer.layers(args[0]), args[0].ndim - 3, name, args[0].shape[-3])
    if ids is not None:
        tracer.label(out, along(np.repeat(ids, out.shape[-2] // len(ids)), out.ndim - 2, out.ndim))


def col2im(tracer: _Tracer, name: str, func: Any, args: Args, kwargs: dict[str, Any], out: Any) -> None:
    """Label the channels that nn.Fold adds up from patches: all rows of one go together."""
    ids = vector(tracer, tracer.layers(args[0]), args[0].ndim - 2, name, args[0].shape[-2])
    if ids is not None:
        grid = ids.reshape(out.shape[-3], -1)
        tracer.join(grid, np.broadcast_to(grid[:, :1], grid.shape))
        tracer.label(out, along(grid[:, 0], out.ndim - 3, out.ndim))
