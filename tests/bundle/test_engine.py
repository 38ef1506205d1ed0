"""TensorRT in the runner: built on the device for the version found there, kept, and never used when stale.

There is no GPU here: the package `tensorrt` and the program trtexec are stand-ins (tests/bundle/fakes), each
with what its version has and no more.
"""

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from penjing import bundle
from penjing.bundle import engine, runner
from penjing.step import Deployment

FAKES = Path(__file__).parent / "fakes"
VERSIONS = ["8.2.1", "8.4.1", "8.5.2", "8.6.2", "10.3.0", "11.4.0"]
CACHE = b"TRT-8502-EntropyCalibration2\nimage: 3c010204\n"
MakeTensorRt = Callable[..., Path]


def fake(monkeypatch: pytest.MonkeyPatch, version: str, fault: str = "") -> ModuleType:
    monkeypatch.setenv("FAKE_TENSORRT", version)
    monkeypatch.setenv("FAKE_TENSORRT_FAULT", fault)
    spec = importlib.util.spec_from_file_location("tensorrt", FAKES / "tensorrt.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    monkeypatch.setitem(sys.modules, "tensorrt", found)
    monkeypatch.setattr(engine, "Cuda", found.Cuda)
    return found


@pytest.fixture
def make_tensorrt(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MakeTensorRt:
    """Return what makes a bundle for TensorRT, which asks for what is given."""

    def make_one(version: str = "10.3", calibration: bool = False, **fields: Any) -> Path:
        from penjing_onnxrt.backend import OnnxRuntime

        (tmp_path / "ranges").write_bytes(CACHE)
        asked = {key: fields.pop(key) for key in list(fields) if key in BUILD}
        files = {"calibration.cache": tmp_path / "ranges"} if calibration else {}
        asked |= {"calibration": "calibration.cache"} if calibration else {}
        monkeypatch.setattr(OnnxRuntime, "deployment", lambda *_: Deployment("tensorrt", asked, files))
        return make(runtime={"tensorrt": f"=={version}.*"}, **fields)

    return make_one


BUILD = ("precisions", "strongly_typed", "dla_core", "gpu_fallback", "workspace_mb", "optimization_level")


def load(folder: Path, **options: Any) -> runner.Model:
    return runner.Model(runner.Bundle(str(folder)), **options)


def plans(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("engine-*"))


# -- the one file


def test_the_runner_of_such_a_bundle_is_one_file_for_python_3_6(make_tensorrt: MakeTensorRt) -> None:
    source = (make_tensorrt() / "runner.py").read_text("utf-8")

    tree = ast.parse(source, feature_version=(3, 6))
    assert "penjing.bundle" not in source
    assert source.endswith('if __name__ == "__main__":\n    sys.exit(main())\n')
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert len(set(names)) == len(names)
    assert {"TensorRt", "Bundle"} <= set(names)


def test_other_bundles_get_the_runner_without_it(pristine: Path) -> None:
    assert (pristine / "runner.py").read_text("utf-8") == Path(runner.__file__).read_text("utf-8")


def test_it_works_from_its_folder(make_tensorrt: MakeTensorRt, photographs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(make_tensorrt(), tmp_path / "board")
    # the GPU alone is a stand-in; the rest is the file as it goes to the board
    code = "import sys, runner, tensorrt; runner.Cuda = tensorrt.Cuda; sys.exit(runner.main(sys.argv[1:]))"

    def start(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {"PYTHONPATH": f"{FAKES}:{folder}", "OMP_NUM_THREADS": "1", "FAKE_TENSORRT": "10.3.0"}
        command = [sys.executable, "-c", code, *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    first, again = start("--build", "--json"), start("--check")
    answer = start(str(photographs / "green" / "0.png"), "--top", "1")

    assert (first.returncode, again.returncode, answer.returncode) == (0, 0, 0), first.stderr + again.stderr
    built = json.loads(first.stdout)
    assert built["gpu"] == "Orin"
    assert built["built_s"] is not None
    assert "kept from before" in start("--build").stdout
    assert "building the engine for TensorRT 10.3.0 on Orin: minutes, once" in first.stderr
    assert again.stderr == ""
    assert "green" in answer.stdout


def test_what_the_manifest_says_of_the_build_is_checked(
    make_tensorrt: MakeTensorRt, reseal: Any, tmp_path: Path
) -> None:
    for number, change in enumerate(
        [{"precisions": ["fp12"]}, {"dla_core": -1}, {"workspace_mb": 10**9}, {"calibration": "../cache"},
         {"calibration": "model.onnx"}, {"strongly_typed": 1}]
    ):  # fmt: skip
        folder = shutil.copytree(make_tensorrt(), tmp_path / str(number))
        reseal(folder, lambda manifest, change=change: manifest["runtime"]["build"].update(change))
        with pytest.raises(runner.RunnerError, match=r"runtime\.build\." + next(iter(change))):
            runner.Bundle(str(folder))


# -- with the Python package


@pytest.mark.parametrize("version", [VERSIONS[0], VERSIONS[-1]])
def test_an_engine_that_leaves_out_the_last_view_answers_in_the_shape_of_the_network(
    make_tensorrt: MakeTensorRt, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    found = fake(monkeypatch, version)
    monkeypatch.setattr(found._Context, "_result_shape", lambda self: (self._shape[0], 3, 1, 1))
    opened = runner.Bundle(str(make_tensorrt(version.rpartition(".")[0])))

    outputs = runner.Model(opened).outputs(opened.array("golden/input.npy"))

    assert outputs[0][0].shape == (1, 3)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("batch", [1, None])
def test_every_version_builds_and_answers(
    make_tensorrt: MakeTensorRt,
    photographs: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    batch: int | None,
) -> None:
    fake(monkeypatch, version)
    folder = make_tensorrt(
        version.rpartition(".")[0], batch=batch, precisions=["fp16", "int8"], workspace_mb=64
    )

    model = load(folder, batch=0 if batch else 4)
    paths = [(str(path), str(path)) for path in sorted(photographs.rglob("*.png"))]

    labels = [answer["top"][0]["label"] for answer in model.answer(iter(paths), 1)]
    assert labels == [Path(path).parent.name for path, _ in paths]
    opened = runner.Bundle(str(folder))
    assert runner.check(opened, runner.Model(opened))["ok"]
    assert model.session.version == version


@pytest.mark.parametrize(
    ("version", "flags", "network", "rest"),
    [
        ("8.2.1", ["INT8", "FP16", "GPU_FALLBACK"], 1, {"max_workspace_size": 64 * 2**20}),
        ("8.5.2", ["INT8", "FP16", "GPU_FALLBACK"], 1, {"workspace": 64 * 2**20}),
        ("8.6.2", ["INT8", "FP16", "GPU_FALLBACK"], 1, {"builder_optimization_level": 4}),
        ("10.3.0", ["INT8", "FP16", "GPU_FALLBACK"], 0, {"builder_optimization_level": 4}),
        ("11.4.0", ["GPU_FALLBACK"], 0, {"builder_optimization_level": 4}),
    ],
)
def test_each_version_is_asked_what_it_knows(
    make_tensorrt: MakeTensorRt, monkeypatch: pytest.MonkeyPatch, version: str, flags: list[str], network: int,
    rest: dict[str, Any],
) -> None:  # fmt: skip
    trt = fake(monkeypatch, version)
    folder = make_tensorrt(
        version.rpartition(".")[0],
        precisions=["int8", "fp16"],
        workspace_mb=64,
        optimization_level=4,
        dla_core=0,
    )

    load(folder)

    assert trt.asked["flags"] == flags
    assert trt.asked["network_flags"] == network
    assert trt.asked.items() >= {**rest, "default_device_type": "DLA", "DLA_core": 0}.items()


def test_a_strongly_typed_network_is_asked_for_where_there_is_such_a_thing(
    make_tensorrt: MakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version, network, flags in (("8.6.2", 1, ["FP16"]), ("10.3.0", 2, []), ("11.4.0", 0, [])):
        trt = fake(monkeypatch, version)
        load(make_tensorrt(version.rpartition(".")[0], strongly_typed=True, precisions=["fp16"]))
        assert (trt.asked["network_flags"], trt.asked["flags"]) == (network, flags)


def test_the_batch_that_is_left_open_gets_a_range(
    make_tensorrt: MakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = fake(monkeypatch, "10.3.0")

    load(make_tensorrt(batch=None), batch=8)

    assert trt.asked["profile"] == {"image": [[1, 3, 8, 8], [8, 3, 8, 8], [8, 3, 8, 8]]}


@pytest.mark.parametrize(("version", "number"), [("8.6.2", b"8602"), ("10.3.0", b"100300")])
def test_ranges_are_given_under_the_name_of_the_version_found(
    make_tensorrt: MakeTensorRt, monkeypatch: pytest.MonkeyPatch, version: str, number: bytes
) -> None:
    trt = fake(monkeypatch, version)

    load(make_tensorrt(version.rpartition(".")[0], calibration=True, precisions=["int8"]))

    assert trt.asked["int8_calibrator"] == CACHE.replace(b"8502", number)


def test_an_engine_is_built_once(
    make_tensorrt: MakeTensorRt, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_tensorrt()
    trt = fake(monkeypatch, "10.3.0")
    load(folder)
    before = plans(folder)
    trt.asked.clear()

    load(folder)

    assert len(before) == 1
    assert plans(folder) == before
    assert not trt.asked
    assert capsys.readouterr().err.count("minutes, once") == 1


@pytest.mark.parametrize("change", ["version", "gpu", "options", "network"])
def test_a_stale_engine_is_rebuilt_and_never_loaded(
    make_tensorrt: MakeTensorRt, monkeypatch: pytest.MonkeyPatch, reseal: Any, change: str
) -> None:
    folder = make_tensorrt(batch=None)
    trt = fake(monkeypatch, "10.3.0")
    load(folder)
    before = plans(folder)
    if change == "version":
        trt = fake(monkeypatch, "10.7.0")
    elif change == "gpu":
        monkeypatch.setattr(trt.Cuda, "capability", "8.6")
    elif change == "options":
        reseal(folder, lambda manifest: manifest["runtime"]["build"].update(precisions=["fp16"]))
    else:
        _rename_graph(folder, reseal)

    load(folder)

    assert len(plans(folder)) == 1
    assert plans(folder) != before


def test_engines_for_other_batches_are_kept_side_by_side(
    make_tensorrt: MakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tensorrt(batch=None)
    trt = fake(monkeypatch, "10.3.0")
    load(folder)
    load(folder, batch=2)
    trt.asked.clear()

    load(folder)
    load(folder, batch=2)

    assert len(plans(folder)) == 2
    assert not trt.asked


def test_what_a_killed_build_left_a_day_ago_is_removed_and_what_another_is_writing_stays(
    make_tensorrt: MakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tensorrt(batch=None)
    fake(monkeypatch, "10.3.0")
    names = ["engine-0123.plan.77", "building-77.onnx", "timing-77.plan"]
    for name in names:
        (folder / name).write_bytes(b"old")
        os.utime(folder / name, (0, 0))
    (folder / "engine-0123.plan.78").write_bytes(b"new")

    load(folder, batch=3)

    left = {path.name for path in folder.iterdir()}
    assert not left & set(names)
    assert "engine-0123.plan.78" in left


def _rename_graph(folder: Path, reseal: Any) -> None:
    import hashlib

    import onnx

    model = onnx.load(folder / "model.onnx")
    model.graph.name = "other"
    onnx.save(model, folder / "model.onnx")
    data = (folder / "model.onnx").read_bytes()
    facts = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    reseal(folder, lambda manifest: manifest["files"].update({"model.onnx": facts}))


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: b"", lambda data: b"[]\n" + data])
def test_an_engine_that_is_not_whole_is_rebuilt(
    make_tensorrt: MakeTensorRt,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    spoil: Callable[[bytes], bytes],
) -> None:
    folder = shutil.copytree(make_tensorrt(), tmp_path / "board")
    fake(monkeypatch, "10.3.0")
    load(folder)
    plan = folder / plans(folder)[0]
    whole = plan.read_bytes()
    plan.write_bytes(spoil(whole))

    load(folder)

    assert plan.read_bytes() == whole


# -- what is wrong, in one line


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(runner.RunnerError) as caught:
        load(folder, **options)
    assert caught.value.code == runner.BAD_MACHINE
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_major_version_is_refused_unless_allowed(
    make_tensorrt: MakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tensorrt("10.3")
    fake(monkeypatch, "8.6.2")

    assert "made for TensorRT 10.3, and this machine has 8.6.2" in refusal(folder)
    assert load(folder, any_machine=True).session.version == "8.6.2"


def test_too_little_memory_is_told_with_what_to_do(
    make_tensorrt: MakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tensorrt("10.3", batch=3)
    fake(monkeypatch, "10.3.0", fault="memory")

    assert refusal(folder).startswith(
        "TensorRT 10.3.0 cannot build the engine: it ran out of memory. Close other programs"
    )
    assert not plans(folder)


def test_an_engine_that_does_not_load_is_told(
    make_tensorrt: MakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tensorrt("10.3", batch=3)
    fake(monkeypatch, "10.3.0", fault="load")

    assert "cannot load the engine: engine plan file is generated on an incompatible device" in refusal(
        folder
    )


def test_a_network_that_it_cannot_read_is_told_by_node(
    make_tensorrt: MakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tensorrt("10.3")
    trt = fake(monkeypatch, "10.3.0")
    monkeypatch.setattr(trt.OnnxParser, "parse", lambda self, _: setattr(self, "num_errors", 1))
    for plan in folder.glob("engine-*"):
        plan.unlink()

    assert "cannot read the model: In node 3 (importAbacus): UNSUPPORTED_NODE" in refusal(folder)


def test_a_board_without_that_dla_is_told(
    make_tensorrt: MakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, "10.3.0")

    assert "DLA core 1, and TensorRT 10.3.0 finds 1 of them" in refusal(make_tensorrt("10.3", dla_core=1))


def test_ranges_are_refused_where_they_are_no_longer_taken(
    make_tensorrt: MakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, "11.4.0")

    assert "no longer takes ranges" in refusal(make_tensorrt("11.4", calibration=True))


def test_without_tensorrt_it_is_told_where_it_comes_from(
    make_tensorrt: MakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(engine, "TRTEXEC", ())

    assert "TensorRT is not installed. On a Jetson it belongs to JetPack" in refusal(make_tensorrt())


def test_a_folder_that_cannot_be_written_is_told(
    make_tensorrt: MakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    folder = make_tensorrt(batch=3)
    fake(monkeypatch, "10.3.0")
    monkeypatch.setattr(engine.os, "replace", full)

    assert refusal(folder).endswith("No space left on device.")
    assert not plans(folder)


def test_a_folder_that_may_not_be_written_is_told_before_anything_is_built(
    make_tensorrt: MakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: str, mode: str = "r", **options: Any) -> Any:
        if "w" in mode:
            raise OSError(30, "Read-only file system")
        return open(path, mode, **options)  # noqa: PTH123  # what it stands for

    folder = make_tensorrt(batch=4)
    trt = fake(monkeypatch, "10.3.0")
    monkeypatch.setattr(engine, "open", read_only, raising=False)

    said = refusal(folder)

    assert "Read-only file system. Copy the bundle to where you may write." in said
    assert not trt.asked


class Library:
    """CUDA's runtime library, which answers every call with the same code."""

    def __init__(self, code: int) -> None:
        self.code = code

    def __getattr__(self, name: str) -> Any:
        def words(_: int) -> bytes:
            return b"no CUDA-capable device is detected"

        return words if name == "cudaGetErrorString" else lambda *_: self.code


@pytest.mark.parametrize(
    ("code", "words"),
    [(100, "cudaGetDeviceCount says no CUDA-capable device is detected"), (2, "too little free memory")],
)
def test_a_gpu_that_cannot_be_used_is_told(monkeypatch: pytest.MonkeyPatch, code: int, words: str) -> None:
    def refuse(path: str) -> Library:
        if path != "libcudart.so.12":
            raise OSError(path)
        return library

    library = Library(code)
    monkeypatch.setattr(engine.ctypes, "CDLL", refuse)

    if code == 100:
        library.cudaGetErrorString = lambda _: b"no CUDA-capable device is detected"  # type: ignore[attr-defined]
    with pytest.raises(runner.RunnerError, match=words):
        engine.Cuda()


def test_a_machine_without_cuda_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise OSError(path)

    monkeypatch.setattr(engine.ctypes, "CDLL", refuse)
    with pytest.raises(runner.RunnerError, match=r"libcudart\.so\) is not found"):
        engine.Cuda()


# -- with trtexec alone


@pytest.fixture
def trtexec(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    def install(version: str, fault: str = "") -> Path:
        found = fake(monkeypatch, version, fault)
        monkeypatch.setattr(engine, "Cuda", found.Cuda)
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        monkeypatch.setattr(engine, "TRTEXEC", (str(FAKES / "trtexec"),))
        monkeypatch.setenv("FAKE_TRTEXEC_LOG", str(tmp_path / "log"))
        return tmp_path / "log"

    return install


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("8.2.1", "--buildOnly --int8 --fp16 --workspace=64 --useDLACore=0 --allowGPUFallback"),
        ("8.5.2", "--buildOnly --int8 --fp16 --memPoolSize=workspace:64 --useDLACore=0 --allowGPUFallback"),
        ("8.6.2", "--skipInference --int8 --fp16 --memPoolSize=workspace:64 --builderOptimizationLevel=4 "
         "--useDLACore=0 --allowGPUFallback"),
        ("10.3.0", "--skipInference --int8 --fp16 --memPoolSize=workspace:64 --builderOptimizationLevel=4 "
         "--useDLACore=0 --allowGPUFallback"),
        ("11.4.0", "--skipInference --memPoolSize=workspace:64 --builderOptimizationLevel=4 --useDLACore=0 "
         "--allowGPUFallback"),
    ],
)  # fmt: skip
def test_trtexec_gets_flags_that_its_version_takes(
    make_tensorrt: MakeTensorRt, trtexec: Callable[..., Path], version: str, words: str
) -> None:
    log = trtexec(version)
    options = {"precisions": ["int8", "fp16"], "workspace_mb": 64, "optimization_level": 4, "dla_core": 0}

    model = load(make_tensorrt(version.rpartition(".")[0], **options))

    assert log.read_text().strip() == words
    assert model.session.version == version
    with pytest.raises(runner.RunnerError, match="only --build and --bench work"):
        model.session(None)


def test_trtexec_is_given_ranges_shapes_and_strong_types(
    make_tensorrt: MakeTensorRt, trtexec: Callable[..., Path]
) -> None:
    log = trtexec("10.3.0")

    load(make_tensorrt(calibration=True, precisions=["int8"], batch=None), batch=2)
    load(make_tensorrt(strongly_typed=True, precisions=["fp16"]))

    first, second = log.read_text().splitlines()
    assert "--calib=" in first
    assert first.endswith("--minShapes=image:1x3x8x8 --optShapes=image:2x3x8x8 --maxShapes=image:2x3x8x8")
    assert second == "--skipInference --stronglyTyped"


@pytest.mark.parametrize("version", ["8.5.2", "10.3.0", "11.4.0"])
def test_trtexec_times_the_engine(
    make_tensorrt: MakeTensorRt, trtexec: Callable[..., Path], version: str
) -> None:
    trtexec(version)
    opened = runner.Bundle(str(make_tensorrt(version.rpartition(".")[0])))

    result = runner.bench(opened, runner.Model(opened), 2)

    assert (result["median_ms"], result["p90_ms"], result["runs"], result["by"]) == (2.5, 3.5, 412, "trtexec")
    assert (result["runtime"], result["engine"]["gpu"]) == ("TensorRT", "Orin")


def test_trtexec_times_the_engines_of_two_bundles(
    make_tensorrt: MakeTensorRt, trtexec: Callable[..., Path]
) -> None:
    trtexec("10.3.0")
    opened = runner.Bundle(str(make_tensorrt("10.3")))

    result = runner.bench(opened, runner.Model(opened), 2, str(make_tensorrt("10.3")))

    assert (result["median_ms"], result["beside"]["median_ms"], result["speedup"]) == (2.5, 2.5, 1.0)
    assert result["speedup_interval"] is None
    assert result["beside"]["engine"]["gpu"] == "Orin"


def test_trtexec_that_fails_is_quoted(make_tensorrt: MakeTensorRt, trtexec: Callable[..., Path]) -> None:
    folder = make_tensorrt("10.3", batch=3)
    trtexec("10.3.0", fault="memory")

    assert "cannot build the engine: it ran out of memory" in refusal(folder)
    assert not [path.name for path in folder.glob("building-*")]


def test_a_bundle_that_no_runtime_knows_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    model: Any = SimpleNamespace(inputs=(SimpleNamespace(shape=(1, 3, 8, 8)),))
    backend: Any = SimpleNamespace(name="abacus", deployment=lambda *_: Deployment("abacus"))
    device: Any = None

    assert "knows no runtime 'abacus'" in bundle.why_not(model, backend, device)
