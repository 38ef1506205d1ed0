"""Bundles: a folder with a model and all that is needed to run it on its device.

BUNDLE/
    manifest.json     what is in it and how it is run: docs/bundle.md
    model.onnx        the optimised model
    runner.py         runs it, on Python 3.6 or later, with numpy, Pillow and the device's runtime
    *                 what an engine is built from besides, such as a calibration cache
    README.md         the commands for this device
    golden/*.npy      recorded inputs, and the outputs they must give
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penjing import promise
from penjing.bundle import engine, readme, runner
from penjing.errors import InputError, PlanError, PluginError, StepError
from penjing.files import sha256_of, sync
from penjing.here import this_machine

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from penjing.device import Device
    from penjing.model import Model, Tensor
    from penjing.plan import Plan
    from penjing.report import Report
    from penjing.step import Backend, Deployment

    Array = np.ndarray[Any, Any]

__all__ = ["read", "said", "why_not", "write", "write_beside"]

#: releases of onnxruntime and the highest opset each loads, measured with a one-node model on CPython 3.8 and 3.11
READS = (
    ("1.8", 14), ("1.9", 15), ("1.11", 16), ("1.12", 17), ("1.14", 18), ("1.15", 19), ("1.17", 20), ("1.18", 21),
    ("1.21", 22), ("1.23", 23), ("1.24", 25), ("1.25", 26), ("1.32", 28),
)  # fmt: skip
#: files of the bundle's own
_OWN = ("manifest.json", "model.onnx", "runner.py", "README.md")
#: photographs to record, and about how many bytes of outputs
GOLDEN, GOLDEN_BYTES = 4, 2**24
#: the least tolerance: what another CPU or version may change in float arithmetic; the most: beyond it lies chance
LEAST, MOST = 0.01, 0.5
#: an entry of onnxruntime's session: arithmetic on floats between QuantizeLinear and DequantizeLinear
_FLOATS = ("session.disable_quant_qdq", "1")
#: on integers also where this CPU has no fast way for two int8 operands, or no exact one for uint8 by 8-bit weights
_SIGNED, _EXACT = ("session.qdqisint8allowed", "1"), ("session.x64quantprecision", "1")


def why_not(model: Model, backend: Backend, device: Device) -> str:
    """Return why no bundle can be made of a model that ends in this backend, "" where one can."""
    with promise.kept(backend.name, "deployment"):
        deployment = backend.deployment(model, device)
    if deployment is None:
        return f"the runner cannot run what the backend {backend.name} makes"
    if deployment.runtime not in runner.RUNTIMES:
        return (
            f"the runner knows no runtime {deployment.runtime!r}, which the backend {backend.name} asks for"
        )
    if len(model.inputs) != 1 or len(model.inputs[0].shape) != 4:
        return "the runner feeds one image, NCHW, and the model takes something else"
    return ""


def write(folder: Path, model: Model, plan: Plan, report: Report) -> Path:
    """Make `folder`/bundle out of the optimised model of a plan, in place of one made before; return its path.

    It appears whole or not at all. Raises StepError where the model does not run.
    """
    target = folder / "bundle"
    with _appearing(target) as new:
        deployment = plan.backend.deployment(model, plan.device)
        assert deployment is not None, "why_not() said that there is one"
        shutil.copyfile(deployment.model or model.value, new / "model.onnx")
        for name, path in deployment.files.items():
            if name in _OWN or not runner.NAME.match(name):
                raise PluginError(
                    f"{plan.backend.name} puts a file into the bundle that it may not: {name!r}."
                )
            shutil.copyfile(path, new / name)
        (new / "runner.py").write_text(runner_source(deployment.runtime), "utf-8")
        manifest = _manifest(model, plan, report, deployment)
        inputs, origin = _inputs(model, plan)
        try:
            manifest["golden"] = {**_record(new, manifest, inputs, plan, model), "from": origin}
        except runner.RunnerError as error:
            raise StepError(f"The bundle's model does not run here: {error}") from error
        (new / "README.md").write_text(readme.render(plan.device, manifest), "utf-8")
        _seal(new, manifest)
    return target


def write_beside(new: Path, bundle: Path, model: Model, backend: Backend, device: Device) -> dict[str, Any]:
    """Make a bundle in the empty folder `new` of a model to be timed beside that in `bundle`; return its manifest.

    It takes what the other takes. Raises StepError where the model is none for a bundle.
    """
    import onnx

    other, deployment = read(bundle), backend.deployment(model, device)
    if deployment is None or (why := why_not(model, backend, device)):
        raise StepError(
            f"The model cannot be timed beside the bundle: {why if deployment else 'no runtime'}."
        )
    graph = onnx.load(model.value, load_external_data=False)
    shutil.copyfile(deployment.model or model.value, new / "model.onnx")
    for name, path in deployment.files.items():
        shutil.copyfile(path, new / name)
    (new / "runner.py").write_text(runner_source(deployment.runtime), "utf-8")
    manifest = {key: value for key, value in other.manifest.items() if key not in ("digest", "files")} | {
        "inputs": [_tensor(tensor) for tensor in model.inputs],
        "outputs": [_tensor(tensor) for tensor in model.outputs],
        "model": {"file": "model.onnx", "opset": _opset(graph), "ir": graph.ir_version},
        "runtime": other.manifest["runtime"] | {"build": dict(deployment.build)},
    }
    golden = other.manifest["golden"]
    inputs, fixed = other.array(golden["input"]), model.inputs[0].shape[0]
    floats = runner.normalise(inputs, manifest["preprocess"]) if inputs.dtype.name == "uint8" else inputs
    outputs = _joined(runner.each(backend.open(model, device), floats, fixed or 1, fixed))
    names = [f"golden/output-{index}.npy" for index in range(len(outputs))]
    (new / "golden").mkdir()
    for name, array in zip((golden["input"], *names), (inputs, *outputs), strict=True):
        _save(new / name, array)
    manifest["golden"] = golden | {"outputs": names}
    _seal(new, manifest)
    return manifest


def _opset(graph: onnx.ModelProto) -> int:
    return int(next(entry.version for entry in graph.opset_import if entry.domain in ("", "ai.onnx")))


def runner_source(runtime: str) -> str:
    """Return the runner, one file, with its part for TensorRT where that is what runs the model."""
    source = Path(runner.__file__).read_text("utf-8")
    if runtime != "tensorrt":
        return source
    body, start, end = source.partition('\n\nif __name__ == "__main__":\n')
    second = Path(engine.__file__).read_text("utf-8")
    # imports of the standard library may stand twice; those of the first part are its own names
    second = re.sub(
        r"^from penjing\.bundle\.runner import \(.*?^\).*?\n", "", second, flags=re.DOTALL | re.MULTILINE
    )
    return f"{body}\n\n{second}{start}{end}"


def read(folder: Path) -> runner.Bundle:
    """Open a bundle as its runner would; InputError says what is wrong with it."""
    with said():
        return runner.Bundle(str(folder))


@contextmanager
def said() -> Iterator[None]:
    """Turn what the runner's code raises into Penjing's errors."""
    try:
        yield
    except runner.ImageError as error:
        raise InputError(str(error)) from error
    except runner.RunnerError as error:
        kind = PlanError if error.code == runner.BAD_MACHINE else InputError
        raise kind(str(error), hint="docs/bundle.md tells what a bundle holds.") from error


def _manifest(model: Model, plan: Plan, report: Report, deployment: Deployment) -> dict[str, Any]:
    import onnx

    graph = onnx.load(model.value, load_external_data=False)
    opset = _opset(graph)
    labels = plan.data.classes if plan.data and plan.data.classes else model.labels
    device = plan.device
    return {
        "schema": runner.SCHEMA,
        "penjing": report["penjing"],
        "created": report["created"],
        "source": report["source"],
        "command": report["command"],
        "packages": report["environment"]["packages"],
        "task": plan.task.name,
        "labels": [_line(label) for label in labels],
        "preprocess": model.preprocess.to_dict() if model.preprocess else None,
        "inputs": [_tensor(tensor) for tensor in model.inputs],
        "outputs": [_tensor(tensor) for tensor in model.outputs],
        "model": {"file": "model.onnx", "opset": opset, "ir": graph.ir_version},
        "device": {
            "name": device.name,
            "title": _line(device.title),
            "stack": device.stack,
            "arch": device.arch,
            "isa": sorted(device.isa),
        },
        "runtime": {
            "name": deployment.runtime,
            "minimum": _minimum(device, opset, deployment.runtime),
            "threads": plan.backend.threads,
            "build": dict(deployment.build),
        },
    }


def _line(text: str) -> str:
    """Return text that does nothing to a terminal but stand there, at no great length."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)[:1000]


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "shape": list(tensor.shape), "dtype": tensor.dtype}


