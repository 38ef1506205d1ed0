"""`penjing dla`, and how a plan comes to end on the DLA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from dla_graphs import graph, weight
from penjing.api import Request, plan
from penjing.cli import cli
from penjing.errors import InputError, PlanError
from penjing.host import Host
from penjing.recipe import Recipe, Use, ending_with


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "network.onnx"
    text = """(float[N,8,14,14] x) => (float[M,5] y) {
        a = Conv<pads=[1,1,1,1]>(x, w); b = HardSwish(a); c = GlobalAveragePool(b); d = Flatten(c); y = Gemm(d, v)
    }"""
    onnx.save(graph(text, w=weight(8, 8, 3, 3), v=weight(8, 5)), path)
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["dla", *map(str, arguments)])


def test_the_command_lists_what_falls_back_with_the_reason_and_totals(network: Path) -> None:
    result = run(network)

    assert result.exit_code == 0
    assert "1 of 5 layers on DLA 2.0" in result.output
    assert "The batch is open" in result.output
    assert "TensorRT maps no HardSwish to the DLA" in result.output
    assert "Conv" not in result.output


def test_the_command_tells_what_rewriting_would_make_of_it(network: Path) -> None:
    result = run(network, "--adapt", "--all")

    assert "Rewritten: 8 of 9 layers" in result.output
    assert "1 × clip for hard sigmoid" in result.output
    assert "within the limits of a convolution layer" in result.output


def test_the_command_speaks_json(network: Path) -> None:
    table = json.loads(run(network, "--json", "--adapt", "--device", "jetson-xavier-nx").output)

    assert table["target"]["generation"] == 1
    assert (table["before"]["layers_on_dla"], table["layers_on_gpu"]) == (2, 1)
    assert table["rewrites"]["average in small windows"] == 1


def test_ranges_of_a_quantised_file_tell_which_layers_run_in_int8(tmp_path: Path) -> None:
    text = """(float[1,8,4,4] x) => (float[N] y) {
        q = QuantizeLinear(x, s, z); a = DequantizeLinear(q, s, z); b = Abs(a);
        r = QuantizeLinear(b, s, z); c = DequantizeLinear(r, s, z); y = Tanh(c)
    }"""
    onnx.save(graph(text, s=0.5, z=np.array(0, np.int8)), tmp_path / "q.onnx")

    layers = json.loads(run(tmp_path / "q.onnx", "--json").output)["layers"]

    assert [(layer["op"], layer["precision"]) for layer in layers] == [("Abs", "int8"), ("Tanh", "fp16")]


@pytest.mark.parametrize("device", ["jetson-orin-nano", "jetson-agx-orin@jetpack-7.2"])
def test_a_board_without_one_is_refused(network: Path, device: str) -> None:
    result = run(network, "--device", device)

    assert isinstance(result.exception, PlanError)
    assert result.exception.exit_code == 3


def test_a_file_that_is_no_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"\x08\x01nonsense")

    result = run(tmp_path / "x.onnx")

    assert "not an ONNX file" in str(result.exception)


# -- ending a plan on the DLA

STEPS = ("onnx.export", "quant.static", "tensorrt")
BACKENDS = frozenset({"onnxrt", "tensorrt", "dla"})


def test_a_setting_of_another_backend_ends_the_recipe_with_it() -> None:
    recipe = Recipe(tuple(map(Use, STEPS)), "a test")

    assert [use.name for use in ending_with(recipe, ["dla.core=1"], BACKENDS).uses] == [*STEPS[:2], "dla"]
    assert (
        ending_with(recipe, ["tensorrt.level=3", "quant.static.images=3", "dla.adapt.batch=2"], BACKENDS)
        == recipe
    )
    with pytest.raises(PlanError, match="dla and onnxrt"):
        ending_with(recipe, ["dla.core=1", "onnxrt.threads=2"], BACKENDS)


def test_the_plan_ends_on_the_dla_and_rewrites_for_it(tmp_path: Path) -> None:
    from penjing.testing import photographs, small_model

    host = Host()
    model = small_model(tmp_path, "onnx")
    data = photographs(tmp_path / "photographs")
    usual = plan(Request(str(model.value), "jetson-agx-orin", data=data), host=host)
    on_dla = plan(
        Request(str(model.value), "jetson-agx-orin", data=data, settings=("dla.core=1",)), host=host
    )

    assert [step.name for step in usual.optimised][-1] == "tensorrt"
    (left,) = [line for line in usual.lines if line.left_out]
    assert left.use.name == "dla.adapt"
    assert "--set dla.core=0" in left.left_out
    assert [step.name for step in on_dla.optimised][-3:] == ["dla.adapt", "quant.static", "dla"]
    assert "dla.adapt" not in [step.name for step in on_dla.original]
    with pytest.raises(PlanError, match="has no DLA"):
        plan(Request(str(model.value), "jetson-orin-nano", data=data, settings=("dla.core=0",)), host=host)


@pytest.mark.slow
def test_a_bundle_for_the_dla_holds_what_tensorrt_parses_and_its_ranges(tmp_path: Path) -> None:
    from penjing.api import compress
    from penjing.testing import photographs, small_model

    model = small_model(tmp_path, "onnx")
    data = photographs(tmp_path / "photographs")
    out = tmp_path / "run"

    report = compress(
        Request(str(model.value), "jetson-agx-orin", data=data, settings=("dla.core=1",), out=out)
    )

    bundle = out / "bundle"
    manifest = json.loads((bundle / "manifest.json").read_text())
    kinds = [node.op_type for node in onnx.load(bundle / "model.onnx").graph.node]
    measured = [node.op_type for node in onnx.load(out / "optimised" / "model.onnx").graph.node]
    assert manifest["runtime"]["build"]["calibration"] == "calibration.cache"
    assert manifest["runtime"]["build"]["dla_core"] == 1
    assert (bundle / "calibration.cache").read_text().startswith("TRT-100300-EntropyCalibration2\ninput: ")
    assert "QuantizeLinear" not in kinds
    assert "QuantizeLinear" in measured
    shown = {step["name"]: [exhibit["kind"] for exhibit in step["exhibits"]] for step in report["steps"]}
    assert shown["dla.adapt"] == shown["dla"] == ["table", "lanes", "table"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda model: model.graph.node[0].input.__setitem__(0, "nowhere"), "nowhere"),
        (lambda model: model.graph.initializer[0].dims.__setitem__(0, 10**12), "there are"),
        (lambda model: model.graph.node.pop(), "not an output of any node"),
        (lambda model: setattr(model.graph.input[0].type.tensor_type.shape.dim[2], "dim_value", -5), "-5"),
        (lambda model: setattr(model, "ir_version", 99), "ir_version 99"),
    ],
)
def test_a_damaged_graph_is_refused_and_says_what_is_wrong(network: Path, spoil: Any, said: str) -> None:
    model = onnx.load(network)
    spoil(model)
    network.write_bytes(model.SerializeToString())

    result = run(network)

    assert isinstance(result.exception, InputError)
    assert said in result.exception.message


def test_what_is_printed_fits_the_terminal_and_obeys_no_name(network: Path) -> None:
    model = onnx.load(network)
    model.graph.node[1].name = "evil\x1b[31m\nname"
    network.write_bytes(model.SerializeToString())

    lines = run(network, "--adapt", "--all").output.splitlines()

    assert max(map(len, lines)) <= 80
    assert not any("\x1b[31m" in line for line in lines)
