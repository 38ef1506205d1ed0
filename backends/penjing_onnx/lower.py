"""Writing a graph in an older opset.

onnx's own version converter leaves invalid nodes or has no adapter (ReduceMean below 18, Relu and Add below
14, HardSwish), and torch's exporter starts at opset 18. Here the operators whose newer form says it
otherwise are rewritten, attributes that only say a default are dropped, and the rest is relabelled,
because between two versions most operators changed in the types they take alone. `check_lowered` holds the
result to the older standard.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from penjing.errors import StepError

from penjing_onnx.rewrite import constant, initializer, integer, node_like, replace, static_shape, sweep

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

#: the oldest opset that can be written: the first with one scale per channel in DequantizeLinear
OLDEST = 13
#: operators that took their axes as an attribute before opset 18
REDUCTIONS = (
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceSumSquare",
)
#: attributes newer than their operator, droppable where they only say this default: (operator, name): default
DEFAULTS: dict[tuple[str, str], object] = {
    ("Reshape", "allowzero"): 0,
    ("BatchNormalization", "training_mode"): 0,
    ("Resize", "antialias"): 0,
    ("Resize", "keep_aspect_ratio_policy"): "stretch",
    ("ScatterND", "reduction"): "none",
    ("ScatterElements", "reduction"): "none",
    ("Cast", "saturate"): 1,
    ("Cast", "round_mode"): "up",
    ("QuantizeLinear", "saturate"): 1,
    ("QuantizeLinear", "block_size"): 0,
    ("QuantizeLinear", "output_dtype"): 0,
    ("QuantizeLinear", "precision"): 0,
    ("DequantizeLinear", "block_size"): 0,
    ("DequantizeLinear", "output_dtype"): 0,
    ("Shape", "start"): 0,
}


def ir_version_of(opset: int) -> int:
    """Return the lowest IR version that goes with an opset in onnx's own table of releases."""
    for newest, version in ((14, 7), (18, 8), (20, 9), (22, 10), (23, 11), (24, 12)):
        if opset <= newest:
            return version
    return 13


def lower(model: ir.Model, opset: int) -> None:
    """Rewrite a graph in place for `opset`, at least 13; StepError where an operator has no older form."""
    present = model.opset_imports.get("", 1)
    if present > opset:
        for graph in model.graphs():
            for node in list(graph):
                if node.domain == "":
                    _lower_node(node, opset)
        sweep(model)
        for graph in model.graphs():
            _refuse_unknown(graph, opset)
        model.opset_imports[""] = opset
    model.ir_version = min(model.ir_version, max(ir_version_of(opset), 8 if model.functions else 0))


def check_lowered(model: onnx.ModelProto) -> None:
    """Raise StepError where a graph breaks the standard of the opset it says it is written in."""
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        raise StepError(
            f"The graph cannot be written in opset {opset}: {str(error).strip().splitlines()[0]}",
            hint="Choose a newer opset, or a device whose runtime reads one.",
        ) from error


def _lower_node(node: ir.Node, opset: int) -> None:
    for name in [name for kind, name in DEFAULTS if kind == node.op_type and name in node.attributes]:
        if _newer(node.op_type, name, opset) and _says_default(node, name):
            del node.attributes[name]
    rule = _RULES.get(node.op_type)
    if rule and opset < rule[0]:
        rule[1](node)


def _newer(kind: str, attribute: str, opset: int) -> bool:
    import onnx

    return attribute not in onnx.defs.get_schema(kind, opset).attributes


def _says_default(node: ir.Node, name: str) -> bool:
    value = node.attributes[name].value
    if (node.op_type, name) == ("Reshape", "allowzero") and value:
        shape = constant(node.inputs[1])
        return shape is not None and 0 not in shape
    return bool(value == DEFAULTS[node.op_type, name])


def _refuse_unknown(graph: ir.Graph | ir.Function, opset: int) -> None:
    import onnx

    for node in graph:
        if node.domain != "":
            continue
        try:
            onnx.defs.get_schema(node.op_type, opset)
        except onnx.defs.SchemaError as error:
            raise StepError(
                f"{node.op_type} ({node.name}) does not exist in opset {opset}.",
                hint="Choose a newer opset, or replace that operation in the network.",
            ) from error


def _reduce(node: ir.Node) -> None:
    """Move axes from an input (opset 18) to an attribute."""
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if len(node.inputs) > 1 and node.inputs[1] is not None and axes is None:
        raise StepError(f"{node.op_type} ({node.name}) computes its axes, which opsets before 18 cannot.")
    attributes: dict[str, object] = {"keepdims": integer(node, "keepdims", 1)}
    if axes is not None and axes.size:
        attributes["axes"] = [int(axis) for axis in axes.reshape(-1)]
    elif integer(node, "noop_with_empty_axes", 0):
        replace(node, node_like(node, "Identity", node.inputs[:1]))
        return
    replace(node, node_like(node, node.op_type, node.inputs[:1], attributes))


