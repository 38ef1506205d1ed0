"""Reading an ONNX graph for the DLA: one batch, constants lifted, shapes inferred, every node named."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penjing.errors import InputError, StepError, first_line
from penjing.onnx_file import external, read

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx
    import onnx_ir as ir


def load(path: Path) -> onnx.ModelProto:
    """Return the model in a file; InputError where it is none, or keeps its weights elsewhere."""
    model = read(path)
    if external(model):
        raise InputError(
            f"{path} keeps its weights in another file.", hint="`onnx.export` writes a network as one file."
        )
    return model


def checked(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Return a model as it is; InputError with what is wrong where it is no valid graph, or has a negative side."""
    import onnx

    complete = onnx.ModelProto()
    complete.CopyFrom(model)
    for value in complete.graph.output:  # onnx's checker takes no output without a shape; runtimes do
        value.type.tensor_type.shape.SetInParent()
    wrong = next(
        (
            f"its input {value.name} has a side of {side.dim_value}"
            for value in model.graph.input
            for side in value.type.tensor_type.shape.dim
            if side.dim_value < 0
        ),
        "",
    )
    try:
        onnx.checker.check_model(complete)
    except Exception as error:  # onnx raises whatever a damaged file leads it into
        wrong = first_line(error)
    if wrong:
        raise InputError(f"{path} is no valid graph: {wrong}", hint="Export or copy it again.")
    return model


def prepare(model: onnx.ModelProto, batch: int | None = None) -> tuple[onnx.ModelProto, bool]:
    """Return a graph to be placed: `batch` in place of an open one, constants folded, shapes known.

    Also returns whether a batch was open. With `batch` None it stays so.
    """
    import onnx
    import onnx_ir as ir
    from onnx_ir.passes import Sequential
    from onnx_ir.passes import common as passes

    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    frozen = _freeze(fixed, batch)
    net = ir.from_proto(fixed)
    Sequential(
        passes.NameFixPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.RemoveInitializersFromInputsPass(),
        passes.IdentityEliminationPass(),
        passes.TopologicalSortPass(),
    )(net)
    _fold(net)
    for number, node in enumerate(net.graph):
        node.name = node.name or f"{node.op_type}_{number}"
    return inferred(ir.to_proto(net)), frozen


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with the shapes of all its tensors, inferred anew."""
    import onnx

    model.graph.ClearField("value_info")
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise StepError(
            f"The shapes in the graph do not fit each other: {first_line(error)}",
            hint="Check the file with onnx.checker.",
        ) from error


def _freeze(model: onnx.ModelProto, batch: int | None) -> bool:
    """Set an open first dimension of each input in place; return whether there was one."""
    weights = {tensor.name for tensor in model.graph.initializer}
    found = False
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name in weights or not dims or dims[0].dim_value > 0:
            continue
        found = True
        if batch is not None:
            dims[0].Clear()
            dims[0].dim_value = batch
    if found and batch is not None:
        for output in model.graph.output:
            for dim in output.type.tensor_type.shape.dim:
                if dim.dim_value <= 0:
                    dim.Clear()
    return found


def _fold(net: ir.Model) -> None:
    """Compute what depends on constants and shapes alone, as TensorRT does before it places layers."""
    from onnxscript import optimizer

    optimizer.fold_constants(net, onnx_shape_inference=True)
    from onnx_ir.passes import common as passes

    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(net)
    passes.RemoveUnusedNodesPass()(net)


def constant(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """Return the content of an initialiser; None for anything that depends on the input."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def argument(node: ir.Node, index: int) -> ir.Value | None:
    """Return an input by place; None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """Return an attribute's value, or `default` where it is not given."""
    return node.attributes[name].value if name in node.attributes else default


def shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return a shape whose dimensions are all known; None for any other."""
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return tuple(size for size in value.shape if isinstance(size, int))


def activations(node: ir.Node) -> list[ir.Value]:
    """Return the inputs that depend on the network's input."""
    return [value for value in node.inputs if value is not None and value.const_value is None]


@dataclasses.dataclass(frozen=True)
class Window:
    """A kernel that slides over height and width: two numbers each, `pads` top, left, bottom, right."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]

    @property
    def extent(self) -> tuple[int, int]:
        """Return what it covers, holes included."""
        (kh, kw), (dh, dw) = self.kernel, self.dilations
        return (kh - 1) * dh + 1, (kw - 1) * dw + 1


def window(node: ir.Node, kernel: tuple[int, ...]) -> Window | None:
    """Return how the kernel of a 2-D convolution or pooling slides; None where that is not said."""
    if len(kernel) != 2:
        return None
    strides = tuple(attribute(node, "strides", (1, 1)))
    dilations = tuple(attribute(node, "dilations", (1, 1)))
    pads = tuple(attribute(node, "pads", (0, 0, 0, 0)))
    auto = attribute(node, "auto_pad", "NOTSET")
    size = shape(node.inputs[0])
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        if size is None or len(size) != 4:
            return None
        pads = _same_pads(size[2:], kernel, strides, dilations, upper=auto == "SAME_UPPER")
    elif auto == "VALID":
        pads = (0, 0, 0, 0)
    if (len(strides), len(dilations), len(pads)) != (2, 2, 4):
        return None
    return Window(kernel, strides, dilations, pads)


def _same_pads(
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    *,
    upper: bool,
) -> tuple[int, ...]:
    begin, end = [], []
    for side, k, s, d in zip(size, kernel, strides, dilations, strict=True):
        total = max(0, (-(-side // s) - 1) * s + (k - 1) * d + 1 - side)
        small, large = total // 2, total - total // 2
        begin.append(small if upper else large)
        end.append(large if upper else small)
    return (*begin, *end)


def is_float(value: ir.Value | None) -> bool:
    """Return whether a tensor holds float32 or float16."""
    import onnx_ir as ir

    return value is not None and value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def add_constant(graph: ir.Graph, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
    """Return a new initialiser called `name`, or something like it where that is taken."""
    import onnx_ir as ir

    while name in graph.initializers:
        name += "_"
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape)
    )
    graph.register_initializer(value)
    return value
