"""Rewrites of a network's head: matrices become convolutions, and flattening moves behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penjing_tensorrt.dla.edit import Chain, bypass, is_vector
from penjing_tensorrt.dla.graph import argument, attribute, constant, shape
from penjing_tensorrt.dla.limits import Target, limits

if TYPE_CHECKING:
    import onnx_ir as ir

#: operators that turn one shape into another and move nothing
VIEWS = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
#: operators on each value by itself
POINTWISE = frozenset(
    {"Relu", "Sigmoid", "Tanh", "LeakyRelu", "Clip", "HardSwish", "HardSigmoid", "Elu", "Abs", "Swish"}
)
#: operators on two values at a time
BINARY = frozenset({"Add", "Sub", "Mul", "Div"})


def matrix(node: ir.Node, target: Target) -> bool:
    """Turn Gemm or MatMul by a constant into a convolution of 1×1, or of the height and width that were flattened."""
    import numpy as np

    data, weight = node.inputs[0], constant(argument(node, 1))
    size = shape(data)
    if data is None or size is None or weight is None or len(size) != 2 or weight.ndim != 2:
        return False
    if node.op_type == "Gemm":
        if attribute(node, "transA", 0):
            return False
        weight = weight if attribute(node, "transB", 0) else weight.T
        weight = weight * weight.dtype.type(attribute(node, "alpha", 1.0))
    else:
        weight = weight.T
    bias = constant(argument(node, 2))
    if argument(node, 2) is not None and (bias is None or bias.size not in (1, weight.shape[0])):
        return False
    source = _before_flattening(data)
    sides = (shape(source) or ())[1:] if source is not None else (size[1], 1, 1)
    if max(sides[1:]) > limits()["convolution"]["kernel"][1]:
        return False
    chain = Chain(node)
    value = source if source is not None else chain.reshape(data, (size[0], *sides))
    inputs = [value, chain.constant("weight", np.ascontiguousarray(weight).reshape(weight.shape[0], *sides))]
    if bias is not None:
        full = np.broadcast_to(bias.reshape(-1), (weight.shape[0],))
        inputs.append(chain.constant("bias", full * full.dtype.type(attribute(node, "beta", 1.0))))
    chain.reshape(chain.add("Conv", inputs), (size[0], weight.shape[0]))
    chain.commit()
    return True


def _before_flattening(value: ir.Value) -> ir.Value | None:
    """Return the N×C×H×W tensor that `value` is a flattened view of; None where it is none."""
    node = value.producer()
    while node is not None and node.op_type in VIEWS:
        before = node.inputs[0]
        size = shape(before)
        if before is None or size is None or size[0] != (shape(value) or (None,))[0]:
            return None
        if len(size) == 4:
            return before
        node = before.producer()
    return None


def sink(node: ir.Node, target: Target) -> bool:
    """Move a view of N×C×1×1 as N×C behind the operator that reads it, where that works on each value or on C."""
    size = shape(node.outputs[0])
    full = [_full(value) for value in node.inputs]
    views = {p for v in node.inputs if v is not None and (p := v.producer()) is not None and _squeezes(p)}
    if not views or size is None or any(f is not None and (shape(f) or ())[:2] != size for f in full):
        return False
    chain = Chain(node)
    attributes = {name: a.value for name, a in node.attributes.items()}
    if node.op_type in POINTWISE:
        inputs = [full[0], *list(node.inputs)[1:]]
    elif node.op_type in ("Softmax", "LogSoftmax") and int(attributes.get("axis", -1)) % 2 == 1:
        inputs, attributes = full[:1], {"axis": 1}
    elif node.op_type in BINARY:
        inputs = [
            f if f is not None else _widened(chain, value) for f, value in zip(full, node.inputs, strict=True)
        ]
    else:
        return False
    if any(value is None for value in inputs[: 2 if node.op_type in BINARY else 1]):
        return False
    chain.reshape(chain.add(node.op_type, inputs, attributes), size)
    chain.commit()
    for before in views:
        if (
            before.graph is not None
            and not before.outputs[0].uses()
            and not before.outputs[0].is_graph_output()
        ):
            before.graph.remove(before, safe=True)
    return True


def _full(value: ir.Value | None) -> ir.Value | None:
    """Return the N×C×1×1 tensor that `value` is a view of as N×C; None where it is none."""
    producer = value.producer() if value is not None else None
    return producer.inputs[0] if producer is not None and _squeezes(producer) else None


def _widened(chain: Chain, value: ir.Value | None) -> ir.Value | None:
    """Return a constant of one number, or one for each channel, for N×C×1×1; None for another."""
    array = constant(value)
    if array is None or array.ndim > 2 or (array.ndim == 2 and array.shape[0] != 1):
        return None
    wide = array.reshape((1, -1, 1, 1)) if array.size > 1 else array.reshape(())
    return chain.constant("channels", wide)


def _squeezes(node: ir.Node) -> bool:
    size = shape(node.outputs[0])
    return node.op_type in VIEWS and is_vector(node.inputs[0]) and size is not None and len(size) == 2


def view(node: ir.Node, target: Target) -> bool:
    """Remove a view that undoes the one before it, or that changes nothing."""
    if node.op_type not in VIEWS:
        return False
    source = node.inputs[0]
    result = shape(node.outputs[0])
    while source is not None and result is not None:
        if shape(source) == result:
            return bypass(node, source)
        producer = source.producer()
        if producer is None or producer.op_type not in VIEWS:
            break
        source = producer.inputs[0]
    return False
