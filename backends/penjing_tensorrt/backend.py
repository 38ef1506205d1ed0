"""The backend for TensorRT: an engine where it can be built, else the graph and the command that builds it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from penjing.doctor import why_not_served
from penjing.errors import PlanError, StepError, did_you_mean
from penjing.options import option
from penjing.step import Backend, Deployment

from penjing_tensorrt import installed
from penjing_tensorrt.adapters import Adapter, adapter
from penjing_tensorrt.build import Build
from penjing_tensorrt.trtexec import build_command, measure_command
from penjing_tensorrt.versions import Target, need, stacks_where, target

if TYPE_CHECKING:
    from collections.abc import Collection

    from penjing.device import Device
    from penjing.model import Model
    from penjing.step import Context, Scheme, Session

    from penjing_tensorrt.graph import Graph

#: names of the files that a build reads and writes, beside each other
ONNX, ENGINE, TIMING, LAYERS = "model.onnx", "model.plan", "timing.cache", "layers.json"
#: options that the runner of a bundle does not read
_BY_HAND = ("layers", "tf32", "sparse", "version_compatible", "hardware_compatible", "max_batch")
_HARDWARE = {"none": "none", "ampere+": "ampere+", "same-compute-capability": "sameComputeCapability"}


@dataclasses.dataclass(frozen=True)
class TensorRT(Backend):
    """Make the network ready for TensorRT, and build its engine where the device is this machine."""

    name = "tensorrt"
    accepts = frozenset({"onnx"})
    produces = "onnx"
    exact = True
    builds_engine = True

    precision: Literal["auto", "fp32", "fp16", "bf16", "int8", "fp8", "best"] = option(
        "auto",
        "Formats that a weakly typed engine may use; auto takes those of the graph, and FP16 beside INT8.",
    )
    typing: Literal["auto", "weak", "strong"] = option(
        "auto", "Whether flags or the graph's own types tell the precision; auto is weak up to TensorRT 10."
    )
    batch: int = option(
        0, "Images in a batch that an engine is tuned for; 0 for the graph's own, or 1.", between=(0, 65536)
    )
    max_batch: int = option(
        0, "Most images that an engine of open batch takes; 0 for batch.", between=(0, 65536)
    )
    workspace: float = option(
        0.25, "Share of the device's memory that kernels may use as scratch space.", between=(0.01, 1)
    )
    level: int | None = option(
        None,
        "Optimisation level, from quick to build to quick to run; none leaves it to TensorRT.",
        between=(0, 5),
    )
    layers: tuple[str, ...] = option(
        (), "Layers that a weakly typed engine holds to a precision, as NAME:fp32 or NAME:fp16."
    )
    constraints: Literal["obey", "prefer"] = option("obey", "How strictly `layers` is to be followed.")
    tf32: bool = option(True, "Let FP32 layers multiply in TF32, where the GPU can.")
    sparse: bool = option(False, "Use kernels for weights of which two of four are zero.")
    timing_cache: bool = option(True, "Keep the timings of kernels beside the engine, for the next build.")
    version_compatible: bool = option(
        False, "Build an engine that newer releases of the same major version load too."
    )
    hardware_compatible: Literal["none", "ampere+", "same-compute-capability"] = option(
        "none", "Other GPUs that the engine shall load on; it is slower for it."
    )

    def check(self, device: Device, backend: Backend) -> None:
        """Raise PlanError for what the device's TensorRT, or its GPU, does not have."""
        if "tensorrt" not in device.runtime:
            raise PlanError(f"{device.title} runs no TensorRT.", hint=f"Its backend is {device.backend}.")
        aim = target(device)
        if device.sm and all(reasons := [why_not_served(release, device.sm) for release in aim.meant]):
            raise PlanError(
                f"{reasons[-1]}, which {device.title} has.", hint="Choose another stack, or mend the profile."
            )
        self.adapter(aim).check(device, aim, self.precision)
        self._check_flags(device, aim)
        self._check_gpu(device)
        if self.max_batch and self.max_batch < self.batch:
            raise PlanError(f"tensorrt.max_batch={self.max_batch} is less than tensorrt.batch={self.batch}.")

    def _check_flags(self, device: Device, aim: Target) -> None:
        if self.level is not None:
            need(device, aim, "--builderOptimizationLevel", "optimisation level")
        if self.version_compatible:
            need(device, aim, "--versionCompatible", "version-compatible engines")
        if self.hardware_compatible != "none":
            need(device, aim, "--hardwareCompatibilityLevel", "hardware-compatible engines")
        if self.layers:
            if self.adapter(aim).typing == "strong":
                raise PlanError(
                    "tensorrt.layers is for weakly typed engines; a strongly typed one follows the graph.",
                    hint="Leave it empty, and let the steps before it write the types.",
                )
            need(device, aim, "--layerPrecisions", "precision of single layers")
            self._layers()
        if self.hardware_compatible == "same-compute-capability" and not _from(aim, (10, 9)):
            raise PlanError(
                f"TensorRT {aim.name} has no engines for all GPUs of one compute capability; 10.9 and later have.",
                hint=stacks_where(device, lambda other, _: _from(other, (10, 9))),
            )

    def _check_gpu(self, device: Device) -> None:
        """Raise PlanError where the GPU is too old for an option (TensorRT Developer Guide; support matrix)."""
        sm = tuple(int(part) for part in (device.sm or "99.0").split("."))
        for asked, least, what in (
            (self.version_compatible, (7, 0), "Version-compatible engines"),
            (self.hardware_compatible == "ampere+", (8, 0), "Engines for Ampere and later"),
            (
                self.hardware_compatible == "same-compute-capability",
                (7, 5),
                "Engines for one compute capability",
            ),
            (self.sparse, (8, 0), "Kernels for sparse weights"),
        ):
            if asked and sm < least:
                raise PlanError(
                    f"{what} need compute capability {least[0]}.{least[1]}; {device.title} has {device.sm}."
                )
        if self.hardware_compatible != "none" and device.arch == "aarch64":
            raise PlanError(
                "Whether a Jetson honours hardware compatibility is not documented, so it is not relied on.",
                hint="Build the engine on the board: the bundle holds the command.",
            )

    def explain(self, device: Device, backend: Backend) -> str:
        """Return what is built, and the command that builds it of a graph in the smallest format of the device."""
        aim = target(device)
        usual = "int8" if self.scheme(device) is not None else "fp16" if "fp16" in device.precisions else ""
        build = self.build(device, {usual} if usual and self.precision != "fp32" else ())
        kind = usual.upper() if usual and self.precision != "fp32" else "FP32"
        command = " ".join(build_command(aim, build, onnx=ONNX, engine=ENGINE))
        return (
            f"An engine by TensorRT {aim.name}, {build.typing}ly typed; of a graph in {kind} it is built on the "
            f"device by: {command}"
        )

    def resources(self, device: Device, backend: Backend) -> dict[str, Any]:
        """Return the TensorRT that is meant, the one that is here, and what stands in for it."""
        from importlib.metadata import version

        from penjing_tensorrt import rtx

        found = installed.look()
        engine = "" if installed.why_no_engine(device, found) else found.version
        return {
            "tensorrt": device.runtime.get("tensorrt", ""),
            "memory_gb": device.memory_gb,
            "precisions": device.precisions,
            "here": {"tensorrt": engine, "module": found.module, "gpus": found.gpus} if engine else {},
            "onnxruntime": version("onnxruntime"),
            "rtx": "" if rtx.available() else version(rtx.PACKAGES[1]),
        }

    def scheme(self, device: Device) -> Scheme | None:
        """Return how Q/DQ must stand for TensorRT to compute in INT8."""
        from penjing_tensorrt.scheme import scheme

        return scheme(device)

    def operators(self, device: Device) -> frozenset[str] | None:
        """Return the operators that the parser of the device's TensorRT reads."""
        from penjing_tensorrt.operators import oldest, readable

        return readable(oldest(device)) if "tensorrt" in device.runtime else None

    def available(self, device: Device) -> str:
        """Return why no engine of the device can run in this process; "" where one can."""
        return installed.why_no_session(device)

    def deployment(self, model: Model, device: Device) -> Deployment:
        """Return how the runner of a bundle builds the engine on the device."""
        aim, build = target(device), self.build_of(model, device)
        formats = ("fp16", "bf16", "int8") if build.formats == ("best",) else build.formats
        order: dict[str, Any] = {
            "precisions": [name for name in formats if name in device.precisions],
            "strongly_typed": build.typing == "strong",
            "workspace_mb": build.workspace,
            "command": build_command(aim, build, onnx=ONNX, engine=ENGINE),
        }
        if build.level is not None:
            order["optimization_level"] = build.level
        return Deployment("tensorrt", order)

    def _warn_of_precision(self, model: Model, context: Context) -> None:
        """Tell that a float graph, such as the original, is built without INT8 although that was asked for."""
        from penjing_tensorrt.graph import read

        if self._lacks_integers(read(Path(model.value))):
            context.warn(
                "tensorrt.precision=int8 is for quantised graphs: this one has no scales, which TensorRT would make "
                "up, and is built as with auto. quant.static makes one."
            )

    def _warn_of_runner(self, context: Context) -> None:
        """Tell which options the runner of a bundle leaves out, since only the command by hand has them."""
        plain = type(self)()
        asked = [name for name in _BY_HAND if getattr(self, name) != getattr(plain, name)]
        if asked or self.precision == "fp8":
            names = ", ".join(f"tensorrt.{name}" for name in asked or ["precision=fp8"])
            context.warn(
                f"`runner.py --build` does not know {names}: build by the command in the bundle's README."
            )

    def adapter(self, aim: Target) -> Adapter:
        """Return the way in which precision is told to the TensorRT meant."""
        return adapter(aim.typing if self.typing == "auto" else self.typing)

    def build(
        self, device: Device, formats: Collection[str], shape: tuple[int, ...] = (), name: str = ""
    ) -> Build:
        """Return the engine to be built of a graph that holds `formats`.

        `shape` is that of the input called `name` where the graph leaves a side open, () where it does not.
        """
        way = self.adapter(target(device))
        most = (max((self.max_batch, *shape[:1])), *shape[1:])
        return Build(
            typing=way.typing,
            formats=way.formats(device, self.precision, formats),
            shapes={name: ((1, *shape[1:]), shape, most)} if shape else {},
            workspace=max(1, int(device.memory_gb * 1e9 * self.workspace / 2**20)),
            level=self.level,
            tf32=self.tf32,
            sparse=self.sparse,
            version_compatible=self.version_compatible,
            hardware=_HARDWARE[self.hardware_compatible],
            layers=self._layers(),
            constraints=self.constraints,
            timing_cache=TIMING if self.timing_cache else "",
        )

    def build_of(self, model: Model, device: Device) -> Build:
        """Return the engine to be built of a model; StepError where its graph does not allow for it."""
        from penjing_tensorrt.graph import read, shape_of

        graph = read(Path(model.value))
        self._check_layers(graph)
        shape = shape_of(model, graph, self.batch)
        # for integers without scales TensorRT makes them up, and the answers mean nothing
        step = dataclasses.replace(self, precision="auto") if self._lacks_integers(graph) else self
        formats = graph.formats | {name for name in self._layers().values() if name in ("fp16", "bf16")}
        build = step.build(device, formats, shape if None in graph.shape else (), graph.input)
        if graph.shape[0] is not None and build.shapes:  # sides were open, and the batch is not
            return dataclasses.replace(build, shapes={graph.input: (shape, shape, shape)})
        return build

    def _lacks_integers(self, graph: Graph) -> bool:
        return self.precision == "int8" and "int8" not in graph.formats

    def _check_layers(self, graph: Graph) -> None:
        for name in self._layers():
            if name not in graph.nodes and name != "*":  # trtexec takes * for all
                near = did_you_mean(name, graph.nodes)
                raise StepError(
                    f"tensorrt.layers names {name!r}, which is no layer of the network.",
                    hint=near if near.startswith("Did") else "Layers bear the names of the graph's nodes.",
                )

    def _layers(self) -> dict[str, str]:
        pairs = [entry.rpartition(":") for entry in self.layers]
        for name, _, precision in pairs:
            if not name or precision not in ("fp32", "fp16", "bf16", "int8"):
                raise PlanError(
                    f"tensorrt.layers takes NAME:fp32, fp16, bf16 or int8, not {name}:{precision}."
                )
        return {name: precision for name, _, precision in pairs}

    def apply(self, model: Model, context: Context) -> Model:
        """Say how the engine is built; build it where the device is this machine."""
        from penjing_tensorrt import simulate

        device, found = context.device, installed.look()
        build = self.build_of(model, device)
        context.details.update(described(target(device), build))
        self._warn_of_runner(context)
        self._warn_of_precision(model, context)
        why = installed.why_no_engine(device, found)
        if not why:
            from penjing_tensorrt.on_device import make

            return make(model, build, found, context)
        simulate.session(model)  # which tells now, rather than while measuring, that the graph cannot be run
        context.details["engine"] = f"not built here: {why}"
        self._gate(model, context)
        return model

    def _gate(self, model: Model, context: Context) -> None:
        """Let TensorRT-RTX parse and build the graph where it is installed: StepError names the node it refuses."""
        from penjing_tensorrt import rtx

        if why := rtx.available():
            context.details["rtx"] = f"not tried: {why}"
            return
        verdict = rtx.gate(Path(model.value), rtx.targets(context.device))
        context.details["rtx"] = verdict.details()
        if verdict.outcome == "refused":
            raise StepError(
                f"TensorRT-RTX, which reads graphs as TensorRT does, refuses this one: {verdict.refusals[0]}",
                hint="It is tried because no TensorRT is here; without it this would fail on the device.",
            )
        if verdict.outcome == "undecided":
            context.warn(f"Whether TensorRT takes the graph is not known: {verdict.reason}.")

    def open(self, model: Model, device: Device) -> Session:
        """Load a model in TensorRT where it is here, else in ONNX Runtime, which answers as the engine would."""
        if self.available(device):
            from penjing_tensorrt import simulate

            return simulate.session(model)
        from penjing_tensorrt.on_device import opened

        return opened(model, self.build_of(model, device))


def described(aim: Target, build: Build) -> dict[str, Any]:
    """Return what the report and the bundle tell of a build: JSON values."""
    return {
        "build": {
            "command": build_command(aim, build, onnx=ONNX, engine=ENGINE, layers=LAYERS),
            "measure": measure_command(aim, build, engine=ENGINE),
            "tensorrt": aim.name,
            "typing": build.typing,
            "formats": list(build.formats),
            "engine": ENGINE,
        }
    }


def _from(aim: Target, version: tuple[int, int]) -> bool:
    return all(tuple(int(part) for part in release.split(".")[:2]) >= version for release in aim.listed)
