"""A quantised network beside the float one it came from, layer by layer and tensor by tensor."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from penjing.exhibit import Bars

from penjing_quant.graph import WEIGHTED
from penjing_quant.session import Network, Power

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx
    from penjing.step import Context

    Array = npt.NDArray[np.float32]

#: photographs that a step shows its layers on
SHOWN = 16


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer with weights, and how its output compares with the float network's, in dB (None where it is equal)."""

    name: str
    op: str
    #: it reads or multiplies integers
    integer: bool
    #: with all that was quantised before it
    cumulative: float | None
    #: with its own weights and input quantised alone, on what it reads in the float network
    isolated: float | None


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An activation that is quantised: what it is in the float network, and what its codes can hold."""

    name: str
    low: float
    high: float
    #: least and greatest value that a code stands for
    kept_low: float
    kept_high: float
    #: share of the values that lie beyond and saturate
    clipped: float
    scale: float


@dataclasses.dataclass(frozen=True)
class Reading:
    """A quantised graph, its weights read as the floats that their codes stand for."""

    nodes: dict[str, onnx.NodeProto]
    producers: dict[str, onnx.NodeProto]
    constants: dict[str, npt.NDArray[Any]]

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Reading:
        """Read `model`, whose nodes have names where they compute."""
        import onnx

        return cls(
            {node.name: node for node in model.graph.node if node.name},
            {output: node for node in model.graph.node for output in node.output},
            {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer},
        )

    def values(self, name: str) -> Array | None:
        """Return a constant through DequantizeLinear or Cast and Mul; None for what depends on the input."""
        import numpy as np

        if name in self.constants:
            return self.constants[name].astype(np.float32)
        node = self.producers.get(name)
        if node is None or node.op_type not in ("DequantizeLinear", "Cast", "Mul"):
            return None
        inputs = [self.constants.get(entry) for entry in node.input]
        if node.op_type == "Mul":
            parts = [self.values(entry) for entry in node.input]
            return None if parts[0] is None or parts[1] is None else parts[0] * parts[1]
        if inputs[0] is None:
            return None
        if node.op_type == "Cast":
            return inputs[0].astype(np.float32)
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        shape = [-1 if i == axis else 1 for i in range(inputs[0].ndim)]
        assert inputs[1] is not None
        scale = inputs[1] if inputs[1].size == 1 else inputs[1].reshape(shape)
        zero = 0 if len(inputs) < 3 or inputs[2] is None else int(inputs[2].reshape(-1)[0])
        result: Array = ((inputs[0].astype(np.int64) - zero) * scale).astype(np.float32)
        return result.reshape(inputs[0].shape)

    def quantiser(self, name: str) -> onnx.NodeProto | None:
        """Return the QuantizeLinear whose float tensor `name` is; None where it was never quantised."""
        node = self.producers.get(name)
        if node is None or node.op_type != "DequantizeLinear" or node.input[0] in self.constants:
            return None
        return self.producers.get(node.input[0])

    def layers(self) -> list[onnx.NodeProto]:
        """Return the nodes with constant weights, in graph order."""
        return [
            node for node in self.nodes.values()
            if node.op_type in WEIGHTED and len(node.input) > 1 and self.values(node.input[1]) is not None
        ]  # fmt: skip


def examine(
    exact: onnx.ModelProto, quantised: onnx.ModelProto, photographs: Iterable[Array]
) -> tuple[list[Layer], list[Tensor]]:
    """Return layers and quantised activations of `quantised`, in graph order.

    `exact` computes the same in float, its nodes and tensors called the same.
    """
    reading = Reading.of(quantised)
    originals = {node.name: node for node in exact.graph.node}
    layers = [node for node in reading.layers() if node.name in originals]
    outputs = {node.name: (originals[node.name].output[0], node.output[0]) for node in layers}
    probe, alone = _in_parallel(exact, reading, layers)
    tensors = _tensors(exact, reading)
    reference = Network(
        probe, [*{o for o, _ in outputs.values()} | set(alone.values()) | set(tensors)], simulated=True
    )
    other = Network(quantised, [q for _, q in outputs.values()], simulated=True)
    powers = {node.name: (Power(), Power()) for node in layers}
    spreads = {name: _Spread(*limits) for name, limits in tensors.items()}
    for pixels in photographs:
        expected, got = reference(pixels), other(pixels)
        for name, (cumulative, isolated) in powers.items():
            exact_name, name_now = outputs[name]
            cumulative.add(expected[exact_name], got[name_now])
            isolated.add(expected[exact_name], expected[alone[name]])
        for name, spread in spreads.items():
            spread.add(expected[name])
    return [
        Layer(node.name, node.op_type, _is_integer(reading, node), *(p.decibels for p in powers[node.name]))
        for node in layers
    ], [spread.tensor(name) for name, spread in spreads.items()]


def _is_integer(reading: Reading, node: onnx.NodeProto) -> bool:
    """Tell whether a layer reads a quantised activation and a weight through DequantizeLinear."""
    weight = reading.producers.get(node.input[1])
    return (
        weight is not None
        and weight.op_type == "DequantizeLinear"
        and reading.quantiser(node.input[0]) is not None
    )


def _in_parallel(
    exact: onnx.ModelProto, reading: Reading, layers: Sequence[onnx.NodeProto]
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Return `exact` with each quantised layer beside the float one, reading the same, and what they put out."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    probe = onnx.ModelProto()
    probe.CopyFrom(exact)
    wanted = {node.name: node for node in layers}
    del probe.graph.node[:]
    alone: dict[str, str] = {}
    for original in exact.graph.node:
        probe.graph.node.append(original)
        if (node := wanted.get(original.name)) is None:
            continue
        copy = onnx.NodeProto()
        copy.CopyFrom(original)
        prefix = f"penjing.alone.{len(alone)}"
        copy.name, alone[original.name] = prefix, f"{prefix}.output"
        copy.output[0] = f"{prefix}.output"
        for index, entry in enumerate(node.input):
            if index and (values := reading.values(entry)) is not None:
                values = np.ascontiguousarray(values)
                probe.graph.initializer.append(numpy_helper.from_array(values, f"{prefix}.{index}"))
                if index >= len(copy.input):
                    copy.input.append("")
                copy.input[index] = f"{prefix}.{index}"
        if (quantiser := reading.quantiser(node.input[0])) is not None:
            parameters = [f"{prefix}.scale", f"{prefix}.zero"][: len(quantiser.input) - 1]
            for name, entry in zip(parameters, quantiser.input[1:], strict=True):
                probe.graph.initializer.append(numpy_helper.from_array(reading.constants[entry], name))
            for op, source, target in (
                ("QuantizeLinear", original.input[0], f"{prefix}.codes"),
                ("DequantizeLinear", f"{prefix}.codes", f"{prefix}.input"),
            ):
                probe.graph.node.append(onnx.helper.make_node(op, [source, *parameters], [target]))
            copy.input[0] = f"{prefix}.input"
        probe.graph.node.append(copy)
    return probe, alone


def _tensors(exact: onnx.ModelProto, reading: Reading) -> dict[str, tuple[float, float, float]]:
    """Return scale, least and greatest value kept of each quantised activation, by its name in `exact`.

    Where rounding stands in for a Relu or Clip behind it, the tensor is what those put out.
    """
    import numpy as np

    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in exact.graph.node:
        for entry in node.input:
            readers.setdefault(entry, []).append(node)
    known = set(readers) | {output.name for output in exact.graph.output}
    here = set(reading.nodes)
    found: dict[str, tuple[float, float, float]] = {}
    for node in reading.producers.values():
        if node.op_type != "QuantizeLinear":
            continue
        name = node.input[0]
        name = name if name in known else name.removesuffix("_float")
        while len(after := readers.get(name, [])) == 1 and after[0].name not in here:
            name = after[0].output[0]
        scale = float(reading.constants[node.input[1]])
        zero = reading.constants[node.input[2]] if len(node.input) > 2 else np.zeros((), np.uint8)
        limits = np.iinfo(zero.dtype)
        if name in known:
            found[name] = (scale, (limits.min - int(zero)) * scale, (limits.max - int(zero)) * scale)
    return found


@dataclasses.dataclass
class _Spread:
    scale: float
    kept_low: float
    kept_high: float
    low: float = math.inf
    high: float = -math.inf
    beyond: int = 0
    count: int = 0

    def add(self, values: Array) -> None:
        half = self.scale / 2
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self.beyond += int(((values < self.kept_low - half) | (values > self.kept_high + half)).sum())
        self.count += values.size

    def tensor(self, name: str) -> Tensor:
        share = self.beyond / max(self.count, 1)
        return Tensor(name, self.low, self.high, self.kept_low, self.kept_high, share, self.scale)


def show_layers(
    exact: onnx.ModelProto, quantised: onnx.ModelProto, photographs: Sequence[Array], context: Context
) -> None:
    """Show in the report how far each layer's output is from the float network's."""
    layers, _ = examine(exact, quantised, photographs[:SHOWN])
    if layers:
        context.show(bars("SQNR of each layer’s output; the marked ones compute in float", layers))


def bars(title: str, layers: Sequence[Layer]) -> Bars:
    """Return the cumulative SQNR of layers as a picture, those that compute in float marked."""
    values = {
        layer.name: None if layer.cumulative is None else round(layer.cumulative, 2) for layer in layers
    }
    return Bars(title, "dB", values, [layer.name for layer in layers if not layer.integer])
