"""Counting the work and the weights of a graph."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from penjing.onnx_file import signature

from penjing_onnx.files import opset_of

if TYPE_CHECKING:
    import onnx


def describe(model: onnx.ModelProto) -> dict[str, object]:
    """Return what the report tells of a graph: nodes by operator, parameters, MACs of one image, versions."""
    return {
        "nodes": dict(sorted(Counter(node.op_type for node in model.graph.node).items())),
        "parameters": parameters(model),
        "macs": macs(model),
        "opset": opset_of(model),
        "ir_version": model.ir_version,
    }


def parameters(model: onnx.ModelProto) -> int:
    """Return how many numbers of floating point the weights hold."""
    import onnx

    kinds = (
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.DOUBLE,
        onnx.TensorProto.BFLOAT16,
    )
    return sum(math.prod(tensor.dims) for tensor in model.graph.initializer if tensor.data_type in kinds)


def macs(model: onnx.ModelProto) -> int | None:
    """Return the multiply-accumulates of Conv, ConvTranspose, Gemm and MatMul for one image.

    A batch that is fixed counts once; a dimension left open counts as 1. None where a shape is unknown.
    """
    shapes = _shapes(model)
    total = 0
    for node in model.graph.node:
        count = _MACS.get(node.op_type)
        if count is None:
            continue
        needed = [*node.input[:2], node.output[0]]
        if any(name not in shapes for name in needed):
            return None
        total += count(node, *(shapes[name] for name in needed))
    inputs, _ = signature(model)
    return total // ((inputs[0].shape[0] if inputs and inputs[0].shape else None) or 1)


def _conv(node: onnx.NodeProto, data: list[int], weight: list[int], output: list[int]) -> int:
    return math.prod(output) * math.prod(
        weight[1:]
    )  # weight: output channels, input channels of a group, kernel


def _conv_transpose(node: onnx.NodeProto, data: list[int], weight: list[int], output: list[int]) -> int:
    return math.prod(data) * math.prod(
        weight[1:]
    )  # weight: input channels, output channels of a group, kernel


def _matmul(node: onnx.NodeProto, left: list[int], right: list[int], output: list[int]) -> int:
    return math.prod(output) * (left[-1] if left else 1)


def _gemm(node: onnx.NodeProto, left: list[int], right: list[int], output: list[int]) -> int:
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(output) * left[0 if transposed else -1]


_MACS = {"Conv": _conv, "ConvTranspose": _conv_transpose, "MatMul": _matmul, "Gemm": _gemm}


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except onnx.shape_inference.InferenceError:
        inferred = model.graph
    shapes = {
        value.name: [max(1, dim.dim_value) for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
        if value.type.tensor_type.HasField("shape")
    }
    return shapes | {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
