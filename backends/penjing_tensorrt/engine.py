"""Engines through TensorRT's Python API, from 8.5 to 11."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from penjing.bundle.engine import TYPES, calibrator
from penjing.errors import StepError

from penjing_tensorrt import failures
from penjing_tensorrt.adapters import adapter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from penjing.bundle.engine import Cuda

    from penjing_tensorrt.build import Build

    Array = np.ndarray[Any, Any]

_HARDWARE = {"ampere+": "AMPERE_PLUS", "sameComputeCapability": "SAME_COMPUTE_CAPABILITY"}
#: pools by trtexec's name and by the Python API's
_POOLS = {"dlaSRAM": "DLA_MANAGED_SRAM", "dlaLocalDRAM": "DLA_LOCAL_DRAM", "dlaGlobalDRAM": "DLA_GLOBAL_DRAM"}


def load() -> Any:
    """Return TensorRT's module; StepError says why it cannot be loaded."""
    try:
        import tensorrt
    except Exception as error:  # a missing library is an ImportError, a wrong driver may be anything
        raise StepError(
            f"TensorRT's Python module cannot be loaded: {str(error).strip() or type(error).__name__}",
            hint="`penjing doctor` tells what is here.",
        ) from error
    return tensorrt


def build_engine(trt: Any, onnx: Path, build: Build, heard: Any, cache: Path | None = None) -> bytes:
    """Return the serialised engine of an ONNX file; what kernels took to time is kept in the file `cache`.

    `heard` is the logger, which keeps errors in `heard.said`. Raises StepError with TensorRT's first error.
    """
    builder = trt.Builder(heard)
    network = builder.create_network(adapter(build.typing).network_flags(trt))
    parser = trt.OnnxParser(network, heard)
    if not parser.parse_from_file(str(onnx)):
        errors = [str(parser.get_error(index).desc()) for index in range(parser.num_errors)]
        raise _failed("does not read the graph", errors + heard.said)
    config = _configure(trt, builder, network, build, onnx, cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _failed("cannot build the engine", heard.said)
    if cache is not None and (timings := config.get_timing_cache()) is not None:
        cache.write_bytes(bytes(timings.serialize()))
    return bytes(plan)


def _configure(trt: Any, builder: Any, network: Any, build: Build, onnx: Path, cache: Path | None) -> Any:
    config = builder.create_builder_config()
    adapter(build.typing).configure(trt, config, build)
    if build.workspace:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, build.workspace * 2**20)
    if build.level is not None:
        config.builder_optimization_level = build.level
    if not build.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if build.sparse:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if build.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if build.hardware != "none":
        level = getattr(trt.HardwareCompatibilityLevel, _HARDWARE[build.hardware])
        config.hardware_compatibility_level = level
    if build.calibration:
        ranges: Any = SimpleNamespace(
            cache=onnx.with_name(build.calibration).read_bytes(), version=trt.__version__
        )
        config.int8_calibrator = calibrator(trt, ranges)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _choose_accelerator(trt, config, build)
    if build.shapes:
        profile = builder.create_optimization_profile()
        for name, (least, usual, most) in build.shapes.items():
            profile.set_shape(name, least, usual, most)
        config.add_optimization_profile(profile)
    if cache is not None:
        known = cache.read_bytes() if cache.exists() else b""
        config.set_timing_cache(config.create_timing_cache(known), False)
    if build.layers:
        _hold(trt, network, build)
    return config


