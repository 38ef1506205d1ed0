"""Writing float16 into a graph: types, Casts, and scales of Q/DQ; and what that rounds, told in float32."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from penjing_quant.graph import add_constant, constant
from penjing_quant.half import QDQ, is_single, takes_half
from penjing_quant.half_scales import half_scale, recoded, scale_fits

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx
    import onnx_ir as ir


def convert(net: ir.Model, single: Collection[ir.Node], *, scales: bool) -> int:
    """Rewrite a graph in place to compute in float16 but for the nodes `single`; return how many nodes do.

    Inputs and outputs of the network keep their types. `scales` tells whether Q/DQ may take float16.
    """
    return _Converter(net, single, scales).run()


class _Converter:
    def __init__(self, net: ir.Model, single: Collection[ir.Node], scales: bool) -> None:
        self.graph, self.opset = net.graph, net.opset_imports.get("", 1)
        self.single, self.scales = set(single), scales
        self.casts: dict[tuple[ir.Value, bool], ir.Value] = {}
        self.halves: dict[ir.Value, ir.Value] = {}
        self.floats = {value for value in self.graph.inputs if is_single(value)}
        self.floats |= {value for node in self.graph for value in node.outputs if is_single(value)}
        self.taken = {value.name for node in self.graph for value in node.outputs}

    def run(self) -> int:
        count = 0
        for node in list(self.graph):
            if node.op_type == "DequantizeLinear":
                self.dequantise(node)
            elif node.op_type == "QuantizeLinear":
                self.quantise(node)
            else:
                count += self.compute(node)
        self.outputs()
        return count

    def compute(self, node: ir.Node) -> bool:
        if node.op_type == "Cast":
            return self.cast(node)
        half = node not in self.single
        touched = False
        for place, value in enumerate(node.inputs):
            if value is None or (value not in self.floats and not is_single(value)):
                continue
            wants = half and takes_half(node, self.opset, place)
            touched |= wants
            node.replace_input_with(place, self.as_type(value, wants))
        if half:
            for place, value in enumerate(node.outputs):
                if value in self.floats and takes_half(node, self.opset, place, output=True):
                    self.make_half(value)
                    touched = True
        return touched and half

    def cast(self, node: ir.Node) -> bool:
        """Let a Cast to float32 put out float16, unless only the network's output or float32 layers read it."""
        import onnx_ir as ir

        value = node.outputs[0]
        if value not in self.floats or not any(self.wants_half(use.node, use.idx) for use in value.uses()):
            return False
        node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT16))
        self.make_half(value)
        return True

    def quantise(self, node: ir.Node) -> None:
        value = node.inputs[0]
        if value is None or value not in self.floats:
            return
        half = self.scales and scale_fits(node) and _is_half(value)
        node.replace_input_with(0, self.as_type(value, half))
        if half:
            node.replace_input_with(1, self.half_of_scale(node.inputs[1]))
        elif self.scales and scale_fits(node) and self.has_half_reader(node.outputs[0]):
            node.replace_input_with(1, self.rounded_constant(node.inputs[1]))

    def has_half_reader(self, codes: ir.Value) -> bool:
        """Tell whether what is dequantised from `codes` is read in float16, so that the scale is rounded to it."""
        return any(
            self.wants_half(use.node, use.idx) for trip in codes.uses() for use in trip.node.outputs[0].uses()
        )

    def wants_half(self, node: ir.Node, place: int) -> bool:
        if node.op_type in QDQ:
            return self.scales and scale_fits(node)
        return node not in self.single and takes_half(node, self.opset, place)

    def dequantise(self, node: ir.Node) -> None:
        """Give a DequantizeLinear the type that its readers compute in; one of each where they differ."""
        import onnx_ir as ir

        result = node.outputs[0]
        readers = [(use.node, use.idx) for use in result.uses()]
        halves = [r for r in readers if self.wants_half(*r)] if self.scales and scale_fits(node) else []
        scale = node.inputs[1]
        if not halves:
            before = node.inputs[0].producer() if node.inputs[0] is not None else None
            if before is not None and before.op_type == "QuantizeLinear":
                shared = constant(before.inputs[1])
                if shared is not None and not _equal(shared, constant(scale)):
                    node.replace_input_with(1, self.rounded_constant(scale))
            return
        codes = node.inputs[0]
        if codes is not None and (new := recoded(node)) is not None:
            node.replace_input_with(0, add_constant(self.graph, f"{codes.name}_16", new))
        if len(halves) == len(readers) and not result.is_graph_output():
            node.replace_input_with(1, self.half_of_scale(scale))
            self.make_half(result)
            return
        inputs = [node.inputs[0], self.half_of_scale(scale), *node.inputs[2:]]
        second = ir.node("DequantizeLinear", inputs, node.attributes)
        second.outputs[0].name = self.name(f"{result.name}_16")
        second.outputs[0].type, second.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT16), result.shape
        self.graph.insert_after(node, second)
        self.floats.add(second.outputs[0])
        node.replace_input_with(1, self.rounded_constant(scale))
        for reader, place in halves:
            reader.replace_input_with(place, second.outputs[0])

    def make_half(self, value: ir.Value) -> None:
        import onnx_ir as ir

        value.type = ir.TensorType(ir.DataType.FLOAT16)

    def as_type(self, value: ir.Value, half: bool) -> ir.Value:
        """Return `value` in float16, or in float32: itself, another constant, or a Cast of it."""
        import onnx_ir as ir

        if value.const_value is not None:
            return self.half_constant(value) if half else value
        if _is_half(value) == half:
            return value
        if (value, half) not in self.casts:
            kind = ir.DataType.FLOAT16 if half else ir.DataType.FLOAT
            cast = ir.node("Cast", [value], {"to": int(kind)})
            result = cast.outputs[0]
            result.name = self.name(f"{value.name}_{16 if half else 32}")
            result.type, result.shape = ir.TensorType(kind), value.shape
            producer = value.producer()
            if producer is None:
                self.graph.insert_before(self.graph[0], cast)
            else:
                self.graph.insert_after(producer, cast)
            self.casts[value, half] = result
            self.floats.add(result)
        return self.casts[value, half]

    def half_constant(self, value: ir.Value | None) -> ir.Value:
        assert value is not None, "a constant that is read is there"
        if value not in self.halves:
            array = constant(value)
            assert array is not None, "only constants come here"
            self.halves[value] = add_constant(self.graph, f"{value.name}_16", to_half(array))
        return self.halves[value]

    def half_of_scale(self, value: ir.Value | None) -> ir.Value:
        array = constant(value)
        assert value is not None and array is not None, "only constants come here"
        if value not in self.halves:
            self.halves[value] = add_constant(self.graph, f"{value.name}_16", half_scale(array))
        return self.halves[value]

    def rounded_constant(self, value: ir.Value | None) -> ir.Value:
        """Return a float32 constant that holds what float16 rounds the scale `value` to."""
        import numpy as np

        array = constant(value)
        assert value is not None and array is not None, "only constants come here"
        return add_constant(self.graph, f"{value.name}_r", half_scale(array).astype(np.float32))

    def outputs(self) -> None:
        """Cast the network's outputs back, which keep their names; drop constants that nothing reads any more."""
        import onnx_ir as ir

        for place, value in enumerate(self.graph.outputs):
            if not _is_half(value) or value not in self.floats:
                continue
            name = value.name
            value.name = self.name(f"{name}_half")
            cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)})
            result = cast.outputs[0]
            result.name, result.shape = name, value.shape
            result.type = ir.TensorType(ir.DataType.FLOAT)
            self.graph.append(cast)
            self.graph.outputs[place] = result
        for name in [
            n for n, v in self.graph.initializers.items() if not v.uses() and not v.is_graph_output()
        ]:
            del self.graph.initializers[name]

    def name(self, wanted: str) -> str:
        name, number = wanted, 0
        while name in self.taken or name in self.graph.initializers:
            number += 1
            name = f"{wanted}_{number}"
        self.taken.add(name)
        return name


