"""Engines on the device itself: built, timed and opened by what is installed there."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penjing.bundle.engine import Cuda, listener
from penjing.engine_file import read_header
from penjing.errors import InputError
from penjing.exhibit import Bars, Table
from penjing.files import write_bytes

from penjing_tensorrt import engine as engines
from penjing_tensorrt import exports, output
from penjing_tensorrt.trtexec import build_command, measure_command, run
from penjing_tensorrt.versions import of_version

if TYPE_CHECKING:
    from penjing.model import Model
    from penjing.step import Context, Session

    from penjing_tensorrt.build import Build
    from penjing_tensorrt.installed import Installed

ONNX, ENGINE, TIMING, LAYERS, PROFILE = (
    "model.onnx",
    "model.plan",
    "timing.cache",
    "layers.json",
    "profile.json",
)
#: layers that the report shows, the slowest ones
_SHOWN = 30


def make(model: Model, build: Build, found: Installed, context: Context) -> Model:
    """Build the engine beside a copy of the graph, in the step's folder, and tell the report of it."""
    shutil.copyfile(model.value, context.folder / ONNX)
    start = time.monotonic()
    if found.module:
        trt = engines.load()
        heard = listener(trt)
        cache = context.folder / TIMING if build.timing_cache else None
        plan = engines.build_engine(trt, context.folder / ONNX, build, heard, cache)
        write_bytes(context.folder / ENGINE, plan)
        context.details["engine"] = _facts(context.folder / ENGINE, found.module, "Python API", start)
    else:
        _by_trtexec(build, found, context)
        context.details["engine"] = _facts(context.folder / ENGINE, found.trtexec_version, "trtexec", start)
    return model.become("onnx", context.folder / ONNX)


def _facts(path: Path, version: str, by: str, start: float) -> dict[str, Any]:
    seconds = round(time.monotonic() - start, 1)
    return {"tensorrt": version, "built_by": by, "seconds": seconds, "bytes": path.stat().st_size}


def _by_trtexec(build: Build, found: Installed, context: Context) -> None:
    """Build and time an engine with trtexec, and show what it measured."""
    aim, folder = of_version(found.trtexec_version), context.folder
    command = build_command(aim, build, onnx=ONNX, engine=ENGINE, layers=LAYERS, program=found.trtexec)
    log = output.read_log(run(command, folder))
    for warning in log.warnings[:5]:
        context.warn(f"TensorRT: {warning[:300]}")
    timing = measure_command(aim, build, engine=ENGINE, profile=PROFILE, program=found.trtexec)
    measured = output.read_log(run(timing, folder), timed=True)
    context.details["trtexec"] = output.as_json(measured)["summary"]
    layers = exports.read_layers(folder / LAYERS)
    if any(layer.precisions for layer in layers):
        rows = [(layer.name[:80], layer.kind, ", ".join(layer.precisions)) for layer in layers]
        context.show(Table("What TensorRT made of the layers", ("layer", "kind", "output"), rows[:200]))
    slowest = sorted(exports.read_profile(folder / PROFILE), key=lambda layer: -layer.mean_ms)[:_SHOWN]
    times: dict[str, float | None] = {layer.name[:80]: layer.mean_ms for layer in slowest}
    context.show(Bars("Time of the slowest layers on the GPU, by trtexec's profiler", "ms", times))


def opened(model: Model, build: Build) -> Session:
    """Load the engine that lies beside a model's graph; build it anew where none does, or where it is another's."""
    trt = engines.load()
    heard = listener(trt)
    plan = _beside(Path(model.value), str(trt.__version__))
    if plan is None:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder) / ONNX
            shutil.copyfile(model.value, work)
            plan = engines.build_engine(trt, work, build, heard)
    return engines.Engine(trt, plan, heard, Cuda, [tensor.name for tensor in model.outputs])


def _beside(onnx: Path, version: str) -> bytes | None:
    """Return the engine beside a graph that this TensorRT made; None where there is none of its own."""
    path = onnx.parent / ENGINE
    if not path.is_file():
        return None
    try:
        header = read_header(path)
    except InputError:
        return None
    same = header.maker == "TensorRT" and version.startswith(header.version)
    return path.read_bytes() if same else None
