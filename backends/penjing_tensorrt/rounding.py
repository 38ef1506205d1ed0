"""Float16 on a CPU: every tensor rounded as float16 rounds it, and computed in float32 between.

ONNX Runtime computes most float16 operators of a CPU in float32 and drops the casts between two of them, even with
its optimisations off (measured with 1.32): a value beyond 65504 comes through, where a GPU makes it infinite.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float16 graph as one of float32 that rounds each of its float16 tensors; any other as it is."""
    import onnx

    half = onnx.TensorProto.FLOAT16
    types = {
        v.name: v.type.tensor_type.elem_type
        for v in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    edges = [*model.graph.input, *model.graph.output]
    if half not in types.values() or any(v.type.tensor_type.elem_type == half for v in edges):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.graph.ClearField("value_info")
    result.graph.ClearField("node")
    for tensor in result.graph.initializer:
        if tensor.data_type == half:
            array = onnx.numpy_helper.to_array(tensor).astype("float32")
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for node in model.graph.node:
        result.graph.node.append(node)
        copied = result.graph.node[-1]
        if node.op_type == "Cast":
            for attribute in copied.attribute:
                if attribute.name == "to" and attribute.i == half:
                    attribute.i = onnx.TensorProto.FLOAT
        for place, name in enumerate(node.output):
            if types.get(name) == half:
                copied.output[place] = f"{name}_exact"
                result.graph.node.extend([
                    onnx.helper.make_node("Cast", [f"{name}_exact"], [f"{name}_half"], to=half),
                    onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT),
                ])  # fmt: skip
    return result
