import dataclasses
import time

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from penjing.step import Silent
from penjing_quant.layers import FEW, fastest, first, layers, pack, stem
from penjing_quant.session import sqnr
from penjing_quant.static import StaticQuantisation


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def net(build):
    """A stem of a convolution and a depthwise one, two large layers of one weight, and a matrix product."""
    nodes = [
        ("Conv", ["x", "w0"], ["a"], {"pads": [1] * 4}),
        ("Conv", ["a", "w1"], ["b"], {"group": 36}),
        ("Conv", ["b", "w2"], ["c"], {}),
        ("Relu", ["c"], ["r"], {}),
        ("Conv", ["r", "w2"], ["d"], {}),
        ("GlobalAveragePool", ["d"], ["p"], {}),
        ("Flatten", ["p"], ["f"], {}),
        ("Gemm", ["f", "w3"], ["y"], {"transB": 1}),
    ]
    weights = {
        "w0": random(36, 3, 3, 3),
        "w1": random(36, 1, 3, 3),
        "w2": random(36, 36, 1, 1),
        "w3": random(30, 36),
    }
    return build(nodes, weights)


def test_layers_are_the_nodes_with_weights_in_order(net):
    assert layers(net.model) == ["a_node", "b_node", "c_node", "d_node", "y_node"]


def test_the_stem_is_the_first_convolution_and_depthwise_ones_behind_it(net, build):
    assert stem(net.model) == 2
    wide = build([("Conv", ["x", "w"], ["y"], {})], {"w": random(4, 3, 7, 7)})
    assert stem(wide.model) == 0


def test_layers_that_share_a_weight_are_float_together(net):
    assert first(net.model, 3) == {"a_node", "b_node", "c_node", "d_node"}
    assert first(net.model, 0) == frozenset()


def test_packed_weights_are_bytes_and_the_network_computes_as_before(net, cpu, photographs, outputs):
    packed = pack(net.model, first(net.model, 5), cpu)
    onnx.checker.check_model(packed, full_check=True)
    kinds = {i.name: numpy_helper.to_array(i).dtype.name for i in packed.graph.initializer}
    assert list(kinds.values()).count("int8") == 2  # w2 once, and w3
    assert kinds["w0"] == kinds["w1"] == "float32"  # too few numbers to be worth it
    (exact,), (got,) = outputs(net.model, photographs), outputs(packed, photographs)
    assert 10 * np.log10(np.square(exact).sum() / np.square(got - exact).sum()) > 35
    assert net.model.graph.initializer[0].data_type == onnx.TensorProto.FLOAT


def test_onnxruntime_folds_packed_weights_when_it_loads_them(net, cpu, fused):
    packed = pack(net.model, first(net.model, 5), cpu)
    assert not {"Cast", "Mul"} & set(fused(packed))


def test_packing_a_channel_of_zeros_and_a_bias_changes_neither(build, cpu, photographs, outputs):
    """Fault R6."""
    weight = random(32, 3, 4, 4)
    weight[3] = 0
    assert weight.size >= FEW
    net = build([("Conv", ["x", "w", "b"], ["y"], {})], {"w": weight, "b": random(32)})
    (exact,), (got,) = outputs(net.model, photographs), outputs(pack(net.model, ["y_node"], cpu), photographs)
    assert np.array_equal(exact[:, 3], got[:, 3])
    assert np.isfinite(got).all()


def slept(milliseconds):
    def load(count):
        def session(batch):
            time.sleep(milliseconds[count] / 1e3)
            return [batch]

        return session

    return load


def test_the_fastest_count_is_found_between_the_first_tries(monkeypatch):
    monkeypatch.setattr("penjing_quant.layers.SECONDS", 0.01)
    cost = {count: 2 + abs(count - 12) / 2 for count in range(19)}
    choice = fastest(2, 18, slept(cost), random(1, 3, 8, 8), Silent())
    assert choice.count == 12
    assert choice.relative[2] == 1
    assert choice.relative[12] < 0.7


def test_the_usual_count_stays_where_all_are_alike(monkeypatch):
    monkeypatch.setattr("penjing_quant.layers.SECONDS", 0.01)
    monkeypatch.setattr("penjing_quant.layers.GAIN", 0.5)
    cost = dict.fromkeys(range(17), 2)
    assert fastest(2, 16, slept(cost), random(1, 3, 8, 8), Silent()).count == 2


def test_a_slow_network_is_not_timed(monkeypatch):
    monkeypatch.setattr("penjing_quant.layers.SLOW", 0.0)
    assert fastest(2, 16, slept({2: 1}), random(1, 3, 8, 8), Silent()).relative == {2: 1.0}


def test_the_stem_stays_float_on_x86_and_nothing_does_on_arm(net, apply, cpu, photographs):
    _, context = apply(StaticQuantisation(), net, cpu, photographs)
    assert context.details["float_layers"] == 2
    assert context.details["quantised"] == {"Conv": [2, 4], "Gemm": [1, 1]}
    _, context = apply(StaticQuantisation(), net, cpu, photographs, arch="aarch64")
    assert context.details["float_layers"] == 0


def test_tensorrt_gets_no_float_layers_unless_told(net, apply, tensorrt, photographs):
    _, context = apply(StaticQuantisation(), net, tensorrt, photographs)
    assert context.details["float_layers"] == 0
    result, context = apply(StaticQuantisation(float_layers=2), net, tensorrt, photographs)
    assert context.details["float_layers"] == 2
    assert "Cast" not in {node.op_type for node in onnx.load(result.value).graph.node}


def test_all_layers_float_is_a_network_of_packed_weights(net, apply, cpu, photographs):
    from penjing_quant.session import Network

    result, context = apply(StaticQuantisation(float_layers=99), net, cpu, photographs)
    model = onnx.load(result.value)
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in model.graph.node}
    assert not context.warnings
    images = [image[None] for image in photographs]
    assert sqnr(Network(net.model), Network(model), images) > 35


def test_float_layers_are_timed_only_where_the_device_is_here(cpu):
    backend = type("Backend", (), {"name": "b", "scheme": lambda s, d: cpu, "available": lambda s, d: ""})()
    device = type("Device", (), {"here": True})()
    facts = StaticQuantisation().resources(device, backend)
    assert facts["timed"]
    assert not StaticQuantisation(float_layers=0).resources(device, backend)["timed"]
    inputs = dataclasses.replace(cpu, placement="inputs")
    backend = type("Backend", (), {"name": "b", "scheme": lambda s, d: inputs})()
    assert not StaticQuantisation().resources(device, backend)["timed"]


def test_hardswish_is_warned_of_where_nothing_can_be_timed(build, apply, cpu, photographs):
    nodes = [
        ("Conv", ["x", "w"], ["a"], {}),
        ("HardSwish", ["a"], ["h"], {}),
        ("Conv", ["h", "v"], ["y"], {}),
    ]
    net = build(nodes, {"w": random(8, 3, 1, 1), "v": random(8, 8, 1, 1)})
    _, context = apply(StaticQuantisation(), net, cpu, photographs)
    assert any("HardSwish" in warning for warning in context.warnings)
    _, context = apply(StaticQuantisation(float_layers=1), net, cpu, photographs)
    assert not context.warnings
