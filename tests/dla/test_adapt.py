"""Every rewrite puts its layer on the DLA and leaves the outputs as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from dla_graphs import ORIN, XAVIER, fitted, graph, one, weight
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from penjing.errors import PlanError
from penjing.host import Host
from penjing.testing import small_context, small_model
from penjing_tensorrt.dla import adapt
from penjing_tensorrt.dla.adapt import Adapt, adapted
from penjing_tensorrt.dla.graph import prepare
from penjing_tensorrt.dla.place import place

SIDES = st.integers(1, 20)


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


# -- pooling


@pytest.mark.parametrize(
    ("operation", "size", "made"),
    [
        ("GlobalAveragePool(x)", "1,8,7,7", ["AveragePool"]),
        ("GlobalAveragePool(x)", "1,8,14,14", ["AveragePool"] * 2),
        ("GlobalAveragePool(x)", "2,8,112,56", ["AveragePool"] * 3),
        ("GlobalAveragePool(x)", "1,8,13,13", ["Conv"]),
        ("GlobalAveragePool(x)", "1,8,1,1", ["AveragePool"]),
        ("ReduceMean<keepdims=1>(x, a)", "1,8,7,14", ["AveragePool"] * 2),
        ("AveragePool<kernel_shape=[14,14], strides=[14,14]>(x)", "1,8,28,28", ["AveragePool"] * 2),
        ("GlobalMaxPool(x)", "1,8,14,14", ["MaxPool"] * 2),
    ],
)
def test_a_large_pooling_becomes_small_ones(operation: str, size: str, made: list[str]) -> None:
    constants = {"a": [2, 3]} if "a)" in operation else {}
    after, done, placement = fitted(one(operation, size, **constants), XAVIER)

    assert operators(after) == made
    assert sum(done.values()) == 1
    assert placement.on_gpu == ()


@settings(deadline=None, max_examples=40)
@given(SIDES, SIDES)
def test_any_global_average_is_the_same_mean_wherever_it_can_be_written(height: int, width: int) -> None:
    _, _, placement = fitted(one("GlobalAveragePool(x)", f"1,3,{height},{width}"))

    assert placement.on_gpu == ()


def test_an_average_over_a_prime_side_too_large_for_any_kernel_stays() -> None:
    after, done, placement = fitted(one("GlobalAveragePool(x)", "1,3,37,37"))

    assert (operators(after), done) == (["GlobalAveragePool"], {})
    assert placement.on_gpu[0].rule == "not mapped"


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(1, 15), st.integers(1, 15)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.data(),
)
def test_a_large_maximum_becomes_a_chain_of_small_ones(
    kernel: tuple[int, int], strides: tuple[int, int], data: st.DataObject
) -> None:
    pads = [data.draw(st.integers(0, kernel[i % 2] - 1)) for i in range(4)]
    assume(all(16 + pads[i] + pads[i + 2] >= kernel[i] for i in range(2)))
    words = f"kernel_shape=[{kernel[0]},{kernel[1]}], strides=[{strides[0]},{strides[1]}], pads={pads}"

    _, done, placement = fitted(one(f"MaxPool<{words}>(x)", "1,2,16,16"))

    assert bool(done) == (max(*kernel, *(pad + 1 for pad in pads)) > 8)
    assert placement.on_gpu == ()


def test_the_maximum_of_spp_is_two_windows_of_seven() -> None:
    after, _, _ = fitted(one("MaxPool<kernel_shape=[13,13], pads=[6,6,6,6]>(x)"))

    windows = [
        [list(a.ints) for a in node.attribute if a.name == "kernel_shape"] for node in after.graph.node
    ]
    assert windows == [[[7, 7]], [[7, 7]]]


# -- matrices, flattening


def test_pooling_flattening_and_a_matrix_become_convolutions_with_one_view_at_the_end() -> None:
    model = graph(
        """(float[N,8,14,14] x) => (float[N] y) {
            a = GlobalAveragePool(x); b = Flatten(a); c = Gemm<transB=1, alpha=0.5, beta=2.0>(b, w, v);
            y = Softmax<axis=1>(c)
        }""",
        w=weight(10, 8),
        v=weight(10),
    )
    after, done, placement = fitted(model)

    assert operators(after) == ["AveragePool", "AveragePool", "Conv", "Softmax", "Reshape"]
    assert [layer.op for layer in placement.on_gpu] == ["Reshape"]
    assert (placement.loadables, placement.to_dla, placement.to_gpu) == (1, 0, 1)
    assert done["matrix as convolution"] == 1


def test_a_hidden_layer_of_a_head_runs_on_the_dla_with_its_activation() -> None:
    model = graph(
        """(float[1,8,1,1] x) => (float[N] y) {
            a = Flatten(x); b = Gemm(a, w, v); c = HardSwish(b); d = MatMul(c, u); y = Add(d, t)
        }""",
        w=weight(8, 16),
        v=weight(16),
        u=weight(16, 4),
        t=weight(4),
    )
    after, _, placement = fitted(model)

    assert [layer.op for layer in placement.on_gpu] == ["Reshape"]
    assert operators(after).count("Conv") == 2
    assert operators(after)[-1] == "Reshape"


def test_a_matrix_over_flattened_planes_is_a_convolution_of_their_size() -> None:
    model = graph(
        "(float[2,8,6,5] x) => (float[N] y) { a = Flatten(x); y = Gemm(a, w) }",
        w=weight(240, 7),
    )
    after, _, placement = fitted(model)

    assert operators(after) == ["Conv", "Reshape"]
    assert placement.layers[0].device == "DLA"


def test_squeeze_and_excitation_without_kept_dimensions_is_put_back_together() -> None:
    model = graph(
        """(float[1,8,14,14] x) => (float[N] y) {
            a = ReduceMean<keepdims=0>(x, axes); b = Gemm(a, w); c = Relu(b); d = Gemm(c, v); e = Sigmoid(d);
            f = Reshape(e, size); y = Mul(x, f)
        }""",
        axes=[2, 3], w=weight(8, 4), v=weight(4, 8), size=[1, 8, 1, 1],
    )  # fmt: skip
    after, _, placement = fitted(model)

    assert placement.on_gpu == ()
    assert "Reshape" not in operators(after)


def test_attention_is_left_and_named() -> None:
    model = graph(
        """(float[1,4,8,8] x) => (float[N] y) {
            a = MatMul(x, x); b = Softmax<axis=3>(a); c = LayerNormalization<axis=3>(b, s); y = Relu(c)
        }""",
        s=np.ones(8),
    )
    _, done, placement = fitted(model)

    assert done == {}
    assert [layer.op for layer in placement.on_gpu] == ["MatMul", "LayerNormalization"]


# -- activations, arithmetic


@pytest.mark.parametrize(
    ("operation", "made"),
    [
        ("HardSwish(x)", ["Add", "Clip", "Mul", "Mul"]),
        ("HardSigmoid<alpha=0.1666667, beta=0.5>(x)", ["Add", "Clip", "Mul"]),
        ("HardSigmoid(x)", ["Add", "Clip", "Mul"]),
        ("Div(x, c)", ["Mul"]),
        ("Neg(x)", ["Mul"]),
        ("Pow(x, two)", ["Mul"]),
    ],
)
def test_a_function_becomes_pieces_that_the_dla_has(operation: str, made: list[str]) -> None:
    constants: dict[str, Any] = {"c": np.full((8, 1, 1), 3.0)} if "c)" in operation else {}
    constants |= {"two": 2.0} if "two" in operation else {}
    after, _, placement = fitted(one(operation, **constants))

    assert operators(after) == made
    assert placement.on_gpu == ()


def test_swish_as_one_operator_becomes_a_sigmoid_and_a_product() -> None:
    pytest.importorskip("onnxruntime", minversion="1.24", reason="nothing here runs opset 24 to compare with")
    model = graph("(float[1,8,4,4] x) => (float[N] y) { y = Swish(x) }", opset=24)
    after, _, placement = fitted(model)

    assert operators(after) == ["Sigmoid", "Mul"]
    assert [layer.precision for layer in placement.layers] == ["fp16", "int8"]


@pytest.mark.parametrize("operation", ["Elu(x)", "Softplus(x)", "Pow(x, c)", "Gelu(x)"])
def test_a_function_that_has_no_such_pieces_is_left(operation: str) -> None:
    model = graph(f"(float[1,8,4,4] x) => (float[N] y) {{ y = {operation} }}", opset=20, c=3.0)
    _, done, placement = fitted(model)

    assert done == {}
    assert placement.on_gpu[0].rule == "not mapped"


def test_a_resize_to_sizes_says_scales() -> None:
    model = one(
        'Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, , , s)',
        "1,8,4,4",
        s=[1, 8, 8, 12],
    )
    after, _, placement = fitted(model)

    assert operators(after) == ["Resize"]
    assert placement.on_gpu == ()


def test_half_pixel_stands_for_pytorchs_where_it_is_the_same() -> None:
    words = 'mode="linear", coordinate_transformation_mode="pytorch_half_pixel"'
    _, done, placement = fitted(one(f"Resize<{words}>(x, , s)", "1,8,4,4", s=[1.0, 1.0, 2.0, 2.0]))

    assert done == {"scales for sizes": 1}
    assert placement.on_gpu == ()


# -- neighbours


def test_padding_goes_into_the_convolutions_that_read_it() -> None:
    model = graph(
        """(float[1,8,8,8] x) => (float[N] y) {
            a = Pad(x, p); b = Conv<pads=[1,1,1,1]>(a, w); c = Conv<pads=[1,1,1,1]>(a, w); y = Add(b, c)
        }""",
        p=[0, 0, 1, 0, 0, 0, 1, 1],
        w=weight(8, 8, 4, 4),
    )
    after, _, placement = fitted(model)

    assert operators(after) == ["Conv", "Conv", "Add"]
    assert placement.on_gpu == ()


@pytest.mark.parametrize(
    ("model", "goes"),
    [
        ("a = Pad(x, p); y = MaxPool<kernel_shape=[3,3]>(a)", False),
        ("r = Relu(x); a = Pad(r, p); y = MaxPool<kernel_shape=[3,3]>(a)", True),
        ("a = Pad(x, p); y = AveragePool<kernel_shape=[3,3]>(a)", True),
        ("a = Pad(x, p); y = Relu(a)", False),
        ("a = Pad(x, p, five); y = Conv(a, w)", False),
        ('a = Pad<mode="reflect">(x, p); y = Conv(a, w)', False),
    ],
)
def test_padding_goes_into_a_pooling_only_where_zeros_do_what_it_does(model: str, goes: bool) -> None:
    constants = {"p": [0, 0, 1, 1, 0, 0, 1, 1], "w": weight(8, 8, 3, 3), "five": 5.0}
    used = {name: value for name, value in constants.items() if f"{name})" in model or f"{name}," in model}
    after, _, _ = fitted(graph(f"(float[1,8,8,8] x) => (float[N] y) {{ {model} }}", **used))

    assert ("Pad" not in operators(after)) == goes


def test_a_normalisation_is_folded_into_the_convolution_before_it() -> None:
    model = graph(
        "(float[1,4,8,8] x) => (float[N] y) { a = Conv(x, w); y = BatchNormalization(a, s, b, m, v) }",
        w=weight(6, 4, 3, 3), s=weight(6) + 2, b=weight(6), m=weight(6, seed=1), v=np.abs(weight(6)) + 0.5,
    )  # fmt: skip
    after, _, _ = fitted(model)

    assert operators(after) == ["Conv"]


# -- moves


@pytest.mark.parametrize(
    ("model", "made"),
    [
        ("a = Reshape(x, five); b = Transpose<perm=[0,2,1,3,4]>(a); y = Reshape(b, four)", "Conv"),
        ("y = Slice(x, one, end, rows, two)", "Conv"),
        ("y = SpaceToDepth<blocksize=2>(x)", "Conv"),
        ("y = DepthToSpace<blocksize=2>(x)", "ConvTranspose"),
        ('y = DepthToSpace<blocksize=2, mode="CRD">(x)', "ConvTranspose"),
        ("y = Gather<axis=1>(x, picked)", "Conv"),
    ],
)
def test_a_chain_that_only_moves_values_is_a_convolution_of_zeros_and_ones(model: str, made: str) -> None:
    constants = {
        "five": [1, 2, 4, 4, 6], "four": [1, 8, 4, 6], "one": [1, 0], "end": [4, 6], "rows": [2, 3], "two": [2, 2],
        "picked": [7, 0, 3],
    }  # fmt: skip
    used = {name: value for name, value in constants.items() if name in model}
    text = f"(float[1,8,4,6] x) => (float[N] y) {{ {model} }}"

    after, done, placement = fitted(graph(text, **used))

    assert operators(after) == [made]
    assert done == {"convolution for moved values": 1}
    assert placement.on_gpu == ()


def test_a_transposition_of_height_and_width_is_no_convolution() -> None:
    model = graph(
        """(float[1,8,4,6] x) => (float[N] y) {
            a = Reshape(x, five); b = Transpose<perm=[0,1,3,2,4]>(a); y = Reshape(b, four)
        }""",
        five=[1, 8, 4, 2, 3],
        four=[1, 8, 4, 6],
    )
    _, done, placement = fitted(model)

    assert done == {}
    assert len(placement.on_gpu) == 3


# -- the whole


def test_a_rewrite_that_changes_the_outputs_is_left_out_and_the_others_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = dict(adapt._rewrites())
    broken["product for division"] = (("Div",), _relu_instead, True)
    monkeypatch.setattr(adapt, "_rewrites", lambda: broken)
    model = graph("(float[1,8,14,14] x) => (float[N] y) { a = Div(x, c); y = GlobalAveragePool(a) }", c=3.0)

    after, done, dropped, agreement = adapted(prepare(model)[0], ORIN)

    assert dropped == ["product for division"]
    assert operators(after) == ["Div", "AveragePool", "AveragePool"]
    assert done == {"average in small windows": 1}
    assert agreement.enough


def _relu_instead(node: Any, target: Any) -> bool:
    from penjing_tensorrt.dla.edit import Chain

    chain = Chain(node)
    chain.add("Relu", [node.inputs[0]])
    chain.commit()
    return True


def test_a_network_that_fits_stays_as_it_was() -> None:
    model = graph("(float[1,8,8,8] x) => (float[N] y) { a = Conv(x, w); y = Relu(a) }", w=weight(8, 8, 3, 3))
    before = prepare(model)[0]

    after, done, dropped, agreement = adapted(before, ORIN)

    assert (done, dropped, agreement.sqnr_db) == ({}, [], 200.0)
    assert operators(after) == operators(before)


def test_the_step_tells_what_it_rewrote_and_shows_where_layers_run(tmp_path: Path) -> None:
    context = small_context(tmp_path, device="jetson-agx-orin", backend=Host().backend("dla"))
    model = small_model(tmp_path, "onnx")

    result = Adapt().apply(model, context)

    assert result.inputs == model.inputs
    assert context.details["rewrites"] == {"average in small windows": 1, "matrix as convolution": 1}
    assert context.details["before"]["layers_on_gpu"] == 3
    assert context.details["after"]["layers_on_gpu"] == 1
    assert context.details["sqnr_db"] > 90
    assert [exhibit.kind for exhibit in context.exhibits] == ["table", "lanes", "table"]
    lanes = context.exhibits[1]
    assert [(lane, width) for _, lane, width in lanes.segments] == [("DLA", 5.0), ("GPU", 1.0)]  # type: ignore[union-attr]  # kind says so


def test_an_open_batch_is_fixed_with_a_word(tmp_path: Path) -> None:
    context = small_context(tmp_path, device="jetson-agx-orin", backend=Host().backend("dla"))
    model = small_model(tmp_path, "onnx")
    proto = onnx.load(model.value)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del proto.graph.value_info[:]
    onnx.save(proto, tmp_path / "open.onnx")

    result = Adapt(batch=4).apply(model.become("onnx", tmp_path / "open.onnx"), context)

    assert result.inputs[0].shape == (4, 3, 32, 32)
    assert any("fixed to 4" in warning for warning in context.warnings)


def test_the_step_is_left_out_where_the_plan_ends_elsewhere_and_says_how_to_end_it_on_the_dla() -> None:
    host = Host()
    device = host.device("jetson-agx-orin")

    with pytest.raises(PlanError, match=r"--set dla\.core=0"):
        Adapt().check(device, host.backend("tensorrt"))
    Adapt().check(device, host.backend("dla"))


def test_the_original_and_the_direct_column_come_without_it() -> None:
    assert not Adapt.exact
    assert Adapt().naive() is None


def test_placing_the_result_needs_no_gpu_layer_twice() -> None:
    """The same network again is as good as it was: nothing is rewritten a second time."""
    after, _, first = fitted(one("GlobalAveragePool(x)", "1,8,14,14"))

    again, done, _, _ = adapted(after, ORIN)

    assert done == {}
    assert place(again, ORIN) == first
