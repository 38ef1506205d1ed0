"""Taking QuantizeLinear and DequantizeLinear out of a graph, as the DLA of TensorRT up to 10 wants it.

What they say goes into ranges by tensor (a calibration cache); weights become the floats that they stand for.
Ranges are made equal first where the DLA has one for several tensors: around pooling, over all of a
concatenation, and for both inputs of a sum (NvInfer.h; Deep-Learning-Accelerator-SW, README).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from penjing.errors import StepError

from penjing_tensorrt.dla.graph import activations, add_constant, argument, attribute, constant, inferred

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import onnx_ir as ir

QUANTISERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
#: operators whose output holds values of their input, or means of these: one range for both
SAME_RANGE = frozenset(
    {
        "MaxPool",
        "AveragePool",
        "Reshape",
        "Transpose",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Slice",
        "Split",
        "Resize",
    }
)
#: operators whose inputs share one range
SUMS = frozenset({"Add", "Sub", "Sum", "Max", "Min"})
#: what alone reads a tensor that needs no range of its own: saturating it changes nothing that is not cut anyway
CUTS = frozenset({"Relu", "Clip"})
_HINT = "quant.static, with the recipe of a device with a DLA, writes graphs that fit."


@dataclasses.dataclass(frozen=True)
class Stripped:
    """A quantised network in the two forms that are wanted of it."""

    #: with Q/DQ, ranges made equal: what the DLA computes, to be simulated
    network: onnx.ModelProto
    #: without: what TensorRT parses
    plain: onnx.ModelProto
    #: by name of tensor in `plain`: range / 127
    scales: dict[str, float]


def is_quantised(model: onnx.ModelProto) -> bool:
    """Return whether a graph holds Q/DQ."""
    return any(node.op_type in QUANTISERS for node in model.graph.node)


def strip(model: onnx.ModelProto) -> Stripped:
    """Return a Q/DQ graph without Q/DQ, and its scales.

    Raises StepError for what a calibration cache cannot say: zero points other than 0, scales of an activation by
    channel, integers between operators.
    """
    import onnx_ir as ir
    from onnx_ir.passes import common as passes

    net = ir.from_proto(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(net)
    scales = _equalised(net.graph)
    network = ir.to_proto(net)
    _remove(net.graph)
    passes.RemoveUnusedNodesPass()(net)
    _name(net.graph)
    found = _spread(net.graph, {name: scales[value] for value in scales if (name := value.name)})
    return Stripped(network, inferred(ir.to_proto(net)), found)


# -- ranges


def _equalised(graph: ir.Graph) -> dict[ir.Value, float]:
    """Give tensors that share a range the widest of theirs, in the graph and in what is returned."""
    pairs = dict(_pairs(graph))
    groups = _Groups()
    for node in graph:
        if node.op_type in QUANTISERS:
            continue
        reads = [_plain(value) for value in activations(node)]
        if node.op_type in SAME_RANGE:
            groups.join(*reads[:1], *node.outputs)
        elif node.op_type == "Concat":
            groups.join(*reads, *node.outputs)
        elif node.op_type in SUMS:
            groups.join(*reads)
    widest: dict[ir.Value, float] = {}
    for value, quantisers in pairs.items():
        own = max(_scale(quantiser) for quantiser in quantisers)
        widest[groups.root(value)] = max(own, widest.get(groups.root(value), 0.0))
    for value, quantisers in pairs.items():
        for quantiser in quantisers:
            _rescale(graph, quantiser, widest[groups.root(value)])
    return {
        value: widest[groups.root(value)] for value in groups.members(pairs) if groups.root(value) in widest
    }


def _pairs(graph: ir.Graph) -> Iterator[tuple[ir.Value, list[ir.Node]]]:
    """Yield each activation that is quantised, with its QuantizeLinear nodes."""
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        value = node.inputs[0] if node.inputs else None
        if node.op_type == "QuantizeLinear" and value is not None and value.const_value is None:
            found.setdefault(_plain(value), []).append(node)
    yield from found.items()


def _plain(value: ir.Value) -> ir.Value:
    """Return the tensor that a round trip through integers started from; the value itself where it is none."""
    node = value.producer()
    while node is not None and node.op_type == "DequantizeLinear":
        quantiser = node.inputs[0].producer() if node.inputs[0] is not None else None
        if quantiser is None or quantiser.op_type != "QuantizeLinear" or quantiser.inputs[0] is None:
            break
        value = quantiser.inputs[0]
        node = value.producer()
    return value


def _scale(quantiser: ir.Node) -> float:
    scale, zero = constant(argument(quantiser, 1)), constant(argument(quantiser, 2))
    name = quantiser.inputs[0].name if quantiser.inputs[0] is not None else ""
    if scale is None or scale.size != 1:
        raise StepError(
            f"{name} has a scale for each channel; a calibration cache knows one for a tensor.", hint=_HINT
        )
    if zero is None or zero.any() or zero.dtype != "int8":  # without a zero point it is uint8
        raise StepError(
            f"{name} is not quantised to int8 with zero point 0, as the DLA needs it.", hint=_HINT
        )
    return float(scale.reshape(-1)[0])


def _rescale(graph: ir.Graph, quantiser: ir.Node, scale: float) -> None:
    import numpy as np

    had = constant(argument(quantiser, 1))
    if had is None or float(had.reshape(-1)[0]) == scale:
        return
    new = add_constant(graph, f"{quantiser.outputs[0].name}_scale", np.full(had.shape, scale, had.dtype))
    quantiser.replace_input_with(1, new)
    for use in quantiser.outputs[0].uses():
        if use.node.op_type == "DequantizeLinear":
            use.node.replace_input_with(1, new)


class _Groups:
    """Tensors that share a range (union-find)."""

    def __init__(self) -> None:
        self.parent: dict[ir.Value, ir.Value] = {}

    def root(self, value: ir.Value) -> ir.Value:
        while (above := self.parent.get(value, value)) is not value:
            value = above
        return value

    def join(self, *values: ir.Value) -> None:
        for value in values:
            self.parent.setdefault(value, value)
            self.parent[self.root(value)] = self.root(values[0])

    def members(self, others: dict[ir.Value, Any]) -> list[ir.Value]:
        """Return every tensor known here, and the others."""
        return list(dict.fromkeys([*others, *self.parent]))


def _spread(graph: ir.Graph, scales: dict[str, float]) -> dict[str, float]:
    """Give what only a Relu or Clip reads the range of its result, which cuts no more than that does."""
    found = dict(scales)
    for node in reversed(list(graph)):
        before, after = node.inputs[0] if node.inputs else None, node.outputs[0]
        if node.op_type not in CUTS or before is None or before.is_graph_input() or not before.name:
            continue
        if len(before.uses()) == 1 and not before.is_graph_output() and after.name in found:
            found.setdefault(before.name, found[after.name])
    names = {value.name for node in graph for value in (*node.inputs, *node.outputs) if value is not None}
    return {name: scale for name, scale in found.items() if name in names}


# -- the graph


def _remove(graph: ir.Graph) -> None:
    for node in list(graph):
        if node.op_type == "DequantizeLinear":
            output = node.outputs[0]
            _replace(graph, output, _source(graph, node))
            graph.remove(node, safe=True)
    left = [node for node in graph if node.op_type in QUANTISERS and node.outputs[0].uses()]
    if left:
        raise StepError(
            f"Integers flow between operators at {left[0].outputs[0].name}; the DLA wants Q and DQ side by side.",
            hint=_HINT,
        )


def _source(graph: ir.Graph, node: ir.Node) -> ir.Value:
    """Return the float that a DequantizeLinear gives: the tensor before its QuantizeLinear, or a weight."""
    value = node.inputs[0]
    assert value is not None
    codes = constant(value)
    if codes is not None:
        return add_constant(graph, _free(graph, f"{node.outputs[0].name}"), _dequantised(node, codes))
    quantiser = value.producer()
    if quantiser is None or quantiser.op_type != "QuantizeLinear" or quantiser.inputs[0] is None:
        raise StepError(
            f"Integers flow between operators at {value.name}; the DLA wants Q and DQ side by side.",
            hint=_HINT,
        )
    return quantiser.inputs[0]


def _dequantised(node: ir.Node, codes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return (codes - zero point) x scale, the scale lying along `axis` where there are several."""
    import numpy as np

    scale, zero = constant(argument(node, 1)), constant(argument(node, 2))
    if scale is None or attribute(node, "block_size", 0):
        raise StepError(
            f"The weight {node.outputs[0].name} has computed scales, or blocks of them.", hint=_HINT
        )
    sides = [1] * codes.ndim
    if scale.size > 1:
        sides[int(attribute(node, "axis", 1)) % codes.ndim] = scale.size
    offset = (
        0 if zero is None else zero.astype(np.int64).reshape(sides if zero.size > 1 else [1] * codes.ndim)
    )
    result: np.ndarray[Any, Any] = ((codes.astype(np.int64) - offset) * scale.reshape(sides)).astype(
        scale.dtype
    )
    return result