def _minimum(device: Device, opset: int, runtime: str) -> str:
    """Return the lowest version of the runtime that the device's profile asks for and that reads the opset."""
    from packaging.specifiers import SpecifierSet

    specifiers = SpecifierSet(device.runtime.get(runtime, ""))
    if runtime == "tensorrt":  # a stack has one version; that it reads the opset was checked with the plan
        return next(
            (entry.version.removesuffix(".*") for entry in specifiers if entry.operator in ("==", ">=")), ""
        )
    asked = next((entry.version for entry in specifiers if entry.operator == ">="), "")
    reads = next((release for release, highest in READS if highest >= opset), "")
    return reads if not asked or runner.older(asked, reads) else asked


def _inputs(model: Model, plan: Plan) -> tuple[Array, str]:
    """Return what to record: pixels uint8 NHWC of photographs, or of noise where there are none.

    Where it is not known how photographs go in, float32 NCHW.
    """
    import numpy as np
    from PIL import Image

    from penjing.photos import read_photo

    preprocess, noise = model.preprocess, np.random.default_rng(0)
    height, width = (side or 224 for side in model.inputs[0].shape[2:])
    if preprocess is None:
        return noise.standard_normal((1, model.inputs[0].shape[1] or 3, height, width), np.float32), "noise"
    found: list[Array] = []
    if plan.data is not None:
        for photo in plan.data.calibrate.photos:
            # of different sizes there is no batch
            if len(found) == (GOLDEN if preprocess.size else 1):
                break
            if photo.path in plan.data.broken:
                continue
            try:
                found.append(preprocess.pixels(read_photo(photo.path)))
            except InputError as error:  # decoded here for the first time
                plan.data.broken.add(photo.path, error.message)
    if found:
        return np.stack(found), "photographs"
    images = [Image.fromarray(noise.integers(0, 256, (height, width, 3), np.uint8)) for _ in range(GOLDEN)]
    return np.stack([preprocess.pixels(image) for image in images]), "noise"


