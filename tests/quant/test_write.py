import dataclasses
from collections import Counter

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from penjing_quant.verify import violations


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def conv(x, w, y, **attributes):
    return ("Conv", [x, *w.split()], [y], {"pads": [1] * 4, **attributes})


def decibels(expected, got):
    return 10 * np.log10(np.square(expected).sum() / max(np.square(got - expected).sum(), 1e-30))


def constants(model):
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def quantised(model):
    """Return scale and zero point of each tensor that goes through Q/DQ."""
    values = constants(model)
    return {
        node.input[0]: (float(values[node.input[1]]), int(values[node.input[2]]))
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }


def producer(model, name):
    return next((node for node in model.graph.node if name in node.output), None)


def through(model, name):
    """Return the float tensor that `name` was before Q/DQ, and whether there was any."""
    node = producer(model, name)
    if node is None or node.op_type != "DequantizeLinear":
        return name, False
    return producer(model, node.input[0]).input[0], True


@pytest.fixture
def inverted_residual(build):
    """A block as MobileNetV2 has it, with a head."""
    clip = {"lo": np.float32(0), "hi": np.float32(6)}
    return build(
        [
            conv("x", "w0 b0", "c0"),
            ("Clip", ["c0", "lo", "hi"], ["r0"], {}),
            conv("r0", "w1 b1", "c1", group=16),
            ("Clip", ["c1", "lo", "hi"], ["r1"], {}),
            conv("r1", "w2", "c2"),
            conv("c2", "w2", "c3"),
            ("Add", ["c2", "c3"], ["s"], {}),
            ("GlobalAveragePool", ["s"], ["g"], {}),
            ("Flatten", ["g"], ["f"], {}),
            ("Gemm", ["f", "w4", "b4"], ["y"], {"transB": 1}),
        ],
        {
            **clip,
            "w0": random(16, 3, 3, 3),
            "b0": random(16),
            "w1": random(16, 1, 3, 3),
            "b1": random(16),
            "w2": random(16, 16, 3, 3) / 10,
            "w4": random(5, 16),
            "b4": random(5),
        },
    )


@pytest.mark.parametrize("bias", ["int32", "float32"])
@pytest.mark.parametrize("activation", ["uint8", "int8"])
def test_onnxruntime_runs_a_whole_block_on_integers(
    bias, activation, inverted_residual, cpu, quantise, photographs, fused, outputs
):
    scheme = dataclasses.replace(cpu, bias=bias, activation=activation)
    written = quantise(inverted_residual.model, scheme, photographs)
    if activation == "uint8":  # on x86 onnxruntime does not fuse int8 activations
        kinds = Counter(fused(written.model))
        assert (kinds["QLinearConv"], kinds["QLinearAdd"], kinds["QGemm"]) == (4, 1, 1)
        assert not kinds["Clip"] + kinds["DequantizeLinear"] + kinds["Conv"] + kinds["FusedConv"]
    assert not violations(written.model, scheme)
    assert not written.left
    (expected,), (got,) = outputs(inverted_residual.model, photographs), outputs(written.model, photographs)
    assert decibels(expected, got) > 30


def test_the_graph_output_of_a_product_stays_float(inverted_residual, cpu, quantise, photographs):
    written = quantise(inverted_residual.model, cpu, photographs)
    assert producer(written.model, "y").op_type == "Gemm"


def test_a_quantised_graph_output_keeps_its_name(build, cpu, quantise, photographs, outputs):
    net = build([conv("x", "w", "y")], {"w": random(4, 3, 3, 3)})
    written = quantise(net.model, cpu, photographs)
    assert [output.name for output in written.model.graph.output] == ["y"]
    assert producer(written.model, "y").op_type == "DequantizeLinear"


def test_what_is_shared_is_written_once(inverted_residual, cpu, quantise, photographs):
    written = quantise(inverted_residual.model, cpu, photographs)
    seen = Counter((array.dtype, array.tobytes(), array.shape) for array in constants(written.model).values())
    assert set(seen.values()) == {1}
    weights = {
        n.input[1] for n in written.model.graph.node if n.op_type == "Conv" and n.output[0] in ("c2", "c3")
    }
    assert len(weights) == 1  # a layer used twice stays one layer


