"""The ONNX Runtime backend: what graphs it wants of each device, and sessions of small real models."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from penjing import here
from penjing.errors import InputError, StepError
from penjing.host import Host
from penjing.model import Model, Tensor
from penjing_onnxrt.backend import OnnxRuntime


@pytest.fixture
def network(tmp_path):
    """Return a function that writes a network of one node kind and returns it as a model."""

    def make(nodes=(("Relu", ["x"], ["y"]),), batch="N", outputs=("y",), inputs=("x",), opset=17):
        def values(names):
            return [helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, 3, 4, 4]) for n in names]

        graph = helper.make_graph(
            [helper.make_node(*node) for node in nodes], "net", values(inputs), values(outputs)
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        path = tmp_path / "net.onnx"
        path.write_bytes(model.SerializeToString())
        shape = (batch if isinstance(batch, int) else None, 3, 4, 4)
        return Model("onnx", path, "net", "0", (Tensor("x", shape),))

    return make


@pytest.mark.parametrize(
    ("device", "activation", "reduce_range"),
    [
        ("x86-64-avx2", "uint8", True),
        ("x86-64-avx512", "uint8", True),
        ("x86-64-avx512-vnni", "uint8", False),
        ("intel-n100", "uint8", False),  # AVX-VNNI
        ("raspberry-pi-3", "int8", False),
        ("raspberry-pi-4", "int8", False),
        ("raspberry-pi-5", "int8", False),
    ],
)
def test_each_cpu_gets_the_integers_its_kernels_are_fast_and_exact_on(device, activation, reduce_range):
    scheme = OnnxRuntime().scheme(Host(entry_points=False).device(device))
    assert (scheme.activation, scheme.weight) == (activation, "int8")
    assert scheme.reduce_range == reduce_range
    assert scheme.per_channel
    assert not scheme.symmetric
    assert {"Conv", "Gemm", "MatMul", "Add"} <= scheme.operators


@pytest.mark.parametrize("isa", [{"amx"}, {"avx2", "avx_vnni"}, {"avx2", "avx512", "avx512_vnni"}])
def test_whichever_way_a_cpu_adds_products_in_32_bits_weights_take_all_8(isa):
    device = dataclasses.replace(here.this_machine(), arch="x86_64", isa=frozenset(isa))
    assert not OnnxRuntime().scheme(device).reduce_range


def test_a_cpu_of_which_nothing_is_known_is_treated_as_the_weakest():
    device = dataclasses.replace(here.this_machine(), arch="x86_64", isa=frozenset())
    assert OnnxRuntime().scheme(device).reduce_range


def test_latency_is_for_the_device_at_hand():
    device = here.this_machine()
    assert OnnxRuntime().available(device) == ""
    away = dataclasses.replace(device, here=False, title="Board")
    assert "is not a Board" in OnnxRuntime().available(away)


@pytest.mark.parametrize("where", [True, False])
def test_a_session_runs_batches(network, where):
    device = dataclasses.replace(here.this_machine(), here=where)
    session = OnnxRuntime().open(network(), device)
    batch = np.random.default_rng(0).standard_normal((5, 3, 4, 4)).astype(np.float32)
    (output,) = session(batch)
    assert np.array_equal(output, np.maximum(batch, 0))


def test_a_session_returns_every_output_in_order(network):
    model = network((("Neg", ["x"], ["a"]), ("Abs", ["x"], ["b"])), batch=4, outputs=("b", "a"))
    batch = np.full((4, 3, 4, 4), -2, np.float32)
    absolute, negative = OnnxRuntime().open(model, here.this_machine())(batch)
    assert (absolute == 2).all()
    assert (negative == 2).all()


def test_a_batch_that_does_not_fit_is_told_with_both_shapes(network):
    session = OnnxRuntime().open(network(batch=4), here.this_machine())
    with pytest.raises(StepError, match=r"batch of shape \[2, 3, 4, 4\]") as error:
        session(np.zeros((2, 3, 4, 4), np.float32))
    assert "[4, 3, 4, 4]" in error.value.hint


def test_a_model_that_onnxruntime_cannot_load_is_told_in_one_line(network):
    model = network((("NoSuchOperator", ["x"], ["y"]),))
    with pytest.raises(StepError, match="cannot load") as error:
        OnnxRuntime().open(model, here.this_machine())
    assert "\n" not in error.value.message
    assert "penjing doctor" in error.value.hint


def test_a_model_of_two_inputs_is_refused_by_name(network):
    model = network((("Add", ["x", "z"], ["y"]),), inputs=("x", "z"))
    with pytest.raises(InputError, match=r"2 inputs \(x, z\)"):
        OnnxRuntime().open(model, here.this_machine())


def test_the_step_tells_which_nodes_run_and_leaves_the_model_alone(network, tmp_path):
    model = network((("Relu", ["x"], ["a"]), ("Neg", ["a"], ["y"])))
    folder = tmp_path / "step"
    folder.mkdir()
    content = model.value.read_bytes()
    context = SimpleNamespace(folder=folder, device=here.this_machine(), details={})
    assert OnnxRuntime().apply(model, context) == model
    assert context.details["nodes"] == {"Relu": 1, "Neg": 1}
    assert list(folder.iterdir()) == []
    assert model.value.read_bytes() == content
    away = SimpleNamespace(
        folder=folder, device=dataclasses.replace(here.this_machine(), here=False), details={}
    )
    OnnxRuntime().apply(model, away)
    assert "nodes" not in away.details


def test_elsewhere_integers_are_computed_exactly_and_not_by_this_machines_kernels(tmp_path):
    """Without VNNI this CPU saturates sums of two products; the device that is simulated may not."""
    weight = np.full((1, 8, 1, 1), 127, np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "s", "zw"], ["dw"]),
        helper.make_node("Conv", ["d", "dw"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "so", "z"], ["qc"]),
        helper.make_node("DequantizeLinear", ["qc", "so", "z"], ["y"]),
    ]
    weights = {
        "s": np.float32(1), "so": np.float32(1100), "z": np.uint8(0), "zw": np.int8(0), "w": weight
    }  # fmt: skip
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 2, 2])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )  # fmt: skip
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    model = Model("onnx", path, "net", "0", (Tensor("x", (1, 8, 2, 2)),))
    away = dataclasses.replace(here.this_machine(), here=False)
    (output,) = OnnxRuntime().open(model, away)(np.full((1, 8, 2, 2), 255, np.float32))
    exact = round(8 * 127 * 255 / 1100) * 1100
    assert (output == exact).all()


def test_the_key_of_a_result_names_the_runtime():
    facts = OnnxRuntime().resources(here.this_machine(), OnnxRuntime())
    assert facts["onnxruntime"]
    assert facts["here"] is True
