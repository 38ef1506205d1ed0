"""The backend for the DLA of a Jetson: where each layer will run, and all that an engine is built from."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penjing.errors import PlanError, StepError
from penjing.options import option
from penjing.step import Backend, Deployment

from penjing_tensorrt import installed
from penjing_tensorrt.build import Build
from penjing_tensorrt.dla.limits import Precision, Target, dla_of
from penjing_tensorrt.trtexec import build_command
from penjing_tensorrt.versions import Target as Release
from penjing_tensorrt.versions import of_version

if TYPE_CHECKING:
    from penjing.device import Device
    from penjing.model import Model
    from penjing.step import Context, Scheme, Session

    from penjing_tensorrt.dla.ready import Ready

#: the engine's file, beside the graph
ENGINE = "model.plan"


@dataclasses.dataclass(frozen=True)
class Dla(Backend):
    """Predict which layers run on the DLA, and make what its engine is built from."""

    name = "dla"
    accepts = frozenset({"onnx"})
    produces = "onnx"
    exact = True
    builds_engine = True

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
        from penjing_tensorrt.dla.ready import NETWORK

        target = dla_of(device)
        build = self.build(device, target, "int8", {})
        command = " ".join(build_command(release_of(target), build, onnx=NETWORK, engine=ENGINE))
        return (
            f"Core {self.core} of {target.title}"
            + (
                ", the GPU running what it cannot"
                if self.gpu_fallback
                else " alone: a layer that it cannot run stops the run; a view to N×C at the end is left to the runner"
            )
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
        from penjing_tensorrt.dla.ready import CACHE

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
        from penjing_tensorrt import simulate
        from penjing_tensorrt.dla.ready import make_ready
        from penjing_tensorrt.dla.view import show

        ready = make_ready(model, _target(context.device), alone=not self.gpu_fallback)
        self._check_fallback(ready, context)
        model = ready.write(context.folder)
        context.details.update(_details(ready, self._build_of(ready, context.device)))
        if ready.bare:
            context.details["outputs_before_their_view"] = list(ready.bare)
        show(context, ready.placement)
        simulate.session(model)  # which tells now, rather than while measuring, that the graph cannot be run
        why = self.available(context.device)
        context.details["engine"] = (
            f"not built here: {why}" if why else self._make(ready, context.device, context.folder)
        )
        return model

    def _check_fallback(self, ready: Ready, context: Context) -> None:
        """Refuse a network that TensorRT would refuse; a float one, which is there to compare with, is warned of."""
        left = ready.placement.on_gpu
        if self.gpu_fallback or not left:
            return
        reasons = "; ".join(f"{layer.name} ({layer.op}): {layer.why}" for layer in left[:3])
        message = f"{len(left)} layers cannot run on the DLA, and dla.gpu_fallback is off: {reasons}."
        if ready.stripped is not None:
            raise StepError(
                message,
                hint="Allow it with --set dla.gpu_fallback=true; dla.adapt before quant.static rewrites what it can.",
            )
        context.warn(message)

    def _build_of(self, ready: Ready, device: Device) -> Build:
        return self.build(device, ready.target, ready.target.precision, ready.held)

    def _make(self, ready: Ready, device: Device, folder: Path) -> dict[str, Any]:
        """Build the engine by trtexec beside the files of `ready`, and return what came of it."""
        from penjing_tensorrt import output
        from penjing_tensorrt.dla.log import placed
        from penjing_tensorrt.dla.ready import NETWORK, PLAIN
        from penjing_tensorrt.trtexec import run

        found = installed.look()
        graph = PLAIN if (folder / PLAIN).is_file() else NETWORK
        if not (folder / graph).is_file():
            shutil.copyfile(ready.model.value, folder / graph)
        aim, build = of_version(found.trtexec_version), self._build_of(ready, device)
        command = build_command(aim, build, onnx=graph, engine=ENGINE, program=found.trtexec)
        log = run([*command, "--verbose"], folder)
        said = output.as_json(output.read_log(log))
        size = (folder / ENGINE).stat().st_size
        return {"tensorrt": found.trtexec_version, "bytes": size, "placed": placed(log), "log": said}

    def open(self, model: Model, device: Device) -> Session:
        """Load the engine where it can run here, else simulate it, Q/DQ computed in floats."""
        from tempfile import TemporaryDirectory

        from penjing_tensorrt import simulate
        from penjing_tensorrt.dla.outputs import Shaped
        from penjing_tensorrt.dla.ready import make_ready
        from penjing_tensorrt.on_device import opened

        if self.available(device):
            return simulate.session(model)
        beside = Build("weak")  # what to build is not asked where an engine lies beside the graph
        if (Path(model.value).parent / ENGINE).is_file():
            return Shaped(opened(model, beside), model)
        with TemporaryDirectory() as folder:  # the graph was copied elsewhere
            ready = make_ready(model, _target(device), alone=not self.gpu_fallback)
            ready.write(Path(folder))
            self._make(ready, device, Path(folder))
            return Shaped(opened(model.become("onnx", Path(folder) / "model.onnx"), beside), model)

    def deployment(self, model: Model, device: Device) -> Deployment:
        """Return the graph without Q/DQ, its ranges, and how its engine is built."""
        from penjing_tensorrt.dla.ready import CACHE, NETWORK, PLAIN, make_ready

        ready = make_ready(model, _target(device), alone=not self.gpu_fallback)
        build, folder = self._build_of(ready, device), Path(model.value).parent
        order: dict[str, Any] = {
            "precisions": list(build.formats) or ["fp16", "int8"],
            "strongly_typed": build.typing == "strong",
            "dla_core": self.core,
            "gpu_fallback": self.gpu_fallback,
            "workspace_mb": build.workspace,
            "command": build_command(release_of(ready.target), build, onnx=NETWORK, engine=ENGINE),
        }
        if not build.calibration:
            return Deployment("tensorrt", order, model=folder / PLAIN if ready.bare else None)
        return Deployment("tensorrt", order | {"calibration": CACHE}, {CACHE: folder / CACHE}, folder / PLAIN)


def release_of(target: Target) -> Release:
    """Return the release whose trtexec compiles for a DLA."""
    return of_version(".".join(map(str, target.version)))


def _target(device: Device) -> Target:
    """Return the DLA of a device; Orin's for one without, which no plan ends on."""
    try:
        return dla_of(device)
    except PlanError:
        return Target(2)


def _details(ready: Ready, build: Build) -> dict[str, Any]:
    """Return what the report tells: JSON values."""
    from penjing_tensorrt.dla.ready import NETWORK

    command = build_command(release_of(ready.target), build, onnx=NETWORK, engine=ENGINE)
    return {
        "placement": ready.placement.to_dict(),
        "calibrated_tensors": len(ready.stripped.scales) if ready.stripped else 0,
        "build": {
            "command": command,
            "tensorrt": ".".join(map(str, ready.target.version)),
            "typing": build.typing,
            "formats": list(build.formats),
            "engine": ENGINE,
        },
    }
