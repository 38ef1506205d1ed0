"""Fixing or opening the batch and the size of a graph's images."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def set_shapes(model: onnx.ModelProto, batch: int, size: tuple[int, int] | None) -> None:
    """Set the batch of every image input in place (0: open), and an open height and width to `size`.

    Shapes within the graph are inferred anew where that changes anything.
    """
    import onnx

    weights = {tensor.name for tensor in model.graph.initializer}
    changed = False
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name in weights or len(dims) != 4:
            continue
        changed |= _set(dims[0], batch, "batch")
        for dim, side in zip(dims[2:], size or (), strict=False):
            if dim.dim_value <= 0:
                changed |= _set(dim, side, "")
    if not changed:
        return
    del model.graph.value_info[:]
    for output in model.graph.output:
        rank = len(output.type.tensor_type.shape.dim)
        for index in range(rank):
            output.type.tensor_type.shape.dim[index].Clear()
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    model.CopyFrom(inferred)


def _set(dim: onnx.TensorShapeProto.Dimension, size: int, name: str) -> bool:
    """Set one dimension, open and called `name` where `size` is 0; return whether that changed it."""
    if (size and dim.dim_value == size) or (not size and dim.dim_value <= 0):
        return False
    dim.Clear()
    if size:
        dim.dim_value = size
    else:
        dim.dim_param = name
    return True
