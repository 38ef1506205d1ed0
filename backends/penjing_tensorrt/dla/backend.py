"""The backend for the DLA of a Jetson: where each layer will run, and all that an engine is built from."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penjing.errors import PlanError, StepError
from penjing.files import digest, write_bytes, write_text
from penjing.options import option
from penjing.step import Backend, Deployment

from penjing_tensorrt import installed
from penjing_tensorrt.build import Build
from penjing_tensorrt.dla.limits import Precision, Target, dla_of
from penjing_tensorrt.trtexec import build_command
from penjing_tensorrt.versions import Target as Release
from penjing_tensorrt.versions import of_version

if TYPE_CHECKING:
    import onnx
    from penjing.device import Device
    from penjing.model import Model
    from penjing.step import Context, Scheme, Session

    from penjing_tensorrt.dla.place import Placement
    from penjing_tensorrt.dla.strip import Stripped

#: files in the step's folder: the graph that is measured, the one that TensorRT parses, and its ranges
NETWORK, PLAIN, CACHE, ENGINE = "model.onnx", "dla.onnx", "calibration.cache", "model.plan"


@dataclasses.dataclass(frozen=True)
class Dla(Backend):
    """Predict which layers run on the DLA, and make what its engine is built from."""

    name = "dla"
    accepts = frozenset({"onnx"})
    produces = "onnx"
    exact = True

    core: int = option(0, "Core of the DLA to build for.", between=(0, 15))
    gpu_fallback: bool = option(
        True, "Let the GPU run layers that the DLA cannot; without it they are an error."
    )
    sram: int = option(1, "Memory on the chip for one loadable, in MiB: a power of two.", between=(1, 64))
    local_dram: int = option(
        1024, "Memory of a loadable for its tensors, in MiB: a power of two.", between=(1, 65536)
    )
    global_dram: int = option(
        512, "Memory of a loadable for its weights, in MiB: a power of two.", between=(1, 65536)
    )
    workspace: float = option(0.25, "Share of the device's memory for layers on the GPU.", between=(0.01, 1))

    def check(self, device: Device, backend: Backend) -> None:
        """Raise PlanError for a board without such a core, or a TensorRT that cannot use it, and say which can."""
        target = dla_of(device)
        if self.core >= target.cores:
            cores = "one core, 0" if target.cores == 1 else f"cores 0 to {target.cores - 1}"
            raise PlanError(f"The DLA of {device.title} has {cores}, not {self.core}.", hint="Set dla.core.")
        for name in ("sram", "local_dram", "global_dram"):
            if (size := getattr(self, name)) & (size - 1):
                raise PlanError(
                    f"dla.{name}={size} is no power of two, as the DLA wants it.",
                    hint=f"{1 << size.bit_length() - 1} is.",
                )

    def explain(self, device: Device, backend: Backend) -> str:
        """Return the DLA, and the command that builds an engine of a quantised graph."""
        target = dla_of(device)
        build = self.build(device, target, "int8", {})
        command = " ".join(build_command(release_of(target), build, onnx=NETWORK, engine=ENGINE))
        return (
            f"Core {self.core} of {target.title}"
            + (", the GPU running what it cannot" if self.gpu_fallback else "")
            + f"; the engine is built on the device by: {command}"
        )

    def resources(self, device: Device, backend: Backend) -> dict[str, Any]:
        """Return the DLA, the memory, what is installed here, and what simulates."""
        from importlib.metadata import version

        engine = "" if installed.why_no_engine(device) else installed.look().version
        return {
            "dla": dataclasses.asdict(_target(device)),
            "memory_gb": device.memory_gb,
            "here": engine,
            "onnxruntime": version("onnxruntime"),
        }

    def scheme(self, device: Device) -> Scheme | None:
        """Return how Q/DQ must stand: at every tensor, so that no layer leaves INT8."""
        from penjing_tensorrt.scheme import scheme

        return scheme(device, dla=True)

    def operators(self, device: Device) -> frozenset[str] | None:
        """Return the operators that the parser of the device's TensorRT reads."""
        from penjing_tensorrt.operators import oldest, readable

        return readable(oldest(device)) if "tensorrt" in device.runtime else None

    def available(self, device: Device) -> str:
        """Return why no engine of the device can run in this process; "" where one can."""
        if why := installed.why_no_session(device):
            return why
        return "" if installed.look().trtexec else "trtexec, which builds for the DLA, is not here"

    def build(self, device: Device, target: Target, precision: Precision, layers: dict[str, str]) -> Build:
        """Return the engine to be built of a graph; `layers` are those that stay in FP16, by name."""
        release, strong = release_of(target), target.strongly_typed
        pools = {"dlaSRAM": self.sram, "dlaLocalDRAM": self.local_dram, "dlaGlobalDRAM": self.global_dram}
        held = layers if not strong and release.has("--layerPrecisions") else {}
        return Build(
            typing="strong" if strong else "weak",
            formats=() if strong else ("fp16", "int8") if precision == "int8" else ("fp16",),
            workspace=max(1, int(device.memory_gb * 1e9 * self.workspace / 2**20)),
            pools=pools if release.has("--memPoolSize") else {},
            layers=held,
            constraints="prefer",
            calibration=CACHE if precision == "int8" and not strong else "",
            dla_core=self.core,
            gpu_fallback=self.gpu_fallback,
            extra=("--adjustForDLA",) if strong else (),
        )

    def apply(self, model: Model, context: Context) -> Model:
        """Write what an engine is built from, say where each layer will run, and build it where that can be."""
        from penjing_tensorrt.dla.graph import load
        from penjing_tensorrt.dla.place import place
        from penjing_tensorrt.dla.view import show
        from penjing_tensorrt.simulate import Session as Simulation

        graph = load(Path(model.value))
        _check_batch(graph, model)
        target, stripped = _target(context.device), _stripped(graph)
        target = dataclasses.replace(target, precision="int8" if stripped else "fp16")
        scales = stripped.scales if stripped else {}
        placement = place(stripped.plain if stripped else graph, target, batch=None, scales=set(scales))
        if target.strongly_typed and not stripped and not _is_half(graph):
            context.warn(
                "The graph computes in FP32, and TensorRT 11 keeps to it: the DLA runs INT8 and FP16 alone."
            )
        self._check_fallback(placement, bool(stripped), context)
        floats = (
            {layer.name: "fp16" for layer in placement.layers if layer.precision == "fp16"}
            if stripped
            else {}
        )
        build = self.build(context.device, target, target.precision, floats)
        context.details.update(_details(placement, build, target, scales))
        show(context, placement)
        if stripped:
            model = _written(model, stripped, target, context.folder)
        Simulation(model)  # which tells now, rather than while measuring, that the graph cannot be run
        why = self.available(context.device)
        context.details["engine"] = f"not built here: {why}" if why else _made(model, build, context.folder)
        return model

    def _check_fallback(self, placement: Placement, quantised: bool, context: Context) -> None:
        """Refuse a network that TensorRT would refuse; a float one, which is there to compare with, is warned of."""
        left = placement.on_gpu
        if self.gpu_fallback or not left:
            return
        reasons = "; ".join(f"{layer.name} ({layer.op}): {layer.why}" for layer in left[:3])
        message = f"{len(left)} layers cannot run on the DLA, and dla.gpu_fallback is off: {reasons}."
        if quantised:
            raise StepError(message, hint="Allow it, or put dla.adapt before quant.static.")
        context.warn(message)

    def open(self, model: Model, device: Device) -> Session:
        """Load the engine where it can run here, else simulate it, Q/DQ computed in floats."""
        if self.available(device):
            from penjing_tensorrt.simulate import Session as Simulation

            return Simulation(model)
        from penjing_tensorrt.on_device import opened

        return opened(model, Build("weak"))  # the engine lies beside the graph, as `apply` left it

    def deployment(self, model: Model, device: Device) -> Deployment | None:
        """Return the graph without Q/DQ, its ranges and its build; None for a model that `apply` has not readied."""
        folder, target = Path(model.value).parent, _target(device)
        cache, plain = folder / CACHE, folder / PLAIN
        quantised = cache.is_file() and plain.is_file()
        precisions = ["fp16", "int8"] if quantised or target.strongly_typed else ["fp16"]
        build: dict[str, Any] = {
            "precisions": precisions,
            "strongly_typed": target.strongly_typed,
            "dla_core": self.core,
            "gpu_fallback": self.gpu_fallback,
        }
        build["workspace_mb"] = max(1, int(device.memory_gb * 1e9 * self.workspace / 2**20))
        if not quantised or target.strongly_typed:
            return Deployment("tensorrt", build)
        build["calibration"] = CACHE
        return Deployment("tensorrt", build, {CACHE: cache}, plain)


