"""Putting nodes in the place of others, for the rewrites of `dla.adapt`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from penjing_tensorrt.dla.graph import add_constant, shape

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir


class Chain:
    """Nodes that together take the place of one, written one after the other."""

    def __init__(self, old: ir.Node) -> None:
        self.old = old
        self.nodes: list[ir.Node] = []
        graph = old.graph
        assert isinstance(graph, _graph_type()), "only nodes of a graph are rewritten"
        self.graph: ir.Graph = graph

    def add(
        self, kind: str, inputs: Sequence[ir.Value | None], attributes: dict[str, Any] | None = None
    ) -> ir.Value:
        """Write a node, named after the old one, and return its output."""
        import onnx_ir as ir

        number = len(self.nodes)
        node = ir.node(kind, inputs, attributes, name=f"{self.old.name}_{kind.lower()}{number}")
        output = node.outputs[0]
        output.name = f"{self.old.outputs[0].name}_{kind.lower()}{number}"
        if (dtype := self.old.outputs[0].dtype) is not None:
            output.dtype = dtype
        self.nodes.append(node)
        return output

    def constant(self, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
        """Return a new initialiser named after the old node's output."""
        return add_constant(self.graph, f"{self.old.outputs[0].name}_{name}", array)

    def reshape(self, value: ir.Value, size: Sequence[int]) -> ir.Value:
        """Write a Reshape to `size`."""
        import numpy as np

        return self.add("Reshape", [value, self.constant("shape", np.array(size, np.int64))])

    def commit(self) -> None:
        """Take the old node out; the last node written gives its output, with its name, type and shape."""
        import onnx_ir as ir

        ir.convenience.replace_nodes_and_values(
            self.graph,
            self.old,
            [self.old],
            self.nodes,
            list(self.old.outputs)[:1],
            list(self.nodes[-1].outputs),
        )


def _graph_type() -> type[ir.Graph]:
    import onnx_ir as ir

    return ir.Graph


def bypass(node: ir.Node, value: ir.Value) -> bool:
    """Let readers of a node's output read `value`, equal to it, and remove the node; False for the graph's own."""
    output = node.outputs[0]
    if output.is_graph_output():
        return False
    for use in list(output.uses()):
        use.node.replace_input_with(use.idx, value)
    graph = node.graph
    assert graph is not None
    graph.remove(node, safe=True)
    return True


def alone(value: ir.Value | None) -> bool:
    """Return whether a tensor has exactly one reader and is no output of the graph."""
    return value is not None and len(value.uses()) == 1 and not value.is_graph_output()


def is_vector(value: ir.Value | None) -> bool:
    """Return whether a tensor is N×C×1×1."""
    size = shape(value)
    return size is not None and len(size) == 4 and size[2:] == (1, 1)
