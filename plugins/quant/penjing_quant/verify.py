"""Checking a quantised graph against the scheme of the backend that will run it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penjing_quant.graph import WEIGHTED

if TYPE_CHECKING:
    import onnx
    from penjing.step import Scheme


def violations(model: onnx.ModelProto, scheme: Scheme) -> list[str]:
    """Return what in a quantised graph breaks `scheme`, a sentence each; none where the backend takes it."""
    import numpy as np
    import onnx

    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    biases = {node.input[2] for node in model.graph.node if node.op_type in WEIGHTED and len(node.input) > 2}
    found = []
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        name = node.output[0]
        scale = constants.get(node.input[1])
        zero = constants.get(node.input[2]) if len(node.input) > 2 else None
        if scale is None or not (np.isfinite(scale).all() and (scale > 0).all()):
            found.append(f"The scale of {name} is not a positive constant.")
        codes = constants.get(node.input[0])
        if codes is not None and codes.dtype == np.int32:
            if name not in biases or (scheme.bias == "float32" and scheme.placement == "inputs"):
                found.append(f"{name} is int32; only biases may be, and not in this scheme.")
            continue
        wanted = scheme.activation if codes is None else scheme.weight
        if zero is None or zero.dtype != wanted:
            found.append(f"{name} is not {wanted}.")
        elif scheme.symmetric and zero.any():
            found.append(f"The zero point of {name} is {zero.reshape(-1)[0]}, not 0.")
        if codes is None and zero is not None and zero.size != 1:
            found.append(f"The activation {name} has a scale for each channel.")
    return found
