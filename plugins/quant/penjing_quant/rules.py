"""What a rule on a quantised graph is, and what breaks one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from penjing_quant.graph import constant

if TYPE_CHECKING:
    import onnx_ir as ir
    from penjing.step import Scheme

    #: yields each node that breaks the rule, and how: a sentence
    Find = Callable[[ir.Graph, Scheme], Iterator[tuple[ir.Node, str]]]

GUIDE = "TensorRT Developer Guide, Working with Quantized Types"
HEADER = "comments of NvInfer.h"
MEASURED = "measured with the parser of TensorRT-RTX 1.7.1"
AGAIN = "Quantise the float network with quant.static for this device."


@dataclasses.dataclass(frozen=True)
class Rule:
    """Something that a backend demands of a quantised graph."""

    name: str
    says: str
    cure: str
    #: where it is documented or was measured; "" for the scheme's own source
    source: str
    #: placements of schemes that it holds for
    placements: tuple[str, ...]
    find: Find


@dataclasses.dataclass(frozen=True)
class Finding:
    """A node that breaks a rule."""

    rule: str
    says: str
    node: str
    operator: str
    what: str
    source: str
    cure: str

    def __str__(self) -> str:
        return self.what


def label(node: ir.Node) -> str:
    """Return what to call a node: its name, or what it puts out where that tells more."""
    output = (node.outputs[0].name or "") if node.outputs else ""
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return output or node.op_type
    return node.name or output or node.op_type


def parameters(node: ir.Node) -> tuple[ir.Value | None, ir.Value | None]:
    """Return scale and zero point of a QuantizeLinear or DequantizeLinear; a Cast before them is passed over."""
    found = [_behind_cast(value) for value in node.inputs[1:3]]
    return (*found, None, None)[:2]  # type: ignore[return-value]  # two, whatever the node has


def _behind_cast(value: ir.Value | None) -> ir.Value | None:
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "Cast" and constant(producer.inputs[0]) is not None:
        return producer.inputs[0]
    return value


def linear(graph: ir.Graph, *kinds: str) -> Iterator[ir.Node]:
    """Yield the QuantizeLinear and DequantizeLinear nodes, or those of one kind."""
    wanted = kinds or ("QuantizeLinear", "DequantizeLinear")
    return (node for node in graph if node.op_type in wanted)


def roots(graph: ir.Graph) -> Iterator[ir.Node]:
    """Yield each QuantizeLinear, and each DequantizeLinear that stands behind none: one node for each rounding."""
    return (node for node in linear(graph) if quantiser(node) is None)


def quantiser(node: ir.Node | None) -> ir.Node | None:
    """Return the QuantizeLinear before a DequantizeLinear; None where there is none."""
    if node is None or node.op_type != "DequantizeLinear" or node.inputs[0] is None:
        return None
    producer = node.inputs[0].producer()
    return producer if producer is not None and producer.op_type == "QuantizeLinear" else None


def dequantised(value: ir.Value | None) -> ir.Node | None:
    """Return the DequantizeLinear that makes `value`; None where none does."""
    producer = value.producer() if value is not None else None
    return producer if producer is not None and producer.op_type == "DequantizeLinear" else None


def is_weight(node: ir.Node) -> bool:
    """Tell whether a QuantizeLinear or DequantizeLinear works on a constant."""
    value = node.inputs[0]
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type not in ("QuantizeLinear", "DequantizeLinear", "Cast"):
            return False
        value = producer.inputs[0]
    return value is not None and constant(value) is not None


def node_readers(value: ir.Value) -> list[ir.Node]:
    """Return the nodes that read `value`."""
    return [use.node for use in value.uses()]
