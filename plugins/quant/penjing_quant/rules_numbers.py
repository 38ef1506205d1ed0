"""Rules on the numbers of Q/DQ: types, zero points, scales, axes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from penjing_quant.graph import SAME_SCALE, WEIGHTED, attribute, constant, weight_axis
from penjing_quant.rules import (
    AGAIN,
    HEADER,
    MEASURED,
    Rule,
    is_weight,
    label,
    linear,
    node_readers,
    parameters,
    quantiser,
    roots,
)

if TYPE_CHECKING:
    import onnx_ir as ir
    from penjing.step import Scheme

    Broken = Iterator[tuple[ir.Node, str]]

_EVERYWHERE = ("all", "inputs", "every")
_TENSORRT = ("inputs", "every")


def _scales(graph: ir.Graph, scheme: Scheme) -> Broken:
    import numpy as np

    for node in roots(graph):
        scale = constant(parameters(node)[0])
        if scale is None or not (np.isfinite(scale).all() and (scale > 0).all()):
            yield node, f"The scale of {label(node)} is not a positive constant."


def _types(graph: ir.Graph, scheme: Scheme) -> Broken:
    for node in roots(graph):
        codes = constant(node.inputs[0])
        if node.op_type == "DequantizeLinear" and codes is not None and codes.dtype == "int32":
            continue  # a bias, which has a rule of its own
        wanted = scheme.weight if is_weight(node) else scheme.activation
        zero = constant(parameters(node)[1])
        found = str(zero.dtype) if zero is not None else "uint8" if codes is None else str(codes.dtype)
        if parameters(node)[1] is not None and zero is None:
            yield node, f"The zero point of {label(node)} is no constant."
        elif found != wanted:
            yield node, f"{label(node)} is not {wanted}, but {found}."


def _zero_points(graph: ir.Graph, scheme: Scheme) -> Broken:
    for node in roots(graph) if scheme.symmetric else ():
        zero = constant(parameters(node)[1])
        if zero is not None and zero.any():
            yield node, f"The zero point of {label(node)} is {zero.reshape(-1)[0]}, not 0."


def _biases(graph: ir.Graph, scheme: Scheme) -> Broken:
    for node in linear(graph, "DequantizeLinear"):
        codes = constant(node.inputs[0])
        if codes is None or codes.dtype != "int32":
            continue
        biases = all(
            use.node.op_type in WEIGHTED and use.idx == 2 for use in node.outputs[0].uses()
        )  # so that only biases are int32
        if not biases or (scheme.bias == "float32" and scheme.placement != "all"):
            yield node, f"{label(node)} is int32; only biases may be, and not in this scheme."


def _activation_axes(graph: ir.Graph, scheme: Scheme) -> Broken:
    for node in roots(graph):
        scale = constant(parameters(node)[0])
        if not is_weight(node) and scale is not None and scale.size != 1:
            yield node, f"The activation {label(node)} has a scale for each channel."


def _weight_axes(graph: ir.Graph, scheme: Scheme) -> Broken:
    for node in linear(graph, "DequantizeLinear"):
        scale = constant(parameters(node)[0])
        if not is_weight(node) or scale is None or scale.size == 1:
            continue
        if attribute(node, "block_size", 0):
            yield node, f"{label(node)} has a scale for each block, which int8 has not."
            continue
        axis = attribute(node, "axis", 1)
        for use in node.outputs[0].uses():
            reader, shape = use.node, node.outputs[0].shape
            if reader.op_type not in WEIGHTED or use.idx != 1 or shape is None:
                continue
            wanted = weight_axis(reader)
            if axis % len(shape) != wanted:
                yield (
                    node,
                    (
                        f"{label(node)} has its scales along axis {axis}; the output channels of {reader.op_type} "
                        f"{label(reader)} lie along axis {wanted}."
                    ),
                )
            elif shape.is_static() and scale.size != shape[wanted]:
                yield node, f"{label(node)} has {scale.size} scales for {shape[wanted]} channels."


def _scalars(graph: ir.Graph, scheme: Scheme) -> Broken:
    for node in linear(graph, "QuantizeLinear"):
        value = node.inputs[0]
        if value is not None and value.shape is not None and len(value.shape) == 0:
            yield node, f"{label(node)} quantises a scalar."


def _half_weighted(graph: ir.Graph, scheme: Scheme) -> Broken:
    for node in graph:
        if node.op_type not in WEIGHTED or len(node.inputs) < 2:
            continue
        data, weight = (_trip(value) for value in node.inputs[:2])
        if weight is not None and is_weight(weight) and data is None:
            yield node, f"{node.op_type} {label(node)} has an integer weight, and its input is float."
        elif data is not None and weight is None and constant(node.inputs[1]) is not None:
            yield node, f"{node.op_type} {label(node)} has an integer input, and its weight is float."


def _trip(value: ir.Value | None) -> ir.Node | None:
    """Return the DequantizeLinear whose values reach `value`, moved at most; None where none do."""
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type == "DequantizeLinear":
            return producer
        if producer.op_type not in SAME_SCALE:
            return None
        value = producer.inputs[0]
    return None


def _unread(graph: ir.Graph, scheme: Scheme) -> Broken:
    for node in linear(graph, "QuantizeLinear"):
        others = {reader.op_type for reader in node_readers(node.outputs[0])} - {"DequantizeLinear"}
        if others or node.outputs[0].is_graph_output():
            what = ", ".join(sorted(others)) or "the network's output"
            yield node, f"The integers of {label(node)} are read by {what}, not by DequantizeLinear."
    for node in linear(graph, "DequantizeLinear"):
        before = quantiser(node)
        if before is not None and not _equal(parameters(before), parameters(node)):
            yield node, f"{label(before)} and {label(node)} differ in scale or zero point."


def _equal(a: tuple[ir.Value | None, ...], b: tuple[ir.Value | None, ...]) -> bool:
    import numpy as np

    values = [(constant(x), constant(y)) for x, y in zip(a, b, strict=True)]
    return all(x is None or y is None or np.array_equal(x, y) for x, y in values)


NUMBERS = (
    Rule(
        "scale",
        "Scales are positive constants.",
        AGAIN,
        f"ONNX, QuantizeLinear; {HEADER}",
        _EVERYWHERE,
        _scales,
    ),
    Rule(
        "type",
        "Weights and activations have the integer types that the device's kernels take.",
        AGAIN,
        "",
        _EVERYWHERE,
        _types,
    ),
    Rule(
        "zero-point",
        "Zero points are 0.",
        "Measure symmetric ranges; quant.static does for this device.",
        f"{HEADER}; onnx-tensorrt docs/operators.md; {MEASURED}",
        _EVERYWHERE,
        _zero_points,
    ),
    Rule(
        "bias",
        "Biases are float; DequantizeLinear reads no int32.",
        "Leave the bias float (QuantizeBias=False in onnxruntime's quantiser), or use quant.static.",
        MEASURED,
        _EVERYWHERE,
        _biases,
    ),
    Rule("activation-axis", "An activation has one scale.", AGAIN, HEADER, _EVERYWHERE, _activation_axes),
    Rule(
        "weight-axis",
        "A weight has one scale, or one for each output channel.",
        AGAIN,
        "NVIDIA Model-Optimizer, modelopt/onnx/quantization; onnxruntime's kernels",
        _EVERYWHERE,
        _weight_axes,
    ),
    Rule(
        "scalar",
        "What is quantised has at least one dimension.",
        "Leave the scalar float.",
        HEADER,
        _TENSORRT,
        _scalars,
    ),
    Rule(
        "half-quantised",
        "A weighted operator has Q/DQ on input and weight, or on neither.",
        AGAIN,
        "TensorRT Developer Guide, Working with Quantized Types",
        _TENSORRT,
        _half_weighted,
    ),
    Rule(
        "pair",
        "QuantizeLinear is read by DequantizeLinear of the same scale and zero point.",
        AGAIN,
        "TensorRT Developer Guide, Working with Quantized Types",
        _EVERYWHERE,
        _unread,
    ),
)
