"""The backend on a machine without TensorRT: the graph, the command that builds it, and answers by simulation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from penjing.errors import InputError, StepError
from penjing.host import Host
from penjing.model import Model, Tensor
from penjing.testing import check_step, small_context
from penjing_tensorrt import rtx
from penjing_tensorrt.backend import TensorRT
from penjing_tensorrt.graph import read, shape_of


@pytest.fixture
def context(tmp_path: Path):
    """Return a function that makes a context for a device."""
    return lambda name="jetson-orin-nano", **options: small_context(
        tmp_path, device=name, backend=TensorRT(**options)
    )


def quantised(path: Path, *, zero_point: int = 0, batch: int | str = 1, half: bool = False) -> Model:
    """Write a convolution between QuantizeLinear and DequantizeLinear."""
    weight = np.random.default_rng(0).integers(-127, 128, (16, 16, 3, 3)).astype(np.int8)
    kind = np.float16 if half else np.float32
    constants = {
        "scale": np.asarray(0.02, kind), "zero": np.asarray(zero_point, np.int8), "w": weight,
        "ws": np.full(16, 0.001, kind), "wz": np.zeros(16, np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="quantise"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["dw"], axis=0),
        helper.make_node("Conv", ["d", "dw"], ["y"], name="conv", pads=[1, 1, 1, 1]),
    ]
    dtype = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    shape = [batch, 16, 8, 8]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, shape)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opset = 19 if half else 17
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9), path)
    known = None if isinstance(batch, str) else batch
    tensors = tuple(Tensor(name, (known, 16, 8, 8)) for name in "xy")
    return Model("onnx", path, "testing", path.name, tensors[:1], tensors[1:])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jetson-orin-nano", "rtx-3090@tensorrt-11", "x86-64-avx2"])
def test_it_keeps_its_promises_for_any_device(graph: Model, tmp_path: Path, name: str) -> None:
    check_step(TensorRT(), graph, small_context(tmp_path, device=name, backend=TensorRT()))


def test_elsewhere_the_graph_stays_and_the_report_tells_how_it_is_built(graph, context) -> None:
    where = context()
    made = TensorRT().apply(graph, where)

    assert made.value == graph.value
    build = where.details["build"]
    assert (build["tensorrt"], build["typing"], build["formats"]) == ("10.3", "weak", [])
    assert build["command"][0] == "/usr/src/tensorrt/bin/trtexec"
    assert build["measure"][1] == "--loadEngine=model.plan"
    assert "not built here: this machine" in where.details["engine"]
    assert "is not a Jetson Orin Nano" in TensorRT().available(where.device)
    json.dumps(where.details, allow_nan=False)


def test_precision_follows_the_graph(tmp_path: Path, device) -> None:
    model = quantised(tmp_path / "q.onnx")

    assert TensorRT().build_of(model, device("jetson-orin-nano")).formats == ("fp16", "int8")
    strong = TensorRT().build_of(model, device("rtx-3090@tensorrt-11"))
    assert (strong.typing, strong.formats) == ("strong", ("int8",))
    half = quantised(tmp_path / "h.onnx", half=True)
    assert TensorRT().build_of(half, device("jetson-orin-nano")).formats == ("fp16", "int8")
    assert read(half.value).formats == {"fp16", "int8"}


def test_a_float_graph_is_built_without_integers_and_the_user_is_told(graph, context) -> None:
    """The original, which the report compares with, goes through the same backend."""
    where = context()
    TensorRT(precision="int8").apply(graph, where)
    assert "--int8" not in where.details["build"]["command"]
    assert any("no scales" in warning for warning in where.warnings)


def test_a_quantised_graph_is_built_with_integers_without_a_word(context, tmp_path) -> None:
    where = context()
    TensorRT(precision="int8").apply(quantised(tmp_path / "q.onnx"), where)
    assert "--int8" in where.details["build"]["command"]
    assert not where.warnings


def test_a_layer_held_to_half_precision_allows_it_for_a_float_graph_too(graph, device) -> None:
    step = TensorRT(layers=("node_conv2d:fp16",))

    assert step.build_of(graph, device("rtx-3090")).formats == ("fp16",)


def test_answers_are_those_of_exact_integers(tmp_path: Path, device) -> None:
    """Q/DQ in floats: no kernel of this CPU rounds or saturates in its own way."""
    model = quantised(tmp_path / "q.onnx")
    session = TensorRT().open(model, device("jetson-orin-nano"))
    batch = np.random.default_rng(1).standard_normal((1, 16, 8, 8)).astype(np.float32)
    weights = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(model.value).graph.initializer
    }

    import torch

    integers = np.clip(np.rint(batch / np.float32(0.02)), -128, 127).astype(np.float64)
    wanted = torch.nn.functional.conv2d(
        torch.from_numpy(integers), torch.from_numpy(weights["w"].astype(np.float64)), padding=1
    ).numpy() * (0.02 * 0.001)
    assert np.allclose(session(batch)[0], wanted, atol=1e-6)


def test_a_batch_of_another_shape_or_a_broken_file_is_told(graph, tmp_path: Path, device) -> None:
    where = device("jetson-orin-nano")
    with pytest.raises(StepError, match="does not take a batch"):
        TensorRT().open(graph, where)(np.zeros((1, 3, 7, 7), np.float32))
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x07broken")
    broken = dataclasses.replace(graph, value=tmp_path / "broken.onnx")
    with pytest.raises(InputError, match="is not an ONNX file"):
        TensorRT().open(broken, where)
    newer = onnx.load(graph.value)
    newer.graph.node[0].op_type = "Unheard"
    onnx.save(newer, tmp_path / "newer.onnx")
    with pytest.raises(StepError, match="stands in for TensorRT here, cannot load"):
        TensorRT().open(dataclasses.replace(graph, value=tmp_path / "newer.onnx"), where)


def test_a_batch_that_the_graph_does_not_take_is_told_with_the_option_that_writes_it(graph, context) -> None:
    with pytest.raises(StepError, match=r"takes 1 images at a time, and tensorrt\.batch asks for 8") as error:
        TensorRT(batch=8).apply(graph, context())
    assert "onnx.export.batch=8" in error.value.hint


def test_an_open_batch_gets_a_profile_of_shapes(tmp_path: Path, device) -> None:
    model = quantised(tmp_path / "q.onnx", batch="N")
    build = TensorRT(batch=4, max_batch=16).build_of(model, device("jetson-orin-nano"))

    assert build.shapes == {"x": ((1, 16, 8, 8), (4, 16, 8, 8), (16, 16, 8, 8))}
    assert TensorRT().build_of(quantised(tmp_path / "one.onnx"), device("jetson-orin-nano")).shapes == {}


def test_sides_left_open_come_from_the_preprocessing_or_are_told(graph) -> None:
    seen = dataclasses.replace(read(graph.value), shape=(None, 3, None, None))

    assert shape_of(graph, seen, 2) == (2, 3, 32, 32)
    with pytest.raises(StepError, match="leaves sides of the image open"):
        shape_of(dataclasses.replace(graph, preprocess=None), seen, 2)


def test_the_bundle_is_told_how_to_build(tmp_path: Path, device) -> None:
    model = quantised(tmp_path / "q.onnx")
    order = TensorRT(level=4).deployment(model, device("jetson-orin-nano"))

    assert order.runtime == "tensorrt"
    assert order.build["precisions"] == ["fp16", "int8"]
    assert order.build["strongly_typed"] is False
    assert (order.build["workspace_mb"], order.build["optimization_level"]) == (1907, 4)
    assert "--int8" in order.build["command"]
    assert TensorRT().deployment(model, device("rtx-3090@tensorrt-11")).build["strongly_typed"] is True


def test_options_that_the_bundle_does_not_follow_are_told(graph, context) -> None:
    where = context()
    TensorRT(tf32=False, layers=("node_conv2d:fp32",)).apply(graph, where)

    assert "tensorrt.layers, tensorrt.tf32" in where.warnings[0]
    assert "command in the bundle's README" in where.warnings[0]


def test_results_depend_on_the_tensorrt_meant_and_on_what_is_here(device) -> None:
    step = TensorRT()
    facts = [
        step.resources(device(name), step) for name in ("jetson-orin-nano", "jetson-orin-nano@jetpack-5.1")
    ]

    assert facts[0] != facts[1]
    assert facts[0]["here"] == {}


def test_scheme_and_operators_are_those_of_the_device(device) -> None:
    assert TensorRT().scheme(device("jetson-nano")) is None
    assert TensorRT().scheme(device("jetson-orin-nano")).symmetric
    assert "HardSwish" not in TensorRT().operators(device("jetson-xavier-nx"))
    assert TensorRT().operators(device("x86-64-avx2")) is None


needs_rtx = pytest.mark.skipif(bool(rtx.available()), reason=rtx.available() or "it is here")


@pytest.mark.slow
@needs_rtx
def test_tensorrt_rtx_tries_the_graph_and_names_what_it_refuses(tmp_path: Path, context) -> None:
    where = context()
    TensorRT().apply(quantised(tmp_path / "good.onnx"), where)
    assert where.details["rtx"]["outcome"] == "accepted"
    with pytest.raises(StepError, match="zero points are 0"):
        TensorRT().apply(quantised(tmp_path / "bad.onnx", zero_point=5), where)


def test_without_tensorrt_rtx_the_report_says_so(graph, context, monkeypatch) -> None:
    monkeypatch.setattr(rtx, "available", lambda: "TensorRT-RTX is not installed")
    where = context()
    TensorRT().apply(graph, where)

    assert where.details["rtx"] == "not tried: TensorRT-RTX is not installed"


def test_an_undecided_gate_is_a_warning(graph, context, monkeypatch) -> None:
    monkeypatch.setattr(rtx, "available", lambda: "")
    monkeypatch.setattr(rtx, "gate", lambda *_: rtx.Verdict("undecided", ("8.6",), reason="it died"))
    where = context()
    TensorRT().apply(graph, where)

    assert any("it died" in warning for warning in where.warnings)


def test_the_plugin_brings_backend_and_command() -> None:
    import click

    host, group = Host(), click.Group()
    host.add_commands(group)

    assert host.steps["tensorrt"] is TensorRT
    assert "tune" in group.commands


def test_a_layer_that_the_network_does_not_have_cannot_be_held_to_a_precision(graph, device) -> None:
    with pytest.raises(StepError, match="'node_conv', which is no layer") as refused:
        TensorRT(layers=("node_conv:fp32",)).build_of(graph, device("rtx-3090"))

    assert "node_conv2d" in refused.value.hint
    assert TensorRT(layers=("*:fp32",)).build_of(graph, device("rtx-3090")).layers == {"*": "fp32"}
