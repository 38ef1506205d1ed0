"""Cleaning up what torch's exporter leaves: the operators a runtime has fast kernels and rules for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penjing_onnx.rewrite import constant, integer, node_like, replace, static_shape, sweep

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir


def tidy(model: ir.Model) -> None:
    """Clean a graph in place: no traces of the exporter, pooling and flattening by their own operators."""
    from onnx_ir.passes import common

    common.ClearMetadataAndDocStringPass()(model)  # holds stack traces, with paths of the machine it ran on
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for node in list(model.graph):
        if node.op_type == "ReduceMean":
            _pool(node)
        elif node.op_type == "Reshape":
            _flatten(node)
    sweep(model)


def lifted(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph whose Constant nodes are initialisers, where weights are looked for."""
    import onnx_ir as ir
    from onnx_ir.passes import common

    if not any(node.op_type == "Constant" for node in graph.graph.node):
        return graph
    model = ir.from_proto(graph)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return ir.to_proto(model)


def _pool(node: ir.Node) -> None:
    """Turn a ReduceMean over height and width into GlobalAveragePool, and Flatten where axes go."""
    data = node.inputs[0]
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if data is None or data.shape is None or len(data.shape) != 4 or axes is None:
        return
    if sorted(int(axis) % 4 for axis in axes.reshape(-1)) != [2, 3]:
        return
    if integer(node, "keepdims", 1):
        replace(node, node_like(node, "GlobalAveragePool", [data]))
        return
    pool = node_like(node, "GlobalAveragePool", [data], suffix="pooled")
    replace(node, pool, node_like(node, "Flatten", [pool.outputs[0]], {"axis": 1}))


def _flatten(node: ir.Node) -> None:
    """Turn a Reshape to (batch, everything else) into Flatten, which fixes no batch."""
    data, result = static_shape(node.inputs[0]), static_shape(node.outputs[0])
    if (
        data is None
        or result is None
        or len(result) != 2
        or len(data) < 2
        or data[0] != result[0]
        or 0 in data
    ):
        return
    replace(node, node_like(node, "Flatten", [node.inputs[0]], {"axis": 1}))
