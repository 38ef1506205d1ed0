"""Graphs without Q/DQ, and the ranges that they leave."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from dla_graphs import graph, weight
from hypothesis import given, settings
from hypothesis import strategies as st
from penjing.errors import StepError
from penjing_tensorrt.dla.agree import session
from penjing_tensorrt.dla.strip import Stripped, is_quantised, strip

ZERO = np.array(0, np.int8)


def rounded(name: str, value: str, scale: str) -> str:
    """Return the two operations that round `value` to int8."""
    return f"{name}_q = QuantizeLinear({value}, {scale}, zero); {name} = DequantizeLinear({name}_q, {scale}, zero)"


def stripped(body: str, size: str = "1,2,8,8", **constants: Any) -> Stripped:
    return strip(graph(f"(float[{size}] x) => (float[N] y) {{ {body} }}", zero=ZERO, **constants))


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def run(model: onnx.ModelProto, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(session(model).run(None, {"x": x})[0])


def test_ranges_bear_the_names_that_tensorrt_sees() -> None:
    result = stripped(f"{rounded('a', 'x', 's')}; t = Relu(a); {rounded('y', 't', 'u')}", s=0.5, u=0.25)

    assert operators(result.plain) == ["Relu"]
    assert [value.name for value in result.plain.graph.output] == ["y"]
    assert result.plain.graph.node[0].output == ["y"]
    assert result.scales == {"x": 0.5, "y": 0.25}
    onnx.checker.check_model(result.plain, full_check=True)


def test_weights_become_the_floats_that_their_integers_stand_for() -> None:
    codes = np.arange(-8, 8, dtype=np.int8).reshape(2, 2, 2, 2)
    result = stripped(
        f"{rounded('a', 'x', 's')}; w = DequantizeLinear<axis=0>(codes, by, none); y = Conv(a, w)",
        s=0.5, codes=codes, by=[0.5, 2.0], none=np.zeros(2, np.int8),
    )  # fmt: skip

    (found,) = [onnx.numpy_helper.to_array(t) for t in result.plain.graph.initializer]
    assert np.array_equal(found, codes.astype(np.float32) * np.array([0.5, 2.0]).reshape(2, 1, 1, 1))
    assert operators(result.plain) == ["Conv"]


def test_a_weight_that_is_still_float_stays_as_it_was() -> None:
    kernel = weight(2, 2, 3, 3)
    result = stripped(f"{rounded('a', 'x', 's')}; {rounded('b', 'w', 's')}; y = Conv(a, b)", s=0.5, w=kernel)

    assert np.array_equal(onnx.numpy_helper.to_array(result.plain.graph.initializer[0]), kernel)
    assert result.scales == {"x": 0.5}


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(2.0**-3, 2.0**-2, width=32), min_size=3, max_size=3), st.integers(0, 2**31))
def test_the_plain_network_answers_as_the_quantised_one_but_for_rounding(
    scales: list[float], seed: int
) -> None:
    """Nothing saturates here: each rounding moves a value by half a step, and the weights of a sum carry it on."""
    kernel = weight(2, 2, 3, 3)
    most = float(np.abs(kernel).sum((1, 2, 3)).max())
    s, u, v = scales
    assert most * most < 127 * v
    result = stripped(
        f"{rounded('a', 'x', 's')}; b = Conv(a, w); c = Relu(b); {rounded('d', 'c', 'u')}; e = Conv(d, w);"
        f"{rounded('y', 'e', 'v')}",
        s=s, u=u, v=v, w=kernel,
    )  # fmt: skip
    x = np.random.default_rng(seed).uniform(-1, 1, (1, 2, 8, 8)).astype(np.float32)

    assert (
        np.abs(run(result.plain, x) - run(result.network, x)).max() <= ((s * most + u) * most + v) / 2 + 1e-5
    )


def test_a_relu_gives_its_range_to_what_it_alone_reads() -> None:
    body = f"{rounded('a', 'x', 's')}; b = Conv(a, w); c = Relu(b); {rounded('y', 'c', 'u')}"

    assert stripped(body, s=0.5, u=0.25, w=weight(2, 2, 1, 1)).scales == {"x": 0.5, "y": 0.25, "b": 0.25}


def test_one_range_serves_both_inputs_of_a_sum_and_both_sides_of_a_pooling() -> None:
    result = stripped(
        f"{rounded('a', 'x', 's')}; b = Relu(a); {rounded('c', 'b', 'u')}; d = Add(a, c); {rounded('e', 'd', 'v')};"
        f"f = AveragePool<kernel_shape=[2,2]>(e); {rounded('y', 'f', 's')}",
        s=0.5, u=0.25, v=2.0,
    )  # fmt: skip

    assert result.scales == {"x": 0.5, "b": 0.5, "d": 2.0, "y": 2.0}
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in result.network.graph.initializer}
    rounding = [node for node in result.network.graph.node if node.op_type == "QuantizeLinear"]
    used = {node.input[0]: float(constants[node.input[1]]) for node in rounding}
    assert used == {"x": 0.5, "b": 0.5, "d": 2.0, "f": 2.0}


def test_all_of_a_concatenation_shares_its_widest_range() -> None:
    result = stripped(
        f"{rounded('a', 'x', 's')}; b = Abs(a); {rounded('c', 'b', 'u')}; d = Concat<axis=1>(a, c);"
        f"{rounded('y', 'd', 'v')}",
        s=0.5, u=0.25, v=1.0,
    )  # fmt: skip

    assert set(result.scales.values()) == {1.0}


def test_a_pooling_without_a_rounding_of_its_own_has_the_range_of_what_it_reads() -> None:
    result = stripped(
        f"{rounded('a', 'x', 's')}; b = MaxPool<kernel_shape=[2,2]>(a); y = Conv(b, w)",
        s=0.5,
        w=weight(2, 2, 1, 1),
    )

    assert result.scales == {"x": 0.5, "b": 0.5}


def test_names_fit_a_command_line_and_a_cache() -> None:
    model = graph(
        f"(float[1,2,8,8] x) => (float[N] y) {{ {rounded('a', 'x', 's')}; t = Relu(a); {rounded('y', 't', 's')} }}",
        zero=ZERO,
        s=0.5,
    )
    for node in model.graph.node:
        node.name = "layer, one: *"
        node.input[:] = [name.replace("t", "Ähre") if name == "t" else name for name in node.input]
        node.output[:] = [name.replace("t", "Ähre") if name == "t" else name for name in node.output]

    result = strip(model)

    assert [node.name for node in result.plain.graph.node] == ["layer__one___"]
    assert all(name.isascii() for name in result.scales)


@pytest.mark.parametrize(
    ("body", "constants", "said"),
    [
        ("q = QuantizeLinear(x, s, odd); y = DequantizeLinear(q, s, odd)", {"odd": np.array(3, np.int8)},
         "zero point 0"),
        ("q = QuantizeLinear(x, s, odd); y = DequantizeLinear(q, s, odd)", {"odd": np.array(0, np.uint8)}, "int8"),
        ("q = QuantizeLinear<axis=1>(x, c, odd); y = DequantizeLinear<axis=1>(q, c, odd)",
         {"c": [0.5, 0.5], "odd": np.zeros(2, np.int8)}, "each channel"),
        ("q = QuantizeLinear(x, s, zero); m = Transpose(q); y = DequantizeLinear(m, s, zero)", {}, "between operators"),
    ],
)  # fmt: skip
def test_what_a_cache_cannot_say_is_refused(body: str, constants: dict[str, Any], said: str) -> None:
    with pytest.raises(StepError, match=said):
        stripped(body, s=0.5, **constants)


def test_a_graph_knows_whether_it_is_quantised() -> None:
    assert is_quantised(
        graph(f"(float[1,2,8,8] x) => (float[N] y) {{ {rounded('y', 'x', 's')} }}", zero=ZERO, s=0.5)
    )
    assert not is_quantised(graph("(float[1,2,8,8] x) => (float[N] y) { y = Relu(x) }"))


def test_an_input_that_is_the_output_keeps_both_names() -> None:
    result = stripped(rounded("y", "x", "s"), s=0.5)

    assert operators(result.plain) == ["Identity"]
    assert [value.name for value in result.plain.graph.output] == ["y"]
