"""Loadables, crossings, shares and notes of a whole network; row R29 of the list of faults."""

from __future__ import annotations

import json

import onnx
import pytest
from dla_graphs import ORIN, graph, weight
from hypothesis import given, settings
from hypothesis import strategies as st
from penjing_tensorrt.dla.limits import Target
from penjing_tensorrt.dla.place import place


def chain(operations: list[str]) -> onnx.ModelProto:
    """Return a chain of operations on N×8×16×16."""
    names = ["x", *(f"t{number}" for number in range(1, len(operations))), "y"]
    lines = [
        f"{after} = {each}({before})"
        for each, before, after in zip(operations, names, names[1:], strict=False)
    ]
    return graph(f"(float[1,8,16,16] x) => (float[N] y) {{ {'; '.join(lines)} }}")


def test_a_network_that_fits_is_one_loadable_and_crosses_nowhere() -> None:
    placement = place(chain(["Relu", "Sigmoid", "Tanh"]), ORIN)

    assert (placement.loadables, placement.to_dla, placement.to_gpu) == (1, 0, 0)
    assert {layer.loadable for layer in placement.layers} == {0}


def test_every_layer_on_the_gpu_splits_the_network() -> None:
    placement = place(chain(["Relu", "Erf", "Relu", "Relu", "Erf", "Relu"]), ORIN)

    assert [layer.loadable for layer in placement.layers] == [0, None, 1, 1, None, 2]
    assert (placement.loadables, placement.to_dla, placement.to_gpu) == (3, 2, 2)
    assert placement.reasons() == {"Erf: not mapped": 2}


def test_a_branch_through_the_gpu_splits_what_is_before_it_from_what_joins_it() -> None:
    """Else a path would leave the loadable and come back, and neither could run first."""
    model = graph(
        "(float[1,8,4,4] x) => (float[N] y) { a = Relu(x); b = Erf(a); c = Tanh(a); y = Add(b, c) }"
    )

    placement = place(model, ORIN)

    assert [layer.loadable for layer in placement.layers] == [0, None, 0, 1]
    assert (placement.to_dla, placement.to_gpu) == (1, 1)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(["Relu", "Erf"]), min_size=1, max_size=12))
def test_a_chain_has_a_loadable_for_each_run_of_dla_layers(operations: list[str]) -> None:
    runs = "".join("d" if each == "Relu" else "g" for each in operations)

    placement = place(chain(operations), ORIN)

    assert placement.loadables == len([run for run in runs.split("g") if run])
    assert (placement.to_gpu, placement.to_dla) == (runs.count("dg"), runs.count("gd"))


def test_more_loadables_than_a_core_holds_are_told() -> None:
    placement = place(chain(["Relu", "Erf"] * 17), ORIN)

    assert placement.loadables == 17
    assert any("a core holds 16" in note for note in placement.notes)
    assert any(
        "a core holds 4" in note for note in place(chain(["Relu", "Erf"] * 5), Target(2, (8, 4, 1))).notes
    )


def test_the_share_is_that_of_multiply_accumulates() -> None:
    model = graph(
        "(float[1,8,4,4] x) => (float[N] y) { a = Conv(x, w); y = Conv<strides=[9,9]>(a, v) }",
        w=weight(8, 8, 1, 1),
        v=weight(8, 8, 1, 1),
    )
    placement = place(model, ORIN)

    assert [layer.macs for layer in placement.layers] == [8 * 8 * 16, 8 * 8]
    assert placement.share == pytest.approx(16 / 17)


def test_layers_with_a_tensor_that_has_no_range_run_in_fp16() -> None:
    placement = place(chain(["Relu", "Abs", "Sigmoid"]), ORIN, scales={"x", "t1"})

    assert [layer.precision for layer in placement.layers] == ["int8", "fp16", "fp16"]


def test_strong_typing_leaves_fp32_to_the_gpu() -> None:
    placement = place(chain(["Relu", "Abs"]), Target(2, (11, 4, 1), strongly_typed=True), scales={"x", "t1"})

    assert [(layer.device, layer.rule) for layer in placement.layers] == [
        ("DLA", "activation"),
        ("GPU", "strong typing"),
    ]


# -- R29: what a builder would tell in one line of its log each


def test_each_layer_of_a_detector_that_falls_back_is_told_with_its_reason_and_in_the_totals() -> None:
    model = graph(
        """(float[N,8,16,16] x) => (float[N] y) {
            a = MaxPool<kernel_shape=[13,13], pads=[6,6,6,6]>(x);
            b = MatMul(a, a);
            c = Softmax<axis=3>(b);
            d = Reshape(c, five);
            y = Slice(d, zero, two, two)
        }""",
        five=[1, 2, 4, 16, 16],
        zero=[0],
        two=[2],
    )
    placement = place(model, Target(1, (8, 5, 2)), batch=1)

    assert [(layer.op, layer.rule) for layer in placement.on_gpu] == [
        ("MaxPool", "pooling window"),
        ("MatMul", "matrix"),
        ("Softmax", "softmax"),
        ("Reshape", "shuffle rank"),
        ("Slice", "slice rank"),
    ]
    assert all(layer.why for layer in placement.layers)
    assert sum(placement.reasons().values()) == 5
    assert any("batch is open" in note and "taken as 1" in note for note in placement.notes)


def test_an_open_batch_is_fixed_or_else_keeps_every_layer_off_the_dla() -> None:
    model = graph("(float[N,8,16,16] x) => (float[N] y) { y = Relu(x) }")

    fixed, left = place(model, ORIN, batch=2), place(model, ORIN, batch=None)

    assert fixed.layers[0].shape == (2, 8, 16, 16)
    assert [layer.rule for layer in left.layers] == ["static shapes"]
    assert any("one size" in note for note in left.notes)


def test_what_depends_on_shapes_alone_is_no_layer() -> None:
    model = graph(
        """(float[1,8,4,4] x) => (float[N] y) {
            s = Shape(x); one = Constant<value_ints=[0]>(); n = Gather(s, one); rest = Constant<value_ints=[8,16,1]>();
            size = Concat<axis=0>(n, rest); y = Reshape(x, size)
        }"""
    )
    assert [layer.op for layer in place(model, ORIN).layers] == ["Reshape"]


def test_a_placement_is_json() -> None:
    table = json.loads(json.dumps(place(chain(["Relu", "Erf"]), ORIN).to_dict()))

    assert table["target"]["version"] == "10.3.0"
    assert (table["layers_on_dla"], table["layers_on_gpu"]) == (1, 1)
    assert table["layers"][1]["rule"] == "not mapped"


def test_placing_changes_nothing_of_the_model() -> None:
    model = graph("(float[N,8,16,16] x) => (float[N] y) { a = Relu(x); y = Identity(a) }")
    before = model.SerializeToString(deterministic=True)

    place(model, ORIN)

    assert model.SerializeToString(deterministic=True) == before
