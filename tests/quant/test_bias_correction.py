import numpy as np
import pytest
from penjing_quant.bias_correction import correct_bias, fit


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def decibels(expected, got):
    return 10 * np.log10(np.square(expected).sum() / max(np.square(got - expected).sum(), 1e-30))


@pytest.fixture
def net(build):
    """Depthwise layers whose channels differ tenfold: per-tensor weights shift what they put out."""
    spread = np.logspace(-0.5, 0.5, 16).astype(np.float32).reshape(-1, 1, 1, 1)
    nodes = [
        ("Conv", ["x", "w0"], ["a"], {"pads": [1] * 4}),
        ("Relu", ["a"], ["r"], {}),
        ("Conv", ["r", "w1", "b1"], ["c"], {"group": 16}),
        ("Relu", ["c"], ["s"], {}),
        ("GlobalAveragePool", ["s"], ["g"], {}),
        ("Flatten", ["g"], ["f"], {}),
        ("Gemm", ["f", "w2", "b2"], ["y"], {"transB": 1}),
    ]
    weights = {
        "w0": random(16, 3, 3, 3) * spread,
        "w1": random(16, 1, 3, 3, seed=1) / spread,
        "b1": random(16),
        "w2": random(5, 16),
        "b2": random(5),
    }
    return build(nodes, weights)


@pytest.mark.parametrize("scheme", ["cpu", "tensorrt"])
def test_correction_wins_back_what_quantisation_shifts(scheme, net, quantise, photographs, outputs, request):
    scheme = request.getfixturevalue(scheme)
    bright = np.abs(photographs) + 1
    seen, unseen = bright[:12], bright[12:]
    plain = quantise(net.model, scheme, seen, per_channel=False)
    corrected = correct_bias(net.model, plain, [image[None] for image in seen])
    better = quantise(corrected, scheme, seen, per_channel=False)
    (expected,), (before,), (after,) = (outputs(m, unseen) for m in (net.model, plain.model, better.model))
    assert decibels(expected, after) > decibels(expected, before) + 2


def test_the_fit_finds_gain_and_shift_of_each_channel():
    got = [random(1, 2, 5, 5, seed=i) for i in range(4)]
    gain, shift = np.array([1.2, 0.8], np.float32), np.array([3, -1], np.float32)
    expected = [q * gain.reshape(-1, 1, 1) + shift.reshape(-1, 1, 1) for q in got]
    found = fit(expected, got)
    assert np.allclose(found[0], gain, atol=1e-5)
    assert np.allclose(found[1], shift, atol=1e-5)


def test_a_photograph_that_saturates_does_not_bend_the_fit():
    got = [random(1, 1, 5, 5, seed=i) for i in range(9)]
    expected = [q + 1 for q in got]
    expected[4] = got[4] * 100
    gain, shift = fit(expected, got)
    assert gain == pytest.approx(1, abs=0.02)
    assert shift == pytest.approx(1, abs=0.02)


def test_a_constant_channel_keeps_its_gain():
    gain, shift = fit(
        [np.full((1, 1, 2, 2), 3.0, np.float32)] * 2, [np.full((1, 1, 2, 2), 1.0, np.float32)] * 2
    )
    assert (gain, shift) == (1, 2)


def test_a_network_with_branches_is_walked_with_what_they_read(build, cpu, quantise, photographs):
    """A branch of an If reads tensors of the graph around it without naming them as inputs."""
    from onnx import TensorProto, helper

    def branch(op, name):
        node = helper.make_node(op, ["a"], [name], name=f"{name}_node")
        return helper.make_graph(
            [node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)]
        )

    nodes = [
        ("Conv", ["x", "w0"], ["a"], {}),
        ("Conv", ["a", "w1"], ["c"], {}),
        ("If", ["yes"], ["i"], {"then_branch": branch("Relu", "t"), "else_branch": branch("Neg", "e")}),
        ("GlobalAveragePool", ["i"], ["g"], {}),
        ("GlobalAveragePool", ["c"], ["h"], {}),
        ("Add", ["g", "h"], ["s"], {}),
        ("Conv", ["s", "w2"], ["y"], {}),
    ]
    weights = {
        "w0": random(4, 3, 1, 1),
        "w1": random(4, 4, 3, 3),
        "w2": random(2, 4, 1, 1),
        "yes": np.array(True),
    }
    net = build(nodes, weights)
    plain = quantise(net.model, cpu, photographs)
    assert correct_bias(net.model, plain, [image[None] for image in photographs]) != net.model
