"""Rounding weights as their layers need."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from penjing_quant.adaround import Weights, alive_bytes
from penjing_quant.integers import weight_codes, weight_limits
from penjing_quant.static import StaticQuantisation

ONCE = StaticQuantisation(
    float_layers=0, equalise=False, bias_correction=False, adaround=True, adaround_steps=150
)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def net(build):
    nodes = [
        ("Conv", ["x", "w0", "b0"], ["a"], {"pads": [1] * 4, "strides": [2, 2]}),
        ("Relu", ["a"], ["r"], {}),
        ("Conv", ["r", "w1"], ["c"], {"group": 4, "pads": [1, 1, 1, 1], "dilations": [1, 1]}),
        ("Clip", ["c", "lo", "hi"], ["k"], {}),
        ("GlobalAveragePool", ["k"], ["p"], {}),
        ("Flatten", ["p"], ["f"], {}),
        ("Gemm", ["f", "w2", "b2"], ["y"], {"transB": 1}),
    ]
    weights = {
        "w0": random(16, 3, 3, 3) / 5, "b0": random(16), "w1": random(16, 4, 3, 3) / 6,
        "lo": np.float32(0), "hi": np.float32(6), "w2": random(6, 16), "b2": random(6),
    }  # fmt: skip
    return build(nodes, weights)


def codes(path):
    model = onnx.load(path)
    return {
        t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer
        if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1
    }  # fmt: skip


@pytest.mark.parametrize("scheme", ["cpu", "tensorrt"])
def test_four_bits_lose_less_when_rounding_is_learnt(scheme, net, apply, photographs, outputs, request):
    scheme = request.getfixturevalue(scheme)
    expected = outputs(net.model, photographs)[0]
    noise = {}
    for adaround in (False, True):
        step = dataclasses.replace(ONCE, weight_bits=4, adaround=adaround)
        result, context = apply(step, net, scheme, photographs)
        noise[adaround] = np.square(outputs(onnx.load(result.value), photographs)[0] - expected).sum()
        assert all(array.min() >= -8 and array.max() <= 7 for array in codes(result.value).values())
        assert any("simulated" in warning for warning in context.warnings)
        assert context.details["weight_bits"] == "4, simulated"

    assert context.details["sqnr_db"]["adaround"] > context.details["sqnr_db"]["plain"]
    assert noise[True] < 0.6 * noise[False]


def test_the_same_seed_gives_the_same_bytes(net, apply, cpu, photographs):
    step = dataclasses.replace(ONCE, weight_bits=4, adaround_steps=30)
    first, second = (apply(step, net, cpu, photographs)[0] for _ in range(2))
    assert first.value.read_bytes() == second.value.read_bytes()


def test_learnt_weights_are_one_step_from_the_float_ones_at_most(net, apply, cpu, photographs):
    result, context = apply(ONCE, net, cpu, photographs)
    assert "adaround" in context.details["sqnr_db"]
    if context.details["sqnr_db"]["adaround"] > context.details["sqnr_db"]["plain"]:
        model = onnx.load(result.value)
        values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        node = next(n for n in model.graph.node if n.name == "a_node")
        trip = next(n for n in model.graph.node if node.input[1] in n.output)
        integers, scale = values[trip.input[0]], values[trip.input[1]]
        exact = {t.name: onnx.numpy_helper.to_array(t) for t in net.model.graph.initializer}["w0"]
        assert np.abs(integers * scale.reshape(-1, 1, 1, 1) - exact).max() <= scale.max() * 1.001


def test_it_is_kept_only_where_it_helps_photographs_held_out(net, apply, cpu, photographs, monkeypatch):
    from penjing_quant.adaround import Rounder

    def spoil(self, photographs):
        weights = Weights(self.best, self.best.written.model)
        array = weights.array("a_node")
        floor = np.zeros(len(array), np.float32)
        return {"a_node": weight_codes(-array, 0, self.scheme, floor, 8)}

    monkeypatch.setattr(Rounder, "run", spoil)
    result, context = apply(ONCE, net, cpu, photographs)
    plain, _ = apply(dataclasses.replace(ONCE, adaround=False), net, cpu, photographs)
    assert context.details["sqnr_db"]["adaround"] < context.details["sqnr_db"]["plain"]
    assert result.value.read_bytes() == plain.value.read_bytes()


def test_patches_times_weights_are_what_the_layer_puts_out(net, photographs):
    """A convolution with stride, padding and groups, and a product, as products of patches."""
    from penjing_quant.session import Network

    weights = Weights(SimpleNamespace(model=net.model), net.model)
    network = Network(net.model, ["r", "a", "f", "y", "c"], simulated=True)
    got = [network(image[None]) for image in photographs[:3]]
    for name, before, after in (("a_node", None, "a"), ("c_node", "r", "c"), ("y_node", "f", "y")):
        inputs = [
            image[None] if before is None else tensors[before]
            for image, tensors in zip(photographs[:3], got, strict=True)
        ]
        layer = weights.layer(name, inputs, [tensors[after] for tensors in got], np.random.default_rng(0))
        product = np.matmul(layer.inputs, layer.weight.transpose(0, 2, 1)).transpose(1, 0, 2)
        product = np.clip(product.reshape(len(layer.wanted), -1) + layer.bias, *layer.clip)
        np.testing.assert_allclose(product, layer.wanted, atol=1e-4)
        assert np.array_equal(weights.unfold(name, weights.fold(name)), weights.array(name))


def test_tied_weights_stay_as_they_are(build, apply, cpu, photographs):
    nodes = [
        ("Conv", ["x", "w"], ["a"], {"pads": [1] * 4}),
        ("Conv", ["a", "w"], ["b"], {"pads": [1] * 4}),
        ("Conv", ["b", "v"], ["y"], {}),
    ]
    net = build(nodes, {"w": random(3, 3, 3, 3) / 5, "v": random(4, 3, 1, 1)})
    result, _ = apply(dataclasses.replace(ONCE, weight_bits=4), net, cpu, photographs)
    model = onnx.load(result.value)
    read = [node.input[1] for node in model.graph.node if node.op_type == "Conv"]
    assert read[0] == read[1] != read[2]


def test_the_nearest_scale_leaves_less_error_than_the_widest(cpu):
    array = np.concatenate([random(4, 63), np.full((4, 1), 9, np.float32)], axis=1)
    floor = np.zeros(4, np.float32)
    errors = []
    for nearest in (False, True):
        weight = weight_codes(array, 0, cpu, floor, 4, nearest=nearest)
        assert weight.codes.min() >= -8
        errors.append(np.square(weight.codes * weight.scale[:, None] - array).sum())
    assert errors[1] < errors[0]
    assert weight_limits(cpu, 4) == (-8, 7)


def test_memory_is_told_from_the_shapes(net):
    assert alive_bytes(net.model) >= 2 * 4 * 3 * 8 * 8
