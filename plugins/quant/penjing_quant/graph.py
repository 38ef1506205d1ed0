"""Reading ONNX graphs: what every part of the quantiser asks of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penjing.errors import InputError, StepError, first_line
from penjing.onnx_file import external, read

from penjing_quant.already import HINT, integers

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt
    import onnx
    import onnx_ir as ir

    Array = npt.NDArray[np.float32]

#: operators with a constant weight at input 1 and maybe a bias at input 2
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
#: activation functions that only clip, which a quantiser does as well when its range ends where they do
CLIPPING = frozenset({"Relu", "Clip"})
#: operators whose output holds nothing but values of their input, so that both share one scale
SAME_SCALE = frozenset(
    {"DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Resize", "Slice"}
    | {"SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)


def load(path: Path) -> onnx.ModelProto:
    """Read a float ONNX file, with names for all nodes, shapes inferred and constants lifted to initialisers.

    Raises StepError where the graph is quantised already, too old for scales per channel (opset 13), or has weights
    that are NaN or infinite.
    """
    import onnx_ir as ir

    proto = read(path)
    if files := external(proto):
        raise StepError(
            f"{path.name} keeps its weights in {', '.join(files[:3])}.",
            hint="Put onnx.export before: it brings them into one file.",
        )
    if found := integers(proto):
        raise StepError(f"{path.name} is quantised already: it holds {', '.join(found)}.", hint=HINT)
    net = prepared(proto)
    opset = net.graph.opset_imports.get("", 0)
    if opset < 13:
        raise StepError(
            f"{path.name} has opset {opset}; scales per channel need 13.",
            hint="Export with opset 13 or later.",
        )
    _check_finite(net.graph)
    return ir.to_proto(net)


def _check_finite(graph: ir.Graph) -> None:
    """Raise StepError for a weight or bias that is NaN or infinite, which no scale can stand for."""
    import numpy as np

    for node in graph:
        for value in node.inputs[1:] if node.op_type in WEIGHTED else ():
            array = constant(value)
            if value is not None and array is not None and not np.isfinite(array.astype(np.float64)).all():
                raise StepError(
                    f"The weights {value.name} of {node.op_type} {node.name} are NaN or infinite.",
                    hint="The file holds what training or a conversion spoilt: export from an earlier checkpoint.",
                )


def prepared(model: onnx.ModelProto) -> ir.Model:
    """Return a model, as `read`, with functions written out, nodes named, constants lifted and shapes inferred.

    Raises InputError where it is no well-formed graph.
    """
    import onnx
    import onnx_ir as ir
    from onnx_ir.passes import Sequential
    from onnx_ir.passes import common as passes

    try:
        net = ir.from_proto(model)
        Sequential(
            passes.InlinePass(),
            passes.NameFixPass(),
            passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            passes.RemoveInitializersFromInputsPass(),
            passes.RemoveUnusedNodesPass(),
            passes.TopologicalSortPass(),
        )(net)
        for number, node in enumerate(net.graph):
            node.name = node.name or f"{node.op_type}_{number}"
        for value in net.graph.initializers.values():
            constant(value)  # whose bytes may be too few for its shape
        return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(net), data_prop=True))
    except Exception as error:  # onnx and onnx-ir raise whatever a malformed graph leads them into
        cause = error.__cause__ or error
        raise InputError(
            f"The ONNX file holds no well-formed graph: {first_line(cause)}", hint="Export or copy it again."
        ) from error


def constant(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """Return the value of an initialiser; None for anything that depends on the input."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """Return an attribute's value, or `default` where it is not given."""
    return node.attributes[name].value if name in node.attributes else default


def is_activation(value: ir.Value | None) -> bool:
    """Tell whether `value` is a float tensor that depends on the input."""
    import onnx_ir as ir

    return value is not None and value.const_value is None and value.dtype == ir.DataType.FLOAT


def activations(node: ir.Node) -> list[tuple[int, ir.Value]]:
    """Return the inputs, with their places, that are to be quantised where `node` runs on integers."""
    inputs = list(enumerate(node.inputs))
    if node.op_type in WEIGHTED | SAME_SCALE:
        inputs = inputs[:1]
    return [(i, value) for i, value in inputs if value is not None and is_activation(value)]


def bounds(node: ir.Node) -> tuple[float, float] | None:
    """Return what a Relu or Clip clips to; None for another operator, or where that is computed."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    if node.op_type != "Clip":
        return None
    ends = [float("-inf"), float("inf")]
    for i, value in enumerate(node.inputs[1:3]):
        if value is not None:
            array = constant(value)
            if array is None:
                return None
            ends[i] = float(array)
    return ends[0], ends[1]


def clipped(value: ir.Value) -> ir.Value:
    """Return what `value` is after any Relu or Clip that alone consumes it."""
    while len(uses := value.uses()) == 1 and not value.is_graph_output():
        node = next(iter(uses)).node
        if bounds(node) is None or node.graph is not value.graph:
            break
        value = node.outputs[0]
    return value


def unclipped(value: ir.Value) -> ir.Value:
    """Return what `value` was before any Relu or Clip that alone consumed it."""
    while (node := value.producer()) is not None and bounds(node) is not None:
        before = node.inputs[0]
        if before is None or len(before.uses()) != 1 or before.is_graph_output():
            break
        value = before
    return value


def weight_axis(node: ir.Node) -> int:
    """Return the axis of the weight that holds the output channels."""
    weight = node.inputs[1]
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    if node.op_type == "MatMul":
        assert weight is not None and weight.shape is not None
        return len(weight.shape) - 1
    return 1 if node.op_type == "ConvTranspose" else 0


def bias_of(node: ir.Node) -> Array | None:
    """Return the bias of a weighted node; None where it has none."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    array = constant(value)
    return None if array is None else array.reshape(-1)


def add_constant(graph: ir.Graph, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
    """Return a new initialiser that holds `array`, called `name` or, where that is taken, something like it."""
    import onnx_ir as ir

    while name in graph.initializers:
        name += "_"
    tensor = ir.tensor(array, name=name)
    type_, shape = ir.TensorType(tensor.dtype), ir.Shape(array.shape)
    value = ir.Value(name=name, const_value=tensor, type=type_, shape=shape)
    graph.register_initializer(value)
    return value


def replace_constant(graph: ir.Graph, node: ir.Node, index: int, array: Array) -> None:
    """Give `node` a constant of its own as its weight (`index` 1) or bias (2)."""
    before = node.inputs[index] if index < len(node.inputs) else None
    alone = before is not None and len(before.uses()) == 1
    name = (
        before.name if before is not None and alone else None
    ) or f"{node.name}.{('weight', 'bias')[index - 1]}"
    if before is not None and alone:
        del graph.initializers[name]
    value = add_constant(graph, name, array)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)
