"""Engines through TensorRT's Python API. There is no GPU here: the package is a stand-in, with what its version has.

The stand-in is the one that the bundle's runner is tested with (tests/bundle/fakes), with the further names that
are used here; those stand in the bindings of the wheels 8.6.1, 10.3.0 and 11.4.0.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from penjing.bundle.engine import listener
from penjing.errors import StepError
from penjing.model import Model
from penjing.testing import small_context
from penjing_tensorrt import engine, installed, on_device
from penjing_tensorrt.backend import TensorRT
from penjing_tensorrt.build import Build
from penjing_tensorrt.installed import Installed

FAKE = Path(__file__).parents[1] / "bundle" / "fakes" / "tensorrt.py"


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that puts a stand-in for a version of TensorRT in place, and returns it."""

    def make(version: str = "10.3.0", fault: str = "") -> ModuleType:
        monkeypatch.setenv("FAKE_TENSORRT", version)
        monkeypatch.setenv("FAKE_TENSORRT_FAULT", fault)
        spec = importlib.util.spec_from_file_location("tensorrt", FAKE)
        assert spec is not None
        assert spec.loader is not None
        trt: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(trt)
        extend(trt)
        monkeypatch.setitem(sys.modules, "tensorrt", trt)
        monkeypatch.setattr(on_device, "Cuda", trt.Cuda)
        return trt

    return make


def extend(trt: Any) -> None:
    """Give the stand-in the further names that a whole build uses."""
    names = ["TF32", "SPARSE_WEIGHTS", "VERSION_COMPATIBLE"]
    names += ["OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"] if trt.NUMBER < (11, 0) else []
    for name in names:
        setattr(trt.BuilderFlag, name, SimpleNamespace(name=name))
    trt.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    trt.HardwareCompatibilityLevel = SimpleNamespace(AMPERE_PLUS="ampere+")
    trt.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace", DLA_MANAGED_SRAM="sram")
    trt.TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")
    trt.float32, trt.float16, trt.int8 = "float32", "float16", "int8"
    config, guarded = trt._Config, trt._Config.__setattr__

    def set_attribute(self: Any, name: str, value: Any) -> None:
        if name in ("profiling_verbosity", "hardware_compatibility_level"):
            trt.asked[name] = value
        else:
            guarded(self, name, value)

    def set_timing_cache(self: Any, cache: bytes, ignore_mismatch: bool) -> None:
        trt.asked["timings"] = cache

    config.__setattr__ = set_attribute
    config.clear_flag = lambda self, flag: trt.asked.setdefault("cleared", []).append(flag.name)
    config.create_timing_cache = lambda self, known: known
    config.set_timing_cache = set_timing_cache
    config.get_timing_cache = lambda self: SimpleNamespace(serialize=lambda: memoryview(b"new timings"))
    trt.OnnxParser.parse_from_file = lambda self, path: self.parse(Path(path).read_bytes())
    layers = {"conv": SimpleNamespace(name="conv"), "fc": SimpleNamespace(name="fc")}
    create = trt.Builder.create_network

    def create_network(self: Any, flags: int = 0) -> Any:
        network = create(self, flags)
        network.num_layers, network.get_layer = 2, lambda index: list(layers.values())[index]
        trt.asked_network = network
        return network

    trt.Builder.create_network = create_network
    trt._New.__init__.__globals__["_New"].get_tensor_name = lambda self, index: self.names[index]
    trt._New.get_tensor_mode = lambda self, name: "in" if name == self.names[0] else "out"
    start = trt._New.__init__

    def remember(self: Any, made: Any) -> None:
        start(self, made)
        self.names = made._names

    trt._New.__init__ = remember


def flags_of(trt: Any) -> set[str]:
    return set(trt.asked["flags"])


@pytest.mark.parametrize(
    ("version", "build", "flags", "network"),
    [
        ("8.6.1", Build("weak", ("fp16", "int8")), {"FP16", "INT8"}, 1),
        ("10.3.0", Build("weak", ("fp16", "int8")), {"FP16", "INT8"}, 1),
        ("10.3.0", Build("weak", ("best",)), {"FP16", "INT8", "BF16"}, 1),
        ("8.6.1", Build("weak", ("best",)), {"FP16", "INT8"}, 1),
        ("10.3.0", Build("strong", ("int8",)), set(), 2),
        ("11.4.0", Build("strong", ("int8",)), set(), 2),
        ("10.3.0", Build("weak", sparse=True, version_compatible=True), {"SPARSE_WEIGHTS", "VERSION_COMPATIBLE"}, 1),
    ],
)  # fmt: skip
def test_precision_is_told_as_each_version_wants_it(tensorrt, graph, version, build, flags, network) -> None:
    trt = tensorrt(version)

    assert engine.build_engine(trt, graph.value, build, listener(trt))
    assert flags_of(trt) == flags
    assert trt.asked["network_flags"] == network
    assert trt.asked["profiling_verbosity"] == "detailed"


def test_a_build_is_told_to_the_builder(tensorrt, graph, tmp_path) -> None:
    trt, cache = tensorrt(), tmp_path / "timing.cache"
    cache.write_bytes(b"old timings")
    shapes = {"input": ((1, 3, 32, 32), (4, 3, 32, 32), (8, 3, 32, 32))}
    build = Build(
        "weak", ("fp16",), shapes=shapes, workspace=64, level=5, tf32=False, hardware="ampere+", layers={"fc": "fp32"}
    )  # fmt: skip
    engine.build_engine(trt, graph.value, build, listener(trt), cache)

    assert trt.asked["workspace"] == 64 * 2**20
    assert trt.asked["builder_optimization_level"] == 5
    assert trt.asked["cleared"] == ["TF32"]
    assert trt.asked["hardware_compatibility_level"] == "ampere+"
    assert trt.asked["profile"]["input"][2] == [8, 3, 32, 32]
    assert flags_of(trt) == {"FP16", "OBEY_PRECISION_CONSTRAINTS"}
    assert trt.asked_network.get_layer(1).precision == "float32"
    assert trt.asked["timings"] == b"old timings"
    assert cache.read_bytes() == b"new timings"