def release_of(target: Target) -> Release:
    """Return the release whose trtexec compiles for a DLA."""
    return of_version(".".join(map(str, target.version)))


def _target(device: Device) -> Target:
    """Return the DLA of a device; Orin's for one without, which no plan ends on."""
    try:
        return dla_of(device)
    except PlanError:
        return Target(2)


def _check_batch(graph: onnx.ModelProto, model: Model) -> None:
    from penjing_tensorrt.dla.graph import tensors

    for tensor in tensors(graph)[0]:
        if None in tensor.shape:
            raise StepError(
                f"{Path(model.value).name} leaves sides of {tensor} open; the DLA builds for one shape.",
                hint="onnx.export.batch=1 or dla.adapt.batch=1 fixes the batch.",
            )


def _stripped(graph: onnx.ModelProto) -> Stripped | None:
    from penjing_tensorrt.dla.strip import is_quantised, strip

    return strip(graph) if is_quantised(graph) else None


def _is_half(graph: onnx.ModelProto) -> bool:
    import onnx

    return any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.graph.initializer)


def _details(placement: Placement, build: Build, target: Target, scales: dict[str, float]) -> dict[str, Any]:
    """Return what the report tells: JSON values."""
    command = build_command(release_of(target), build, onnx=NETWORK, engine=ENGINE)
    return {
        "placement": placement.to_dict(),
        "calibrated_tensors": len(scales),
        "build": {
            "command": command,
            "tensorrt": ".".join(map(str, target.version)),
            "typing": build.typing,
            "formats": list(build.formats),
            "engine": ENGINE,
        },
    }


