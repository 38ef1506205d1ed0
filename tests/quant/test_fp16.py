"""`quant.fp16`: what leaves float16's range or precision stays float32; a CPU, which hides that, is no judge."""

import types

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from penjing.errors import PlanError, StepError
from penjing.model import Model, Tensor
from penjing.preprocess import Preprocess
from penjing_quant.fp16 import HalfPrecision

RANDOM = np.random.default_rng(0)


def random(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def conv(x, w, y, **attributes):
    return ("Conv", [x, *w.split()], [y], {"pads": [1] * 4, **attributes})


PHOTOS = np.random.default_rng(5).standard_normal((20, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def apply(tmp_path, split):
    """Return a function that writes float16 into a network for a device, and returns the graph and the context."""
    from penjing.goal import Goal
    from penjing.step import Context

    def run(net, pixels=PHOTOS, *, max_opset=20, **options):
        folder = tmp_path / f"step{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        device = types.SimpleNamespace(name="board", max_opset=max_opset, precisions=("fp32", "fp16"))
        data = None if pixels is None else types.SimpleNamespace(calibrate=split(pixels))
        context = Context(device, Goal(), data, folder, None)
        model = Model("onnx", net.path, "net", "0", (Tensor("x", (None, 3, 8, 8)),), preprocess=Preprocess())
        result = HalfPrecision(**options).apply(model, context)
        return onnx.load(result.value), context

    return run


def kinds(context):
    return {island["op"]: island["why"] for island in context.details["islands"]}


def types_of(model):
    """Return the type of every tensor by name."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    found = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    return found | {t.name: t.data_type for t in model.graph.initializer}


FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


@pytest.fixture
def plain(build):
    nodes = [
        conv("x", "w0 b0", "c"),
        ("Relu", ["c"], ["r"], {}),
        conv("r", "w1", "d"),
        ("Sigmoid", ["d"], ["y"], {}),
    ]
    return build(nodes, {"w0": random(8, 3, 3, 3), "b0": random(8), "w1": random(4, 8, 3, 3)})


def test_a_sound_network_computes_in_float16_between_float32_inputs_and_outputs(plain, apply):
    model, context = apply(plain)

    assert [v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)] == [FLOAT, FLOAT]
    assert {t.data_type for t in model.graph.initializer} == {HALF}
    assert [n.op_type for n in model.graph.node] == ["Cast", "Conv", "Relu", "Conv", "Sigmoid", "Cast"]
    assert context.details["islands"] == []
    assert context.details["sqnr_db"] > 50
    assert not context.warnings


def test_the_file_is_half_the_size(build, apply):
    net = build(
        [conv("x", "w0", "c"), conv("c", "w1", "y")], {"w0": random(64, 3, 3, 3), "w1": random(64, 64, 3, 3)}
    )
    model, _ = apply(net)

    assert model.ByteSize() < 0.52 * net.path.stat().st_size


def test_what_reaches_beyond_float16_stays_float32_and_so_does_what_reads_it(build, apply):
    nodes = [
        conv("x", "w0", "c"),
        ("Mul", ["c", "k"], ["m"], {}),
        ("Mul", ["m", "j"], ["n"], {}),
        conv("n", "w1", "y"),
    ]
    net = build(
        nodes,
        {
            "w0": random(8, 3, 3, 3),
            "k": np.float32(20000),
            "j": np.float32(1 / 20000),
            "w1": random(4, 8, 3, 3),
        },
    )
    model, context = apply(net)

    kinds_ = types_of(model)
    assert (kinds_["c"], kinds_["m"]) == (HALF, FLOAT)
    assert "m reaches" in context.details["islands"][0]["why"]
    assert "float16 ends at 65504" in context.details["islands"][0]["why"]
    assert context.details["sqnr_db"] > 50


def test_an_overflow_that_the_cpu_hides_is_found_where_nothing_is_kept_float32(build, apply, outputs):
    """ONNX Runtime computes these nodes in float32, so that running the graph would look well."""
    nodes = [
        ("Mul", ["x", "k"], ["m"], {}),
        ("Mul", ["m", "j"], ["n"], {}),
        conv("n", "w1", "y"),
    ]
    net = build(nodes, {"k": np.float32(60000), "j": np.float32(1 / 20000), "w1": random(4, 3, 3, 3)})

    _, context = apply(net, islands=False)
    assert context.details["sqnr_db"] is None
    assert any("infinite" in warning for warning in context.warnings)

    _, context = apply(net)
    assert context.details["sqnr_db"] > 50
    assert set(kinds(context)) == {"Mul"}


def test_headroom_decides_how_near_the_end_a_tensor_may_come(build, apply):
    net = build(
        [("Mul", ["x", "k"], ["m"], {}), conv("m", "w", "y")],
        {"k": np.float32(5000), "w": random(4, 3, 3, 3) / 1e4},
    )

    assert kinds(apply(net, headroom=1.0)[1]) == {}
    assert "Mul" in kinds(apply(net, headroom=4.0)[1])


@pytest.mark.parametrize("scale", [1e-6, 1e-8])
def test_weights_below_the_normal_numbers_stay_float32(scale, build, apply):
    weight = random(8, 3, 3, 3)
    weight[2] *= scale
    spread = np.ones((8, 1, 1), np.float32)
    spread[2] = 1 / scale
    nodes = [conv("x", "w0", "c"), ("Mul", ["c", "k"], ["m"], {}), conv("m", "w1", "y")]
    _, context = apply(build(nodes, {"w0": weight, "k": spread, "w1": random(4, 8, 3, 3)}))

    assert "1 of its 8 channels" in kinds(context)["Conv"]
    assert context.details["sqnr_db"] > 50


def test_a_dead_channel_beside_its_bias_keeps_nothing_float32(build, apply):
    """As fault R5 has it: weights of 1e-9 with a bias of 5."""
    weight = random(4, 3, 3, 3)
    weight[1] *= 1e-9
    _, context = apply(
        build([conv("x", "w b", "y")], {"w": weight, "b": np.array([0, 5, 1, -1], np.float32)})
    )

    assert context.details["islands"] == []


def test_a_constant_that_float16_rounds_to_nothing_stays(build, apply):
    """The epsilon of a normalisation written out: 1e-12 would become 0, and the division NaN."""
    nodes = [
        ("Sub", ["x", "x"], ["zero"], {}),
        ("Add", ["zero", "epsilon"], ["safe"], {}),
        ("Div", ["zero", "safe"], ["d"], {}),
        ("Add", ["x", "d"], ["y"], {}),
    ]
    _, context = apply(build(nodes, {"epsilon": np.float32(1e-12)}))

    assert {"safe_node", "d_node"} <= {island["node"] for island in context.details["islands"]}
    assert context.details["sqnr_db"] > 50


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (("LayerNormalization", ["f", "ones", "zeros"], ["d"], {}), "sums squares"),
        (("ReduceSum", ["f", "axis"], ["d"], {"keepdims": 1}), "sums 3072 terms"),
        (("Softmax", ["f"], ["d"], {"axis": 1}), "sums 3072 terms"),
    ],
)
def test_deep_reductions_and_normalisations_stay_float32(node, reason, build, apply):
    nodes = [conv("x", "w", "c"), ("Flatten", ["c"], ["f"], {}), node, ("Add", ["d", "k"], ["y"], {})]
    weights = {
        "w": random(48, 3, 3, 3), "ones": np.ones(3072, np.float32), "zeros": np.zeros(3072, np.float32),
        "k": np.float32(1), "axis": np.array([1], np.int64),
    }  # fmt: skip
    _, context = apply(build(nodes, weights))

    assert reason in kinds(context)[node[0]]
    assert set(kinds(context)) == {node[0]}


def test_pooling_over_a_large_map_stays_float32_and_over_a_small_one_does_not(build, apply):
    nodes = [("GlobalAveragePool", ["x"], ["y"], {})]
    large = np.random.default_rng(0).standard_normal((4, 3, 64, 64)).astype(np.float32)

    assert kinds(apply(build(nodes, {}))[1]) == {}
    assert (
        "sums 4096 terms" in kinds(apply(build(nodes, {}, image=(3, 64, 64)), large)[1])["GlobalAveragePool"]
    )


def test_a_product_whose_sums_leave_the_range_stays_float32(build, apply):
    nodes = [
        ("Mul", ["x", "k"], ["a"], {}), ("Transpose", ["a"], ["t"], {"perm": [0, 1, 3, 2]}),
        ("MatMul", ["a", "t"], ["m"], {}), ("Mul", ["m", "j"], ["y"], {}),
    ]  # fmt: skip
    _, context = apply(build(nodes, {"k": np.float32(40), "j": np.float32(1e-3)}), headroom=1.0)

    assert "its sums can reach" in kinds(context)["MatMul"]


def test_a_layer_used_twice_keeps_one_weight(build, apply):
    net = build([conv("x", "w", "c"), conv("c", "w", "y")], {"w": random(3, 3, 3, 3)})
    model, _ = apply(net)

    assert len(model.graph.initializer) == 1
    assert len({n.input[1] for n in model.graph.node if n.op_type == "Conv"}) == 1


def test_indices_shapes_and_operators_without_float16_keep_their_types(build, apply):
    nodes = [
        conv("x", "w", "c"),
        ("Resize", ["c", "", "scales"], ["u"], {"mode": "nearest"}),
        ("Shape", ["u"], ["s"], {}),
        ("Reshape", ["u", "s"], ["v"], {}),
        ("TopK", ["v", "k"], ["t", "i"], {}),
        ("Cast", ["i"], ["j"], {"to": 1}),
        ("Add", ["t", "j"], ["y"], {}),
    ]
    weights = {
        "w": random(4, 3, 3, 3),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "k": np.array([3], np.int64),
    }
    model, _ = apply(build(nodes, weights))

    found = types_of(model)
    assert found["scales"] == FLOAT
    assert (found["c"], found["t"], found["j"]) == (HALF, HALF, HALF)


@pytest.fixture
def quantised(build, tensorrt, quantise, tmp_path):
    nodes = [
        conv("x", "w0 b0", "c"),
        ("Relu", ["c"], ["r"], {}),
        conv("r", "w1", "d"),
        ("Add", ["r", "d"], ["a"], {}),
        ("Sigmoid", ["a"], ["g"], {}),
        ("Mul", ["a", "g"], ["m"], {}),
        conv("m", "w2", "y"),
    ]
    net = build(
        nodes,
        {"w0": random(8, 3, 3, 3), "b0": random(8), "w1": random(8, 8, 3, 3), "w2": random(4, 8, 3, 3)},
        opset=18,
    )
    net.written = quantise(net.model, tensorrt, PHOTOS)
    net.path = tmp_path / "quantised.onnx"
    onnx.save(net.written.model, net.path)
    return net


def qdq(model):
    return [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]


def test_the_float_part_of_a_quantised_graph_becomes_float16_with_scales_to_match(quantised, apply):
    model, context = apply(quantised)

    found = types_of(model)
    assert model.opset_import[0].version == 19
    assert len(qdq(model)) == len(qdq(quantised.written.model))
    assert all(found[n.input[1]] == HALF for n in qdq(model) if n.op_type == "DequantizeLinear")
    assert context.details["islands"] == []
    assert context.details["sqnr_db"] > 30


def test_quantising_and_dequantising_keep_one_scale(quantised, apply):
    model, _ = apply(quantised)

    values = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    made = {n.output[0]: n for n in model.graph.node}
    pairs = [
        (made[n.input[0]], n) for n in qdq(model) if n.op_type == "DequantizeLinear" and n.input[0] in made
    ]
    assert pairs
    assert all(np.array_equal(values[q.input[1]], values[d.input[1]]) for q, d in pairs)


def test_where_the_opset_gives_scales_no_float16_quantised_layers_stay_float32(quantised, apply):
    model, context = apply(quantised, max_opset=18)

    found = types_of(model)
    assert model.opset_import[0].version == 18
    assert all(found[n.input[1]] == FLOAT for n in qdq(model))
    assert found["g"] == HALF
    assert set(kinds(context)) == {"Conv"}


def with_weight_scale(quantised, weight, change):
    """Rewrite the weight called `weight` so that `change` of its scales leaves what it stands for as it is."""
    model = quantised.written.model
    node = next(n for n in model.graph.node if n.op_type == "DequantizeLinear" and weight in n.output[0])
    scale = next(t for t in model.graph.initializer if t.name == node.input[1])
    scale.CopyFrom(onnx.numpy_helper.from_array(change(onnx.numpy_helper.to_array(scale).copy()), scale.name))
    onnx.save(model, quantised.path)


def first_becomes(value):
    def change(scales):
        scales[0] = value
        return scales

    return change


@pytest.mark.parametrize("scale", [3e-5, 2e-6, 1.3e-7])
def test_codes_of_a_weight_change_where_float16_has_no_scale_as_fine(scale, quantised, apply):
    """Small channels, as folded normalisation leaves them, keep no layer float32."""
    with_weight_scale(quantised, "w1", first_becomes(scale))
    before = onnx.load(quantised.path)

    model, context = apply(quantised)

    def weight(model):
        values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        node = next(n for n in model.graph.node if n.op_type == "DequantizeLinear" and "w1" in n.output[0])
        return values[node.input[0]][0].astype(np.float64) * values[node.input[1]][0].astype(np.float64)

    assert context.details["islands"] == []
    error = np.abs(weight(model) - weight(before)).max()
    assert error <= max(2 * scale, 2.0**-24) / 2 * 1.001
    assert context.details["sqnr_db"] > 30


def test_a_scale_that_float16_does_not_reach_keeps_its_layer_float32(quantised, apply):
    with_weight_scale(quantised, "w1", first_becomes(1e-10))

    halved, context = apply(quantised)

    assert kinds(context) == {"Conv": "a scale of its Q/DQ is too small for float16"}
    assert types_of(halved)["d"] == FLOAT
    assert context.details["sqnr_db"] > 30


def test_a_dead_channel_of_a_quantised_layer_keeps_nothing_float32(quantised, apply):
    """As fault R5 has it: what cannot be seen beside its bias may vanish."""
    with_weight_scale(quantised, "w0", first_becomes(1e-12))

    _, context = apply(quantised)

    assert context.details["islands"] == []


def test_a_device_without_float16_is_refused_before_anything_runs():
    device = types.SimpleNamespace(name="board", precisions=("fp32", "int8"))

    with pytest.raises(PlanError, match="board does not compute in fp16, only in fp32, int8"):
        HalfPrecision().check(device, None)


def test_no_photographs_are_an_error_that_says_so(plain, apply):
    with pytest.raises(StepError, match="no photograph"):
        apply(plain, None)


def test_a_float16_network_stays_as_it_was(plain, apply):
    model, _ = apply(plain)
    onnx.save(model, plain.path)

    again, context = apply(plain)

    assert again == model
    assert any("stays as it was" in warning for warning in context.warnings)


def test_the_report_shows_what_stayed_float32_and_why(build, apply):
    nodes = [
        ("Flatten", ["x"], ["f"], {}),
        ("Softmax", ["f"], ["s"], {}),
        ("LpNormalization", ["s"], ["y"], {}),
    ]
    _, context = apply(build(nodes, {}))

    (table,) = context.exhibits
    assert table.head == ("layer", "operator", "why")
    assert ("y_node", "LpNormalization", "it sums squares") in table.rows
