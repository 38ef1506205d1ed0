"""Operators written in simpler ones, for opsets and parsers that lack them: by the definitions of the ONNX standard."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from penjing.errors import StepError

from penjing_onnx.rewrite import initializer, integer, node_like, replace, static_shape

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir


class _Chain:
    """The nodes that take the place of one, in order; `then` adds one and returns what it puts out."""

    def __init__(self, node: ir.Node) -> None:
        self.node = node
        self.nodes: list[ir.Node] = []

    def then(self, kind: str, *inputs: ir.Value, suffix: str, **attributes: object) -> ir.Value:
        self.nodes.append(node_like(self.node, kind, inputs, attributes, suffix=suffix))
        return self.nodes[-1].outputs[0]

    def number(self, name: str, value: float) -> ir.Value:
        """Return a constant of the type of the node's input."""
        import numpy as np

        return initializer(self.node, name, np.array(value, dtype=_dtype(self.node)))

    def end(self, kind: str, *inputs: ir.Value) -> None:
        """Put the chain, ended by one more operator, in the place of the node."""
        replace(self.node, *self.nodes, node_like(self.node, kind, inputs))


def _dtype(node: ir.Node) -> np.dtype[Any]:
    import numpy as np

    data = node.inputs[0]
    return np.dtype(data.dtype.numpy() if data is not None and data.dtype is not None else np.float32)


def _data(node: ir.Node) -> ir.Value:
    data = node.inputs[0]
    assert data is not None, "the operators here have an input"
    return data


def _real(node: ir.Node, name: str, default: float) -> float:
    return node.attributes[name].as_float() if name in node.attributes else default


def _hard_swish(node: ir.Node) -> None:
    """Write x · HardSigmoid(x, 1/6, 1/2)."""
    chain, data = _Chain(node), _data(node)
    chain.end("Mul", data, chain.then("HardSigmoid", data, suffix="gate", alpha=1 / 6, beta=0.5))


def _swish(node: ir.Node) -> None:
    """Write x · sigmoid(alpha · x)."""
    chain, data, alpha = _Chain(node), _data(node), _real(node, "alpha", 1.0)
    scaled = data if alpha == 1 else chain.then("Mul", data, chain.number("alpha", alpha), suffix="scaled")
    chain.end("Mul", data, chain.then("Sigmoid", scaled, suffix="gate"))


def _mish(node: ir.Node) -> None:
    """Write x · tanh(softplus(x))."""
    chain, data = _Chain(node), _data(node)
    chain.end("Mul", data, chain.then("Tanh", chain.then("Softplus", data, suffix="plus"), suffix="gate"))


def _gelu(node: ir.Node) -> None:
    """Write x/2 · (1 + erf(x/√2)), or the tanh form."""
    chain, data = _Chain(node), _data(node)
    if "approximate" in node.attributes and node.attributes["approximate"].as_string() == "tanh":
        cube = chain.then("Mul", chain.then("Mul", data, data, suffix="x2"), data, suffix="x3")
        third = chain.then("Mul", cube, chain.number("c", 0.044715), suffix="cx3")
        total = chain.then("Add", data, third, suffix="sum")
        inner = chain.then("Mul", total, chain.number("k", math.sqrt(2 / math.pi)), suffix="arg")
        gate = chain.then("Tanh", inner, suffix="tanh")
    else:
        inner = chain.then("Mul", data, chain.number("k", math.sqrt(0.5)), suffix="arg")
        gate = chain.then("Erf", inner, suffix="erf")
    scaled = chain.then("Mul", data, chain.number("half", 0.5), suffix="scaled")
    chain.end("Mul", scaled, chain.then("Add", gate, chain.number("one", 1.0), suffix="gate"))


def _layer_norm(node: ir.Node) -> None:
    """Write (x - mean) / sqrt(variance + epsilon) · scale + bias."""
    data, scale, *bias = node.inputs
    if data is None or scale is None or data.shape is None or len(node.outputs) > 1:
        raise StepError(f"LayerNormalization ({node.name}) has no simpler form as it is used here.")
    chain, axes = _Chain(node), _last_axes(node, len(data.shape))
    mean = _mean(chain, data, axes, "mean")
    centred = chain.then("Sub", data, mean, suffix="centred")
    unit = _normalised(chain, centred, centred, axes)
    if bias and bias[0] is not None:
        chain.end("Add", chain.then("Mul", unit, scale, suffix="scaled"), bias[0])
    else:
        chain.end("Mul", unit, scale)


