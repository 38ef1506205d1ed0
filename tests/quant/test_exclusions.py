"""Layers stay float by rules that are data: what TensorRT's scheme says, compared with what each layer is."""

import types

import numpy as np
import onnx_ir as ir
import pytest
from penjing import Host
from penjing.errors import PluginError
from penjing.step import Exclusion, Scheme
from penjing_quant.exclusions import exclusion, facts
from penjing_tensorrt.scheme import scheme

TENSORRT = scheme(Host().device("rtx-3090"))


def ones(*shape):
    return np.ones(shape, np.float32)


@pytest.fixture
def layer(build):
    """Return a function that builds a network of a stem and one more layer, and returns that layer's node."""

    def make(kind, weight, channels=32, *, before=(), image=(3, 8, 8), batch=1, **attributes):
        last = before[-1][2][0] if before else "s"
        nodes = [
            ("Conv", ["x", "w0"], ["s"], {"pads": [1] * 4}),
            *before,
            (kind, [last, "w"], ["y"], attributes),
        ]
        net = build(nodes, {"w0": ones(channels, image[0], 3, 3), "w": weight}, image=image, batch=batch)
        return list(ir.from_proto(net.model).graph)[-1]

    return make


@pytest.mark.parametrize(
    ("weight", "groups", "quantised"),
    [
        ((32, 32, 3, 3), 1, True),
        ((8, 32, 3, 3), 1, True),  # narrow out, a multiple of 8, wide in
        ((32, 8, 3, 3), 1, True),
        ((8, 8, 3, 3), 1, False),  # narrow on both sides
        ((9, 17, 3, 3), 1, False),  # no multiple of 8
        ((8, 32, 3, 1), 1, False),  # not square
        ((32, 1, 3, 3), 32, True),  # depthwise
        ((32, 1, 1, 1), 32, False),  # depthwise with a small kernel
        ((36, 1, 3, 3), 36, False),  # depthwise, no multiple of 8
    ],
)
def test_narrow_convolutions_stay_float_for_tensorrt(weight, groups, quantised, layer):
    node = layer("Conv", ones(*weight), channels=weight[1] * groups, group=groups)

    assert (exclusion(node, TENSORRT) is None) == quantised


def test_the_first_convolution_is_quantised_however_few_channels_an_image_has(build):
    net = build([("Conv", ["x", "w"], ["y"], {})], {"w": ones(8, 3, 3, 3)})
    (node,) = ir.from_proto(net.model).graph

    assert facts(node)["first"] == 1
    assert exclusion(node, TENSORRT) is None


def test_a_matrix_by_a_vector_stays_float_unless_the_batch_is_open(layer):
    flat = [("GlobalAveragePool", ["s"], ["p"], {}), ("Flatten", ["p"], ["f"], {})]

    assert "vector" in exclusion(layer("Gemm", ones(64, 32), before=flat, transB=1), TENSORRT).why
    assert exclusion(layer("Gemm", ones(64, 32), before=flat, transB=1, batch="N"), TENSORRT) is None
    assert exclusion(layer("Gemm", ones(64, 32), before=flat, transB=1, batch=4), TENSORRT) is None
    assert "narrow" in exclusion(layer("Gemm", ones(15, 32), before=flat, transB=1, batch=4), TENSORRT).why


def test_squeeze_and_excitation_stays_float(layer):
    pooled = [("GlobalAveragePool", ["s"], ["p"], {})]

    assert "squeeze" in exclusion(layer("Conv", ones(32, 32, 1, 1), before=pooled), TENSORRT).why


def test_the_decoder_of_distances_stays_float(layer):
    soft = [("Softmax", ["s"], ["p"], {"axis": 1}), ("Transpose", ["p"], ["t"], {"perm": [0, 1, 3, 2]})]
    node = layer("Conv", ones(16, 32, 1, 1), before=soft)

    assert facts(node)["reads"] == "Softmax"
    assert "distribution" in exclusion(node, TENSORRT).why


def test_an_accelerator_takes_every_layer(layer):
    dla = scheme(Host().device("jetson-agx-orin"), dla=True)

    assert exclusion(layer("Conv", ones(8, 8, 3, 3), channels=8), dla) is None
    assert dla.placement == "every"


def rule(*when, unless=()):
    return types.SimpleNamespace(
        exclusions=(Exclusion(("Conv",), when, "it was so decided", "tests", unless),)
    )


