"""Chains of operators that only move values, as convolutions of zeros and ones.

Channel shuffles, strided slices and pixel shuffles reshape through five dimensions or more, which the DLA does not
have. What a chain does is read off its own answer to a tensor of positions, so that any spelling of it is seen.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from penjing import onnx_session

from penjing_tensorrt.dla.edit import Chain
from penjing_tensorrt.dla.graph import activations, is_float, shape
from penjing_tensorrt.dla.limits import Target, limits
from penjing_tensorrt.dla.rules import judge

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    Array = np.ndarray[Any, Any]

#: operators that move values of their first input, and compute nothing
MOVES = frozenset(
    {
        "Reshape",
        "Transpose",
        "Gather",
        "Slice",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "DepthToSpace",
        "SpaceToDepth",
    }
)
#: elements and strides that are tried, at most
LARGEST, STRIDES = 2**24, (2, 3, 4)


def moved(node: ir.Node, target: Target) -> bool:
    """Turn a chain of moves that ends here into one convolution of zeros and ones, where it is one."""
    chain = _chain(node)
    if not chain or all(judge(each, target).dla for each in chain):
        return False
    data, result = chain[0].inputs[0], node.outputs[0]
    before, after = shape(data), shape(result)
    if data is None or before is None or after is None or not is_float(data) or before[0] != after[0]:
        return False
    if before[2:] == (1, 1) and after[2:] == (1, 1) and before == after:
        return False  # a mere view
    source = _positions(chain, before)
    if source is None:
        return False
    return _as_convolution(node, data, before, source) or _as_deconvolution(node, data, before, source)


def _chain(node: ir.Node) -> list[ir.Node]:
    """Return the longest chain of moves from an N×C×H×W tensor to this node's, the first one first."""
    chain: list[ir.Node] = []
    longest: list[ir.Node] = []
    if len(shape(node.outputs[0]) or ()) != 4:
        return []
    here: ir.Node | None = node
    while here is not None and here.op_type in MOVES and len(activations(here)) == 1:
        value = here.inputs[0]
        if value is None or value.const_value is not None:
            break
        chain = [here, *chain]
        if len(shape(value) or ()) == 4:
            longest = chain
        here = value.producer()
    return longest


def _positions(chain: list[ir.Node], before: tuple[int, ...]) -> Array | None:
    """Return which element of the first image each element of the result is; None where that is too large to tell."""
    import numpy as np
    import onnx
    import onnx_ir as ir

    if math.prod(before) > LARGEST:
        return None
    names = {
        value.name: value
        for each in chain
        for value in each.inputs
        if value is not None and value.const_value
    }
    made = [
        onnx.numpy_helper.from_array(value.const_value.numpy(), name)
        for name, value in names.items()
        if value.const_value is not None
    ]
    first, last = chain[0].inputs[0], chain[-1].outputs[0]
    assert first is not None
    graph = onnx.helper.make_graph(
        [ir.to_proto(each) for each in chain],
        "moves",
        [onnx.helper.make_tensor_value_info(first.name or "", onnx.TensorProto.FLOAT, before)],
        [onnx.helper.make_tensor_value_info(last.name or "", onnx.TensorProto.FLOAT, None)],
        made,
    )
    graph_of = chain[0].graph
    opset = graph_of.opset_imports.get("", 18) if isinstance(graph_of, ir.Graph) else 18
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
    # float32 counts to LARGEST exactly
    counted = np.arange(math.prod(before), dtype=np.float32).reshape(before)
    try:
        session = onnx_session.load(model.SerializeToString())
        result: Array = session.run(None, {first.name or "": counted})[0]
    except Exception:  # onnxruntime's errors share no public base; what it cannot run stays as it is
        return None
    return result[:1].astype(np.int64)


def _as_convolution(node: ir.Node, data: ir.Value, before: tuple[int, ...], source: Array) -> bool:
    """Take channels, or every s-th row and column of channels."""
    import numpy as np

    _, channels, height, width = before
    c, y, x = source // (height * width), source // width % height, source % width
    _, outputs, rows, columns = source.shape
    for stride in (1, *STRIDES):
        if rows * stride != height or columns * stride != width:
            continue
        picked = c[0, :, 0, 0], y[0, :, 0, 0], x[0, :, 0, 0]
        grid_y = picked[1][:, None, None] + stride * np.arange(rows)[None, :, None]
        grid_x = picked[2][:, None, None] + stride * np.arange(columns)[None, None, :]
        expected = (picked[0][:, None, None] * height + grid_y) * width + grid_x
        if not (source[0] == expected).all() or max(picked[1].max(), picked[2].max()) >= stride:
            continue
        weight = np.zeros((outputs, channels, stride, stride), _type(data))
        weight[np.arange(outputs), picked[0], picked[1], picked[2]] = 1
        return _write(node, "Conv", data, weight, stride)
    return False


def _as_deconvolution(node: ir.Node, data: ir.Value, before: tuple[int, ...], source: Array) -> bool:
    """Spread channels over squares of s×s, as a pixel shuffle does."""
    import numpy as np

    _, channels, height, width = before
    _, outputs, rows, columns = source.shape
    for stride in STRIDES:
        if rows != height * stride or columns != width * stride:
            continue
        squares = source[0].reshape(outputs, height, stride, width, stride).transpose(0, 2, 4, 1, 3)
        c = squares[..., 0, 0] // (height * width)
        expected = c[..., None, None] * (height * width) + np.arange(height * width).reshape(height, width)
        if not (squares == expected).all():
            continue
        weight = np.zeros((channels, outputs, stride, stride), _type(data))
        place = np.indices(c.shape)
        weight[c.reshape(-1), place[0].reshape(-1), place[1].reshape(-1), place[2].reshape(-1)] = 1
        return _write(node, "ConvTranspose", data, weight, stride)
    return False


def _type(data: ir.Value) -> Any:
    import numpy as np

    return data.dtype.numpy() if data.dtype is not None else np.float32


def _write(node: ir.Node, kind: str, data: ir.Value, weight: Array, stride: int) -> bool:
    if max(weight.shape[:2]) > limits()["general"]["dimension"]:
        return False
    chain = Chain(node)
    chain.add(kind, [data, chain.constant("moves", weight)], {"strides": [stride, stride]})
    chain.commit()
    return True