def test_weights_have_a_scale_for_each_channel_and_activations_one(
    inverted_residual, cpu, quantise, photographs
):
    written = quantise(inverted_residual.model, cpu, photographs)
    values = constants(written.model)
    conv0 = producer(written.model, "c0")
    assert values[producer(written.model, conv0.input[1]).input[1]].shape == (16,)
    tensor = quantise(inverted_residual.model, cpu, photographs, per_channel=False)
    conv0 = producer(tensor.model, "c0")
    assert constants(tensor.model)[producer(tensor.model, conv0.input[1]).input[1]].shape == ()


def test_the_model_given_is_not_changed(inverted_residual, cpu, quantise, photographs):
    before = inverted_residual.model.SerializeToString(deterministic=True)
    quantise(inverted_residual.model, cpu, photographs)
    assert inverted_residual.model.SerializeToString(deterministic=True) == before


def test_excluded_nodes_stay_float(inverted_residual, cpu, quantise, photographs, outputs):
    written = quantise(inverted_residual.model, cpu, photographs, exclude={"c1_node"})
    assert producer(written.model, producer(written.model, "c1").input[1]) is None
    assert [(left.node, left.why) for left in written.left if left.op == "Conv"] == [
        ("c1_node", "it was excluded")
    ]
    (expected,), (got,) = outputs(inverted_residual.model, photographs), outputs(written.model, photographs)
    assert decibels(expected, got) > 30


def test_nothing_to_quantise_leaves_the_model_as_it_was(build, cpu, quantise, photographs):
    net = build([("Sigmoid", ["x"], ["s"], {}), ("Add", ["s", "s"], ["y"], {})], {})
    written = quantise(net.model, cpu, photographs)
    assert not written.integer
    assert written.model == net.model


def test_an_activation_the_quantiser_cannot_stand_in_for_stays(
    build, cpu, quantise, photographs, outputs, fused
):
    nodes = [
        conv("x", "w0", "c0"),
        ("Clip", ["c0", "lo", "hi"], ["r0"], {}),
        conv("r0", "w1", "c1"),
        ("HardSwish", ["c1"], ["h"], {}),
        conv("h", "w1", "y"),
    ]
    weights = {"w0": random(8, 3, 3, 3), "w1": random(8, 8, 3, 3), "lo": np.float32(1), "hi": np.float32(3)}
    net = build(nodes, weights)
    written = quantise(net.model, cpu, photographs)
    assert {left.op for left in written.left} == {"Clip", "HardSwish"}
    assert Counter(fused(written.model))["QLinearConv"] == 3
    (expected,), (got,) = outputs(net.model, photographs), outputs(written.model, photographs)
    assert decibels(expected, got) > 30


def test_a_tensor_with_a_clipped_and_an_unclipped_reader_keeps_both(
    build, cpu, quantise, photographs, outputs
):
    nodes = [
        conv("x", "w0", "c"),
        ("Relu", ["c"], ["r"], {}),
        ("Add", ["c", "r"], ["s"], {}),
        conv("s", "w1", "y"),
    ]
    net = build(nodes, {"w0": random(8, 3, 3, 3), "w1": random(8, 8, 3, 3)})
    written = quantise(net.model, cpu, photographs)
    (expected,), (got,) = outputs(net.model, photographs), outputs(written.model, photographs)
    assert decibels(expected, got) > 30