def _rms_norm(node: ir.Node) -> None:
    """Write x / sqrt(mean of squares + epsilon) · scale."""
    data, scale = node.inputs[:2]
    if data is None or scale is None or data.shape is None:
        raise StepError(f"RMSNormalization ({node.name}) has no simpler form as it is used here.")
    chain = _Chain(node)
    chain.end("Mul", _normalised(chain, data, data, _last_axes(node, len(data.shape))), scale)


def _normalised(chain: _Chain, data: ir.Value, squared: ir.Value, axes: list[int]) -> ir.Value:
    """Return `data` divided by the root of the mean square of `squared` over `axes`."""
    node = chain.node
    square = chain.then("Mul", squared, squared, suffix="square")
    mean = _mean(chain, square, axes, "variance")
    safe = chain.then("Add", mean, chain.number("epsilon", _real(node, "epsilon", 1e-5)), suffix="safe")
    return chain.then("Div", data, chain.then("Sqrt", safe, suffix="deviation"), suffix="unit")


def _last_axes(node: ir.Node, rank: int) -> list[int]:
    axis = integer(node, "axis", -1)
    return list(range(axis - rank if axis >= 0 else axis, 0))


def _mean(chain: _Chain, value: ir.Value, axes: list[int], suffix: str) -> ir.Value:
    """Return the mean over `axes`, which are an input of ReduceMean from opset 18 on, and its attribute before."""
    import numpy as np

    graph = chain.node.graph
    assert graph is not None, "only nodes of a graph are rewritten"
    if graph.opset_imports.get("", 1) < 18:
        return chain.then("ReduceMean", value, suffix=suffix, axes=axes, keepdims=1)
    where = initializer(chain.node, f"{suffix}_axes", np.array(axes, np.int64))
    return chain.then("ReduceMean", value, where, suffix=suffix, keepdims=1)


def _group_norm(node: ir.Node) -> None:
    """Normalise each group as one channel of InstanceNormalization, then scale and shift the channels."""
    import numpy as np

    shape = static_shape(node.inputs[0])
    data, scale, bias = node.inputs[:3]
    if shape is None or data is None or scale is None or bias is None or scale.shape is None:
        raise StepError(f"GroupNormalization ({node.name}) over a size left open has no simpler form.")
    chain, groups, dtype = _Chain(node), integer(node, "num_groups", 1), _dtype(node)
    if scale.shape != (shape[1],):  # opset 18 scales groups, 21 channels
        raise StepError(f"GroupNormalization ({node.name}) scales groups; write it in opset 21.")

    def constant(name: str, values: object, kind: np.dtype[Any] | type = dtype) -> ir.Value:
        return initializer(node, name, np.array(values, dtype=kind))

    flat = chain.then("Reshape", data, constant("flat", [shape[0], groups, -1], np.int64), suffix="groups")
    unit = chain.then(
        "InstanceNormalization",
        flat,
        constant("ones", [1.0] * groups),
        constant("zeros", [0.0] * groups),
        suffix="unit",
        epsilon=_real(node, "epsilon", 1e-5),
    )
    back = chain.then("Reshape", unit, constant("shape", shape, np.int64), suffix="channels")
    each = constant("each", [1, shape[1]] + [1] * (len(shape) - 2), np.int64)
    scaled = chain.then("Mul", back, chain.then("Reshape", scale, each, suffix="scale"), suffix="scaled")
    chain.end("Add", scaled, chain.then("Reshape", bias, each, suffix="bias"))


#: operator: (the opset that brought it, how to write it in simpler ones)
DECOMPOSED: dict[str, tuple[int, Callable[[ir.Node], None]]] = {
    "HardSwish": (14, _hard_swish),
    "LayerNormalization": (17, _layer_norm),
    "Mish": (18, _mish),
    "GroupNormalization": (18, _group_norm),
    "Gelu": (20, _gelu),
    "RMSNormalization": (23, _rms_norm),
    "Swish": (24, _swish),
}
