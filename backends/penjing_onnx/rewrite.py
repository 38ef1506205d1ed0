"""Small tools for rewriting nodes of an onnx-ir graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir


def constant(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """Return the content of a value that never changes; None for any other."""
    import onnx_ir as ir

    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return tensor.numpy() if tensor is not None else None


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return a shape whose dimensions are all known; None for any other."""
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return tuple(size for size in value.shape if isinstance(size, int))


def integer(node: ir.Node, name: str, default: int) -> int:
    """Return an attribute that is an integer, or its default."""
    return node.attributes[name].as_int() if name in node.attributes else default


def replace(node: ir.Node, *new: ir.Node) -> None:
    """Put nodes in the place of one; the last gives its output, which keeps name, type and shape."""
    import onnx_ir as ir

    graph = node.graph
    assert graph is not None, "only nodes of a graph are rewritten"
    ir.convenience.replace_nodes_and_values(
        graph, node, [node], list(new), list(node.outputs), list(new[-1].outputs)
    )


def node_like(
    old: ir.Node,
    kind: str,
    inputs: Sequence[ir.Value | None],
    attributes: dict[str, Any] | None = None,
    suffix: str = "",
) -> ir.Node:
    """Return a new node named after the one that it stands for, its intermediate output named alike."""
    import onnx_ir as ir

    made = ir.node(kind, inputs, attributes, name=f"{old.name}/{suffix}".rstrip("/") if old.name else None)
    if suffix:
        made.outputs[0].name = f"{old.outputs[0].name}/{suffix}"
    return made


def initializer(node: ir.Node, name: str, value: np.ndarray[Any, Any]) -> ir.Value:
    """Add a constant to the graph of `node`, named after the node's output, and return it."""
    import onnx_ir as ir

    graph = node.graph
    assert graph is not None, "only nodes of a graph are rewritten"
    full = f"{node.outputs[0].name}/{name}"
    made = ir.Value(name=full, const_value=ir.tensor(value, name=full))
    made.shape, made.type = ir.Shape(value.shape), ir.TensorType(ir.tensor(value).dtype)
    graph.register_initializer(made)
    return made


def sweep(model: ir.Model) -> None:
    """Remove nodes and initialisers that nothing uses any more."""
    from onnx_ir.passes import common

    common.RemoveUnusedNodesPass()(model)
    for graph in model.graphs():
        for name in [
            name
            for name, value in graph.initializers.items()
            if not value.uses() and not value.is_graph_output()
        ]:
            del graph.initializers[name]