def _is_half(value: ir.Value) -> bool:
    import onnx_ir as ir

    return value.dtype == ir.DataType.FLOAT16


def _equal(a: npt.NDArray[Any] | None, b: npt.NDArray[Any] | None) -> bool:
    import numpy as np

    return a is not None and b is not None and a.dtype == b.dtype and np.array_equal(a, b)


def to_half(array: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    """Return an array in float16; infinite bounds, and those beyond its end, become that end."""
    import numpy as np

    half: npt.NDArray[np.float16] = np.clip(array, -65504, 65504).astype(np.float16)
    return half


def simulate(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float16 graph as one of float32 that rounds each tensor as float16 does.

    A value beyond 65504 becomes infinite, as it would on the device. Sums are made in float32, as tensor cores make
    them; deeper ones are judged by `half.singles`.
    """
    import numpy as np
    import onnx
    import onnx_ir as ir

    net = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    graph = net.graph
    for value in list(graph.initializers.values()):
        array = constant(value)
        if array is not None and array.dtype == np.float16:
            single = add_constant(graph, f"{value.name}_f", array.astype(np.float32))
            for use in list(value.uses()):
                use.node.replace_input_with(use.idx, single)
    for node in list(graph):
        if node.op_type == "Cast" and node.attributes["to"].as_int() == int(ir.DataType.FLOAT16):
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
        for value in node.outputs:
            if not _is_half(value):
                continue
            value.type = ir.TensorType(ir.DataType.FLOAT)
            down = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT16)})
            up = ir.node("Cast", [down.outputs[0]], {"to": int(ir.DataType.FLOAT)})
            down.outputs[0].name, up.outputs[0].name = f"{value.name}_down", f"{value.name}_up"
            up.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            readers = [(use.node, use.idx) for use in value.uses() if use.node is not down]
            graph.insert_after(node, [down, up])
            for reader, place in readers:
                reader.replace_input_with(place, up.outputs[0])
    result = ir.to_proto(net)
    result.graph.ClearField("value_info")
    return result
