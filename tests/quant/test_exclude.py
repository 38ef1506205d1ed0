"""Layers that the user keeps float."""

import numpy as np
import onnx
import pytest
from penjing.errors import StepError
from penjing_quant.mixed import MixedPrecision
from penjing_quant.static import StaticQuantisation


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def net(build):
    nodes = [
        ("Conv", ["x", "stem.0.weight"], ["a"], {"pads": [1] * 4}),
        ("Relu", ["a"], ["r"], {}),
        ("Conv", ["r", "body.0.weight"], ["b"], {}),
        ("Conv", ["b", "body.1.weight"], ["c"], {}),
        ("GlobalAveragePool", ["c"], ["p"], {}),
        ("Flatten", ["p"], ["f"], {}),
        ("Gemm", ["f", "head.weight"], ["y"], {"transB": 1}),
    ]
    weights = {
        "stem.0.weight": random(8, 3, 3, 3), "body.0.weight": random(8, 8, 1, 1),
        "body.1.weight": random(8, 8, 1, 1, seed=1), "head.weight": random(4, 8),
    }  # fmt: skip
    return build(nodes, weights)


def float_layers(path):
    """Return the layers whose weight is a float initialiser."""
    model = onnx.load(path)
    held = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    kinds = ("Conv", "Gemm")
    return [node.name for node in model.graph.node if node.op_type in kinds and node.input[1] in held]


@pytest.mark.parametrize("step", [StaticQuantisation, MixedPrecision])
@pytest.mark.parametrize(
    ("exclude", "expected"),
    [
        (("b_node",), ["b_node"]),
        (("b_node", "y_node"), ["b_node", "y_node"]),
        (("body.*",), ["b_node", "c_node"]),
        (("head",), ["y_node"]),
        (("?_node",), ["a_node", "b_node", "c_node", "y_node"]),
    ],
)
def test_nodes_are_kept_float_by_name_module_or_pattern(
    step, exclude, expected, net, apply, cpu, tensorrt, photographs
):
    for scheme in (cpu, tensorrt):
        given = step(exclude=exclude, float_layers=0)
        result, context = apply(given, net, scheme, photographs)
        if result.value != net.path:
            assert float_layers(result.value) == expected
            left = {entry["node"]: entry["why"] for entry in context.details["left_float"]}
            assert {name for name, why in left.items() if "excluded by name" in why} >= set(expected)
        else:
            assert len(expected) == 4  # all of them, so that nothing was left to do


def test_what_is_excluded_stays_so_in_the_naive_form():
    assert StaticQuantisation(exclude=("head",)).naive().exclude == ("head",)
    assert StaticQuantisation(weight_bits=4).naive().weight_bits == 4


@pytest.mark.parametrize(
    ("name", "hint"), [("b_nod", "b_node"), ("hed", "head"), ("body.2*", "body.1"), ("", "Known")]
)
def test_a_name_that_is_no_nodes_is_an_error_with_the_nearest(name, hint, net, apply, cpu, photographs):
    with pytest.raises(StepError, match="names no node") as caught:
        apply(StaticQuantisation(exclude=(name,)), net, cpu, photographs)

    assert hint in caught.value.hint


def test_first_layers_say_that_integers_make_them_no_faster(net, apply, cpu, photographs):
    _, context = apply(StaticQuantisation(float_layers=1), net, cpu, photographs)

    left = {entry["node"]: entry["why"] for entry in context.details["left_float"]}
    assert "no faster" in left["a_node"]