def test_an_accelerator_is_chosen_with_its_memory_and_scales(tensorrt, graph) -> None:
    trt = tensorrt("8.6.1")
    graph.value.with_name("calib.cache").write_bytes(b"TRT-8601-EntropyCalibration2\n")
    build = Build(
        "weak",
        ("fp16", "int8"),
        pools={"dlaSRAM": 1},
        dla_core=1,
        gpu_fallback=True,
        calibration="calib.cache",
    )
    engine.build_engine(trt, graph.value, build, listener(trt))

    assert (trt.asked["default_device_type"], trt.asked["DLA_core"], trt.asked["sram"]) == ("DLA", 1, 2**20)
    assert "GPU_FALLBACK" in trt.asked["flags"]
    assert trt.asked["int8_calibrator"].startswith(b"TRT-8601")


def test_a_layer_that_is_not_there_is_named(tensorrt, graph) -> None:
    trt = tensorrt()
    with pytest.raises(StepError, match="'head', which is no layer"):
        engine.build_engine(trt, graph.value, Build("weak", layers={"head": "fp32"}), listener(trt))


@pytest.mark.parametrize(("version", "typing"), [("8.6.1", "weak"), ("10.3.0", "weak"), ("11.4.0", "strong")])
def test_an_engine_answers_as_the_graph_does(tensorrt, graph, version: str, typing: Any) -> None:
    import onnxruntime

    trt = tensorrt(version)
    trt._Context._result_shape = lambda self: (self._shape[0], 2)
    heard = listener(trt)
    plan = engine.build_engine(trt, graph.value, Build(typing), heard)
    session = engine.Engine(trt, plan, heard, trt.Cuda, [tensor.name for tensor in graph.outputs])
    wanted = onnxruntime.InferenceSession(str(graph.value), providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    for _ in range(3):
        batch = generator.random((1, 3, 32, 32), np.float32)
        (answer,) = session(batch)
        assert np.allclose(answer, wanted.run(None, {wanted.get_inputs()[0].name: batch})[0], atol=1e-5)


@pytest.mark.parametrize(
    ("fault", "message", "hint"),
    [("memory", "cannot build the engine", "workspace"), ("load", "does not load", "GPU")],
)
def test_what_tensorrt_says_is_told_with_the_cure(
    tensorrt, graph, fault: str, message: str, hint: str
) -> None:
    trt = tensorrt(fault=fault)
    heard = listener(trt)
    with pytest.raises(StepError, match=message) as error:
        engine.Engine(trt, engine.build_engine(trt, graph.value, Build("weak"), heard), heard, trt.Cuda)
    assert hint in error.value.hint


def test_a_graph_that_it_does_not_read_is_told_with_the_cure(tensorrt, tmp_path: Path) -> None:
    trt = tensorrt()
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(StepError, match="UNSUPPORTED_NODE") as error:
        engine.build_engine(trt, tmp_path / "bad.onnx", Build("weak"), listener(trt))
    assert "does not read that operator" in error.value.hint


def test_the_step_builds_beside_a_copy_and_the_session_finds_the_engine_again(
    tensorrt, graph, tmp_path: Path, monkeypatch
) -> None:
    """On a board with TensorRT's Python module."""
    trt = tensorrt()
    trt._Context._result_shape = lambda self: (self._shape[0], 2)
    monkeypatch.setattr(installed, "look", lambda: Installed(module="10.3.0"))
    monkeypatch.setattr(installed, "_why_another_machine", lambda device, found: "")
    context = small_context(tmp_path, device="jetson-orin-nano", backend=TensorRT())
    step = TensorRT()
    made = step.apply(graph, context)

    assert step.available(context.device) == ""
    assert context.details["engine"]["built_by"] == "Python API"
    assert sorted(path.name for path in context.folder.iterdir()) == [
        "model.onnx",
        "model.plan",
        "timing.cache",
    ]
    session = step.open(made, context.device)
    assert session(np.zeros((1, 3, 32, 32), np.float32))[0].shape == (1, 2)
    # the header is the stand-in's own, so that this engine cannot be told from another's and is built anew
    header = b"ftrt" + bytes(20) + bytes([10, 3, 0, 30])
    (context.folder / "model.plan").write_bytes(header)
    assert on_device._beside(made.value, "10.3.0.30") == header
    assert on_device._beside(made.value, "10.7.0") is None
    assert on_device._beside(graph.value, "10.3.0") is None


@pytest.mark.gpu
def test_an_engine_of_the_gpu_here_answers_as_the_graph_does(graph: Model) -> None:
    """The real thing: TensorRT and a GPU, whichever they are."""
    import onnxruntime

    trt = pytest.importorskip("tensorrt", reason="needs TensorRT and an NVIDIA GPU")
    heard = listener(trt)
    typing = "strong" if int(trt.__version__.split(".")[0]) >= 11 else "weak"
    plan = engine.build_engine(trt, graph.value, Build(typing, workspace=256, tf32=False), heard)
    session = engine.Engine(trt, plan, heard, on_device.Cuda, [tensor.name for tensor in graph.outputs])
    wanted = onnxruntime.InferenceSession(str(graph.value), providers=["CPUExecutionProvider"])
    batch = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)

    assert np.allclose(
        session(batch)[0], wanted.run(None, {wanted.get_inputs()[0].name: batch})[0], atol=1e-3
    )
