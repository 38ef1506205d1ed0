"""Recognising graphs that compute with integers already, which are never quantised a second time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from penjing.errors import PlanError

if TYPE_CHECKING:
    import onnx
    from penjing.model import Model

#: operators that make or read integers in place of floats; so does any whose name starts with QLinear
QUANTISED = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"}
    | {"QGemm", "QAttention", "MatMulNBits", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "GatherBlockQuantized"}
)  # fmt: skip
#: operators by which stored integers become a weight
UNPACKING = frozenset({"Cast", "Mul", "Sub", "Add", "Div", "Transpose", "Reshape", "Identity", "Unsqueeze"})
#: operators whose weight is input 1
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

HINT = "Give the float model, or leave the quantisation out of the recipe."


def integers(model: onnx.ModelProto) -> list[str]:
    """Return what in a graph computes with or stores integers in place of floats: operators, by name, sorted.

    A weight stored as 8 bits or fewer and made a float by Cast and the like counts as "weights of 8 bits".
    External data is not needed.
    """
    parts = [model.graph, *model.functions]
    kinds = {node.op_type for part in parts for node in _nodes(part)}
    found = {kind for kind in kinds if kind in QUANTISED or kind.startswith("QLinear")}
    if _stored(model.graph):
        found.add("weights of 8 bits")
    return sorted(found)


def refuse_integers(step: str, model: Model) -> None:
    """Raise PlanError where the model that was opened is an ONNX file that computes with integers already."""
    import onnx

    if model.form != "onnx":
        return
    if found := integers(onnx.load(model.value, load_external_data=False)):
        raise PlanError(
            f"{step}: {model.value.name} is quantised already: it holds {', '.join(found)}.", hint=HINT
        )


def _nodes(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _stored(graph: onnx.GraphProto) -> bool:
    """Tell whether a weighted operator reads a weight that is stored as 8 bits or fewer."""
    import onnx

    small = {
        onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT4, onnx.TensorProto.UINT4,
        onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.FLOAT8E5M2,
    }  # fmt: skip
    stored = {tensor.name for tensor in graph.initializer if tensor.data_type in small}
    producers = {}
    for node in graph.node:
        producers.update(dict.fromkeys(node.output, node))
        if node.op_type == "Constant" and any(a.t.data_type in small for a in node.attribute):
            stored.update(node.output)
    for node in graph.node:
        waiting = [node.input[1]] if node.op_type in WEIGHTED and len(node.input) > 1 else []
        seen = set(waiting)
        while waiting:
            name = waiting.pop()
            if name in stored:
                return True
            before = producers.get(name)
            if before is not None and before.op_type in UNPACKING:
                waiting += [entry for entry in before.input if entry not in seen]
                seen.update(before.input)
    return False
