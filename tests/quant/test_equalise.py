import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from penjing_quant.equalise import equalise


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def conv(x, w, y, **attributes):
    return ("Conv", [x, *w.split()], [y], attributes)


def decibels(expected, got):
    return 10 * np.log10(np.square(expected).sum() / max(np.square(got - expected).sum(), 1e-30))


@pytest.mark.parametrize(
    ("between", "least"),
    [(None, 35), ("Relu", 35), ("LeakyRelu", 34), ("PRelu", 33), ("MaxPool", 35), ("AveragePool", 33)],
)
def test_a_spread_of_four_decades_is_evened_out(between, least, build, cpu, quantise, outputs):
    """Fault R3, whatever keeps to the scale of a channel between the layers."""
    photographs = np.random.default_rng(0).uniform(-1, 1, (20, 32, 8, 8)).astype(np.float32)
    spread = np.logspace(-3, 1, 32).astype(np.float32)
    nodes = [conv("x", "w1", "c", group=32), conv("r" if between else "c", "w2", "y")]
    if between:
        kernel = {"kernel_shape": [2, 2]} if between.endswith("Pool") else {}
        nodes.insert(1, (between, ["c", "slopes"] if between == "PRelu" else ["c"], ["r"], kernel))
    weights = {
        "slopes": np.linspace(-0.5, 2, 32, dtype=np.float32).reshape(-1, 1, 1),
        "w1": random(32, 1, 3, 3) * spread.reshape(-1, 1, 1, 1),
        "w2": random(8, 32, 1, 1) / spread.reshape(1, -1, 1, 1),
    }
    net = build(nodes, weights, image=(32, 8, 8))
    even, pairs = equalise(net.model)
    assert pairs == ["c_node → y_node"]
    (expected,), (same,) = outputs(net.model, photographs), outputs(even, photographs)
    np.testing.assert_array_equal(same, expected)
    (plain,) = outputs(quantise(net.model, cpu, photographs).model, photographs)
    (got,) = outputs(quantise(even, cpu, photographs).model, photographs)
    assert decibels(expected, plain) < 1
    assert decibels(expected, got) > least


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32), spread=st.floats(0, 6), group=st.sampled_from([1, 4]), dead=st.booleans())
def test_the_function_stays_the_same(seed, spread, group, dead, build, photographs, outputs):
    scale = np.float32(10) ** np.random.default_rng(seed).uniform(-spread, spread, (4, 1, 1, 1)).astype(
        np.float32
    )
    w0 = random(4, 3, 3, 3, seed=seed) * scale
    w0[0] *= not dead
    nodes = [
        conv("x", "w0 b0", "a"),
        ("Relu", ["a"], ["r"], {}),
        conv("r", "w1 b1", "c", group=group),
        conv("c", "w2", "y"),
    ]
    weights = {
        "w0": w0,
        "b0": random(4),
        "w1": random(8, 4 // group, 1, 1, seed=seed),
        "b1": random(8),
        "w2": random(3, 8, 1, 1, seed=seed),
    }
    net = build(nodes, weights)
    (expected,), (got,) = (
        outputs(net.model, photographs[:2]),
        outputs(equalise(net.model)[0], photographs[:2]),
    )
    np.testing.assert_array_equal(got, expected)


def test_a_clip_a_fork_and_shared_weights_keep_their_channels(build):
    spread = np.logspace(-3, 1, 4).astype(np.float32).reshape(-1, 1, 1, 1)
    weights = {
        "w0": random(4, 3, 1, 1) * spread,
        "w1": random(4, 4, 1, 1),
        "lo": np.float32(0),
        "hi": np.float32(6),
    }
    clip = [conv("x", "w0", "a"), ("Clip", ["a", "lo", "hi"], ["r"], {}), conv("r", "w1", "y")]
    fork = [conv("x", "w0", "a"), conv("a", "w1", "c"), ("Add", ["a", "c"], ["y"], {})]
    shared = [conv("x", "w0", "a"), conv("a", "w1", "c"), conv("c", "w1", "y")]
    for nodes in (clip, fork, shared):
        net = build(nodes, weights)
        assert equalise(net.model)[1] == []