def _choose_accelerator(trt: Any, config: Any, build: Build) -> None:
    """Choose the DLA core, its memory and whether the GPU takes what it cannot run."""
    for pool, size in build.pools.items():
        config.set_memory_pool_limit(getattr(trt.MemoryPoolType, _POOLS[pool]), size * 2**20)
    if build.dla_core is not None:
        config.default_device_type, config.DLA_core = trt.DeviceType.DLA, build.dla_core
        if build.gpu_fallback:
            config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _hold(trt: Any, network: Any, build: Build) -> None:
    """Hold single layers to a precision; StepError names one that is not there."""
    types = {
        "fp32": trt.float32,
        "fp16": trt.float16,
        "int8": trt.int8,
        "bf16": getattr(trt, "bfloat16", None),
    }
    layers = {network.get_layer(index).name: network.get_layer(index) for index in range(network.num_layers)}
    for name, precision in build.layers.items():
        if name not in layers:
            raise StepError(
                f"tensorrt.layers names {name!r}, which is no layer of the network.",
                hint="Layers bear the names of the graph's nodes: --exportLayerInfo lists them.",
            )
        layers[name].precision = types[precision]


def _failed(what: str, errors: Sequence[str]) -> StepError:
    first = next((error.strip() for error in errors if error.strip()), "it does not say why")
    return StepError(f"TensorRT {what}: {first[:400]}", hint=failures.cure("\n".join(errors)))


@contextmanager
def _on_gpu() -> Iterator[None]:
    """Turn what the CUDA runtime refuses into StepError."""
    from penjing.bundle.runner import RunnerError

    try:
        yield
    except RunnerError as error:
        raise StepError(str(error), hint="`penjing doctor` tells what is here.") from error


class Engine:
    """An engine on the GPU, which runs batches; it implements `penjing.step.Session`.

    A run copies the batch to the GPU, computes, and copies the outputs back; it returns when they are there.
    """

    def __init__(
        self, trt: Any, plan: bytes, heard: Any, cuda: Callable[[], Cuda], outputs: Sequence[str] = ()
    ) -> None:
        self._heard, self._trt = heard, trt
        self._runtime = trt.Runtime(heard)  # which an engine needs for as long as it lives
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise _failed("does not load the engine", heard.said)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise _failed("has no memory to run the engine", heard.said)
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        (self._input,) = inputs
        found = [name for name in names if name not in inputs]
        self._outputs = list(outputs) if sorted(outputs) == sorted(found) else found
        with _on_gpu():
            self._cuda = cuda()
            self._stream = self._cuda.stream()
        self._room: dict[str, tuple[int, int]] = {}

    def __call__(self, batch: Array) -> list[Array]:
        """Run one batch, float32 NCHW."""
        with _on_gpu():
            return self._run(batch)

    def _run(self, batch: Array) -> list[Array]:
        import numpy as np

        kind = self._type(self._input)
        batch = np.ascontiguousarray(batch, dtype=kind)
        if not self._context.set_input_shape(self._input, batch.shape):
            raise _failed(f"does not take a batch of shape {list(batch.shape)}", self._heard.said[-1:])
        self._bind(self._input, batch.nbytes)
        self._cuda.upload(self._room[self._input][0], batch)
        results = [
            np.empty(tuple(self._context.get_tensor_shape(name)), self._type(name)) for name in self._outputs
        ]
        for name, result in zip(self._outputs, results, strict=True):
            self._bind(name, result.nbytes)
        if not self._context.execute_async_v3(self._stream):
            raise _failed("cannot run the engine", self._heard.said[-1:])
        self._cuda.wait(self._stream)
        for name, result in zip(self._outputs, results, strict=True):
            self._cuda.download(result, self._room[name][0])
        return results

    def _type(self, name: str) -> str:
        """Return a tensor's type by numpy's name; StepError for one that numpy does not have."""
        kind = str(self._engine.get_tensor_dtype(name)).rpartition(".")[2]
        if kind not in TYPES:
            raise StepError(f"The engine's {name} is {kind}, which numpy does not have.")
        return TYPES[kind]

    def _bind(self, name: str, size: int) -> None:
        """Give a tensor room on the GPU, once for its largest batch."""
        address, room = self._room.get(name, (0, -1))
        if room < size:
            if address:
                self._cuda.wait(self._stream)
                self._cuda.free(address)
            address = self._cuda.allocate(size)
            self._room[name] = (address, size)
            self._context.set_tensor_address(name, address)
