"""Each rule of the DLA, at its limit and past it."""

from __future__ import annotations

import json
from typing import Any

import dla_graphs
import numpy as np
import pytest
from dla_graphs import ORIN, XAVIER, judged, weight
from penjing_tensorrt.dla.limits import Target, limits


def conv(channels: int = 8, outputs: int = 8, kernel: int = 3, groups: int = 1) -> np.ndarray[Any, Any]:
    return np.ones((outputs, channels // groups, kernel, kernel), np.float32)


INSIDE: list[tuple[str, str, dict[str, Any]]] = [
    ("Conv<pads=[1,1,1,1]>(x, w)", "1,8,16,16", {"w": conv()}),
    ("Conv(x, w)", "1,1,64,64", {"w": conv(1, 1, 32)}),
    ("Conv<strides=[8,8]>(x, w)", "1,8,16,16", {"w": conv()}),
    ("Conv<pads=[31,31,31,31]>(x, w)", "1,1,16,16", {"w": conv(1, 1, 32)}),
    ("Conv<dilations=[32,32]>(x, w)", "1,1,80,80", {"w": conv(1, 1)}),
    ("Conv<group=8>(x, w)", "1,8,16,16", {"w": conv(groups=8)}),
    ("ConvTranspose<strides=[2,2]>(x, w)", "1,8,16,16", {"w": conv(kernel=2)}),
    ("MaxPool<kernel_shape=[8,8], strides=[8,8]>(x)", "1,8,16,16", {}),
    ("AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)", "1,8,16,16", {}),
    ("Relu(x)", "1,8,16,16", {}),
    ("Sigmoid(x)", "1,8,16,16", {}),
    ("Tanh(x)", "1,8,16,16", {}),
    ("LeakyRelu(x)", "1,8,16,16", {}),
    ("PRelu(x, s)", "1,8,16,16", {"s": np.ones((8, 1, 1))}),
    ("Clip(x, low, high)", "1,8,16,16", {"low": 0.0, "high": 6.0}),
    ("LRN<size=5>(x)", "1,8,16,16", {}),
    ("Add(x, x)", "1,8,16,16", {}),
    ("Mul(x, c)", "1,8,16,16", {"c": 3.0}),
    ("Mul(x, c)", "1,8,16,16", {"c": np.ones((8, 1, 1))}),
    ("Add(x, c)", "1,8,4,4", {"c": np.ones((1, 8, 4, 4))}),
    ("Concat<axis=1>(x, x)", "1,8,16,16", {}),
    ('Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, , s)', "1,8,4,4",
     {"s": [1.0, 1.0, 2.0, 2.0]}),
    ('Resize<mode="linear">(x, , s)', "1,8,4,4", {"s": [1.0, 1.0, 4.0, 4.0]}),
    ("Slice(x, a, b, c)", "1,8,16,16", {"a": [0], "b": [4], "c": [1]}),
    ("Reshape(x, s)", "1,8,16,16", {"s": [1, 16, 8, 16]}),
    ("Transpose<perm=[0,2,1,3]>(x)", "1,8,16,16", {}),
    ("Softmax<axis=1>(x)", "1,1000,1,1", {}),
    ("ReduceMax<keepdims=1>(x, a)", "1,8,16,16", {"a": [2, 3]}),
    ("Abs(x)", "1,8,16,16", {}),
]  # fmt: skip

OUTSIDE: list[tuple[str, str, dict[str, Any], str, str]] = [
    ("Conv(x, w)", "1,1,64,64", {"w": conv(1, 1, 33)}, "convolution kernel", "33×33"),
    ("Conv<strides=[9,9]>(x, w)", "1,8,16,16", {"w": conv()}, "convolution stride", "9×9"),
    ("Conv<pads=[32,0,0,0]>(x, w)", "1,1,64,64", {"w": conv(1, 1, 32)}, "convolution padding", "0 to 31"),
    ("Conv<pads=[3,3,3,3]>(x, w)", "1,8,16,16", {"w": conv()}, "convolution padding", "no less than its kernel"),
    ("Conv<dilations=[33,33]>(x, w)", "1,1,80,80", {"w": conv(1, 1)}, "convolution dilation", "33×33"),
    ("Conv(x, w)", "1,8193,1,1", {"w": conv(8193, 1, 1)}, "dimension", "8193"),
    ("Conv(x, w)", "1,1,1,1", {"w": conv(1, 8193, 1)}, "dimension", "8193"),
    ("Conv(x, w)", "1,512,8,8192", {"w": conv(512, 1)}, "convolution buffer", "16"),
    ("ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(x, w)", "1,8,16,16", {"w": conv()}, "deconvolution padding", "none"),
    ("ConvTranspose<group=8>(x, w)", "1,8,16,16", {"w": np.ones((8, 1, 2, 2))}, "deconvolution groups", "8 groups"),
    ("ConvTranspose<strides=[24,24]>(x, w)", "1,1,2,2", {"w": conv(1, 1, 24)}, "deconvolution kernel", "23 to 32"),
    ("MaxPool<kernel_shape=[13,13], pads=[6,6,6,6]>(x)", "1,8,16,16", {}, "pooling window", "13×13"),
    ("AveragePool<kernel_shape=[2,2], strides=[17,17]>(x)", "1,8,64,64", {}, "pooling stride", "17×17"),
    ("MaxPool<kernel_shape=[3,3], dilations=[2,2]>(x)", "1,8,16,16", {}, "pooling dilation", "2×2"),
    ("Clip(x, low, high)", "1,8,16,16", {"low": -1.0, "high": 1.0}, "activation clip", "[-1, 1]"),
    ("Clip(x, low, high)", "1,8,16,16", {"low": 0.0, "high": 128.0}, "activation clip", "[0, 128]"),
    ("LRN<size=4>(x)", "1,8,16,16", {}, "LRN window", "3, 5, 7, 9"),
    ("Mul(x, c)", "1,8,16,16", {"c": np.ones((16, 1))}, "scale shape", "16×1"),
    ("Concat<axis=2>(x, x)", "1,8,16,16", {}, "concatenation axis", "axis 2"),
    ('Resize<mode="linear">(x, , s)', "1,8,4,4", {"s": [1.0, 1.0, 5.0, 5.0]}, "resize scales", "1 to 4"),
    ('Resize<mode="nearest">(x, , s)', "1,8,4,4", {"s": [1.0, 1.0, 1.5, 1.5]}, "resize scales", "1.5"),
    ('Resize<mode="cubic">(x, , s)', "1,8,4,4", {"s": [1.0, 1.0, 2.0, 2.0]}, "resize mode", "cubic"),
    ('Resize<mode="nearest">(x, , , s)', "1,8,4,4", {"s": [1, 8, 8, 8]}, "resize scales", "sizes"),
    ('Resize<mode="linear", coordinate_transformation_mode="align_corners">(x, , s)', "1,8,4,4",
     {"s": [1.0, 1.0, 2.0, 2.0]}, "resize coordinates", "align_corners"),
    ("Slice(x, a, b, c, d)", "1,8,16,16", {"a": [0, 0], "b": [16, 16], "c": [2, 3], "d": [2, 2]}, "slice stride",
     "2×2"),
    ("Slice(x, a, b, c)", "2,8,16,16", {"a": [0], "b": [1], "c": [0]}, "slice batch", "batch"),
    ("Slice(x, a, b, c)", "1,3,85,20,20", {"a": [0], "b": [2], "c": [2]}, "slice rank", "5 dimensions"),
    ("Split<axis=0, num_outputs=2>(x)", "2,8,16,16", {}, "slice batch", "batch"),
    ("Reshape(x, s)", "1,8,16,16", {"s": [1, 2, 4, 16, 16]}, "shuffle rank", "1×2×4×16×16"),
    ("Transpose<perm=[1,0,2,3]>(x)", "1,8,16,16", {}, "shuffle batch", "batch"),
    ("Softmax<axis=1>(x)", "1,1025,2,2", {}, "softmax axis", "1024"),
    ("Softmax<axis=1>(x)", "1,8", {}, "rank", "2 dimensions"),
    ("Relu(x)", "4097,8,4,4", {}, "batch", "4097"),
    ("Gemm(x, w)", "1,8", {"w": np.ones((8, 4))}, "matrix", "1×1 convolution"),
    ("MatMul(x, x)", "1,4,8,8", {}, "matrix", "attention"),
    ("GlobalAveragePool(x)", "1,8,16,16", {}, "not mapped", "GlobalAveragePool"),
    ("DepthToSpace<blocksize=2>(x)", "1,8,16,16", {}, "not mapped", "other operators"),
    ("LayerNormalization(x, s)", "1,8,16,16", {"s": np.ones(16)}, "not mapped", "LayerNormalization"),
]  # fmt: skip


@pytest.mark.parametrize(("operation", "size", "constants"), INSIDE, ids=[entry[0] for entry in INSIDE])
def test_a_layer_within_the_limits_runs_on_the_dla(
    operation: str, size: str, constants: dict[str, Any]
) -> None:
    layer = judged(operation, size, **constants)

    assert (layer.device, layer.loadable) == ("DLA", 0), layer.why


@pytest.mark.parametrize(
    ("operation", "size", "constants", "rule", "said"), OUTSIDE, ids=[f"{e[0]} {e[3]}" for e in OUTSIDE]
)
def test_a_layer_past_a_limit_runs_on_the_gpu_and_the_rule_is_named(
    operation: str, size: str, constants: dict[str, Any], rule: str, said: str
) -> None:
    layer = judged(operation, size, **constants)

    assert (layer.device, layer.rule, layer.loadable) == ("GPU", rule, None)
    assert said in layer.why


def test_the_first_dla_has_fewer_layers_than_the_second() -> None:
    padded = "AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)"
    counted = "AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x)"

    assert judged(padded, target=XAVIER).rule == "pooling average"
    assert judged(counted, target=XAVIER).device == "DLA"
    assert judged("Softmax<axis=1>(x)", "1,1000,1,1", target=XAVIER).rule == "softmax"


def test_what_a_release_of_tensorrt_brought_is_not_there_before_it() -> None:
    old, new = Target(2, (8, 6, 2)), Target(2, (10, 3, 0))
    small = {"w": np.ones((8, 4))}

    assert judged("GlobalMaxPool(x)", target=old).rule == "not mapped"
    assert judged("GlobalMaxPool(x)", target=new).device == "DLA"
    assert judged("Gemm(x, w)", "1,8", target=old, **small).device == "DLA"
    assert judged("Gemm(x, w)", "1,8", target=new, **small).rule == "matrix"
    assert judged("Softmax<axis=1>(x)", "1,8,4,4", target=Target(2, (8, 4, 1))).rule == "softmax axis"


def test_fp16_needs_twice_the_banks_of_the_convolution_buffer() -> None:
    sides = {"w": conv(1024, 1, 3)}

    assert judged("Conv<pads=[1,1,1,1]>(x, w)", "1,1024,8,100", **sides).device == "DLA"
    half = judged("Conv<pads=[1,1,1,1]>(x, w)", "1,1024,8,100", Target(2, precision="fp16"), **sides)
    assert half.rule == "convolution buffer"


def test_the_banks_are_those_of_the_documented_formula() -> None:
    """Cin 128, W 512, kernel 5 in INT8: 3200 bytes fill 1 bank; 4 atoms x 128 x 5 rows = 2560 entries fill 10."""
    layer = judged("Conv(x, w)", "1,128,8,512", w=weight(1, 128, 5, 5))
    wider = judged("Conv(x, w)", "1,128,8,800", w=weight(1, 128, 5, 5))

    assert layer.device == "DLA"
    assert "takes 1 and its rows 16 banks" in wider.why


def test_an_operator_of_its_makers_own_is_a_plugin() -> None:
    model = dla_graphs.one("Relu(x)")
    model.graph.node[0].domain = "com.example"
    model.opset_import.add(domain="com.example", version=1)
    model.graph.output[0].type.tensor_type.shape.CopyFrom(model.graph.input[0].type.tensor_type.shape)

    (layer,) = dla_graphs.place(model, ORIN).layers

    assert (layer.device, layer.rule) == ("GPU", "not mapped")
    assert "com.example.Relu" in layer.why


def test_every_table_of_limits_says_where_it_is_from() -> None:
    tables = [*limits()["release"], *(table for table in limits().values() if isinstance(table, dict))]

    assert [table for table in tables if not table.get("source")] == []
    listed = limits()["operators"]
    names = [name for key in ("native", "later", "reconstructed", "none") for name in listed[key]]
    assert len(names) == len(set(names))
    json.dumps(limits())  # plain data