def _replace(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let what reads `old`, an output of the graph among it, read `new`, which keeps the name of an output."""
    import onnx_ir as ir

    for use in list(old.uses()):
        use.node.replace_input_with(use.idx, new)
    if not old.is_graph_output():
        return
    name = old.name
    if new.is_graph_input() or new.is_graph_output() or new.const_value is not None:
        node = ir.node("Identity", [new], name=f"{name}_identity")
        graph.append(node)
        new = node.outputs[0]
    outputs = graph.outputs
    new.type, new.shape = old.type, old.shape
    outputs[outputs.index(old)] = new
    old.name, new.name = f"{name}_dequantised", name


def _free(graph: ir.Graph, name: str) -> str:
    return (
        f"{name.removesuffix('_dq')}_float" if name in graph.initializers else f"{name.removesuffix('_dq')}"
    )


def _name(graph: ir.Graph) -> None:
    """Give nodes and tensors names that trtexec's lists and a calibration cache can hold."""
    fixed = {value.name for value in (*graph.inputs, *graph.outputs)}
    for name in fixed:
        if not (name or "").isascii():
            raise StepError(
                f"The network calls an input or output {name!r}; a calibration cache holds ASCII.",
                hint="Rename it in the ONNX file.",
            )
    taken = {value.name for node in graph for value in node.outputs} | fixed | set(graph.initializers)
    for number, node in enumerate(graph):
        node.name = re.sub(r"[^A-Za-z0-9_./-]", "_", node.name or f"{node.op_type}_{number}")
        for value in node.outputs:
            if value.name not in fixed and not re.fullmatch(r"[\x21-\x7e]+", value.name or ""):
                name = re.sub(r"[^\x21-\x7e]", "_", value.name or f"tensor{number}")
                while name in taken:
                    name += "_"
                taken.add(name)
                value.name = name
    names: set[str] = set()
    for node in graph:
        while node.name in names:
            node.name = f"{node.name}_"
        names.add(node.name or "")
