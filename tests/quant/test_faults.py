"""Faults that today's quantisers show, and others of their kind; each right result has a name."""

import dataclasses

import numpy as np
import onnx
import pytest
from penjing_quant.equalise import equalise
from penjing_quant.mixed import MixedPrecision
from penjing_quant.session import Network, sqnr
from penjing_quant.static import StaticQuantisation


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def decibels(expected, got):
    return 10 * np.log10(np.square(expected).sum() / max(np.square(got - expected).sum(), 1e-30))


def conv(x, w, y, **attributes):
    return ("Conv", [x, *w.split()], [y], {"pads": [1] * 4, **attributes})


def zeros(path):
    """Return all zero points of activations."""
    model = onnx.load(path)
    values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    return {int(values[n.input[2]]) for n in model.graph.node if n.op_type == "QuantizeLinear"}


BOTH = pytest.mark.parametrize(
    "step", [StaticQuantisation(float_layers=0), MixedPrecision(float_layers=0, sqnr=20.0)]
)


# -- R1, R2, R7: photographs and weights


@BOTH
@pytest.mark.parametrize("method", ["entropy", "percentile", "mse", "average"])
def test_a_last_batch_of_one_changes_nothing(method, step, build, apply, cpu, photographs):
    """Fault R1, with every method that a calibrator stacks batches for."""
    net = build([conv("x", "w", "y")], {"w": random(4, 3, 3, 3)})
    step = dataclasses.replace(step, method=method)
    first, _ = apply(step, net, cpu, photographs[:9], sizes=[9])
    second, _ = apply(step, net, cpu, photographs[:9], sizes=[2, 2, 2, 2, 1])
    assert first.value.read_bytes() == second.value.read_bytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["w", "b"])
def test_weights_that_are_no_numbers_are_named(name, bad, build):
    """A ReLU behind them may hide them from ranges of activations."""
    from penjing.errors import StepError

    weights = {"w": random(4, 3, 3, 3), "b": random(4)}
    weights[name].reshape(-1)[2] = bad
    with pytest.raises(StepError, match=rf"weights {name} of Conv a_node are NaN or infinite"):
        build([conv("x", "w b", "a"), ("Relu", ["a"], ["y"], {})], weights)


@BOTH
@pytest.mark.parametrize("shift", [-3.0, 1.0, 100.0])
def test_lopsided_photographs_have_zero_points_of_zero_for_tensorrt(
    shift, step, build, apply, tensorrt, photographs
):
    """Fault R2, shifted either way."""
    net = build([conv("x", "w b", "a"), conv("a", "v", "y")], {
        "w": random(4, 3, 3, 3), "b": random(4) + shift, "v": random(4, 4, 3, 3),
    })  # fmt: skip
    result, _ = apply(step, net, tensorrt, photographs + np.float32(shift))
    assert zeros(result.value) == {0}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 4, 19])
def test_a_photograph_that_is_no_numbers_is_named(bad, place, build, apply, cpu, photographs):
    """Fault R7, wherever it comes, among those held out too."""
    from penjing.errors import StepError

    net = build([conv("x", "w", "y")], {"w": random(4, 3, 3, 3)})
    spoilt = photographs.copy()
    spoilt[place, 1, 2, 3] = bad
    if place % 5 == 4:  # held out: it never measures a range
        spoilt[place - 1, 1, 2, 3] = bad
        place -= 1
    with pytest.raises(StepError, match=rf"photo{place}.jpg has pixels that are NaN or infinite"):
        apply(StaticQuantisation(), net, cpu, spoilt)


# -- R3, R5, R6: weights


@pytest.mark.parametrize("decades", [2, 4])
@pytest.mark.parametrize("length", [2, 3])
def test_a_chain_of_layers_with_spread_channels_is_recovered(
    length, decades, build, apply, cpu, photographs, outputs
):
    """Fault R3, along a chain in which each layer takes back what the one before spread."""

    def chain(spread):
        nodes, weights, before = [conv("x", "w0", "t0")], {"w0": random(16, 3, 3, 3)}, "t0"
        for i in range(1, length + 1):
            nodes.append(conv(before, f"d{i}", f"t{i}", group=16))
            scale = spread if i % 2 else 1 / spread
            weights[f"d{i}"] = random(16, 1, 3, 3, seed=i) * scale.reshape(-1, 1, 1, 1)
            before = f"t{i}"
        nodes.append(("Conv", [before, "last"], ["y"], {}))
        weights["last"] = random(8, 16, 1, 1) / (spread.reshape(-1, 1, 1) if length % 2 else 1)
        return build(nodes, weights, name=f"chain{spread[0]:g}.onnx")

    def quality(net, **options):
        result, _ = apply(
            StaticQuantisation(float_layers=0, method="minmax", **options), net, cpu, photographs
        )
        expected = outputs(net.model, photographs)[0]
        return decibels(expected, outputs(onnx.load(result.value), photographs)[0])

    net = chain(np.logspace(-decades / 2, decades / 2, 16).astype(np.float32))
    equal, pairs = equalise(net.model)
    assert pairs
    assert np.array_equal(outputs(equal, photographs)[0], outputs(net.model, photographs)[0])
    even = quality(chain(np.ones(16, np.float32)))
    assert quality(net) > even - 3
    assert quality(net, equalise=False, bias_correction=False) < even - 4


