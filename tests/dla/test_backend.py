"""The backend `dla`: boards and releases refused, commands for each release, and what an engine is built from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from dla_graphs import graph, weight
from penjing.errors import PlanError, StepError
from penjing.host import Host
from penjing.model import Model, Tensor
from penjing.testing import small_context
from penjing_tensorrt.dla.backend import Dla, release_of
from penjing_tensorrt.dla.calibration_cache import read
from penjing_tensorrt.dla.limits import boards, dla_of
from penjing_tensorrt.dla.log import placed
from penjing_tensorrt.dla.outputs import Shaped
from penjing_tensorrt.trtexec import build_command

HOST = Host()
ZERO = np.array(0, np.int8)


def model_of(proto: onnx.ModelProto, folder: Path) -> Model:
    path = folder / "given.onnx"
    onnx.save(proto, path)
    shape = tuple(dim.dim_value or None for dim in proto.graph.input[0].type.tensor_type.shape.dim)
    return Model("onnx", path, "given.onnx", "0", (Tensor("x", shape),), (Tensor("y", (None,)),))


def quantised(tail: str = "y = Relu(c)") -> onnx.ModelProto:
    """Return a convolution on integers, and a tail that reads it, `c`."""
    return graph(
        f"""(float[1,4,8,8] x) => (float[N] y) {{
            q = QuantizeLinear(x, s, zero); a = DequantizeLinear(q, s, zero);
            b = Conv(a, w); r = QuantizeLinear(b, u, zero); c = DequantizeLinear(r, u, zero); {tail}
        }}""",
        s=0.5, u=0.25, zero=ZERO, w=weight(4, 4, 3, 3),
    )  # fmt: skip


def applied(
    proto: onnx.ModelProto, folder: Path, step: Dla | None = None, device: str = "jetson-agx-orin"
) -> tuple[Model, Any]:
    """Return what the backend made, and the context with its details."""
    step = step or Dla()
    context = dataclasses.replace(small_context(folder, device=device, backend=step), data=None)
    return step.apply(model_of(proto, folder), context), context


# -- the plan


@pytest.mark.parametrize(
    "name", ["jetson-orin-nano", "jetson-thor", "jetson-nano", "rtx-3090", "raspberry-pi-5"]
)
def test_a_board_without_a_dla_is_refused_with_those_that_have_one(name: str) -> None:
    with pytest.raises(PlanError, match="has no DLA") as refused:
        Dla().check(HOST.device(name), Dla())

    assert all(
        board in refused.value.hint for board in ("jetson-agx-orin", "jetson-orin-nx", "jetson-xavier-nx")
    )


def test_a_release_that_dropped_it_is_refused_with_those_that_have_it() -> None:
    with pytest.raises(PlanError, match=r"10\.16") as refused:
        Dla().check(HOST.device("jetson-agx-orin@jetpack-7.2"), Dla())

    assert "10.3,<10.8 (JetPack 6.1 to 6.2.2)" in refused.value.hint
    assert "11.4.1" in refused.value.hint
    assert "--device jetson-agx-orin@jetpack-5.1 or" in refused.value.hint
    assert "@jetpack-7.2 " not in refused.value.hint + " "


@pytest.mark.parametrize("specifier", ["==10.8.*", "==10.13.*", "==11.3.*", "==11.4.0", "==9.*"])
def test_no_release_between_10_8_and_11_4_1_can_use_a_dla(specifier: str) -> None:
    device = dataclasses.replace(HOST.device("jetson-agx-orin"), runtime={"tensorrt": specifier})

    with pytest.raises(PlanError, match="cannot use the DLA"):
        dla_of(device)


@pytest.mark.parametrize("board", boards())
def test_every_stack_with_a_dla_in_its_profile_can_be_planned_for(board: str) -> None:
    for stack in HOST.device(board).stacks:
        device = HOST.device(f"{board}@{stack}")
        if device.dla_cores:
            Dla().check(device, Dla())
            assert dla_of(device).generation == device.dla_generation
            assert "--useDLACore=0" in Dla().explain(device, Dla())


def test_a_core_that_is_not_there_is_refused() -> None:
    with pytest.raises(PlanError, match="cores 0 to 1, not 2"):
        Dla(core=2).check(HOST.device("jetson-agx-orin"), Dla())
    one = dataclasses.replace(HOST.device("jetson-orin-nx"), dla_cores=1)
    with pytest.raises(PlanError, match="one core, 0, not 1"):
        Dla(core=1).check(one, Dla())


def test_a_memory_that_is_no_power_of_two_is_refused() -> None:
    with pytest.raises(PlanError, match=r"dla\.local_dram=1000 is no power of two") as refused:
        Dla(local_dram=1000).check(HOST.device("jetson-agx-orin"), Dla())

    assert refused.value.hint.startswith("512")


# -- commands

HEAD = ["--onnx=model.onnx", "--saveEngine=model.plan"]
INT8 = ["--fp16", "--int8"]
HELD = ["--precisionConstraints=prefer", "--layerPrecisions=n1:fp16"]
CALIB, CORE = "--calib=calibration.cache", ["--useDLACore=0", "--allowGPUFallback"]
MEMORY = "--memPoolSize=workspace:{},dlaSRAM:1,dlaLocalDRAM:1024,dlaGlobalDRAM:512"
OLD, NEW = "--buildOnly", "--skipInference"
COMMANDS = {
    "jetson-xavier-nx@jetpack-4.6": [*HEAD, *INT8, CALIB, "--workspace=1907", *CORE, OLD],
    "jetson-xavier-nx@jetpack-5.1": [*HEAD, *INT8, *HELD, CALIB, MEMORY.format(1907), *CORE, OLD],
    "jetson-orin-nx@jetpack-6.0": [*HEAD, *INT8, *HELD, CALIB, MEMORY.format(3814), *CORE, NEW],
    "jetson-agx-orin@jetpack-6.2": [*HEAD, *INT8, *HELD, CALIB, MEMORY.format(15258), *CORE, NEW],
    "jetson-agx-orin@jetpack-7.2.2": [*HEAD, MEMORY.format(15258), *CORE, "--adjustForDLA", NEW],
}


@pytest.mark.parametrize(("name", "flags"), COMMANDS.items())
def test_the_command_for_each_release_has_the_flags_that_it_knows(name: str, flags: list[str]) -> None:
    device = HOST.device(name)
    target = dla_of(device)

    build = Dla().build(device, target, "int8", {"n1": "fp16"})
    command = build_command(release_of(target), build, onnx="model.onnx", engine="model.plan")

    assert [flag for flag in command[1:] if flag not in HELD or flag in flags] == flags


def test_fp16_needs_no_ranges_and_a_network_may_be_held_to_the_dla() -> None:
    device = HOST.device("jetson-agx-orin")
    target = dla_of(device)
    build = Dla(core=1, gpu_fallback=False).build(device, target, "fp16", {})
    command = build_command(release_of(target), build, onnx="model.onnx", engine="model.plan")

    assert "--int8" not in command
    assert not any(flag.startswith("--calib") for flag in command)
    assert "--useDLACore=1" in command
    assert "--allowGPUFallback" not in command


# -- what is made


def test_a_quantised_network_gives_a_plain_graph_a_cache_and_the_precision_of_what_stays_float(
    tmp_path: Path,
) -> None:
    model, context = applied(quantised("y = Sigmoid(c)"), tmp_path)

    plain = onnx.load(context.folder / "dla.onnx")
    assert [node.op_type for node in plain.graph.node] == ["Conv", "Sigmoid"]
    cache = read((context.folder / "calibration.cache").read_text())
    assert cache.version == (10, 3, 0)
    assert cache.scales == {"x": 0.5, "b": 0.25}
    assert model.value == context.folder / "model.onnx"
    assert any(node.op_type == "QuantizeLinear" for node in onnx.load(model.value).graph.node)
    build = context.details["build"]
    assert f"--layerPrecisions={plain.graph.node[1].name}:fp16" in build["command"]
    assert "--calib=calibration.cache" in build["command"]
    assert context.details["placement"]["layers_on_dla"] == 2
    assert context.details["calibrated_tensors"] == 2
    assert context.details["engine"].startswith("not built here")


def test_the_bundle_gets_the_plain_graph_and_the_cache_while_the_quantised_one_is_measured(
    tmp_path: Path,
) -> None:
    model, context = applied(quantised(), tmp_path, Dla(core=1))

    deployment = Dla(core=1).deployment(model, context.device)

    assert deployment is not None
    assert deployment.model == context.folder / "dla.onnx"
    assert deployment.files == {"calibration.cache": context.folder / "calibration.cache"}
    assert deployment.build["dla_core"] == 1
    assert deployment.build["calibration"] == "calibration.cache"
    assert deployment.build["precisions"] == ["fp16", "int8"]


def test_tensorrt_11_keeps_the_integers_in_the_graph(tmp_path: Path) -> None:
    model, context = applied(quantised(), tmp_path, device="jetson-agx-orin@jetpack-7.2.2")

    assert sorted(path.name for path in context.folder.iterdir()) == ["model.onnx"]
    assert context.details["build"]["typing"] == "strong"
    assert "--adjustForDLA" in context.details["build"]["command"]
    deployment = Dla().deployment(model, context.device)
    assert deployment is not None
    assert deployment.model is None
    assert deployment.build["strongly_typed"]


def test_tensorrt_11_leaves_a_float_network_to_the_gpu_and_says_so(tmp_path: Path) -> None:
    float_network = graph("(float[1,4,8,8] x) => (float[N] y) { y = Relu(x) }")
    _, context = applied(float_network, tmp_path, device="jetson-agx-orin@jetpack-7.2.2")

    assert context.details["placement"]["reasons"] == {"Relu: strong typing": 1}


def test_a_float_network_runs_in_fp16_and_stays_as_it_is(tmp_path: Path) -> None:
    model, context = applied(graph("(float[1,4,8,8] x) => (float[N] y) { y = Relu(x) }"), tmp_path)

    assert model.value == tmp_path / "given.onnx"
    assert context.details["placement"]["layers"][0]["precision"] == "fp16"
    assert list(context.folder.iterdir()) == []


def test_an_open_batch_is_refused_with_what_fixes_it(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="leaves sides") as refused:
        applied(graph("(float[N,4,8,8] x) => (float[M] y) { y = Relu(x) }"), tmp_path)

    assert "dla.adapt.batch=1" in refused.value.hint


def test_without_fallback_a_layer_for_the_gpu_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"Erf\): TensorRT maps no Erf"):
        applied(quantised("y = Erf(c)"), tmp_path, Dla(gpu_fallback=False))


def test_without_fallback_a_float_network_is_warned_of_because_it_is_there_to_compare_with(
    tmp_path: Path,
) -> None:
    network = graph("(float[1,4,8,8] x) => (float[N] y) { y = Erf(x) }")
    _, context = applied(network, tmp_path, Dla(gpu_fallback=False))

    assert any("Erf" in warning for warning in context.warnings)


VIEWED = """h = AveragePool<kernel_shape=[6,6]>(c); i = QuantizeLinear(h, u, zero); j = DequantizeLinear(i, u, zero);
    y = Flatten(j)"""


@pytest.mark.parametrize("device", ["jetson-agx-orin", "jetson-agx-orin@jetpack-7.2.2"])
def test_without_fallback_the_view_that_ends_a_classifier_is_left_to_who_runs_it(
    tmp_path: Path, device: str
) -> None:
    alone = Dla(gpu_fallback=False)

    model, context = applied(quantised(VIEWED), tmp_path, alone, device)

    parsed = onnx.load(context.folder / "dla.onnx")
    assert "Flatten" not in {node.op_type for node in parsed.graph.node}
    (output,) = parsed.graph.output
    assert output.name == "y"
    assert [side.dim_value for side in output.type.tensor_type.shape.dim] == [1, 4, 1, 1]
    assert context.details["outputs_before_their_view"] == ["y"]
    assert context.details["placement"]["layers_on_gpu"] == 0
    x = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)
    assert alone.open(model, context.device)(x)[0].shape == (1, 4)
    assert alone.deployment(model, context.device).model == context.folder / "dla.onnx"


def test_a_range_follows_an_output_that_lost_its_view(tmp_path: Path) -> None:
    _, context = applied(quantised(VIEWED), tmp_path, Dla(gpu_fallback=False))

    plain = onnx.load(context.folder / "dla.onnx")
    cache = read((context.folder / "calibration.cache").read_text())
    assert cache.scales["y"] == 0.25
    assert set(cache.scales) <= {name for node in plain.graph.node for name in node.output} | {"x"}


def test_a_session_gives_outputs_the_shape_of_the_network(tmp_path: Path) -> None:
    model = dataclasses.replace(model_of(quantised(), tmp_path), outputs=(Tensor("y", (1, 3)),))

    (output,) = Shaped(lambda batch: [batch.reshape(-1, 3, 1, 1)], model)(np.zeros((2, 3), np.float32))

    assert output.shape == (2, 3)


def test_what_is_opened_answers_as_the_quantised_network_does(tmp_path: Path) -> None:
    model, context = applied(quantised(), tmp_path)
    x = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)

    (answer,) = Dla().open(model, context.device)(x)

    assert np.array_equal(answer, np.round(answer / 0.25) * 0.25)
    assert Dla().available(context.device)


def test_the_scheme_quantises_every_tensor_with_zero_points_of_zero() -> None:
    scheme = Dla().scheme(HOST.device("jetson-agx-orin"))

    assert scheme is not None
    assert (scheme.placement, scheme.symmetric, scheme.activation) == ("every", True, "int8")


# -- the builder's log


def test_a_log_tells_where_layers_went_to_compare_with_what_was_predicted() -> None:
    log = """
[11/25/2026-10:00:00] [W] Layer '/Softmax' (SOFTMAX): Unsupported on DLA. Switching this layer's device type to GPU.
[11/25/2026-10:00:00] [W] [TRT] Default DLA is enabled but layer /pool is not supported on DLA, falling back to GPU.
[11/25/2026-10:00:01] [V] [TRT] ---------- Layers Running on DLA ----------
[11/25/2026-10:00:01] [V] [TRT] [DlaLayer] {ForeignNode[/conv1/Conv.../layer4/Relu]}
[11/25/2026-10:00:01] [V] [TRT] ---------- Layers Running on GPU ----------
[11/25/2026-10:00:01] [V] [TRT] [GpuLayer] SOFTMAX: /head/Softmax
"""
    assert placed(log) == {
        "loadables": ["{ForeignNode[/conv1/Conv.../layer4/Relu]}"],
        "gpu": ["SOFTMAX: /head/Softmax"],
        "fallbacks": ["/Softmax", "/pool"],
    }
