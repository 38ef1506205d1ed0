"""Writing a bundle: whole or not at all, described in docs/bundle.md, with commands that suit its board."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from penjing import bundle
from penjing.bundle import readme, runner
from penjing.device import builtin_profiles, find_device
from penjing.errors import StepError
from penjing.step import Deployment

Make = Callable[..., Path]
DOCS = Path(__file__).parents[2] / "docs" / "bundle.md"


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fields(table: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in table.items():
        yield prefix + key
        inner = value[0] if isinstance(value, list) and value else value
        if isinstance(inner, dict) and key not in ("files", "packages"):
            yield from fields(inner, f"{prefix}{key}.")


def test_a_bundle_is_all_there_is_and_the_runner_takes_it(pristine: Path) -> None:
    assert everything(pristine).keys() == {
        "manifest.json", "model.onnx", "runner.py", "README.md", "golden/input.npy", "golden/output-0.npy",
    }  # fmt: skip
    assert not list(pristine.parent.glob(".bundle.*"))
    assert bundle.read(pristine).manifest["labels"] == ["red", "green", "blue"]


def test_the_same_model_gives_the_same_bundle(make: Make, pristine: Path) -> None:
    assert everything(make()) == everything(pristine)


@pytest.mark.parametrize("broken", [1, 12])
def test_photographs_that_are_broken_are_left_out_of_what_is_recorded(
    make: Make, photographs: Path, tmp_path: Path, broken: int
) -> None:
    images = shutil.copytree(photographs, tmp_path / "images")
    for path in sorted(images.rglob("*.png"))[:broken]:
        path.write_bytes(path.read_bytes()[:200])  # its head is whole, so that only decoding tells

    folder = make(folder=tmp_path, images=images)

    assert len(np.load(folder / "golden" / "input.npy")) == bundle.GOLDEN
    origin = bundle.read(folder).manifest["golden"]["from"]
    assert origin == ("noise" if broken == 12 else "photographs")


def test_a_new_bundle_takes_the_place_of_the_old_one_whole(make: Make, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "old").write_text("old")

    folder = make(folder=tmp_path)

    assert not (folder / "old").exists()
    assert bundle.read(folder)


def test_what_fails_half_way_leaves_the_old_bundle_and_nothing_else(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(make(folder=tmp_path))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle, "_seal", full)
    with pytest.raises(OSError, match="No space left"):
        make(folder=tmp_path)

    assert everything(tmp_path / "bundle") == before
    assert not list(tmp_path.glob(".bundle.*"))


def test_what_a_killed_process_left_is_cleared_away(make: Make, tmp_path: Path) -> None:
    (tmp_path / ".bundle.abc" / "new").mkdir(parents=True)
    (tmp_path / ".bundle.abc" / "new" / "model.onnx").write_bytes(b"half")

    make(folder=tmp_path)

    assert not list(tmp_path.glob(".bundle.*"))


def test_a_model_that_does_not_run_is_a_failed_step(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise runner.RunnerError("no")

    monkeypatch.setattr(runner, "OnnxRuntime", refuse)
    with pytest.raises(StepError, match="does not run here: no"):
        make()


def test_a_device_elsewhere_gets_recorded_answers_too(make: Make) -> None:
    manifest = bundle.read(make(here=False, arch="aarch64")).manifest

    assert manifest["golden"]["how"].startswith("Computed in floats; on integers they are up to 0.0000 away")
    assert manifest["golden"]["tolerance"] == bundle.LEAST


def test_without_photographs_noise_is_recorded(make: Make) -> None:
    folder = make(data=False)

    assert bundle.read(folder).manifest["golden"]["from"] == "noise"
    assert "noise" in (folder / "README.md").read_text()


def test_labels_are_made_harmless(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bundle._line("a\x1b[2J\udcff") == "a\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}"


def test_a_backend_that_the_runner_does_not_know_makes_no_bundle() -> None:
    model: Any = SimpleNamespace(inputs=(SimpleNamespace(shape=(1, 3, 8, 8)),))
    vector: Any = SimpleNamespace(inputs=(SimpleNamespace(shape=(1, 3)),))
    known: Any = SimpleNamespace(name="onnxrt", deployment=lambda *_: Deployment("onnxruntime"))
    other: Any = SimpleNamespace(name="abacus", deployment=lambda *_: None)
    device: Any = None

    assert not bundle.why_not(model, known, device)
    assert "abacus" in bundle.why_not(model, other, device)
    assert "one image" in bundle.why_not(vector, known, device)


@pytest.mark.parametrize(
    ("asked", "opset", "minimum"),
    [(">=1.21", 18, "1.21"), ("==1.32.0", 18, "1.14"), (">=1.16", 22, "1.21"), ("==1.32", 13, "1.8")],
)
def test_the_lowest_version_is_what_the_profile_asks_for_and_the_opset_needs(
    asked: str, opset: int, minimum: str
) -> None:
    device: Any = SimpleNamespace(runtime={"onnxruntime": asked})

    assert bundle._minimum(device, opset, "onnxruntime") == minimum


def test_the_manifest_is_described_field_by_field(pristine: Path) -> None:
    described = re.findall(r"^\| `([\w.]+)` \|", DOCS.read_text("utf-8"), re.MULTILINE)

    assert sorted(described) == sorted(fields(json.loads((pristine / "manifest.json").read_text())))


@pytest.mark.parametrize("name", ["raspberry-pi-5", "jetson-orin-nano", "jetson-nano", "x86-64-avx2", "t4"])
def test_the_readme_has_the_commands_of_the_board(pristine: Path, name: str) -> None:
    device = find_device(name, builtin_profiles())
    manifest = json.loads((pristine / "manifest.json").read_text())
    runtime = "tensorrt" if device.backend == "tensorrt" else "onnxruntime"
    manifest["runtime"] |= {"name": runtime, "minimum": bundle._minimum(device, 13, runtime)}
    manifest["runtime"]["build"] = {"command": ["trtexec", "--onnx=model.onnx"]}
    text = readme.render(device, manifest)

    wanted = {
        "raspberry-pi-5": (
            '~/penjing/bin/pip install numpy pillow "onnxruntime>=1.21"',
            "64-bit system with Python 3.10",
        ),
        "jetson-orin-nano": (
            "sudo apt-get install -y python3-libnvinfer python3-numpy python3-pil",
            "Python 3.10, as jetpack-6.2",
            "\npython3 runner.py --build\n",
            "\ntrtexec --onnx=model.onnx\n",
            "jetson_clocks",
        ),
        "jetson-nano": ("python3-libnvinfer", "Python 3.6, as jetpack-4.6", "python3 runner.py photo.jpg"),
        "x86-64-avx2": ("python3 -m venv ~/penjing", "~/penjing/bin/python runner.py --bench"),
        "t4": (
            '~/penjing/bin/pip install numpy pillow "tensorrt>=10.0,<11"',
            "~/penjing/bin/python runner.py --build",
        ),
    }[name]
    assert all(words in text for words in wanted), text
    assert "$" not in text
    assert ("--build" in text) == (runtime == "tensorrt")


def test_a_graph_with_scales_in_float16_is_compared_with_itself_in_floats(tmp_path: Path) -> None:
    """Onnxruntime 1.32 refuses this graph on integer kernels: QLinearConcat takes no float16 scale."""
    text = """<ir_version: 9, opset_import: ["": 19]>
    tiny (float16[1,2,4,4] x) => (float16[1,4,4,4] y)
    {
        a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z)
        c = Concat<axis=1>(b, b)
        d = QuantizeLinear(c, s, z) y = DequantizeLinear(d, s, z)
    }"""
    model = onnx.parser.parse_model(text)
    for name, value in (("s", np.array(0.5, np.float16)), ("z", np.array(0, np.int8))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    manifest = {
        "runtime": {"name": "tensorrt", "minimum": "11.1"},
        "inputs": [{"name": "x"}],
        "model": {"opset": 19, "ir": 9},
    }
    plan: Any = SimpleNamespace(
        device=find_device("rtx-3090@tensorrt-11", builtin_profiles()), backend=SimpleNamespace(threads=1)
    )

    session = bundle._second(model.SerializeToString(), manifest, plan)

    (found,) = session(np.full((1, 2, 4, 4), 0.7, np.float16))
    assert (found == 0.5).all()
    assert session.notes == []  # TensorRT's version is not asked of onnxruntime
