"""A graph as a PyTorch module, its Q/DQ as fake quantisation: trained is the very graph that will run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from penjing.errors import StepError
from penjing.step import Scheme
from torch import Tensor, nn

from penjing_quant.graph import WEIGHTED
from penjing_quant.integers import SMALLEST, Range, Weight, codes, weight_limits
from penjing_quant.operators import OPERATORS

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class _Node:
    """An operator, its inputs and outputs by name, and its attributes as Python has them."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Weight:
    """How a weight is rounded: the least scale of each channel, and the steps it may take."""

    axis: int | None
    floor: Tensor
    low: int
    high: int


class Trainable(nn.Module):
    """The float graph `model`, or with `quantised`, which `write` made of it, the same on integers.

    Weights and biases of weighted operators are parameters. A weight's scale follows its greatest magnitude, as
    `weight_codes` has it; an activation's stays as it is in `quantised`. With `learn_scales` both are parameters too
    (Esser et al., Learned Step Size Quantization, 2020).

    Raises StepError for an operator that cannot be trained here.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        quantised: onnx.ModelProto | None = None,
        scheme: Scheme | None = None,
        *,
        bits: int = 8,
        learn_scales: bool = False,
    ) -> None:
        super().__init__()
        graph = (quantised or model).graph
        self._input, self._outputs = graph.input[0].name, [output.name for output in graph.output]
        self._numbers = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        given = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self._scheme, self._learn = scheme, learn_scales
        #: images go through one by one: shapes in the graph are written down for one
        self.one_by_one = False
        self._constants: dict[str, Tensor] = {}
        #: names of parameters in PyTorch, which have no dots, by those in the graph
        self._keys: dict[str, str] = {}
        #: the greatest that a scale of activations may become: what it was in the beginning
        self._most: dict[str, float] = {}
        self._grids: dict[str, tuple[int, int, int]] = {}
        self._weights: dict[str, _Weight] = {}
        #: by weighted node: the parameter that is its weight
        self.weight_of: dict[str, str] = {}
        self.parameters_by_name, self.scales = nn.ParameterDict(), nn.ParameterDict()
        producers = {output: node for node in graph.node for output in node.output}
        originals = {node.name: node for node in model.graph.node}
        self._nodes: list[_Node] = []
        for node in graph.node:
            if node.op_type == "DequantizeLinear":
                self._dequantise(node, producers)
            elif node.op_type == "QuantizeLinear":
                continue
            else:
                self._add(node, originals.get(node.name), given, producers, bits)
        self._numbers = {}

    # -- building

    def _key(self, name: str) -> str:
        return self._keys.setdefault(name, f"n{len(self._keys)}")

    def _dequantise(self, node: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto]) -> None:
        """Add the round trip of an activation; a weight is taken care of by the operator that reads it."""
        quantise = producers.get(node.input[0])
        if quantise is None:
            return
        assert self._scheme is not None
        first, last = codes(self._scheme.activation)
        tensor = re.sub(r"_q\d*$", "", node.input[0])
        zero = int(self._numbers[quantise.input[2]])
        self._grids[tensor] = (zero, first, last)
        key, scale = self._key(quantise.input[1]), float(self._numbers[quantise.input[1]])
        if self._learn:
            self.scales[key] = nn.Parameter(torch.tensor(scale))
        self._most[key] = scale
        attributes = {"tensor": tensor, "scale": key}
        self._nodes.append(_Node(tensor, "RoundTrip", (quantise.input[0],), tuple(node.output), attributes))

    def _add(
        self,
        node: onnx.NodeProto,
        original: onnx.NodeProto | None,
        given: Mapping[str, Array],
        producers: Mapping[str, onnx.NodeProto],
        bits: int,
    ) -> None:
        if node.op_type not in OPERATORS:
            raise StepError(
                f"The operator {node.op_type} cannot be trained.",
                hint="Use quant.static, which trains nothing.",
            )
        inputs = list(node.input)
        for place in (1, 2) if node.op_type in WEIGHTED and original is not None else ():
            if place >= len(inputs) or original is None or original.input[place] not in given:
                continue
            name = inputs[place] = original.input[place]
            if self._key(name) not in self.parameters_by_name:
                self.parameters_by_name[self._key(name)] = nn.Parameter(torch.from_numpy(given[name].copy()))
            reader = producers.get(node.input[place])
            if place == 1:
                self.weight_of[node.name] = name
                if reader is not None:
                    self._round_weight(name, reader, bits)
        for name in inputs:
            if name in self._numbers and self._key(name) not in self.parameters_by_name:
                self._keep(name)
        attributes = {entry.name: _python(entry) for entry in node.attribute}
        attributes["outputs"] = len(node.output)
        self._nodes.append(_Node(node.name, node.op_type, tuple(inputs), tuple(node.output), attributes))

    def _round_weight(self, name: str, reader: onnx.NodeProto, bits: int) -> None:
        assert self._scheme is not None
        scale = torch.from_numpy(self._numbers[reader.input[1]].copy())
        axis = next((entry.i for entry in reader.attribute if entry.name == "axis"), None)
        low, high = weight_limits(self._scheme, bits)
        if self._learn:
            self.scales[self._key(name)] = nn.Parameter(scale)
        self._weights[name] = _Weight(
            axis if scale.ndim else None, torch.full_like(scale, SMALLEST), low, high
        )

    def _keep(self, name: str) -> None:
        """Keep a constant: numbers that are computed with move with the module, others stay on the CPU."""
        array = self._numbers[name]
        tensor = torch.from_numpy(array.copy())
        if array.dtype == np.float32 and array.size > 1:
            self.register_buffer(f"constant_{self._key(name)}", tensor)
        else:
            self._constants[name] = tensor

    # -- computing

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the outputs for images [N, C, H, W], whatever batch the graph was written for."""
        rounded: dict[str, Tensor] = {}
        if self.one_by_one:
            each = [self._run(image[None], rounded) for image in images]
            found = tuple(torch.cat(parts) for parts in zip(*each, strict=True))
        else:
            found = self._run(images, rounded)
        return found[0] if len(found) == 1 else found

    def _run(self, images: Tensor, rounded: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return the outputs; `rounded` keeps weights that are rounded already."""
        values: dict[str, Any] = {self._input: images}
        for node in self._nodes:
            inputs = [self._value(name, values, rounded) for name in node.inputs]
            if node.op == "RoundTrip":
                result: Any = self._round_trip(inputs[0], node.attributes)
            else:
                result = OPERATORS[node.op](inputs, node.attributes)
            results = result if isinstance(result, tuple) else (result,)
            values.update(zip(node.outputs, results, strict=False))
        return tuple(values[name] for name in self._outputs)

    def _value(self, name: str, values: Mapping[str, Any], rounded: dict[str, Tensor]) -> Any:
        if not name:
            return None
        if name in values:
            return values[name]
        if name in self._weights:
            if name not in rounded:
                rounded[name] = self.rounded(name, self.parameters_by_name[self._key(name)])
            return rounded[name]
        if (key := self._key(name)) in self.parameters_by_name:
            return self.parameters_by_name[key]
        if name in self._constants:
            return self._constants[name]
        return getattr(self, f"constant_{key}")

    def _round_trip(self, x: Tensor, attributes: Mapping[str, Any]) -> Tensor:
        zero, first, last = self._grids[attributes["tensor"]]
        key = attributes["scale"]
        if not self._learn:
            return torch.fake_quantize_per_tensor_affine(x.float(), self._most[key], zero, first, last)
        return _learnt(x, _slowed(self._scale(key), x.numel() / len(x), last), zero, first, last)

    def _scale(self, key: str) -> Tensor:
        """Return an activation's scale, which may shrink and not grow: the grid stands in for a clipping."""
        scale: Tensor = self.scales[key].abs().clamp(SMALLEST, self._most[key])
        return scale

    def scale_of(self, name: str, weight: Tensor) -> Tensor:
        """Return the scale of a weight: one number, or one for each channel."""
        how = self._weights[name]
        if self._learn:
            learnt: Tensor = self.scales[self._key(name)].abs().clamp(min=SMALLEST)
            return learnt
        axes = [axis for axis in range(weight.ndim) if axis != how.axis]
        widest = weight.detach().abs().amax(axes) / how.high
        scale = torch.maximum(widest, how.floor.to(widest.device))
        return torch.where(widest > 0, scale, torch.ones_like(scale))

    def rounded(self, name: str, weight: Tensor) -> Tensor:
        """Return a weight as its codes have it."""
        how, scale = self._weights[name], self.scale_of(name, weight)
        # codes never reach -128 where the scale follows the greatest magnitude, and exporters know no -127…127
        low = -128 if how.low == -127 and not self._learn else how.low
        if self._learn:
            count = weight.numel() / scale.numel()
            return _learnt(
                weight, _along(_slowed(scale, count, how.high), how.axis, weight), 0, low, how.high
            )
        zeros = torch.zeros_like(scale, dtype=torch.int32)
        if how.axis is None:
            return torch.fake_quantize_per_tensor_affine(weight, scale, zeros, low, how.high)
        return torch.fake_quantize_per_channel_affine(weight, scale, zeros, how.axis, low, how.high)

    # -- what was learnt

    @torch.no_grad()
    def initialisers(self) -> dict[str, Array]:
        """Return the trained weights and biases by the names they have in the float graph."""
        return {
            name: self.parameters_by_name[key].detach().cpu().numpy()
            for name, key in self._keys.items()
            if key in self.parameters_by_name
        }

    @torch.no_grad()
    def ranges(self, before: Mapping[str, Range]) -> dict[str, Range]:
        """Return the ranges that give the learnt scales, the others as they were."""
        found = dict(before)
        for node in self._nodes:
            if node.op == "RoundTrip" and self._learn and node.name in found:
                zero, first, last = self._grids[node.name]
                scale = float(self._scale(node.attributes["scale"]))
                least = -last if self._scheme is not None and self._scheme.symmetric else first - zero
                found[node.name] = Range(scale * least, scale * (last - zero))
        return found

    @torch.no_grad()
    def rounding(self) -> dict[str, Weight]:
        """Return the weights as codes in their learnt scales, by weighted node; none where scales are not learnt."""
        if not self._learn or self._scheme is None:
            return {}
        found = {}
        zero = 0 if codes(self._scheme.weight)[0] < 0 else 128
        for node, name in self.weight_of.items():
            if name not in self._weights:
                continue
            how, weight = self._weights[name], self.parameters_by_name[self._key(name)].detach()
            scale = self.scale_of(name, weight)
            steps = (weight / _along(scale, how.axis, weight)).round().clamp(how.low, how.high) + zero
            found[node] = Weight(
                steps.cpu().numpy().astype(self._scheme.weight), scale.cpu().numpy(), zero, how.axis
            )
        return found


def _learnt(x: Tensor, scale: Tensor, zero: int, first: int, last: int) -> Tensor:
    """Round to a grid whose scale has a gradient too: that of the values, and of those cut off, by LSQ's formula."""
    steps = (x / scale).clamp(first - zero, last - zero)
    return (steps + (steps.round() - steps).detach()) * scale


def _slowed(scale: Tensor, count: float, last: int) -> Tensor:
    """Return a scale whose gradient is divided by √(count · last), so that it learns as fast as weights do."""
    share = float((count * last) ** -0.5)
    return scale.detach() + (scale - scale.detach()) * share


def _along(scale: Tensor, axis: int | None, weight: Tensor) -> Tensor:
    return scale if axis is None else scale.view([-1 if i == axis else 1 for i in range(weight.ndim)])


def _python(entry: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(entry)
    if entry.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
        return list(value)
    return value.decode() if isinstance(value, bytes) else value
