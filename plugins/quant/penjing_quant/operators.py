"""The operators of ONNX as functions of PyTorch, for networks of images whose batch may grow.

Each takes its inputs (None for one left out) and its attributes. Shapes, axes and indices stay on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Inputs = Sequence[Any]
Attributes = dict[str, Any]
Operator = Callable[[Inputs, Attributes], Any]


def _padded(
    x: Tensor, attributes: Attributes, kernel: Sequence[int], value: float
) -> tuple[Tensor, list[int]]:
    """Return an input and the padding that PyTorch is to add; padding that differs by side is added here."""
    dimensions = len(kernel)
    pads = list(attributes.get("pads", [0] * 2 * dimensions))
    if attributes.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        pads = _same(x, attributes, kernel)
    before, after = pads[:dimensions], pads[dimensions:]
    if before == after:
        return x, before
    sides = [side for pair in zip(reversed(before), reversed(after), strict=True) for side in pair]
    return functional.pad(x, sides, value=value), [0] * dimensions


def _same(x: Tensor, attributes: Attributes, kernel: Sequence[int]) -> list[int]:
    strides = attributes.get("strides", [1] * len(kernel))
    sizes = zip(x.shape[2:], strides, kernel, strict=True)
    totals = [max(0, (math.ceil(size / stride) - 1) * stride + k - size) for size, stride, k in sizes]
    low, high = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return [*low, *high] if attributes["auto_pad"] == "SAME_UPPER" else [*high, *low]


def _conv(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, weight, bias = (*inputs, None)[:3]
    x, padding = _padded(x, attributes, weight.shape[2:], 0.0)
    ones = [1] * (weight.ndim - 2)
    kind = functional.conv2d if weight.ndim == 4 else functional.conv1d
    return kind(
        x, weight, bias, attributes.get("strides", ones), padding,
        attributes.get("dilations", ones), attributes.get("group", 1),
    )  # fmt: skip


def _conv_transpose(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, weight, bias = (*inputs, None)[:3]
    pads = attributes.get("pads", [0, 0, 0, 0])
    if pads[:2] != pads[2:] or "output_shape" in attributes:
        raise NotImplementedError("ConvTranspose with padding that differs by side")
    return functional.conv_transpose2d(
        x, weight, bias, attributes.get("strides", [1, 1]), pads[:2],
        attributes.get("output_padding", [0, 0]), attributes.get("group", 1), attributes.get("dilations", [1, 1]),
    )  # fmt: skip


def _gemm(inputs: Inputs, attributes: Attributes) -> Tensor:
    a, b, c = (*inputs, None)[:3]
    a = a.t() if attributes.get("transA") else a
    b = b.t() if attributes.get("transB") else b
    result: Tensor = attributes.get("alpha", 1.0) * (a @ b) if attributes.get("alpha", 1.0) != 1 else a @ b
    return result if c is None else result + attributes.get("beta", 1.0) * c


def _pool(kind: str) -> Operator:
    def pool(inputs: Inputs, attributes: Attributes) -> Tensor:
        kernel = attributes["kernel_shape"]
        strides = attributes.get("strides", [1] * len(kernel))
        ceil = bool(attributes.get("ceil_mode"))
        if kind == "max":
            x, padding = _padded(inputs[0], attributes, kernel, -math.inf)
            found: Tensor = functional.max_pool2d(
                x, kernel, strides, padding, attributes.get("dilations", [1, 1]), ceil
            )
            return found
        include = bool(attributes.get("count_include_pad"))
        if not include and len(set(zip(*[iter(attributes.get("pads", []))] * 2, strict=False))) > 2:
            raise NotImplementedError("AveragePool with padding that differs by side")
        x, padding = _padded(inputs[0], attributes, kernel, 0.0)
        return functional.avg_pool2d(x, kernel, strides, padding, ceil, include)

    return pool


def _reduce(function: Callable[..., Tensor]) -> Operator:
    def reduce(inputs: Inputs, attributes: Attributes) -> Tensor:
        x = inputs[0]
        axes = inputs[1].tolist() if len(inputs) > 1 and inputs[1] is not None else attributes.get("axes")
        if not axes and attributes.get("noop_with_empty_axes"):
            return x  # type: ignore[no-any-return]  # an input is a tensor
        return function(x, tuple(axes) if axes else tuple(range(x.ndim)), bool(attributes.get("keepdims", 1)))

    return reduce


def _clip(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, low, high = (*inputs, None, None)[:3]
    low = attributes.get("min") if low is None else low.item()
    high = attributes.get("max") if high is None else high.item()
    result: Tensor = x if low is None and high is None else torch.clamp(x, low, high)
    return result


def _reshape(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, wanted = inputs[0], [int(size) for size in inputs[1].tolist()]
    if not attributes.get("allowzero"):
        wanted = [x.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    if wanted and wanted[0] == 1 and x.ndim > 1 and (-1 in wanted or math.prod(wanted) != x.numel()):
        wanted[0] = x.shape[0]  # a batch of one that was written down
    return x.reshape(wanted)  # type: ignore[no-any-return]  # as above


def _slice(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, starts, ends, axes, steps = (*inputs, None, None)[:5]
    names = range(len(starts)) if axes is None else axes.tolist()
    for place, axis in enumerate(names):
        step = 1 if steps is None else int(steps[place])
        if step < 0:
            raise NotImplementedError("Slice backwards")
        start, end, size = int(starts[place]), int(ends[place]), x.shape[axis]
        start = max(0, start + size if start < 0 else start)
        end = min(size, end + size if end < 0 else end)
        x = x.narrow(axis, start, max(0, end - start))
        x = x[(slice(None),) * (axis % x.ndim) + (slice(None, None, step),)] if step > 1 else x
    return x  # type: ignore[no-any-return]  # as above


def _split(inputs: Inputs, attributes: Attributes) -> tuple[Tensor, ...]:
    axis, x = attributes.get("axis", 0), inputs[0]
    if len(inputs) > 1 and inputs[1] is not None:
        return torch.split(x, inputs[1].tolist(), axis)
    count = attributes.get("num_outputs") or attributes["outputs"]
    return torch.split(x, attributes.get("split") or math.ceil(x.shape[axis] / count), axis)


def _squeeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    axes = inputs[1].tolist() if len(inputs) > 1 and inputs[1] is not None else attributes.get("axes")
    return torch.squeeze(inputs[0]) if axes is None else torch.squeeze(inputs[0], tuple(axes))


def _unsqueeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    x = inputs[0]
    axes = inputs[1].tolist() if len(inputs) > 1 else attributes["axes"]
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x  # type: ignore[no-any-return]  # as above


def _gather(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, indices, axis = inputs[0], inputs[1], attributes.get("axis", 0)
    chosen = torch.index_select(x, axis, indices.reshape(-1).to(x.device) % x.shape[axis])
    axis %= x.ndim
    return chosen.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _expand(inputs: Inputs, attributes: Attributes) -> Tensor:
    wanted = [int(size) for size in inputs[1].tolist()]
    shape = torch.broadcast_shapes(inputs[0].shape, wanted)  # type: ignore[no-untyped-call]  # torch's has no types
    return inputs[0].expand(shape)  # type: ignore[no-any-return]  # as above


def _pad(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, pads, value = inputs[0], inputs[1].tolist(), inputs[2] if len(inputs) > 2 else None
    if len(inputs) > 3 and inputs[3] is not None:
        raise NotImplementedError("Pad along named axes")
    half = len(pads) // 2
    sides = [int(side) for axis in reversed(range(half)) for side in (pads[axis], pads[axis + half])]
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}[
        attributes.get("mode", "constant")
    ]
    if mode == "constant":
        return functional.pad(x, sides, value=0.0 if value is None else float(value))
    return functional.pad(x, sides[: 2 * (x.ndim - 2)], mode=mode)


def _resize(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, _, scales, sizes = (*inputs, None, None, None)[:4]
    wanted = sizes.tolist()[2:] if sizes is not None and sizes.numel() else None
    factors = scales.tolist()[2:] if wanted is None and scales is not None else None
    if wanted is None and factors is not None:
        wanted = [int(size * factor) for size, factor in zip(x.shape[2:], factors, strict=True)]
    how = {"nearest": "nearest", "linear": "bilinear", "cubic": "bicubic"}[attributes.get("mode", "nearest")]
    if how == "nearest":
        if attributes.get("coordinate_transformation_mode", "half_pixel") == "half_pixel":
            how = "nearest-exact"
        return functional.interpolate(x, wanted, mode=how)
    corners = attributes.get("coordinate_transformation_mode") == "align_corners"
    return functional.interpolate(x, wanted, mode=how, align_corners=corners)


def _layer_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, weight, bias = (*inputs, None)[:3]
    shape = x.shape[attributes.get("axis", -1) % x.ndim :]
    return functional.layer_norm(x, shape, weight, bias, attributes.get("epsilon", 1e-5))


def _batch_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, weight, bias, mean, variance = inputs
    return functional.batch_norm(x, mean, variance, weight, bias, eps=attributes.get("epsilon", 1e-5))


def _depth_to_space(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, block = inputs[0], attributes["blocksize"]
    if attributes.get("mode", "DCR") == "CRD":
        return functional.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    x = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // block**2, h * block, w * block)  # type: ignore[no-any-return]  # as above


def _space_to_depth(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, block = inputs[0], attributes["blocksize"]
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * block**2, h // block, w // block)  # type: ignore[no-any-return]  # as above


def _cast(inputs: Inputs, attributes: Attributes) -> Tensor:
    kinds = {
        1: torch.float32,
        6: torch.int32,
        7: torch.int64,
        9: torch.bool,
        10: torch.float16,
        11: torch.float64,
    }
    return inputs[0].to(kinds[attributes["to"]])  # type: ignore[no-any-return]  # as above


def _alike(function: Callable[..., Tensor]) -> Operator:
    return lambda inputs, attributes: function(*inputs)


OPERATORS: dict[str, Operator] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _alike(torch.matmul),
    "Add": _alike(torch.add),
    "Sub": _alike(torch.sub),
    "Mul": _alike(torch.mul),
    "Div": lambda i, a: (
        i[0] / i[1] if i[0].is_floating_point() else torch.div(i[0], i[1], rounding_mode="trunc")
    ),
    "Pow": _alike(torch.pow),
    "Min": _alike(torch.minimum),
    "Max": _alike(torch.maximum),
    "Neg": _alike(torch.neg),
    "Abs": _alike(torch.abs),
    "Sqrt": _alike(torch.sqrt),
    "Reciprocal": _alike(torch.reciprocal),
    "Exp": _alike(torch.exp),
    "Log": _alike(torch.log),
    "Erf": _alike(torch.erf),
    "Tanh": _alike(torch.tanh),
    "Relu": _alike(torch.relu),
    "Sigmoid": _alike(torch.sigmoid),
    "Softplus": _alike(functional.softplus),
    "Mish": _alike(functional.mish),
    "PRelu": lambda i, a: torch.where(i[0] >= 0, i[0], i[0] * i[1]),
    "LeakyRelu": lambda i, a: functional.leaky_relu(i[0], a.get("alpha", 0.01)),
    "Elu": lambda i, a: functional.elu(i[0], a.get("alpha", 1.0)),
    "HardSwish": _alike(functional.hardswish),
    "HardSigmoid": lambda i, a: torch.clamp(i[0] * a.get("alpha", 0.2) + a.get("beta", 0.5), 0, 1),
    "Gelu": lambda i, a: functional.gelu(i[0], approximate=a.get("approximate", "none")),
    "Clip": _clip,
    "Softmax": lambda i, a: torch.softmax(i[0], a.get("axis", -1)),
    "LogSoftmax": lambda i, a: torch.log_softmax(i[0], a.get("axis", -1)),
    "GlobalAveragePool": lambda i, a: i[0].mean((2, 3), keepdim=True),
    "GlobalMaxPool": lambda i, a: i[0].amax((2, 3), keepdim=True),
    "AveragePool": _pool("average"),
    "MaxPool": _pool("max"),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "ReduceMax": _reduce(torch.amax),
    "ReduceL2": _reduce(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep)),
    "LayerNormalization": _layer_norm,
    "BatchNormalization": _batch_norm,
    "Concat": lambda i, a: torch.cat(list(i), a["axis"]),
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Reshape": _reshape,
    "Flatten": lambda i, a: i[0].flatten(a.get("axis", 1)),
    "Transpose": lambda i, a: i[0].permute(a.get("perm", list(reversed(range(i[0].ndim))))),
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
    "Tile": lambda i, a: i[0].repeat(i[1].tolist()),
    "Pad": _pad,
    "Resize": _resize,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Shape": lambda i, a: torch.tensor(i[0].shape),
    "Cast": _cast,
    "Identity": lambda i, a: i[0],
    "Dropout": lambda i, a: i[0],
}