@BOTH
@pytest.mark.parametrize("scheme", ["cpu", "tensorrt"])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("kind", ["Conv", "depthwise", "Gemm", "ConvTranspose"])
def test_a_channel_as_good_as_dead_puts_out_its_bias(
    kind, per_channel, scheme, step, build, apply, photographs, outputs, request
):
    """Faults R5 and R6, for every kind of layer: masked pruning leaves such channels."""
    scheme = request.getfixturevalue(scheme)
    scheme = dataclasses.replace(scheme, operators=scheme.operators | {"ConvTranspose"})
    bias = np.array([0.5, 5, -3, 0], np.float32)
    if kind == "Gemm":
        nodes = [("Flatten", ["x"], ["f"], {}), ("Gemm", ["f", "w", "b"], ["y"], {"transB": 1})]
        weight, dead = random(4, 192), np.s_[1:3]
    elif kind == "depthwise":
        nodes = [conv("x", "v", "a"), conv("a", "w b", "y", group=4)]
        weight, dead = random(4, 1, 3, 3), np.s_[1:3]
    elif kind == "ConvTranspose":
        nodes = [("ConvTranspose", ["x", "w", "b"], ["y"], {})]
        weight, dead = random(3, 4, 2, 2), np.s_[:, 1:3]
    else:
        nodes = [conv("x", "w b", "y")]
        weight, dead = random(4, 3, 3, 3), np.s_[1:3]
    weight[dead] = np.array([0, 1e-9]).reshape(
        [2 if i == (kind == "ConvTranspose") else 1 for i in range(weight.ndim)]
    )
    net = build(
        nodes,
        {"w": weight, "b": bias, "v": random(4, 3, 3, 3)}
        if kind == "depthwise"
        else {"w": weight, "b": bias},
    )
    step = dataclasses.replace(step, per_channel=per_channel)
    result, _ = apply(step, net, scheme, photographs)
    (expected,), (got,) = outputs(net.model, photographs), outputs(onnx.load(result.value), photographs)
    assert np.isfinite(got).all()
    step_size = (expected.max() - expected.min()) / 255
    # half a step each for input and output, the former times what the layer amplifies
    assert np.abs(got - expected)[:, 1:3].max() <= 1.5 * step_size


# -- R4: heads of unlike ranges


@pytest.mark.parametrize("scheme", ["cpu", "tensorrt"])
@pytest.mark.parametrize("factor", [30, 1000])
def test_three_heads_of_unlike_ranges_keep_their_scores(
    factor, scheme, build, apply, photographs, outputs, request
):
    """Fault R4, with three heads, and with larger boxes."""
    nodes = [
        conv("x", "w0", "c"), ("Relu", ["c"], ["r"], {}), conv("r", "w1", "boxes"), conv("r", "w2", "logits"),
        conv("r", "w3", "more"), ("Sigmoid", ["logits"], ["scores"], {}), ("Sigmoid", ["more"], ["sure"], {}),
        ("Concat", ["boxes", "scores", "sure"], ["y"], {"axis": 1}),
    ]  # fmt: skip
    weights = {
        "w0": random(8, 3, 3, 3), "w1": random(2, 8, 3, 3) * factor, "w2": random(1, 8, 3, 3) / 8,
        "w3": random(1, 8, 3, 3, seed=1) / 8,
    }  # fmt: skip
    net = build(nodes, weights)
    result, context = apply(
        StaticQuantisation(float_layers=0), net, request.getfixturevalue(scheme), photographs
    )
    (expected,), (got,) = outputs(net.model, photographs), outputs(onnx.load(result.value), photographs)
    for channel in (2, 3):
        scores, before = got[:, channel].ravel(), expected[:, channel].ravel()
        assert len(np.unique(scores)) > 100
        assert np.corrcoef(scores.argsort().argsort(), before.argsort().argsort())[0, 1] > 0.99
    assert "Concat" in {left["op"] for left in context.details["left_float"]}


# -- R28: blocks