def _record(new: Path, manifest: dict[str, Any], inputs: Array, plan: Plan, model: Model) -> dict[str, Any]:
    """Record inputs and outputs in golden/, and return what the manifest says of them.

    The outputs are those that the backend computes as the device does. How near a device must come is
    measured: the model is run here once more, in floats if the outputs are from integer kernels, else in
    integers, and twice that distance is allowed. These ways round differently, as do the kernels of other CPUs.
    """
    floats = runner.normalise(inputs, manifest["preprocess"]) if inputs.dtype.name == "uint8" else inputs
    fixed = model.inputs[0].shape[0]

    def ask(session: Callable[[Any], Any]) -> list[list[Array]]:
        return runner.each(session, floats, fixed or 1, fixed)

    wanted = ask(plan.backend.open(model, plan.device))
    onnx_file = Path(model.value).read_bytes()
    second = _second(onnx_file, manifest, plan)
    count = _worth_recording(wanted)
    other, wanted = ask(second)[:count], wanted[:count]
    apart = [runner.distance(*pair) for pair in zip(_joined(other), _joined(wanted), strict=True)]
    most = max(MOST if value is None else value for value in apart)
    (new / "golden").mkdir()
    _save(new / "golden" / "input.npy", inputs[:count])
    names = [f"golden/output-{index}.npy" for index in range(len(apart))]
    for name, output in zip(names, _joined(wanted), strict=True):
        _save(new / name, output)
    here = "by integer kernels of this device; in floats" if plan.device.here else "in floats; on integers"
    here = "in floats, float16 rounded; by ONNX Runtime's own kernels" if _is_half(onnx_file) else here
    return {
        "input": "golden/input.npy",
        "outputs": names,
        "tolerance": round(min(MOST, LEAST + 2 * most), 4),
        "how": f"Computed {here} they are up to {most:.4f} away, as |a - b| / |b| over an output. "
        f"{LEAST} and twice that is allowed, but no more than {MOST}.",
    }


