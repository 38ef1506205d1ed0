"""Cross-layer equalisation: channels that one scale must serve are brought to like ranges.

Between two convolutions with nothing between them but what treats each channel by itself and keeps to its scale,
f(x/s) = f(x)/s as a ReLU does, channel i may be divided by any s > 0 and the weights that read it multiplied by s.
Nagel et al. 2019 (arXiv 1906.04721, section 4.1) choose s = sqrt(r1/r2) for the greatest weights r1 that write the
channel and r2 that read it. A Clip between them would have to clip every channel elsewhere: such pairs stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from penjing_quant.graph import attribute, bias_of, constant, replace_constant

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx
    import onnx_ir as ir

    Array = npt.NDArray[np.float32]
    Pair = tuple[ir.Node, ir.Node]
    Exponents = npt.NDArray[np.float64]

#: operators by which f(x/s) = f(x)/s for any s > 0 in each channel
PROPORTIONAL = frozenset({"AveragePool", "GlobalAveragePool", "LeakyRelu", "MaxPool", "PRelu", "Relu"})
#: passes over all pairs at most, and the change (as a power of two) below which no more is needed
SWEEPS, SETTLED = 100, 0.05
#: greatest change of a channel, as a power of two (more is for channels as good as dead)
MOST = 24


def equalise(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Return a float model of the same function with evened channels, and which convolutions changed."""
    import numpy as np
    import onnx_ir as ir

    net = ir.from_proto(model)
    pairs = list(_pairs(net.graph))
    weights = {
        node: weight.copy()
        for node in dict.fromkeys(node for pair in pairs for node in pair)
        if (weight := constant(node.inputs[1])) is not None
    }
    exponents = _balanced(pairs, {node: weight.astype(np.float64) for node, weight in weights.items()})
    # powers of two, by which floats are multiplied without rounding: what the network answers stays the same to the
    # bit. Rounded once, at the end, so that no channel is off by more than half a power, however long the chain.
    scales = {
        pair: np.exp2(np.clip(np.rint(e), -MOST, MOST)).astype(np.float32) for pair, e in exponents.items()
    }
    changed = {pair: scale for pair, scale in scales.items() if (scale != 1).any()}
    biases = {node: bias.copy() for node in weights if (bias := bias_of(node)) is not None}
    for (first, second), scale in changed.items():
        weights[first] /= scale.reshape(-1, 1, 1, 1)
        weights[second] *= _along_inputs(second, weights[second], scale)
        if first in biases:
            biases[first] /= scale
    for node in dict.fromkeys(node for pair in changed for node in pair):
        replace_constant(net.graph, node, 1, weights[node])
        if node in biases:
            replace_constant(net.graph, node, 2, biases[node])
    return ir.to_proto(net), [f"{first.name} → {second.name}" for first, second in changed]


def _balanced(pairs: list[Pair], weights: dict[ir.Node, npt.NDArray[np.float64]]) -> dict[Pair, Exponents]:
    """Return by which power of two to divide each channel between two convolutions; `weights` are used up."""
    import numpy as np

    found: dict[Pair, Exponents] = {pair: np.zeros(len(weights[pair[0]])) for pair in pairs}
    for _ in range(SWEEPS):  # along a chain, a pair moves the range that the next pair balances
        largest = 0.0
        for first, second in pairs:
            exponent = _exponents(weights[first], _by_input(second, weights[second]))
            scale = np.exp2(exponent)
            weights[first] /= scale.reshape(-1, 1, 1, 1)
            weights[second] *= _along_inputs(second, weights[second], scale)
            found[first, second] += exponent
            largest = max(largest, float(np.abs(exponent).max()))
        if largest < SETTLED:
            break
    return found


def _along_inputs(node: ir.Node, weight: Any, scale: Any) -> Any:
    """Return `scale`, one for each input channel, in the shape that multiplies what reads them."""
    import numpy as np

    if _depthwise(node):
        return np.repeat(scale, len(weight) // len(scale)).reshape(-1, 1, 1, 1)
    return scale.reshape(1, -1, 1, 1)


def _pairs(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Node]]:
    for first in graph:
        if not _can_change(first):
            continue
        value = first.outputs[0]
        while len(uses := value.uses()) == 1 and not value.is_graph_output():
            (node, index), *_ = uses
            if index == 0 and node.op_type in PROPORTIONAL:
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


def _by_input(node: ir.Node, weight: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the weights [input channel, all that read it]."""
    if _depthwise(node):
        weight = weight.reshape(1, attribute(node, "group", 1), -1)
    by_input: npt.NDArray[np.float64] = weight.swapaxes(0, 1).reshape(weight.shape[1], -1)
    return by_input


def _exponents(writes: npt.NDArray[np.float64], reads: npt.NDArray[np.float64]) -> Exponents:
    """Return the power of two by which to divide each channel, given all that writes and reads it."""
    import numpy as np

    first = np.abs(writes.reshape(len(writes), -1)).max(axis=1)
    second = np.abs(reads).max(axis=1)
    alive = (first > 0) & (second > 0)
    exponent: Exponents = np.log2(np.where(alive, first, 1) / np.where(alive, second, 1)) / 2
    return np.where(alive, exponent, 0)