def test_pooling_shares_the_scale_of_its_input(build, cpu, quantise, photographs, fused):
    nodes = [
        conv("x", "w0", "c"),
        ("Relu", ["c"], ["r"], {}),
        ("MaxPool", ["r"], ["p"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
        conv("p", "w1", "y"),
    ]
    net = build(nodes, {"w0": random(8, 3, 3, 3), "w1": random(8, 8, 3, 3)})
    written = quantise(net.model, cpu, photographs)
    scales = quantised(written.model)
    assert scales["c"] == scales["p"]
    kinds = Counter(fused(written.model))
    assert (kinds["QLinearConv"], kinds["QuantizeLinear"], kinds["DequantizeLinear"]) == (2, 1, 1)


def test_matrix_products_are_quantised_along_their_output_channels(
    build, cpu, quantise, photographs, outputs
):
    nodes = [
        ("Flatten", ["x"], ["f"], {}),
        ("MatMul", ["f", "w0"], ["m"], {}),
        ("Gemm", ["m", "w1", "b1"], ["y"], {}),
    ]
    spread = np.float32(10) ** np.arange(-3, 3, dtype=np.float32)
    net = build(nodes, {"w0": random(192, 6) * spread, "w1": random(6, 4) / spread[:, None], "b1": random(4)})
    written = quantise(net.model, cpu, photographs)
    values = constants(written.model)
    for name in ("m", "y"):
        weight = producer(written.model, producer(written.model, name).input[1])
        assert values[weight.input[1]].shape == (values[weight.input[0]].shape[1],)
        assert weight.attribute[0].i == 1


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("dead", [1e-9, 1e-30, 0.0])
def test_a_dead_channel_with_a_bias_puts_out_its_bias(
    dead, per_channel, build, cpu, quantise, photographs, outputs
):
    """Faults R5 and R6."""
    weights = random(4, 3, 3, 3)
    weights[1] *= dead
    net = build([conv("x", "w b", "y")], {"w": weights, "b": np.array([0, 5, 1, -1], np.float32)})
    written = quantise(net.model, cpu, photographs, per_channel=per_channel)
    (expected,), (got,) = outputs(net.model, photographs), outputs(written.model, photographs)
    (_, output) = list(quantised(written.model).values())
    assert np.isfinite(got).all()
    assert np.abs(got - expected)[:, 1].max() < output[0]


def test_zero_points_are_zero_where_the_scheme_is_symmetric(
    inverted_residual, tensorrt, quantise, photographs
):
    """Fault R2: data shifted by 1 has lopsided ranges."""
    written = quantise(inverted_residual.model, tensorrt, photographs + 1)
    assert {zero for _, zero in quantised(written.model).values()} == {0}
    assert not violations(written.model, tensorrt)


def test_a_graph_for_another_backend_is_found_out(inverted_residual, cpu, tensorrt, quantise, photographs):
    """Fault R2: the check fails where zero points, dtypes or biases are wrong."""
    found = " ".join(violations(quantise(inverted_residual.model, cpu, photographs + 1).model, tensorrt))
    assert "is not int8" in found
    assert "is int32" in found
    signed = dataclasses.replace(cpu, activation="int8", bias="float32")
    found = " ".join(violations(quantise(inverted_residual.model, signed, photographs + 1).model, tensorrt))
    assert "zero point" in found


def test_tensorrt_gets_float_biases_and_keeps_activation_functions(
    inverted_residual, tensorrt, quantise, photographs, outputs
):
    written = quantise(inverted_residual.model, tensorrt, photographs)
    kinds = Counter(node.op_type for node in written.model.graph.node)
    assert kinds["Clip"] == 2
    for node in written.model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert through(written.model, node.input[0])[1]
            assert len(node.input) < 3 or constants(written.model)[node.input[2]].dtype == np.float32
    (expected,), (got,) = outputs(inverted_residual.model, photographs), outputs(written.model, photographs)
    assert decibels(expected, got) > 30


def test_tensorrt_gets_the_skip_input_of_an_addition_alone(
    inverted_residual, tensorrt, quantise, photographs
):
    """Fault R28."""
    written = quantise(inverted_residual.model, tensorrt, photographs)
    skip, branch = producer(written.model, "s").input
    assert through(written.model, skip) == ("c2", True)
    assert through(written.model, branch) == ("c3", False)


def test_of_two_convolutions_that_are_added_one_is_the_skip(build, tensorrt, quantise, photographs):
    nodes = [
        conv("x", "w0", "a"),
        conv("x", "w1", "b"),
        ("Add", ["a", "b"], ["s"], {}),
        ("Relu", ["s"], ["r"], {}),
        conv("r", "w2", "y"),
    ]
    net = build(nodes, {"w0": random(8, 3, 3, 3), "w1": random(8, 3, 3, 3, seed=1), "w2": random(8, 8, 3, 3)})
    written = quantise(net.model, tensorrt, photographs)
    assert [through(written.model, name)[1] for name in producer(written.model, "s").input] == [False, True]


def test_silu_is_never_split(build, tensorrt, quantise, photographs):
    """Fault R28: nothing between a convolution and its Sigmoid and Mul; the skip of the block quantised."""
    nodes = [
        conv("x", "w0", "a"),
        conv("a", "w1", "c"),
        ("Sigmoid", ["c"], ["g"], {}),
        ("Mul", ["c", "g"], ["m"], {}),
        ("Add", ["a", "m"], ["s"], {}),
        conv("s", "w1", "y"),
    ]
    net = build(nodes, {"w0": random(8, 3, 3, 3), "w1": random(8, 8, 3, 3)})
    model = quantise(net.model, tensorrt, photographs).model
    assert producer(model, "g").input == ["c"]
    assert producer(model, "m").input == ["c", "g"]
    assert [through(model, name) for name in producer(model, "s").input] == [("a", True), ("m", False)]


def test_inputs_and_output_of_a_concatenation_share_a_scale_for_tensorrt(
    build, tensorrt, quantise, photographs
):
    """Fault R28."""
    nodes = [
        conv("x", "w0", "a"),
        conv("x", "w1", "b"),
        ("Concat", ["a", "b"], ["k"], {"axis": 1}),
        ("Relu", ["k"], ["r"], {}),
        conv("k", "w2", "y"),
    ]
    net = build(nodes, {"w0": random(4, 3, 3, 3), "w1": random(4, 3, 3, 3) * 3, "w2": random(8, 8, 3, 3)})
    scales = quantised(quantise(net.model, tensorrt, photographs).model)
    assert scales["a"] == scales["b"] == scales["k"]


@pytest.mark.parametrize("placement", ["all", "inputs"])
def test_scores_survive_beside_boxes(placement, build, cpu, tensorrt, quantise, photographs, outputs):
    """Fault R4: a head that concatenates boxes of hundreds with scores below 1."""
    nodes = [
        conv("x", "w0", "c"),
        ("Relu", ["c"], ["r"], {}),
        conv("r", "w1", "boxes"),
        conv("r", "w2", "logits"),
        ("Sigmoid", ["logits"], ["scores"], {}),
        ("Concat", ["boxes", "scores"], ["y"], {"axis": 1}),
    ]
    weights = {"w0": random(8, 3, 3, 3), "w1": random(2, 8, 3, 3) * 200, "w2": random(1, 8, 3, 3) / 8}
    net = build(nodes, weights)
    written = quantise(net.model, cpu if placement == "all" else tensorrt, photographs)
    (expected,), (got,) = outputs(net.model, photographs), outputs(written.model, photographs)
    assert "Concat" in {left.op for left in written.left}
    scores, before = got[:, 2].ravel(), expected[:, 2].ravel()
    assert len(np.unique(scores)) > 100
    assert np.corrcoef(scores.argsort().argsort(), before.argsort().argsort())[0, 1] > 0.999


def test_unlike_inputs_keep_a_concatenation_before_a_convolution_float(build, cpu, quantise, photographs):
    nodes = [
        conv("x", "w0", "a"),
        conv("x", "w1", "b"),
        ("Concat", ["a", "b"], ["k"], {"axis": 1}),
        conv("k", "w2", "y"),
    ]
    weights = {"w0": random(4, 3, 3, 3), "w1": random(4, 3, 3, 3), "w2": random(8, 8, 3, 3)}
    like = quantise(build(nodes, weights).model, cpu, photographs)
    assert not like.left
    unlike = quantise(build(nodes, {**weights, "w1": weights["w1"] * 100}).model, cpu, photographs)
    assert [(left.op, "differ" in left.why) for left in unlike.left] == [("Concat", True)]


def test_a_bias_for_each_row_of_a_product_is_none_for_each_channel(
    build, cpu, quantise, photographs, outputs
):
    """As many rows as columns, so that its size does not tell."""
    nodes = [("Reshape", ["x", "shape"], ["m"], {}), ("Gemm", ["m", "w", "b"], ["y"], {})]
    weights = {"shape": np.array([4, 48]), "w": random(48, 4), "b": np.float32([[0], [100], [200], [300]])}
    net = build(nodes, weights, batch=1)
    written = quantise(net.model, cpu, photographs)
    (expected,), (got,) = outputs(net.model, photographs), outputs(written.model, photographs)
    assert decibels(expected, got) > 40
    assert ["bias" in left.why for left in written.left if left.op == "Gemm"] == [True]
