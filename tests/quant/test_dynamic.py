import dataclasses

import numpy as np
import onnx
import pytest
from penjing.errors import PlanError
from penjing_quant.dynamic import DynamicQuantisation


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def network(build, channels, features):
    nodes = [
        ("Conv", ["x", "w0"], ["c"], {}),
        ("GlobalAveragePool", ["c"], ["g"], {}),
        ("Flatten", ["g"], ["f"], {}),
        ("Gemm", ["f", "w1", "b1"], ["y"], {"transB": 1}),
    ]
    weights = {"w0": random(channels, 3, 3, 3), "w1": random(features, channels), "b1": random(features)}
    return build(nodes, weights)


def test_products_are_quantised_and_convolutions_never(build, apply, cpu, photographs, outputs):
    """Fault R8: integer convolutions with scales found at run time tie photographs of a batch together."""
    net = network(build, 4, 200)
    scheme = dataclasses.replace(cpu, reduce_range=True)  # exact on every CPU that runs this test
    result, context = apply(DynamicQuantisation(), net, scheme, None)
    kinds = [node.op_type for node in onnx.load(result.value).graph.node]
    assert "MatMulInteger" in kinds
    assert "ConvInteger" not in kinds
    assert "Conv" in kinds
    assert not context.warnings
    (expected,), (got,) = outputs(net.model, photographs), outputs(onnx.load(result.value), photographs)
    assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()


def test_convolutional_networks_are_told_that_it_does_little(build, apply, cpu):
    """Fault R8."""
    _, context = apply(DynamicQuantisation(), network(build, 40, 2), cpu, None)
    assert "93% of the weights are in convolutions" in context.warnings[0]


def test_a_network_without_products_stays_as_it_was(build, apply, cpu):
    net = build([("Conv", ["x", "w"], ["y"], {})], {"w": random(4, 3, 3, 3)})
    result, context = apply(DynamicQuantisation(), net, cpu, None)
    assert result.value == net.path
    assert "no matrix product" in context.warnings[0]


def test_tensorrt_is_refused_before_anything_runs(tensorrt):
    class Backend:
        name = "backend.test"
        scheme = staticmethod(lambda device: tensorrt)

    with pytest.raises(PlanError, match="no operators that quantise at run time"):
        DynamicQuantisation().check(None, Backend)
