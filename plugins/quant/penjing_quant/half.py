"""Which nodes of a graph can compute in float16, and which leave its range or its precision.

float16 ends at 65504, and below 2^-14 it loses bits, one with each halving (IEEE 754, binary16). Running a graph on a
CPU shows neither: ONNX Runtime computes most of its float16 operators in float32. So what is judged here is the
ranges that tensors took over the photographs, the weights themselves, and how many terms a sum has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from penjing_quant.graph import SAME_SCALE, WEIGHTED, attribute, constant, weight_axis
from penjing_quant.half_scales import LARGEST, LEAST_NORMAL, scale_fits

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx_ir as ir

    from penjing_quant.integers import Range

    Array = npt.NDArray[np.float32]

#: terms of a sum in float16, from which on its rounding, 2^-11 times the root of their number, passes 2^-6
DEEP = 1024
#: relative error that rounding a channel of a weight may bring; of normal numbers it is 2^-12 or so
ROUNDING = 2.0**-7
#: normalisations: they sum squares, which leave the range long before their outputs do
_NORMALISING = frozenset(
    {"LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization"}
    | {"MeanVarianceNormalization", "LpNormalization", "LRN"}
)
#: operators that sum over axes
_SUMMING = frozenset(
    {"ReduceMean", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"}
)
_SQUARING = frozenset({"ReduceL2", "ReduceSumSquare"})
#: operators whose type is an attribute, or that draw numbers: their outputs stay float32
_TYPED = frozenset(
    {"ConstantOfShape", "EyeLike", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
    | {"Bernoulli", "Multinomial", "RandomUniform", "HannWindow", "HammingWindow", "BlackmanWindow", "Range"}
)
QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})


def singles(
    graph: ir.Graph, opset: int, ranges: Mapping[str, Range], headroom: float, *, scales: bool
) -> dict[ir.Node, str]:
    """Return the nodes that stay float32, and why; Q/DQ are left to their neighbours.

    `ranges` may lack tensors, of which weights and depths alone are judged. A tensor is kept `headroom` times below
    65504. `scales` tells whether Q/DQ take float16 (opset 19).
    """
    why: dict[ir.Node, str] = {}
    for node in graph:
        if node.op_type not in QDQ and (reason := _reason(node, opset, ranges, headroom, scales=scales)):
            why[node] = reason
    changed = True
    while changed:  # what only moves values between float32 layers would cost two casts
        changed = False
        for node in graph:
            if node in why or node.op_type not in SAME_SCALE | {"Relu", "Clip", "Concat"}:
                continue
            around = [v.producer() for v in node.inputs if v is not None and v.producer() is not None]
            around += [use.node for output in node.outputs for use in output.uses()]
            if around and all(neighbour in why for neighbour in around):
                why[node] = "it lies between float32 layers"
                changed = True
    return why


def must(graph: ir.Graph, opset: int, *, scales: bool) -> dict[ir.Node, str]:
    """Return the nodes whose operators take no float16, and why: whatever the numbers are, these stay float32."""
    found = {node: _cannot(node, opset, scales=scales) for node in graph if node.op_type not in QDQ}
    return {node: why for node, why in found.items() if why}


def is_single(value: ir.Value | None) -> bool:
    """Tell whether a value is float32 as the graph came."""
    import onnx_ir as ir

    return value is not None and value.dtype == ir.DataType.FLOAT


def takes_half(node: ir.Node, opset: int, place: int, *, output: bool = False) -> bool:
    """Tell whether the operator's standard allows float16 for an input, or an output, of a node."""
    import onnx

    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return False
    formal = schema.outputs if output else schema.inputs
    if not formal:
        return False
    types = formal[min(place, len(formal) - 1)].types
    return "tensor(float16)" in types


def _reason(node: ir.Node, opset: int, ranges: Mapping[str, Range], headroom: float, *, scales: bool) -> str:
    """Return why `node` stays float32; "" where it computes in float16."""
    if why := _cannot(node, opset, scales=scales):
        return why
    for value in (*node.inputs, *node.outputs):
        if (
            value is not None
            and is_single(value)
            and (why := _out_of_range(value.name or "", ranges, headroom))
        ):
            return why
    if why := _constants(node, ranges):
        return why
    return _sums(node, ranges, headroom)


def _cannot(node: ir.Node, opset: int, *, scales: bool) -> str:
    if node.domain not in ("", "ai.onnx"):
        return "its operator is not of the standard"
    if node.op_type in _TYPED or any(_holds_graph(a) for a in node.attributes.values()):
        return "its type is its own"
    singles_ = [(i, v) for i, v in enumerate(node.outputs) if is_single(v)]
    if singles_ and not all(takes_half(node, opset, i, output=True) for i, _ in singles_):
        return "its operator takes no float16"
    if not scales and any(_is_dequantised(value) for value in node.inputs):
        return "Q/DQ read float32 alone in the opsets of the device"
    small = [v for v in node.inputs if _is_dequantised(v) and not _scale_fits(v)]
    if small:
        return "a scale of its Q/DQ is too small for float16"
    return ""


