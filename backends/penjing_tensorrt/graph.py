"""What an ONNX file says that decides how its engine is built."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from penjing.errors import StepError

if TYPE_CHECKING:
    from penjing.model import Model

#: number formats that strongly typed graphs and weakly typed flags tell apart, by their ONNX names
_FORMATS = {"FLOAT16": "fp16", "BFLOAT16": "bf16", "FLOAT8E4M3FN": "fp8", "INT4": "int4"}


@dataclasses.dataclass(frozen=True)
class Graph:
    """An ONNX file as the builder sees it."""

    #: name and shape of the one image input; None for a side left open
    input: str
    shape: tuple[int | None, ...]
    #: number formats besides fp32 that it holds: "int8" where it has QuantizeLinear or DequantizeLinear
    formats: frozenset[str]
    #: names of its nodes, which the builder's layers bear
    nodes: frozenset[str] = frozenset()


def read(path: Path) -> Graph:
    """Return what the builder must know of an ONNX file; external data is not read."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs)
        raise StepError(f"{path.name} has {len(inputs)} inputs ({names}); an engine is built for one image.")
    shape = tuple(
        dimension.dim_value if dimension.HasField("dim_value") else None
        for dimension in inputs[0].type.tensor_type.shape.dim
    )
    nodes = frozenset(node.name for node in graph.node)
    return Graph(inputs[0].name, shape, frozenset(_formats(graph)), nodes)


def _formats(graph: onnx.GraphProto) -> set[str]:  # type: ignore[name-defined]  # noqa: F821  # imported where used
    import onnx

    types = {tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        types |= {
            attribute.i for attribute in node.attribute if node.op_type == "Cast" and attribute.name == "to"
        }
        types |= {attribute.t.data_type for attribute in node.attribute if attribute.name == "value"}
    found = {
        known
        for kind in types
        if (known := _FORMATS.get(onnx.TensorProto.DataType.Name(kind) if kind else ""))
    }
    quantised = {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in graph.node}
    if quantised and (onnx.TensorProto.INT8 in types or not found & {"fp8", "int4"}):
        found.add("int8")
    return found


def shape_of(model: Model, graph: Graph, batch: int) -> tuple[int, ...]:
    """Return the shape that an engine is made for: open sides come from `batch` and the preprocessing.

    Raises StepError where the graph's batch is another one, or a side of the image is not known.
    """
    first, *rest = graph.shape
    if first is not None and batch not in (0, first):
        raise StepError(
            f"The graph takes {first} images at a time, and tensorrt.batch asks for {batch}.",
            hint=f"--set onnx.export.batch={batch} writes it for {batch}; onnx.export.batch=0 leaves the batch open.",
        )
    size = model.preprocess.size if model.preprocess else None
    known = [*rest[:-2], *(side or (size[axis] if size else None) for axis, side in enumerate(rest[-2:]))]
    if None in known:
        raise StepError(
            f"The input {graph.input} leaves sides of the image open, which an engine must know.",
            hint="Give a preprocessing that resizes, or export the model for one size.",
        )
    return (first or batch or 1, *(int(side) for side in known if side is not None))
