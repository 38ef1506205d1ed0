"""Rewrites that put a layer into a form the DLA has, its outputs unchanged up to the rounding of floats.

Each takes a node that TensorRT would leave to the GPU, and returns whether it changed the graph. The identities
are elementary: a mean of equal blocks' means is the mean; a maximum of maxima is the maximum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from penjing_tensorrt.dla.edit import Chain, alone
from penjing_tensorrt.dla.graph import argument, attribute, constant, is_float, shape, window
from penjing_tensorrt.dla.limits import Target, limits

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

#: window, strides and pads of one pooling
Stage = tuple[Sequence[int], Sequence[int], Sequence[int]]
Rewrite = Callable[["ir.Node", Target], bool]


# -- pooling


def average(node: ir.Node, target: Target) -> bool:
    """Turn a global or large average into averages within the window, or into a depthwise convolution."""
    data = node.inputs[0]
    size, result = shape(data), shape(node.outputs[0])
    if data is None or size is None or result is None or len(size) != 4 or not _means(node, size):
        return False
    sides = size[2:] if node.op_type != "AveragePool" else tuple(attribute(node, "kernel_shape", ()))
    chain = Chain(node)
    stages = _stages(sides)
    value = _averages(chain, data, stages) if stages else _by_convolution(chain, data, size[1], sides)
    if value is None:
        return False
    if len(result) != 4:
        chain.reshape(value, result)
    chain.commit()
    return True


def _means(node: ir.Node, size: Sequence[int]) -> bool:
    """Return whether a node averages whole planes, or blocks side by side."""
    if node.op_type == "GlobalAveragePool":
        return True
    if node.op_type == "AveragePool":
        slide = window(node, tuple(attribute(node, "kernel_shape", ())))
        if slide is None or any(slide.pads) or attribute(node, "ceil_mode", 0):
            return False
        whole = slide.kernel == tuple(size[2:])
        return slide.dilations == (1, 1) and (whole or slide.kernel == slide.strides)
    return node.op_type == "ReduceMean" and _axes(node, len(size)) == [2, 3]


def _axes(node: ir.Node, rank: int) -> list[int]:
    axes = constant(argument(node, 1))
    listed = attribute(node, "axes", ()) if axes is None else axes.reshape(-1).tolist()
    return sorted(int(axis) % rank for axis in listed)


def _stages(sides: Sequence[int]) -> list[tuple[int, int]] | None:
    """Return windows, height and width, whose products are the sides; None where a prime is over the limit."""
    factors = [_factors(side) for side in sides]
    if any(found is None for found in factors):
        return None
    high, wide = ([*found] for found in factors if found is not None)
    return list(zip_longest(high, wide, fillvalue=1)) or [(1, 1)]


def _factors(side: int) -> list[int] | None:
    """Return the fewest factors within the pooling window, the largest first; None where there are none."""
    largest = limits()["pooling"]["window"][1]
    found = []
    while side > 1:
        factor = next((f for f in range(min(side, largest), 1, -1) if side % f == 0), None)
        if factor is None:
            return None
        found.append(factor)
        side //= factor
    return found


def _averages(chain: Chain, value: ir.Value, stages: Sequence[tuple[int, int]]) -> ir.Value:
    for stage in stages:
        value = chain.add("AveragePool", [value], {"kernel_shape": stage, "strides": stage})
    return value


def _by_convolution(chain: Chain, data: ir.Value, channels: int, sides: Sequence[int]) -> ir.Value | None:
    """Average by a depthwise convolution of equal weights, which INT8 holds exactly; None where it is too large."""
    import numpy as np

    if max(sides) > limits()["convolution"]["kernel"][1] or channels > limits()["convolution"]["groups"][1]:
        return None
    if (
        any(side > limits()["convolution"]["stride"][1] for side in sides)
        and tuple(sides) != (shape(data) or ())[2:]
    ):
        return None
    weight = np.full((channels, 1, *sides), 1 / math.prod(sides), np.float32)
    strides = [1, 1] if tuple(sides) == (shape(data) or ())[2:] else list(sides)
    return chain.add("Conv", [data, chain.constant("mean", weight)], {"group": channels, "strides": strides})


def maximum(node: ir.Node, target: Target) -> bool:
    """Turn a maximum over a large window into a chain of small windows; only the last one takes strides."""
    data = node.inputs[0]
    size, result = shape(data), shape(node.outputs[0])
    if data is None or size is None or result is None or len(size) != 4 or len(node.outputs) > 1:
        return False
    if node.op_type == "MaxPool":
        slide = window(node, tuple(attribute(node, "kernel_shape", ())))
        if slide is None or slide.dilations != (1, 1) or attribute(node, "ceil_mode", 0):
            return False
        kernel, strides, pads = slide.kernel, slide.strides, slide.pads
    elif node.op_type == "GlobalMaxPool" or _axes(node, 4) == [2, 3]:
        kernel, strides, pads = (size[2], size[3]), (1, 1), (0, 0, 0, 0)
    else:
        return False
    if not any(pads) and (kernel == strides or kernel == tuple(size[2:])) and (stages := _stages(kernel)):
        steps: list[Stage] = [
            (stage, stage, (0, 0, 0, 0)) for stage in stages
        ]  # side by side: each stage shrinks the next
    elif max(kernel) <= limits()["convolution"]["kernel"][1] * 2:
        steps = _sliding(kernel, strides, pads)
    else:
        return False
    chain, value = Chain(node), data
    for k, s, p in steps:
        value = chain.add("MaxPool", [value], {"kernel_shape": k, "strides": s, "pads": p})
    if len(result) != 4:
        chain.reshape(value, result)
    chain.commit()
    return True


def _sliding(
    kernel: tuple[int, int], strides: tuple[int, int], pads: tuple[int, int, int, int]
) -> list[Stage]:
    """Return (window, strides, pads) of each stage: a window of K is one of k after one of K - k + 1.

    Padding is shared out so that each stage pads less than its window, else its border would hold nothing.
    """
    largest = limits()["pooling"]["window"][1]
    count = max(math.ceil((side - 1) / (largest - 1)) for side in kernel) or 1
    windows = [[1 + part for part in _shares(side - 1, count)] for side in kernel]
    padding = [_fill(pad, windows[axis % 2]) for axis, pad in enumerate(pads)]
    return [
        (
            tuple(side[i] for side in windows),
            strides if i == count - 1 else (1, 1),
            tuple(side[i] for side in padding),
        )
        for i in range(count)
    ]


def _shares(total: int, count: int) -> list[int]:
    return [total // count + (i < total % count) for i in range(count)]


def _fill(pad: int, windows: Sequence[int]) -> list[int]:
    parts, left = [], pad
    for i, size in enumerate(windows):
        take = min(size - 1, math.ceil(left / (len(windows) - i)))
        parts.append(take)
        left -= take
    for i, size in enumerate(windows):  # what an even share left over
        more = min(left, size - 1 - parts[i])
        parts[i] += more
        left -= more
    return parts


# -- activations and arithmetic


def hard_sigmoid(node: ir.Node, target: Target) -> bool:
    """Turn HardSigmoid, and the one in HardSwish, into a shift, a clip from 0 and a scale.

    In this order INT8 rounds once: the scale maps the steps of the clip's range onto those of its own.
    """
    import numpy as np

    data = node.inputs[0]
    if data is None or not is_float(data):
        return False
    swish = node.op_type == "HardSwish"
    alpha = 1 / 6 if swish else float(attribute(node, "alpha", 0.2))
    beta = 0.5 if swish else float(attribute(node, "beta", 0.5))
    if not (
        alpha > 0 and limits()["activation"]["clip"][0] <= 1 / alpha <= limits()["activation"]["clip"][1]
    ):
        return False
    dtype = data.dtype.numpy() if data.dtype is not None else np.float32
    chain = Chain(node)
    value = chain.add("Add", [data, chain.constant("offset", np.array(beta / alpha, dtype))])
    ends = [chain.constant(name, np.array(end, dtype)) for name, end in (("low", 0), ("high", 1 / alpha))]
    value = chain.add("Clip", [value, *ends])
    value = chain.add("Mul", [value, chain.constant("slope", np.array(alpha, dtype))])
    if swish:
        chain.add("Mul", [data, value])
    chain.commit()
    return True


def swish(node: ir.Node, target: Target) -> bool:
    """Turn Swish (SiLU as one operator) into Sigmoid, which runs in FP16, and a product."""
    data = node.inputs[0]
    if data is None or float(attribute(node, "alpha", 1.0)) != 1:
        return False
    chain = Chain(node)
    chain.add("Mul", [data, chain.add("Sigmoid", [data])])
    chain.commit()
    return True


def arithmetic(node: ir.Node, target: Target) -> bool:
    """Turn division by a constant, negation and squares into products."""
    import numpy as np

    data, other = node.inputs[0], constant(argument(node, 1))
    if data is None or data.const_value is not None or not is_float(data):
        return False
    chain = Chain(node)
    if node.op_type == "Div" and other is not None and np.all(other != 0):
        chain.add(
            "Mul", [data, chain.constant("reciprocal", (1 / other.astype(np.float64)).astype(other.dtype))]
        )
    elif node.op_type == "Neg":
        dtype = data.dtype.numpy() if data.dtype is not None else np.float32
        chain.add("Mul", [data, chain.constant("minus", np.array(-1, dtype))])
    elif node.op_type == "Pow" and other is not None and other.size == 1 and float(other.reshape(-1)[0]) == 2:
        chain.add("Mul", [data, data])
    else:
        return False
    chain.commit()
    return True


def resize(node: ir.Node, target: Target) -> bool:
    """Write a Resize to sizes that are whole multiples with scales; and half_pixel where it means the same."""
    import numpy as np

    data, sizes = shape(node.inputs[0]), shape(node.outputs[0])
    if (
        data is None
        or sizes is None
        or len(data) != 4
        or any(b % a for a, b in zip(data, sizes, strict=True))
    ):
        return False
    where = attribute(node, "coordinate_transformation_mode", "half_pixel")
    # they differ only where a side of the result is 1
    same = "half_pixel" if where == "pytorch_half_pixel" and min(sizes[2:]) > 1 else where
    if constant(argument(node, 2)) is not None and same == where:
        return False
    chain = Chain(node)
    scales = chain.constant(
        "scales", np.array([b // a for a, b in zip(data, sizes, strict=True)], np.float32)
    )
    kept = {
        name: a.value
        for name, a in node.attributes.items()
        if name in ("mode", "nearest_mode", "cubic_coeff_a")
    }
    chain.add("Resize", [node.inputs[0], None, scales], kept | {"coordinate_transformation_mode": same})
    chain.commit()
    return True


# -- what belongs to a neighbour


def pad(node: ir.Node, target: Target) -> bool:
    """Move a padding of zeros into the convolutions and poolings that alone read it."""
    data, output = node.inputs[0], node.outputs[0]
    amounts = constant(argument(node, 1))
    fill = constant(argument(node, 2))
    size = shape(data)
    if data is None or amounts is None or size is None or amounts.size != 8 or argument(node, 3) is not None:
        return False
    if attribute(node, "mode", "constant") != "constant" or (fill is not None and np_any(fill)):
        return False
    before, after = amounts.reshape(2, 4).tolist()
    if any(n < 0 for n in (*before, *after)) or any((*before[:2], *after[:2])) or output.is_graph_output():
        return False
    users, added = [use.node for use in output.uses()], (*before[2:], *after[2:])
    if not users or not all(_takes_padding(user, data, output, added) for user in users):
        return False
    for user in users:
        _set_pads(user, added)
        user.replace_input_with(0, data)
    graph = node.graph
    assert graph is not None
    graph.remove(node, safe=True)
    return True


def np_any(array: np.ndarray[Any, Any]) -> bool:
    """Return whether any element is not 0."""
    return bool((array != 0).any())


def _takes_padding(user: ir.Node, data: ir.Value, padded: ir.Value, added: Sequence[int]) -> bool:
    """Return whether a node that reads zeros around `data` can make them itself."""
    if user.inputs[0] is not padded or any(value is padded for value in list(user.inputs)[1:]):
        return False
    if attribute(user, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return False
    if user.op_type == "Conv":
        return True
    kernel = tuple(attribute(user, "kernel_shape", ()))
    bare = not any(attribute(user, "pads", ())) and not attribute(user, "ceil_mode", 0)
    if not bare or len(kernel) != 2 or any(pad >= kernel[i % 2] for i, pad in enumerate(added)):
        return False
    if user.op_type == "MaxPool":  # which pads with less than anything: the same where nothing is below 0
        producer = data.producer()
        return producer is not None and producer.op_type in ("Relu", "Sigmoid")
    return user.op_type == "AveragePool"


def _set_pads(user: ir.Node, added: Sequence[int]) -> None:
    import onnx_ir as ir

    had = attribute(user, "pads", (0, 0, 0, 0))
    user.attributes["pads"] = ir.AttrInt64s("pads", [a + b for a, b in zip(had, added, strict=True)])
    user.attributes.pop("auto_pad", None)
    if user.op_type == "AveragePool":
        user.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)


def normalisation(node: ir.Node, target: Target) -> bool:
    """Fold a BatchNormalization into the convolution before it."""
    import numpy as np

    data = node.inputs[0]
    convolution = data.producer() if data is not None else None
    if data is None or convolution is None or convolution.op_type != "Conv" or not alone(data):
        return False
    weight, bias = constant(argument(convolution, 1)), constant(argument(convolution, 2))
    numbers = [constant(value) for value in node.inputs[1:5]]
    if weight is None or (bias is None and argument(convolution, 2) is not None) or len(node.outputs) > 1:
        return False
    if any(n is None for n in numbers):
        return False
    scale, shift, mean, variance = (n.astype(np.float64) for n in numbers if n is not None)
    factor = scale / np.sqrt(variance + float(attribute(node, "epsilon", 1e-5)))
    folded = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    offset = shift + ((0 if bias is None else bias) - mean) * factor
    chain = Chain(node)
    inputs = [
        convolution.inputs[0],
        chain.constant("weight", folded.astype(weight.dtype)),
        chain.constant("bias", offset.astype(weight.dtype)),
    ]
    chain.add("Conv", inputs, {name: a.value for name, a in convolution.attributes.items()})
    chain.commit()
    assert convolution.graph is not None
    convolution.graph.remove(convolution, safe=True)
    return True
