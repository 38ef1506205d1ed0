"""Cross-layer equalisation: channels that one scale must serve are brought to like ranges.

Between two convolutions with nothing or a ReLU between them, channel i may be divided by any s > 0 and the
weights that read it multiplied by s. Nagel et al. 2019 (arXiv 1906.04721, section 4.1) choose s = sqrt(r1/r2)
for the greatest weights r1 that write the channel and r2 that read it. A Clip between them would have to clip
every channel elsewhere: such pairs stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from penjing_quant.graph import attribute, bias_of, constant, replace_constant

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx
    import onnx_ir as ir

    Array = npt.NDArray[np.float32]

SWEEPS = 20
#: greatest change of a channel, as a power of two (more is for channels as good as dead)
MOST = 24


def equalise(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Return a float model of the same function with evened channels, and which convolutions changed."""
    import onnx_ir as ir

    net = ir.from_proto(model)
    pairs = list(_pairs(net.graph))
    nodes = dict.fromkeys(node for pair in pairs for node in pair)
    weights = {node: weight.copy() for node in nodes if (weight := constant(node.inputs[1])) is not None}
    biases = {node: bias.copy() for node in nodes if (bias := bias_of(node)) is not None}
    changed: dict[tuple[ir.Node, ir.Node], None] = {}
    for _ in range(SWEEPS):  # along a chain, a pair moves the range that the next pair balances
        moved = [pair for pair in pairs if _balance(*pair, weights, biases)]
        changed.update(dict.fromkeys(moved))
        if not moved:
            break
    for node in dict.fromkeys(node for pair in changed for node in pair):
        replace_constant(net.graph, node, 1, weights[node])
        if node in biases:
            replace_constant(net.graph, node, 2, biases[node])
    return ir.to_proto(net), [f"{first.name} → {second.name}" for first, second in changed]


def _balance(
    first: ir.Node, second: ir.Node, weights: dict[ir.Node, Array], biases: dict[ir.Node, Array]
) -> bool:
    """Even out the channels between two convolutions, in place; tell whether any had to change."""
    import numpy as np

    scale = _scales(weights[first], _by_input(second, weights[second]))
    if (scale == 1).all():
        return False
    weights[first] /= scale.reshape(-1, 1, 1, 1)
    if first in biases:
        biases[first] /= scale
    if _depthwise(second):
        weights[second] *= np.repeat(scale, len(weights[second]) // len(scale)).reshape(-1, 1, 1, 1)
    else:
        weights[second] *= scale.reshape(1, -1, 1, 1)
    return True


def _pairs(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Node]]:
    for first in graph:
        if not _can_change(first):
            continue
        value = first.outputs[0]
        while len(uses := value.uses()) == 1 and not value.is_graph_output():
            (node, index), *_ = uses
            if node.op_type == "Relu":
                value = node.outputs[0]
                continue
            if index == 0 and _can_change(node) and (attribute(node, "group", 1) == 1 or _depthwise(node)):
                yield first, node
            break


def _can_change(node: ir.Node) -> bool:
    if node.op_type != "Conv":
        return False
    weight = constant(node.inputs[1])
    if weight is None or weight.ndim != 4 or weight.dtype != "float32":
        return False
    shared = node.inputs[1] is not None and len(node.inputs[1].uses()) > 1
    computed = len(node.inputs) > 2 and node.inputs[2] is not None and bias_of(node) is None
    return not shared and not computed


def _depthwise(node: ir.Node) -> bool:
    weight = constant(node.inputs[1])
    return weight is not None and weight.shape[1] == 1 and attribute(node, "group", 1) > 1


def _by_input(node: ir.Node, weight: Array) -> Array:
    """Return the weights [input channel, all that read it]."""
    if _depthwise(node):
        weight = weight.reshape(1, attribute(node, "group", 1), -1)
    by_input: Array = weight.swapaxes(0, 1).reshape(weight.shape[1], -1)
    return by_input


def _scales(writes: Array, reads: Array) -> Array:
    """Return by what to divide each channel, given all that writes and reads it.

    Powers of two, by which floats are multiplied without rounding: what the network answers stays the same to the bit.
    """
    import numpy as np

    first = np.abs(writes.reshape(len(writes), -1)).max(axis=1)
    second = np.abs(reads).max(axis=1)
    alive = (first > 0) & (second > 0)
    exponent = np.log2(np.where(alive, first, 1) / np.where(alive, second, 1)) / 2
    exponent = np.clip(np.round(exponent), -MOST, MOST)
    scale: Array = np.exp2(exponent).astype(np.float32)
    return scale
