"""A quantised network beside the float one, layer by layer."""

import numpy as np
import onnx
import pytest
from penjing_quant.layerwise import Reading, examine
from penjing_quant.static import StaticQuantisation


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def net(build):
    nodes = [
        ("Conv", ["x", "w0"], ["a"], {"pads": [1] * 4}),
        ("Relu", ["a"], ["r"], {}),
        ("Conv", ["r", "w1", "b1"], ["b"], {}),
        ("Conv", ["b", "w2"], ["y"], {}),
    ]
    spoilt = random(8, 8, 1, 1)
    spoilt[:, 0] *= 500  # one scale for all, so that the others drown
    return build(nodes, {"w0": random(8, 3, 3, 3), "w1": spoilt, "b1": random(8), "w2": random(4, 8, 1, 1)})


@pytest.mark.parametrize("scheme", ["cpu", "tensorrt"])
def test_the_layer_at_fault_is_found_and_those_after_it_inherit(scheme, net, quantise, photographs, request):
    written = quantise(net.model, request.getfixturevalue(scheme), photographs, per_channel=False)
    layers, tensors = examine(net.model, written.model, [image[None] for image in photographs])
    alone = {layer.name: layer.isolated for layer in layers}
    after = {layer.name: layer.cumulative for layer in layers}

    assert [layer.name for layer in layers] == ["a_node", "b_node", "y_node"]
    assert all(layer.integer for layer in layers)
    assert min(alone, key=alone.get) != "a_node"
    assert after["y_node"] < alone["y_node"] + 1
    assert after["a_node"] == pytest.approx(alone["a_node"], abs=0.2)
    assert {tensor.name for tensor in tensors} <= {"x", "r", "b", "y"}
    assert all(tensor.clipped == 0 for tensor in tensors)  # ranges by MinMax of the same photographs


def test_what_saturates_is_counted(net, cpu, quantise, photographs):
    written = quantise(net.model, cpu, photographs[:4] / 4)
    _, tensors = examine(net.model, written.model, [image[None] for image in photographs])
    first = next(tensor for tensor in tensors if tensor.name == "x")
    below, above = (
        photographs < first.kept_low - first.scale / 2,
        photographs > first.kept_high + first.scale / 2,
    )
    assert first.clipped == pytest.approx((below | above).mean())
    assert first.clipped > 0.1


def test_weights_are_read_as_what_their_codes_stand_for(net, cpu, apply, photographs):
    result, _ = apply(
        StaticQuantisation(float_layers=2, equalise=False, bias_correction=False), net, cpu, photographs
    )
    reading = Reading.of(onnx.load(result.value))
    exact = {t.name: onnx.numpy_helper.to_array(t) for t in net.model.graph.initializer}
    for node in reading.layers():
        values = reading.values(node.input[1])
        name = {"a_node": "w0", "b_node": "w1", "y_node": "w2"}[node.name]
        assert values.shape == exact[name].shape
        assert np.abs(values - exact[name]).max() < np.abs(exact[name]).max() / 30


def test_the_report_shows_each_layer_and_marks_those_in_float(net, cpu, apply, photographs):
    _, context = apply(StaticQuantisation(float_layers=1), net, cpu, photographs)
    (picture,) = context.exhibits
    assert list(picture.values) == ["a_node", "b_node", "y_node"]
    assert list(picture.marked) == ["a_node"]
    assert picture.unit == "dB"