def _second(model: bytes, manifest: dict[str, Any], plan: Plan) -> runner.OnnxRuntime:
    """Load a model to compute in another way than the backend does; RunnerError where it does not load."""
    # onnxruntime 1.32 on integer kernels does not load some graphs whose scales are float16, and errs on others
    entries = [_FLOATS] if _is_half(model) else _other_way(plan.device, manifest)
    # the version that the bundle asks for is of the device's runtime
    asked = manifest["runtime"]["minimum"] if manifest["runtime"]["name"] == "onnxruntime" else ""
    here = {**manifest, "runtime": {**manifest["runtime"], "minimum": asked}}
    return runner.OnnxRuntime(model, here, plan.backend.threads, entries)


def _is_half(model: bytes) -> bool:
    """Tell whether a graph holds constants in float16."""
    import onnx

    graph = onnx.load_model_from_string(model).graph
    return any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.initializer)


def _other_way(device: Device, manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Return how to compute what a device does in another way than the backend does for it."""
    if manifest["runtime"]["name"] == "tensorrt":
        return [_SIGNED]  # signed integers, which the backend computes in floats where it has no GPU
    if device.here:
        return [_FLOATS]
    if device.arch == "aarch64":
        return [_SIGNED]
    vnni = {"avx512_vnni", "avx_vnni", "amx"}
    return [_EXACT] if vnni & device.isa and not vnni & this_machine().isa else []


def _worth_recording(outputs: Sequence[Sequence[Array]]) -> int:
    """Return how many items to record: few of large outputs, one where outputs differ in shape."""
    size = sum(output.nbytes for output in outputs[0])
    alike = all([a.shape for a in item] == [b.shape for b in outputs[0]] for item in outputs)
    return max(1, min(len(outputs), GOLDEN_BYTES // max(1, size))) if alike else 1


def _joined(items: Sequence[Sequence[Array]]) -> list[Array]:
    import numpy as np

    return [np.concatenate(parts) for parts in zip(*items, strict=True)]


def _save(path: Path, array: Array) -> None:
    import numpy as np

    with path.open("wb") as file:
        np.lib.format.write_array(file, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)


def _seal(new: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, with the size and hash of each file that is there, and its own."""
    paths = sorted(path for path in new.rglob("*") if path.is_file())
    manifest["files"] = {
        path.relative_to(new).as_posix(): {"size": path.stat().st_size, "sha256": sha256_of(path)}
        for path in paths
    }
    manifest["digest"] = runner.digest(manifest)
    # ASCII, which every board reads whatever its locale
    (new / "manifest.json").write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n", "ascii")


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """Give an empty folder that takes the place of `target` at the end, all its files on the disk by then."""
    for leftover in target.parent.glob(f".{target.name}.*"):
        shutil.rmtree(leftover)
    room = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        new = room / "new"
        new.mkdir()
        yield new
        for path in sorted(new.rglob("*")):
            if path.is_dir():
                sync(path)
            else:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        sync(new)
        if target.is_symlink() or target.exists():
            target.rename(room / "old")
        new.rename(target)
        sync(target.parent)
    finally:
        shutil.rmtree(room)