def _hard_swish(node: ir.Node) -> None:
    """Write x · HardSigmoid(x, 1/6, 1/2), the definition of HardSwish (opset 14)."""
    gate = node_like(node, "HardSigmoid", node.inputs, {"alpha": 1 / 6, "beta": 0.5}, suffix="gate")
    replace(node, gate, node_like(node, "Mul", [node.inputs[0], gate.outputs[0]]))


def _split(node: ir.Node) -> None:
    """Say the sizes of equal parts, which opset 18 counts instead."""
    import numpy as np

    if len(node.inputs) > 1 and node.inputs[1] is not None:
        return
    shape, axis = static_shape(node.inputs[0]), integer(node, "axis", 0)
    if shape is None:
        raise StepError(
            f"Split ({node.name}) divides a size that is left open, which opsets before 18 cannot."
        )
    count = len(node.outputs)
    chunk = -(-shape[axis] // count)
    sizes = [chunk] * (count - 1) + [shape[axis] - chunk * (count - 1)]
    node.resize_inputs(2)
    node.replace_input_with(1, initializer(node, "sizes", np.array(sizes, dtype=np.int64)))
    node.attributes.pop("num_outputs", None)


def _gelu(node: ir.Node) -> None:
    """Write x/2 · (1 + erf(x/√2)), or the tanh form, the definitions of Gelu (opset 20)."""
    import numpy as np

    (data,) = node.inputs
    assert data is not None, "Gelu has one input"
    dtype = data.dtype.numpy() if data.dtype is not None else np.float32

    def number(name: str, value: float) -> ir.Value:
        return initializer(node, name, np.array(value, dtype=dtype))

    half, one = number("half", 0.5), number("one", 1.0)
    nodes = []

    def then(kind: str, *inputs: ir.Value, suffix: str) -> ir.Value:
        nodes.append(node_like(node, kind, inputs, suffix=suffix))
        return nodes[-1].outputs[0]

    if "approximate" in node.attributes and node.attributes["approximate"].as_string() == "tanh":
        cube = then("Mul", then("Mul", data, data, suffix="x2"), data, suffix="x3")
        inner = then("Add", data, then("Mul", cube, number("c", 0.044715), suffix="cx3"), suffix="sum")
        gate = then(
            "Tanh", then("Mul", inner, number("k", math.sqrt(2 / math.pi)), suffix="arg"), suffix="tanh"
        )
    else:
        gate = then("Erf", then("Mul", data, number("k", math.sqrt(0.5)), suffix="arg"), suffix="erf")
    scaled = then("Mul", data, half, suffix="scaled")
    gate = then("Add", gate, one, suffix="gate")
    replace(node, *nodes, node_like(node, "Mul", [scaled, gate]))


def _layer_norm(node: ir.Node) -> None:
    """Write (x - mean) / sqrt(variance + epsilon) · scale + bias: LayerNormalization (opset 17)."""
    import numpy as np

    data, scale, *bias = node.inputs
    if data is None or scale is None or data.shape is None or len(node.outputs) > 1:
        raise StepError(
            f"LayerNormalization ({node.name}) has no form in opsets before 17 as it is used here."
        )
    axis, epsilon = (
        integer(node, "axis", -1),
        node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5,
    )
    axes = {"axes": list(range(axis - len(data.shape) if axis >= 0 else axis, 0)), "keepdims": 1}
    nodes = []

    def then(kind: str, *inputs: ir.Value, suffix: str, **attributes: object) -> ir.Value:
        nodes.append(node_like(node, kind, inputs, attributes, suffix=suffix))
        return nodes[-1].outputs[0]

    centred = then("Sub", data, then("ReduceMean", data, suffix="mean", **axes), suffix="centred")
    square = then("Mul", centred, centred, suffix="square")
    variance = then("ReduceMean", square, suffix="variance", **axes)
    dtype = data.dtype.numpy() if data.dtype is not None else np.float32
    safe = then("Add", variance, initializer(node, "epsilon", np.array(epsilon, dtype=dtype)), suffix="safe")
    unit = then("Div", centred, then("Sqrt", safe, suffix="deviation"), suffix="unit")
    if bias and bias[0] is not None:
        scaled = then("Mul", unit, scale, suffix="scaled")
        replace(node, *nodes, node_like(node, "Add", [scaled, bias[0]]))
    else:
        replace(node, *nodes, node_like(node, "Mul", [unit, scale]))


#: operator: (the opset that brought its newer form, how to write the older one)
_RULES: dict[str, tuple[int, Callable[[ir.Node], None]]] = {
    **dict.fromkeys(REDUCTIONS, (18, _reduce)),
    "HardSwish": (14, _hard_swish),
    "Split": (18, _split),
    "Gelu": (20, _gelu),
    "LayerNormalization": (17, _layer_norm),
}
