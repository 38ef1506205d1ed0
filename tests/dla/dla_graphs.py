"""Small graphs, written as ONNX text, with constants by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from penjing_tensorrt.dla.adapt import adapted
from penjing_tensorrt.dla.graph import prepare
from penjing_tensorrt.dla.limits import Target
from penjing_tensorrt.dla.place import Layer, Placement, place

ORIN, XAVIER = Target(2, (10, 3, 0)), Target(1, (8, 5, 2))


def graph(text: str, opset: int = 18, **constants: Any) -> onnx.ModelProto:
    """Return the model that `text` describes: `(float[1,8,4,4] x) => (float[N] y) { y = Relu(x) }`, in that syntax."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> agraph {text}'.replace(";", " ")
    )
    for name, value in constants.items():
        array = np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for output in model.graph.output:  # inferred
        output.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(model)


def one(operation: str, size: str = "1,8,16,16", opset: int = 18, **constants: Any) -> onnx.ModelProto:
    """Return a graph of one operation that reads `x`, of the size given, and perhaps constants."""
    return graph(f"(float[{size}] x) => (float[N] y) {{ y = {operation} }}", opset, **constants)


def judged(operation: str, size: str = "1,8,16,16", target: Target = ORIN, **constants: Any) -> Layer:
    """Return where the one layer of `one` runs, and why."""
    (layer,) = place(one(operation, size, **constants), target).layers
    return layer


def fitted(
    model: onnx.ModelProto, target: Target = ORIN
) -> tuple[onnx.ModelProto, dict[str, int], Placement]:
    """Return a graph after dla.adapt, what was rewritten, and where its layers run; outputs must agree."""
    after, done, dropped, agreement = adapted(prepare(model, 1)[0], target)
    assert dropped == []
    assert agreement.sqnr_db > 90
    onnx.checker.check_model(after, full_check=True)
    return after, done, place(after, target)


def weight(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Return normal noise in float32, small enough for sums to stay near 1."""
    generator = np.random.default_rng(seed)
    fan_in = max(1, int(np.prod(shape[1:])))
    return (generator.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)
