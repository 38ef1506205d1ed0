"""Writing QuantizeLinear and DequantizeLinear into a float graph, as a backend's scheme wants them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from penjing_quant.graph import WEIGHTED, add_constant, bias_of, bounds, constant, weight_axis
from penjing_quant.integers import Grid, Weight, activation_grid, bias_floor, weight_codes
from penjing_quant.placement import Left, place

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx
    import onnx_ir as ir
    from penjing.step import Scheme

    from penjing_quant.integers import Range
    from penjing_quant.placement import Placement


@dataclasses.dataclass(frozen=True)
class Written:
    """A quantised graph, and what was done to make it."""

    model: onnx.ModelProto
    #: names of the activations that were quantised, in graph order
    tensors: tuple[str, ...]
    #: names of the nodes that run on integers, in graph order
    integer: tuple[str, ...]
    left: tuple[Left, ...]


def write(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    scheme: Scheme,
    exclude: Collection[str] = (),
    *,
    per_channel: bool | None = None,
    bits: int = 8,
    rounding: Mapping[str, Weight] | None = None,
) -> Written:
    """Return `model` quantised by `scheme`, activations kept to `ranges` and the nodes in `exclude` float.

    `model` is float, as `graph.load` reads it; it is not changed. `per_channel` overrides the scheme's, `bits` are
    those of a weight, and `rounding` has by node name the weights that were rounded otherwise than to the nearest.
    A model with no weighted operator to quantise comes back as it was, with no names in `integer`.
    """
    import onnx_ir as ir

    net = ir.from_proto(model)
    placement = place(net.graph, scheme, ranges, exclude)
    if not any(node.op_type in WEIGHTED for node in placement.integer):
        return Written(model, (), (), tuple(placement.left))
    names = tuple(value.name or "" for value in placement.tensors)
    per_channel = scheme.per_channel if per_channel is None else per_channel
    integer = tuple(node.name or "" for node in placement.integer)
    _Writer(net.graph, scheme, per_channel, bits, rounding or {}).run(placement, ranges)
    remaining = {node.name for node in net.graph}
    left = tuple(left for left in placement.left if left.node in remaining)
    net.producer_name = "penjing"
    result = ir.to_proto(net)
    result.graph.ClearField(
        "value_info"
    )  # `graph.load` inferred it: whoever reads the file can infer it again
    for node in result.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.ClearField("name")  # their tensors are named; the same again would be a tenth of the graph
    return Written(result, names, integer, left)


def grids_of(placement: Placement, ranges: Mapping[str, Range], scheme: Scheme) -> dict[ir.Value, Grid]:
    """Return the grid of each activation to quantise; those that share a scale have the range of all of them."""
    joint: dict[ir.Value, Range] = {}
    for value, root in placement.tensors.items():
        if (range_ := ranges.get(value.name or "")) is not None:
            joint[root] = joint[root] | range_ if root in joint else range_
    return {value: activation_grid(joint[root], scheme) for value, root in placement.tensors.items()}


class _Writer:
    def __init__(
        self,
        graph: ir.Graph,
        scheme: Scheme,
        per_channel: bool,
        bits: int,
        rounding: Mapping[str, Weight],
    ) -> None:
        self.graph = graph
        self.scheme = scheme
        self.per_channel = per_channel
        self.bits, self.rounding = bits, rounding
        self.shared: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self.taken = {value.name for node in graph for value in node.outputs}
        self.taken |= {value.name for value in graph.inputs} | set(graph.initializers)

    def run(self, placement: Placement, ranges: Mapping[str, Range]) -> None:
        grids = grids_of(placement, ranges, self.scheme)
        weighted = [node for node in placement.integer if node.op_type in WEIGHTED]
        reading = {node: grids[read] for node in weighted if (read := node.inputs[0]) is not None}
        self.weights(weighted, {node: grid.scale for node, grid in reading.items()})
        for value, grid in grids.items():
            self.activation(value, grid, placement.uses, ranges)

    # -- activations

    def activation(
        self,
        value: ir.Value,
        grid: Grid,
        uses: frozenset[tuple[ir.Node, int]] | None,
        ranges: Mapping[str, Range],
    ) -> None:
        """Quantise one activation for the uses given (None for all, the graph's output included)."""
        clips = self.scheme.placement == "all"
        source = self.without_clipping(value, grid) if clips else value
        self.round_trip(value, source, grid, uses)
        producer = source.producer()
        if clips and producer is not None and bounds(producer) is not None:
            # clipping stays float: what it reads is rounded too, so that the operator before runs on integers
            inner = producer.inputs[0]
            range_ = ranges.get(inner.name or "") if inner is not None else None
            if inner is not None and range_ is not None and len(inner.uses()) == 1:
                self.round_trip(inner, inner, activation_grid(range_, self.scheme), None)

    def without_clipping(self, value: ir.Value, grid: Grid) -> ir.Value:
        """Return what `value` is before those Relus and Clips that rounding to `grid` does as well."""
        while (node := value.producer()) is not None and (between := bounds(node)) is not None:
            before = node.inputs[0]
            alone = before is not None and len(before.uses()) == 1 and not before.is_graph_output()
            if before is None or not alone or not grid.clips(*between):
                break
            value = before
        return value

    def round_trip(
        self, value: ir.Value, source: ir.Value, grid: Grid, uses: frozenset[tuple[ir.Node, int]] | None
    ) -> None:
        import onnx_ir as ir

        readers = [(use.node, use.idx) for use in value.uses() if uses is None or (use.node, use.idx) in uses]
        parameters = [
            self.constant("scale", _scalar(grid.scale)),
            self.constant("zero", _scalar(grid.zero, self.scheme.activation)),
        ]
        quantise = ir.node("QuantizeLinear", [source, *parameters])
        dequantise = ir.node("DequantizeLinear", [quantise.outputs[0], *parameters])
        integers, floats = quantise.outputs[0], dequantise.outputs[0]
        integers.name, floats.name = self.name(f"{value.name}_q"), self.name(f"{value.name}_dq")
        floats.type, floats.shape = value.type, value.shape
        producer = source.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], [quantise, dequantise])
        else:
            self.graph.insert_after(producer, [quantise, dequantise])
        for node, index in readers:
            node.replace_input_with(index, floats)
        if uses is None and value.is_graph_output():
            outputs = self.graph.outputs
            outputs[outputs.index(value)] = floats
            value.name, floats.name = self.name(f"{value.name}_float"), value.name
        self.drop(value, until=source)

    def drop(self, value: ir.Value, *, until: ir.Value) -> None:
        """Remove the clipping between `until` and `value`, which nothing reads any more."""
        while value is not until:
            node = value.producer()
            assert node is not None and node.inputs[0] is not None
            before = node.inputs[0]
            self.graph.remove(node, safe=True)
            value = before

    # -- weights

    def weights(self, nodes: list[ir.Node], activation_scales: Mapping[ir.Node, float]) -> None:
        """Quantise the weights and biases of `nodes`; a weight that several share is quantised once."""
        import numpy as np

        users: dict[tuple[ir.Value, int], list[ir.Node]] = {}
        for node in nodes:
            if (shared := node.inputs[1]) is not None:
                users.setdefault((shared, weight_axis(node)), []).append(node)
        for (value, axis), sharing in users.items():
            array = constant(value)
            assert array is not None
            floors = [bias_floor(bias_of(n), array.shape[axis], activation_scales[n]) for n in sharing]
            floor = np.maximum.reduce(floors)
            weight = self.rounding.get(sharing[0].name or "")
            if weight is None:
                along = axis if self.per_channel else None
                weight = weight_codes(array, along, self.scheme, floor, self.bits)
            floats = self.dequantised(f"{value.name}", weight, sharing[0])
            for node in sharing:
                node.replace_input_with(1, floats)
                if self.integer_bias(node) and (bias := bias_of(node)) is not None:
                    scale = weight.scale * np.float32(activation_scales[node])
                    steps = np.rint(bias.astype(np.float64) / scale).astype(np.int32)
                    bias_value = node.inputs[2]
                    assert bias_value is not None
                    integers = Weight(steps, scale, 0, 0 if self.per_channel else None)
                    node.replace_input_with(2, self.dequantised(f"{bias_value.name}", integers, node))
        for name in [name for name, value in self.graph.initializers.items() if not value.uses()]:
            del self.graph.initializers[name]

    def integer_bias(self, node: ir.Node) -> bool:
        """Tell whether the bias of `node` is to be int32."""
        # onnxruntime's QGemm takes a float bias only where its output is quantised too
        return self.scheme.bias == "int32" or (self.scheme.placement == "all" and node.op_type == "Gemm")

    def dequantised(self, name: str, weight: Weight, before: ir.Node) -> ir.Value:
        import numpy as np
        import onnx_ir as ir

        inputs = [self.constant(f"{name}_i", weight.codes), self.constant(f"{name}_s", weight.scale)]
        if weight.codes.dtype != np.int32:  # onnxruntime's int32 has none
            inputs.append(self.constant("zero", np.full(weight.scale.shape, weight.zero, weight.codes.dtype)))
        attributes = {} if weight.axis is None else {"axis": weight.axis}
        node = ir.node("DequantizeLinear", inputs, attributes)
        node.outputs[0].name = self.name(f"{name}_dq")
        self.graph.insert_before(before, node)
        return node.outputs[0]

    # -- initialisers and names

    def constant(self, name: str, array: npt.NDArray[Any]) -> ir.Value:
        """Return an initialiser that holds `array`, the same one for equal arrays."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.shared:
            self.shared[key] = add_constant(self.graph, self.name(name), array)
        return self.shared[key]

    def name(self, wanted: str) -> str:
        name, number = wanted, 0
        while name in self.taken:
            number += 1
            name = f"{wanted}{number}"
        self.taken.add(name)
        return name


def _scalar(number: float, dtype: str = "float32") -> npt.NDArray[np.generic]:
    import numpy as np

    return np.array(number, dtype)