def _holds_graph(attribute_: ir.Attr) -> bool:
    import onnx_ir as ir

    return attribute_.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _is_dequantised(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "DequantizeLinear"


def _scale_fits(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is None or scale_fits(producer)


def _out_of_range(name: str, ranges: Mapping[str, Range], headroom: float) -> str:
    if name not in ranges:
        return ""
    reach = ranges[name].reach
    if reach * headroom > LARGEST:
        return f"{name} reaches {reach:.4g}, and float16 ends at {LARGEST:g}"
    if 0 < reach < LEAST_NORMAL:
        return f"{name} stays below {reach:.2g}, where float16 loses bits"
    return ""


def _constants(node: ir.Node, ranges: Mapping[str, Range]) -> str:
    """Return what rounding does to the node's constants that it must not do."""
    import numpy as np

    for place, value in enumerate(node.inputs):
        array = constant(value)
        if value is None or array is None or array.dtype != np.float32 or not array.size:
            continue
        name, peak = value.name, float(np.abs(array).max())
        if peak > LARGEST and not (node.op_type == "Clip" and place):
            return f"{name} holds {peak:.4g}, and float16 ends at {LARGEST:g}"
        if place == 1 and node.op_type in WEIGHTED:
            if why := _weight(node, array, ranges):
                return why
        elif array.size == 1 and 0 < peak < LEAST_NORMAL:
            return f"{name} is {peak:.2g}, where float16 loses bits"
    return ""


def _weight(node: ir.Node, weight: Array, ranges: Mapping[str, Range]) -> str:
    """Return whether rounding a channel of the weight is more than its share of the output may bear."""
    import numpy as np

    channels = np.moveaxis(weight, weight_axis(node), 0).reshape(weight.shape[weight_axis(node)], -1)
    exact = channels.astype(np.float64)
    with np.errstate(over="ignore"):
        error = np.linalg.norm(exact - channels.astype(np.float16), axis=1)
    size = np.linalg.norm(exact, axis=1)
    bad = error > ROUNDING * size
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    reach = ranges[name].reach if (name := _name(node.inputs[0])) in ranges else None
    if bias is not None and reach is not None and bias.size == len(channels):
        # beside its bias a channel may be too small to be seen
        bad &= np.abs(exact).sum(axis=1) * reach > 2.0**-11 * np.abs(bias.reshape(-1))
    if bad.any():
        return f"{int(bad.sum())} of its {len(channels)} channels lie below the normal numbers of float16"
    if reach is not None:
        bound = np.abs(exact).sum(axis=1) * reach
        bound += 0 if bias is None else np.abs(bias.reshape(-1)).max()
        if bound.max() > LARGEST:
            return f"its sums can reach {bound.max():.4g}, and float16 ends at {LARGEST:g}"
    return ""


def _name(value: ir.Value | None) -> str:
    return (value.name or "") if value is not None else ""


def _sums(node: ir.Node, ranges: Mapping[str, Range], headroom: float) -> str:
    """Return whether the node adds up too much for float16."""
    if node.op_type in _NORMALISING:
        return "it sums squares"
    depth = _depth(node)
    if depth is None:
        return ""
    if depth > DEEP and node.op_type not in WEIGHTED | {"MatMul"}:
        return f"it sums {depth} terms, and rounding in float16 adds up from {DEEP} on"
    reaches = [ranges[name].reach for value in node.inputs if (name := _name(value)) in ranges]
    term = math.prod(reaches[:2]) if node.op_type == "MatMul" else max(reaches, default=0.0)
    if node.op_type in _SQUARING:
        term *= term
    if node.op_type == "MatMul" and len(reaches) < 2:
        return ""
    if node.op_type not in ("Softmax", "LogSoftmax") and depth * term > LARGEST:
        return f"its sums can reach {depth * term:.4g}, and float16 ends at {LARGEST:g}"
    return ""


def _depth(node: ir.Node) -> int | None:
    """Return how many terms the node sums; None where it sums none, or an open number of them."""
    data = node.inputs[0] if node.inputs else None
    if data is None or data.shape is None:
        return None
    shape = list(data.shape)
    if node.op_type in ("Softmax", "LogSoftmax"):
        axes = [attribute(node, "axis", -1)]
    elif node.op_type in ("GlobalAveragePool", "GlobalLpPool"):
        axes = list(range(2, len(shape)))
    elif node.op_type in ("AveragePool", "LpPool"):
        return math.prod(int(size) for size in attribute(node, "kernel_shape", [1]))
    elif node.op_type == "MatMul":
        axes = [-1]
    elif node.op_type in _SUMMING:
        given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        axes = (
            [int(a) for a in given.reshape(-1)]
            if given is not None
            else list(attribute(node, "axes", range(len(shape))))
        )
    else:
        return None
    sizes = [shape[axis] for axis in axes if -len(shape) <= axis < len(shape)]
    return (
        math.prod(s for s in sizes if isinstance(s, int)) if all(isinstance(s, int) for s in sizes) else None
    )


def floats(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield every float32 tensor that depends on the input."""
    for value in graph.inputs:
        if is_single(value):
            yield value
    for node in graph:
        for value in node.outputs:
            if is_single(value) and not _from_constants(node):
                yield value


def _from_constants(node: ir.Node) -> bool:
    return all(value is None or constant(value) is not None for value in node.inputs)
