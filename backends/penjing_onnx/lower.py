"""Writing a graph in an older opset.

onnx's own version converter leaves invalid nodes or has no adapter (ReduceMean below 18, Relu and Add below
14, HardSwish), and torch's exporter starts at opset 18. Here the operators whose newer form says it
otherwise are rewritten, attributes that only say a default are dropped, and the rest is relabelled,
because between two versions most operators changed in the types they take alone. `check_lowered` holds the
result to the older standard.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from penjing.errors import StepError, first_line

from penjing_onnx.decompose import DECOMPOSED
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


def lower(model: ir.Model, opset: int, readable: frozenset[str] | None = None) -> None:
    """Rewrite a graph in place for `opset`, at least 13, and for a runtime that reads the operators `readable`.

    None stands for all. Raises StepError where an operator has no form in them.
    """
    _decompose(model, opset, readable)
    if model.opset_imports.get("", 1) > opset:
        for graph in model.graphs():
            for node in list(graph):
                if node.domain == "":
                    _lower_node(node, opset)
        sweep(model)
        for graph in model.graphs():
            _refuse_unknown(graph, opset)
        model.opset_imports[""] = opset
    model.ir_version = min(model.ir_version, max(ir_version_of(opset), 8 if model.functions else 0))
    if readable is not None:
        _refuse_unreadable(model, readable)


def _decompose(model: ir.Model, opset: int, readable: frozenset[str] | None) -> None:
    """Write operators that `opset` or the runtime lacks in simpler ones of the graph's present opset."""
    for graph in model.graphs():
        for node in list(graph):
            since, write = DECOMPOSED.get(node.op_type, (0, None))
            lacking = opset < since or (readable is not None and node.op_type not in readable)
            if write is not None and lacking and node.domain == "":
                write(node)
    sweep(model)


def _refuse_unreadable(model: ir.Model, readable: frozenset[str]) -> None:
    nodes = [node for graph in model.graphs() for node in graph if node.domain == ""]
    left = [f"{n.op_type} ({n.name or n.outputs[0].name})" for n in nodes if n.op_type not in readable]
    if left:
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        raise StepError(
            f"The device's runtime does not read {', '.join(left[:5])}{more}, and nothing here writes it in others.",
            hint="Replace that operation in the network, leave it to what comes behind the network, or choose a "
            "device profile with a newer runtime.",
        )


def unreadable(model: onnx.ModelProto, readable: frozenset[str] | None) -> bool:
    """Tell whether a graph holds standard operators that are not `readable`; none are where that is None."""
    from penjing.onnx_file import graphs

    return readable is not None and any(
        node.domain in ("", "ai.onnx") and node.op_type not in readable
        for graph in graphs(model.graph)
        for node in graph.node
    )


def check_lowered(model: onnx.ModelProto) -> None:
    """Raise StepError where a graph breaks the standard of the opset it says it is written in."""
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        raise StepError(
            f"The graph cannot be written in opset {opset}: {first_line(error)}",
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


#: operator: (the opset that brought its newer form, how to write the older one)
_RULES: dict[str, tuple[int, Callable[[ir.Node], None]]] = {
    **dict.fromkeys(REDUCTIONS, (18, _reduce)),
    "Split": (18, _split),
}