@pytest.mark.parametrize("gate", ["Sigmoid", "HardSigmoid"])
def test_nothing_splits_an_activation_function_of_two_operators(gate, build, apply, tensorrt, photographs):
    """Fault R28, with SiLU and with hard-swish written as a product."""
    nodes = [
        conv("x", "w0", "a"), conv("a", "w1", "c"), (gate, ["c"], ["g"], {}), ("Mul", ["c", "g"], ["m"], {}),
        ("Add", ["m", "a"], ["s"], {}), conv("s", "w1", "y"),
    ]  # fmt: skip
    net = build(nodes, {"w0": random(8, 3, 3, 3), "w1": random(8, 8, 3, 3)})
    for step in (StaticQuantisation(), MixedPrecision(sqnr=34.0, equalise=False, bias_correction=False)):
        model = onnx.load(apply(step, net, tensorrt, photographs)[0].value)
        made = {output: node for node in model.graph.node for output in node.output}
        inputs = {node.output[0]: list(node.input) for node in model.graph.node}
        assert inputs["g"] == ["c"]
        assert inputs["m"] == ["c", "g"]
        assert made["c"].op_type == "Conv"


# -- tied weights


@pytest.mark.parametrize("scheme", ["cpu", "tensorrt"])
@pytest.mark.parametrize(
    "step",
    [
        StaticQuantisation(float_layers=0),
        StaticQuantisation(float_layers=1),
        StaticQuantisation(float_layers=0, adaround=True, adaround_steps=20),
        StaticQuantisation(float_layers=0, exclude=("a_node",)),
        MixedPrecision(float_layers=0, sqnr=38.0),
        MixedPrecision(float_layers=0, sqnr=199.0),
    ],
    ids=["plain", "float", "adaround", "excluded", "mixed", "all-float"],
)
def test_a_layer_used_twice_stays_one_layer(step, scheme, build, apply, photographs, request):
    """Tied weights are equal after quantising, whatever recovers accuracy, and are stored once."""
    nodes = [
        conv("x", "w0", "i"), conv("i", "w", "a"), ("Relu", ["a"], ["r"], {}), conv("r", "w", "b"),
        ("GlobalAveragePool", ["b"], ["p"], {}), ("Flatten", ["p"], ["f"], {}),
        ("Gemm", ["f", "v"], ["g"], {"transB": 1}), ("Gemm", ["g", "v"], ["y"], {"transB": 0}),
    ]  # fmt: skip
    net = build(nodes, {"w0": random(8, 3, 3, 3), "w": random(8, 8, 3, 3), "v": random(4, 8)})
    result, _ = apply(step, net, request.getfixturevalue(scheme), photographs)
    from penjing_quant.layerwise import Reading

    reading = Reading.of(onnx.load(result.value))
    layers = {node.name: reading.values(node.input[1]) for node in reading.layers()}
    if step.exclude:  # by name: the other use is the user's to name, and goes on integers
        assert np.abs(layers["a_node"] - layers["b_node"]).max() < 0.05
        return
    assert np.array_equal(layers["a_node"], layers["b_node"])
    assert layers["g_node"].shape == layers["y_node"].shape
    count = sum(t.dims[:] == [8, 8, 3, 3] for t in onnx.load(result.value).graph.initializer)
    assert count == 1


def test_what_is_rounded_once_answers_the_same_alone_and_among_others(build, apply, cpu, photographs):
    """Fault R8: a photograph's answer does not depend on its neighbours in a batch."""
    import onnxruntime as ort

    net = build([conv("x", "w", "a"), ("Relu", ["a"], ["r"], {}), conv("r", "v", "y")], {
        "w": random(8, 3, 3, 3), "v": random(4, 8, 3, 3),
    })  # fmt: skip
    result, _ = apply(StaticQuantisation(float_layers=0), net, cpu, photographs)
    session = ort.InferenceSession(result.value, providers=["CPUExecutionProvider"])
    alone = session.run(None, {"x": photographs[:1]})[0]
    among = session.run(None, {"x": np.concatenate([photographs[:1], 20 * photographs[1:2]])})[0]
    assert np.array_equal(alone[0], among[0])


def test_sqnr_of_a_mixed_network_is_no_worse_than_that_of_a_static_one(build, apply, cpu, photographs):
    net = build(
        [conv("x", "w", "a"), conv("a", "v", "y")], {"w": random(8, 3, 3, 3), "v": random(4, 8, 3, 3)}
    )
    images = [image[None] for image in photographs]
    static, _ = apply(StaticQuantisation(float_layers=0), net, cpu, photographs)
    mixed, _ = apply(MixedPrecision(float_layers=0, sqnr=45.0), net, cpu, photographs)
    quality = [
        sqnr(Network(net.model), Network(onnx.load(one.value), simulated=True), images)
        for one in (static, mixed)
    ]
    assert quality[1] >= quality[0]
