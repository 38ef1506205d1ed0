"""Which layers to compute in float: integer kernels pay where a layer has many channels.

The first layers of a network have few channels and large activations. There, rounding what comes out costs more
than the integer products save, and where an activation function has no integer kernel (HardSwish), each passage
from integers to float and back costs as well. So the layers from the image on up to some point compute in float,
and the rest in integers. Weights of float layers are stored as integers all the same (`pack`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from penjing_quant.graph import WEIGHTED, add_constant, attribute, constant, weight_axis
from penjing_quant.integers import weight_codes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx
    import onnx_ir as ir
    from penjing.step import Progress, Scheme, Session

    Array = npt.NDArray[np.float32]

#: a gain below this share of the time may be noise: the usual choice stays
GAIN = 0.03
#: seconds to time with, twice; and of one run, from which on nothing is timed: integers win in large layers
SECONDS, SLOW = 2.0, 0.06
#: weights of fewer numbers than this stay float, exact: their integers save next to nothing
FEW = 1024


def layers(model: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes with a constant float weight, in graph order."""
    import onnx_ir as ir

    return [node.name or "" for node in ir.from_proto(model).graph if _weight(node) is not None]


def stem(model: onnx.ModelProto) -> int:
    """Return how many layers read the image or come right behind as depthwise convolutions.

    Their outputs are sums of a few dozen products at most, which integers make no faster on x86.
    """
    import onnx_ir as ir

    count = 0
    for node in ir.from_proto(model).graph:
        if (weight := _weight(node)) is None:
            continue
        depthwise = node.op_type == "Conv" and weight.shape[1] == 1 and attribute(node, "group", 1) > 1
        if node.op_type != "Conv" or weight[0].size > 32 or (count and not depthwise):
            break
        count += 1
    return count


def first(model: onnx.ModelProto, count: int) -> frozenset[str]:
    """Return the names of the first `count` layers, and of those that share a weight with one of them."""
    names = layers(model)[:count]
    read = {node.name: node.input[1] for node in model.graph.node if node.op_type in WEIGHTED}
    shared = {read[name] for name in names}
    return frozenset(name for name, weight in read.items() if weight in shared)


@dataclasses.dataclass(frozen=True)
class Choice:
    """How many layers compute in float, and the time of each choice tried beside that of the usual one."""

    count: int
    relative: dict[int, float]


def fastest(
    usual: int, most: int, load: Callable[[int], Session], image: Array, progress: Progress
) -> Choice:
    """Return how many of `most` layers to compute in float for the shortest time, by timing here.

    `load` readies the network with that many. `usual` is the least, and stays where no more is clearly faster:
    float layers also round nothing.
    """
    import time

    sessions = {usual: load(usual)}
    sessions[usual](image)
    start = time.perf_counter()
    sessions[usual](image)
    if time.perf_counter() - start > SLOW:
        return Choice(usual, {usual: 1.0})
    relative: dict[int, float] = {}
    best, step = usual, (most - usual) / 4
    tries = {round(usual + i * step) for i in range(1, 5)}
    for _ in range(2):  # the second time between the best and its neighbours
        tries -= relative.keys() | {usual}
        sessions = {usual: sessions[usual], **{count: load(count) for count in sorted(tries)}}
        relative |= _relative(usual, sessions, image, progress)
        best = min(relative, key=relative.__getitem__)
        tries = {round(min(max(best + d * step, usual), most)) for d in (-0.5, 0.5)}
    if relative[best] > 1 - GAIN:
        best = usual
    return Choice(best, dict(sorted(relative.items())))


def _relative(usual: int, sessions: dict[int, Session], image: Array, progress: Progress) -> dict[int, float]:
    """Return the least time of each session beside the usual one's: other work on the machine only adds to it."""
    from penjing.measure import interleave

    named = {str(count): session for count, session in sessions.items()}
    rounds = interleave(
        named, image, threads=1, seconds=SECONDS, progress=progress, what="timing the first layers in float"
    ).rounds
    least = {count: min(min(block) for block in rounds[str(count)]) for count in sessions}
    return {count: seconds / least[usual] for count, seconds in least.items()}


def pack(model: onnx.ModelProto, names: Collection[str], scheme: Scheme) -> onnx.ModelProto:
    """Return `model` with the weights of the layers `names` stored as 8-bit integers, one scale a channel.

    They become floats by Cast and Mul, which runtimes fold when they load the graph: the layer then runs as
    before. (onnxruntime 1.32 keeps a DequantizeLinear, and a network of those runs at a third of its speed.)
    """
    import numpy as np
    import onnx_ir as ir

    net = ir.from_proto(model)
    scheme = dataclasses.replace(scheme, weight="int8", reduce_range=False)
    packed: dict[ir.Value, ir.Value] = {}
    for node in list(net.graph):
        weight = _weight(node) if node.name in names else None
        if weight is None or weight.size < FEW:
            continue
        value, axis = node.inputs[1], weight_axis(node)
        assert value is not None
        if value not in packed:
            integers = weight_codes(weight, axis, scheme, np.zeros(weight.shape[axis], np.float32))
            scale = integers.scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
            cast = ir.node("Cast", [add_constant(net.graph, f"{value.name}_i8", integers.codes)], {"to": 1})
            times = ir.node("Mul", [cast.outputs[0], add_constant(net.graph, f"{value.name}_s8", scale)])
            cast.outputs[0].name, times.outputs[0].name = f"{value.name}_c8", f"{value.name}_f8"
            net.graph.insert_before(node, [cast, times])
            packed[value] = times.outputs[0]
        node.replace_input_with(1, packed[value])
    for value in packed:
        if value.name and not value.uses():
            del net.graph.initializers[value.name]
    return ir.to_proto(net)


def _weight(node: ir.Node) -> Array | None:
    weight = constant(node.inputs[1]) if node.op_type in WEIGHTED else None
    return weight if weight is not None and weight.dtype == "float32" and weight.ndim > 1 else None