@pytest.mark.parametrize(
    ("when", "unless", "found"),
    [
        (["in_channels == 32"], (), True),
        (["in_channels == 31", "columns >= 32"], (), True),
        (["in_channels == 32, columns < 32"], (), False),
        (["in_channels == 32"], ("kernel_most == 3",), False),
        (["depth == 288"], (), True),
        (["rows == 36"], (), True),
        (["out_channels % 24 == 8"], (), True),
        (["reads != Softmax"], (), True),
        (["unheard_of == 1"], (), False),
    ],
)
def test_alternatives_and_comparisons(when, unless, found, layer):
    node = layer("Conv", ones(32, 32, 3, 3))

    assert (exclusion(node, rule(*when, unless=unless)) is not None) == found


def test_what_is_no_comparison_is_the_backends_fault(layer):
    with pytest.raises(PluginError, match="no comparison"):
        exclusion(layer("Conv", ones(32, 32, 3, 3)), rule("channels few"))


def test_an_accelerator_gets_integers_everywhere_but_between_a_layer_and_its_clipping(
    build, quantise, photographs, outputs
):
    nodes = [
        ("Conv", ["x", "w0"], ["c"], {}), ("Relu", ["c"], ["r"], {}), ("Sigmoid", ["r"], ["g"], {}),
        ("Mul", ["r", "g"], ["m"], {}), ("Conv", ["m", "w1"], ["d"], {}), ("Clip", ["d", "lo", "hi"], ["y"], {}),
    ]  # fmt: skip
    random = np.random.default_rng(0)
    weights = {
        "w0": random.standard_normal((8, 3, 3, 3)).astype(np.float32),
        "w1": random.standard_normal((8, 8, 3, 3)).astype(np.float32), "lo": np.float32(0), "hi": np.float32(6),
    }  # fmt: skip
    net = build(nodes, weights)
    dla = scheme(Host().device("jetson-agx-orin"), dla=True)

    written = quantise(net.model, dla, photographs)

    assert set(written.tensors) == {"x", "r", "g", "m", "y"}
    (expected,), (got,) = outputs(net.model, photographs), outputs(written.model, photographs)
    assert np.square(expected - got).sum() < 0.01 * np.square(expected).sum()


def test_a_scheme_without_exclusions_leaves_nothing_float(layer):
    none = Scheme("int8", "int8", True, True, False, "float32", "inputs", frozenset({"Conv"}), "tests")

    assert exclusion(layer("Conv", ones(8, 8, 3, 3), channels=8), none) is None


def test_a_concatenation_keeps_its_scale_through_a_channel_shuffle(build, quantise, photographs):
    """As ShuffleNet has it, where only shapes and order change between a Concat and what reads it."""
    from penjing_quant.verify import violations

    random = np.random.default_rng(0)
    nodes = [
        ("Conv", ["x", "w0"], ["a"], {}), ("Conv", ["x", "w1"], ["b"], {}), ("Concat", ["a", "b"], ["k"], {"axis": 1}),
        ("Reshape", ["k", "split"], ["s"], {}), ("Transpose", ["s"], ["t"], {"perm": [0, 2, 1, 3, 4]}),
        ("Reshape", ["t", "join"], ["j"], {}), ("Relu", ["k"], ["r"], {}), ("Conv", ["j", "w2"], ["c"], {}),
        ("Conv", ["r", "w2"], ["d"], {}), ("Sub", ["c", "d"], ["y"], {}),
    ]  # fmt: skip
    weights = {
        "w0": random.standard_normal((16, 3, 3, 3)).astype(np.float32),
        "w1": 3 * random.standard_normal((16, 3, 3, 3)).astype(np.float32),
        "w2": random.standard_normal((32, 32, 3, 3)).astype(np.float32),
        "split": np.array([1, 2, 16, 6, 6], np.int64), "join": np.array([1, 32, 6, 6], np.int64),
    }  # fmt: skip
    model = quantise(build(nodes, weights, batch=1).model, TENSORRT, photographs).model

    scales = {n.input[0]: n.input[1] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    assert scales["a"] == scales["b"] == scales["j"]
    assert violations(model, TENSORRT) == []


def test_an_accelerator_scales_and_shifts_by_constants_and_joins_unlike_ranges_at_one(
    build, quantise, photographs
):
    dla = scheme(Host().device("jetson-agx-orin"), dla=True)
    nodes = [
        ("Conv", ["x", "w0"], ["a"], {"pads": [1] * 4}),
        ("Conv", ["x", "w1"], ["b"], {"pads": [1] * 4}),
        ("Mul", ["a", "c"], ["m"], {}),
        ("Concat", ["m", "b"], ["y"], {"axis": 1}),
    ]
    weights = {"w0": ones(4, 3, 3, 3), "w1": 100 * ones(4, 3, 3, 3), "c": np.float32(0.5)}

    written = quantise(build(nodes, weights).model, dla, photographs)

    assert set(written.integer) == {"a_node", "b_node", "m_node", "y_node"}
    assert {"a", "m", "b", "y"} <= set(written.tensors)