def _written(model: Model, stripped: Stripped, target: Target, folder: Path) -> Model:
    """Write the graph to be simulated, the one without Q/DQ, and the ranges; return the first."""
    from penjing_tensorrt.dla.calibration_cache import Cache

    data = stripped.network.SerializeToString(deterministic=True)
    write_bytes(folder / NETWORK, data)
    if not target.strongly_typed:
        write_bytes(folder / PLAIN, stripped.plain.SerializeToString(deterministic=True))
        write_text(folder / CACHE, Cache(target.version, stripped.scales).write())
    return model.become("onnx", folder / NETWORK, fingerprint=digest(data))


def _made(model: Model, build: Build, folder: Path) -> dict[str, Any]:
    """Build the engine by trtexec in the step's folder, and return what it says of itself."""
    from penjing_tensorrt import output
    from penjing_tensorrt.dla.log import placed
    from penjing_tensorrt.trtexec import run

    found = installed.look()
    plain = folder / PLAIN
    if not plain.is_file():
        shutil.copyfile(model.value, plain)
    command = build_command(
        of_version(found.trtexec_version), build, onnx=PLAIN, engine=ENGINE, program=found.trtexec
    )
    log = run([*command, "--verbose"], folder)
    read = output.read_log(log)
    return {
        "tensorrt": found.trtexec_version,
        "bytes": (folder / ENGINE).stat().st_size,
        "placed": placed(log),
        "log": output.as_json(read),
    }
