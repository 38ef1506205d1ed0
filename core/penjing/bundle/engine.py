# The second part of runner.py in the bundles that TensorRT runs; it keeps to Python 3.6 as the first part does:
# ruff: noqa: B905, UP006, UP035, PTH105, PTH107, PTH110, PTH113, PTH116, PTH118, PTH119, PTH123, PTH207
"""TensorRT for the runner: an engine is built on the device at first need, and kept beside the bundle."""

import contextlib
import ctypes
import glob
import hashlib
import json
import os
import re
import sys
import time
from typing import Any, Dict, Iterator, List, Tuple

from penjing.bundle.runner import (
    BAD_MACHINE,
    ELSEWHERE,
    RUNTIMES,
    Bundle,
    RunnerError,
    first_line,
    module,
    need,
    say,
)  # fmt: skip

# -- TensorRT -----------------------------------------------------------------------------------------------

TRTEXEC = ("/usr/src/tensorrt/bin/trtexec", "trtexec")
LIBRARIES = (
    "libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so.10.2",
    "/usr/local/cuda*/lib64/libcudart.so*", "/usr/local/cuda*/targets/*/lib/libcudart.so*",
)  # fmt: skip
#: cudaMemcpyKind, and cudaDeviceAttr for the two halves of the compute capability
TO_DEVICE, TO_HOST, MAJOR, MINOR = 1, 2, 75, 76
OUT_OF_MEMORY = re.compile("out of memory|OutOfMemory|Could not allocate|insufficient memory", re.IGNORECASE)
TYPES = {
    "FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32", "BOOL": "bool", "UINT8": "uint8",
    "INT64": "int64",
}  # fmt: skip
#: MiB of workspace for versions before 8.4, whose own choice is next to none
OLD_WORKSPACE = 256


class Cuda:
    """The GPU, through the CUDA runtime library that every JetPack has: no package is needed for it."""

    def __init__(self) -> None:
        self._library = self._load()
        count = ctypes.c_int()
        self.call("cudaGetDeviceCount", ctypes.byref(count))
        # the first bytes of cudaDeviceProp, whatever its version, are the name
        properties = ctypes.create_string_buffer(2**14)
        self.call("cudaGetDeviceProperties", properties, 0)
        self.name = properties.value.decode("utf-8", "replace")
        self.capability = f"{self._attribute(MAJOR)}.{self._attribute(MINOR)}"

    def _load(self) -> Any:
        wheels = [os.path.join(path, "nvidia", "*", "lib", "libcudart.so*") for path in sys.path]
        for pattern in (*LIBRARIES, *wheels):
            for path in sorted(glob.glob(pattern)) if "*" in pattern else [pattern]:
                try:
                    return ctypes.CDLL(path)
                except OSError:
                    continue
        raise RunnerError(
            "The CUDA runtime library (libcudart.so) is not found: on a Jetson, install JetPack's packages with "
            "`sudo apt-get install nvidia-jetpack`.",
            BAD_MACHINE,
        )

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the library; RunnerError says what it refused."""
        code = getattr(self._library, name)(*arguments)
        if code == 2:  # cudaErrorMemoryAllocation
            raise RunnerError("The GPU has too little free memory. " + MORE_MEMORY, BAD_MACHINE)
        if code:
            self._library.cudaGetErrorString.restype = ctypes.c_char_p
            words = self._library.cudaGetErrorString(code).decode("ascii", "replace")
            raise RunnerError(f"The GPU cannot be used: {name} says {words} ({code}).", BAD_MACHINE)

    def _attribute(self, number: int) -> int:
        value = ctypes.c_int()
        self.call("cudaDeviceGetAttribute", ctypes.byref(value), number, 0)
        return value.value

    def allocate(self, size: int) -> int:
        """Return the address of so many bytes on the GPU."""
        pointer = ctypes.c_void_p()
        self.call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(max(1, size)))
        return int(pointer.value or 0)

    def free(self, pointer: int) -> None:
        self.call("cudaFree", ctypes.c_void_p(pointer))

    def upload(self, pointer: int, array: Any) -> None:
        self._copy(pointer, array.ctypes.data, array.nbytes, TO_DEVICE)

    def download(self, array: Any, pointer: int) -> None:
        self._copy(array.ctypes.data, pointer, array.nbytes, TO_HOST)

    def _copy(self, target: int, source: int, size: int, kind: int) -> None:
        self.call("cudaMemcpy", ctypes.c_void_p(target), ctypes.c_void_p(source), ctypes.c_size_t(size), kind)

    def stream(self) -> int:
        stream = ctypes.c_void_p()
        self.call("cudaStreamCreate", ctypes.byref(stream))
        return int(stream.value or 0)

    def wait(self, stream: int) -> None:
        self.call("cudaStreamSynchronize", ctypes.c_void_p(stream))


MORE_MEMORY = (
    "Close other programs (a desktop takes much of a Jetson's), add swap while the engine is built, or make the "
    "bundle with a smaller workspace."
)


class Order:
    """What is to be built: the network, how, and on what."""

    def __init__(self, bundle: Bundle, batch: int, version: str, gpu: Cuda) -> None:
        manifest = bundle.manifest
        self.folder, self.version, self.batch = bundle.folder, version, batch
        self.build: Dict[str, Any] = manifest["runtime"].get("build") or {}
        self.network = bundle.take(manifest["model"]["file"])
        need(not ELSEWHERE.search(self.network), "its model keeps weights in other files")
        self.cache = b""
        if self.build.get("calibration"):
            self.cache = for_version(bundle.take(self.build["calibration"]), version)
        tensor = manifest["inputs"][0]
        self.input, self.dynamic = tensor["name"], tensor["shape"][0] is None
        self.sides = tensor["shape"][1:]
        if None in self.sides:
            raise RunnerError(
                f"The input {self.input} leaves open more than its batch, and an engine cannot."
            )
        self.facts = {"tensorrt": version, "gpu": gpu.name, "compute_capability": gpu.capability}
        rest = {key: value for key, value in self.build.items() if key != "command"}
        network, cache = (hashlib.sha256(data).hexdigest() for data in (self.network, self.cache))
        whole = [self.facts, rest, network, cache]
        self.key = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def precisions(self) -> List[str]:
        """Return what to turn on: nothing where types are those of the network."""
        strong = self.build.get("strongly_typed") and number_of(self.version) >= (10, 0)
        return [] if strong or number_of(self.version) >= (11, 0) else list(self.build.get("precisions", []))

    @property
    def workspace(self) -> int:
        """Return how many MiB of workspace a build may take; 0 for TensorRT's own choice."""
        asked: int = self.build.get("workspace_mb", 0)
        return asked or (OLD_WORKSPACE if number_of(self.version) < (8, 4) else 0)

    @property
    def level(self) -> Any:
        """Return the optimisation level; None for TensorRT's own choice."""
        return self.build.get("optimization_level") if number_of(self.version) >= (8, 6) else None


def number_of(version: str) -> Tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def for_version(cache: bytes, version: str) -> bytes:
    """Return a calibration cache whose first line names this version; its scales hold for all of them."""
    major, minor, patch = (*map(int, re.findall(r"\d+", version)), 0, 0)[:3]
    header, _, rest = cache.partition(b"\n")
    need(re.match(rb"TRT-\d+-\w+\r?\Z", header), "its calibration cache has a wrong first line")
    number = major * (10000 if major >= 10 else 1000) + 100 * minor + patch
    return b"TRT-%d-" % number + header.split(b"-", 2)[2] + b"\n" + rest


def check_version(bundle: Bundle, version: str, any_machine: bool) -> None:
    """Raise RunnerError where TensorRT is of another major version than the bundle was made for."""
    minimum = bundle.manifest["runtime"]["minimum"]
    if any_machine or not minimum or number_of(version)[:1] == number_of(minimum)[:1]:
        return
    raise RunnerError(
        f"The bundle was made for TensorRT {minimum}, and this machine has {version}: make it for the software "
        "here (`penjing devices` lists stacks, as in --device jetson-orin-nano@jetpack-6.2). With --any-machine "
        "it is tried all the same.",
        BAD_MACHINE,
    )


class Shelf:
    """Where engines are kept: beside the bundle, named by all that they depend on."""

    def __init__(self, order: Order) -> None:
        self._order = order
        batch = f"-{order.batch}" if order.dynamic else ""
        self.path = os.path.join(order.folder, f"engine-{order.key}{batch}.plan")

    def find(self) -> bytes:
        """Return the engine for this very network, TensorRT and GPU; b"" where there is none, whole."""
        try:
            with open(self.path, "rb") as file:
                head, engine = file.readline(1000), file.read()
        except OSError:
            return b""
        try:
            wanted = json.loads(head.decode("ascii"))
        except ValueError:
            return b""
        sound = isinstance(wanted, dict) and wanted.get("sha256") == hashlib.sha256(engine).hexdigest()
        return engine if sound else b""

    def keep(self, engine: bytes) -> None:
        """Write an engine, all at once, and remove those it replaces."""
        head = dict(self._order.facts, sha256=hashlib.sha256(engine).hexdigest())
        temporary = f"{self.path}.{os.getpid()}"
        try:
            with open(temporary, "wb") as file:
                file.write(json.dumps(head).encode("ascii") + b"\n" + engine)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except OSError as error:
            self._remove(temporary)
            raise RunnerError(
                f"The engine cannot be kept in {self._order.folder}: {error.strerror or error}.", BAD_MACHINE
            ) from error
        self._tidy()

    def check(self) -> None:
        """Raise RunnerError where an engine could not be kept: before minutes are spent on it."""
        path = f"{self.path}.{os.getpid()}"
        try:
            with open(path, "wb"):
                pass
        except OSError as error:
            raise RunnerError(
                f"An engine has to be built, and cannot be kept in {self._order.folder}: "
                f"{error.strerror or error}. Copy the bundle to where you may write.",
                BAD_MACHINE,
            ) from error
        self._remove(path)

    def _tidy(self) -> None:
        """Remove engines for another network, TensorRT or GPU, and what builds that were killed left a day ago."""
        folder = glob.escape(self._order.folder)
        for path in glob.glob(os.path.join(folder, "engine-*.plan")):
            if not os.path.basename(path).startswith(f"engine-{self._order.key}"):
                self._remove(path)
        for pattern in ("engine-*.plan.*", "building-*.*", "timing-*.plan"):
            for path in glob.glob(os.path.join(folder, pattern)):
                with contextlib.suppress(OSError):
                    if time.time() - os.stat(path).st_mtime > 24 * 3600:
                        os.remove(path)

    @staticmethod
    def _remove(path: str) -> None:
        with contextlib.suppress(OSError):
            os.remove(path)


def engine_of(order: Order, build: Any) -> Tuple[bytes, Dict[str, Any]]:
    """Return the engine, built where none fits, and what is to be told of that."""
    shelf = Shelf(order)
    engine = shelf.find()
    facts: Dict[str, Any] = dict(order.facts, engine=os.path.basename(shelf.path), built_s=None)
    if not engine:
        shelf.check()
        say(
            f"note: building the engine for TensorRT {order.version} on {order.facts['gpu']}: minutes, once.",
            sys.stderr,
        )
        start = time.time()
        engine = build(order)
        facts["built_s"] = round(time.time() - start, 1)
        shelf.keep(engine)
    return engine, dict(facts, engine_bytes=len(engine))


def why_failed(what: str, said: List[str]) -> RunnerError:
    """Return the error of a failed build by what TensorRT said of it."""
    if any(OUT_OF_MEMORY.search(line) for line in said):
        return RunnerError(f"{what}: it ran out of memory. " + MORE_MEMORY, BAD_MACHINE)
    return RunnerError(f"{what}: {said[-1][:300] if said else 'it does not say why'}", BAD_MACHINE)


# -- with its Python package


class TensorRt:
    """The model in TensorRT on this machine's GPU, or its deep learning accelerator."""

    name = "TensorRT"

    def __init__(self, bundle: Bundle, batch: int, any_machine: bool, tensorrt: Any, gpu: Cuda) -> None:
        self._trt, self._gpu = tensorrt, gpu
        self.notes: List[str] = []
        self.version: str = tensorrt.__version__
        check_version(bundle, self.version, any_machine)
        self._log = listener(tensorrt)
        order = Order(bundle, batch, self.version, gpu)
        plan, self.facts = engine_of(order, self._build)
        self._engine = tensorrt.Runtime(self._log).deserialize_cuda_engine(plan)
        if self._engine is None:
            raise why_failed(f"TensorRT {self.version} cannot load the engine", self._log.said)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise why_failed(f"TensorRT {self.version} cannot run the engine", self._log.said)
        self._input = order.input
        self._outputs = [tensor["name"] for tensor in bundle.manifest["outputs"]]
        self._sides = [tensor["shape"][1:] for tensor in bundle.manifest["outputs"]]
        self._pointers: Dict[str, int] = {}
        self._results: List[Any] = []
        self._bindings: List[int] = []
        self._shape: Any = None
        # versions before 8.5 know tensors by number
        self._by_name = hasattr(self._engine, "num_io_tensors")
        self._stream = gpu.stream()

    def _build(self, order: Order) -> bytes:
        trt = self._trt
        builder = trt.Builder(self._log)
        network = builder.create_network(self._network_flags(order))
        parser = trt.OnnxParser(network, self._log)
        if not parser.parse(order.network):
            said = [parser.get_error(index).desc() for index in range(parser.num_errors)]
            raise why_failed(f"TensorRT {self.version} cannot read the model", said)
        config = builder.create_builder_config()
        self._configure(order, builder, config)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise why_failed(f"TensorRT {self.version} cannot build the engine", self._log.said)
        return bytes(plan)

    def _network_flags(self, order: Order) -> int:
        flags, wanted = self._trt.NetworkDefinitionCreationFlag, []
        if number_of(self.version) < (10, 0):
            wanted.append(flags.EXPLICIT_BATCH)
        elif number_of(self.version) < (11, 0) and order.build.get("strongly_typed"):
            wanted.append(flags.STRONGLY_TYPED)
        return sum(1 << int(flag) for flag in wanted)

    def _configure(self, order: Order, builder: Any, config: Any) -> None:
        trt = self._trt
        for precision in order.precisions:
            config.set_flag(getattr(trt.BuilderFlag, precision.upper()))
        if order.workspace and hasattr(config, "set_memory_pool_limit"):
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, order.workspace * 2**20)
        elif order.workspace:
            config.max_workspace_size = order.workspace * 2**20
        if order.level is not None:
            config.builder_optimization_level = order.level
        if order.build.get("dla_core") is not None:
            self._choose_dla(order, builder, config)
        if order.cache:
            config.int8_calibrator = calibrator(trt, order)
        if order.dynamic:
            profile = builder.create_optimization_profile()
            least, most = (1, *order.sides), (order.batch, *order.sides)
            profile.set_shape(order.input, least, most, most)
            config.add_optimization_profile(profile)

    def _choose_dla(self, order: Order, builder: Any, config: Any) -> None:
        core, there = order.build["dla_core"], getattr(builder, "num_DLA_cores", 0)
        if core >= there:
            raise RunnerError(
                f"The bundle is for DLA core {core}, and TensorRT {self.version} finds {there or 'no'} of them here.",
                BAD_MACHINE,
            )
        config.default_device_type, config.DLA_core = self._trt.DeviceType.DLA, core
        if order.build.get("gpu_fallback", True):
            config.set_flag(self._trt.BuilderFlag.GPU_FALLBACK)

    def __call__(self, batch: Any) -> List[Any]:
        """Run one batch, NCHW."""
        import numpy as np

        batch = np.ascontiguousarray(batch)
        if batch.shape != self._shape:
            self._prepare(batch)
        self._gpu.upload(self._pointers[self._input], batch)
        if self._by_name:
            done = self._context.execute_async_v3(self._stream)
            self._gpu.wait(self._stream)
        else:
            done = self._context.execute_v2(self._bindings)
        if not done:
            raise why_failed("The model failed", self._log.said)
        for name, result in zip(self._outputs, self._results):
            self._gpu.download(result, self._pointers[name])
        # an engine for a DLA alone puts out N×C×1×1 what the network puts out as N×C
        return [
            result.copy() if None in sides else result.reshape([len(result), *sides]).copy()
            for result, sides in zip(self._results, self._sides)
        ]

    def _prepare(self, batch: Any) -> None:
        """Make room for a batch of this shape and what comes of it."""
        import numpy as np

        for pointer in self._pointers.values():
            self._gpu.free(pointer)
        self._pointers = {}
        engine, context = self._engine, self._context
        if self._by_name:
            taken = context.set_input_shape(self._input, batch.shape)
        else:
            taken = context.set_binding_shape(engine.get_binding_index(self._input), batch.shape)
        if not taken:
            raise RunnerError(f"The engine takes no batch of shape {list(batch.shape)}.")
        self._pointers[self._input] = self._gpu.allocate(batch.nbytes)
        self._results = []
        for name in self._outputs:
            if self._by_name:
                shape, kind = context.get_tensor_shape(name), engine.get_tensor_dtype(name)
            else:
                index = engine.get_binding_index(name)
                shape, kind = context.get_binding_shape(index), engine.get_binding_dtype(index)
            known = TYPES.get(str(kind).rpartition(".")[2])
            need(known and min(shape, default=0) >= 0, f"its output {name} has an open shape, or type {kind}")
            self._results.append(np.empty(tuple(shape), known))
            self._pointers[name] = self._gpu.allocate(self._results[-1].nbytes)
        if self._by_name:
            for name, pointer in self._pointers.items():
                context.set_tensor_address(name, pointer)
        else:
            names = [engine.get_binding_name(index) for index in range(engine.num_bindings)]
            self._bindings = [self._pointers[name] for name in names]
        self._shape = batch.shape


def listener(trt: Any) -> Any:
    """Return a logger for TensorRT that keeps errors, instead of printing all it is told."""

    class Log(trt.ILogger):  # type: ignore[misc]  # TensorRT is not here when types are checked
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.said: List[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.said.append(first_line(Exception(message)))

    return Log()


def calibrator(trt: Any, order: Order) -> Any:
    """Return what gives TensorRT the ranges that were found on the workstation; it has no photographs to ask for."""
    if number_of(order.version) >= (11, 0):
        raise RunnerError(
            f"TensorRT {order.version} no longer takes ranges from a calibration cache: make the bundle for a "
            "stack with TensorRT 10 or before.",
            BAD_MACHINE,
        )

    class Ranges(trt.IInt8EntropyCalibrator2):  # type: ignore[misc]  # as above
        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: Any) -> None:
            return None

        def read_calibration_cache(self) -> bytes:
            return order.cache

        def write_calibration_cache(self, cache: Any) -> None:
            return None

    return Ranges()


# -- with trtexec alone


class Trtexec:
    """The model in TensorRT, where only its program trtexec is there: it builds and times, and gives no answers."""

    name = "TensorRT"

    def __init__(self, bundle: Bundle, batch: int, any_machine: bool, program: str, gpu: Cuda) -> None:
        self._program = program
        self.notes: List[str] = []
        self.version = version_of(run_program([program, "--help"]))
        check_version(bundle, self.version, any_machine)
        self._order = Order(bundle, batch, self.version, gpu)
        self._plan, self.facts = engine_of(self._order, self._build)

    def _build(self, order: Order) -> bytes:
        base = os.path.join(order.folder, f"building-{os.getpid()}")
        paths = {"onnx": base + ".onnx", "cache": base + ".cache", "plan": base + ".plan"}
        try:
            for path, content in ((paths["onnx"], order.network), (paths["cache"], order.cache)):
                with open(path, "wb") as file:
                    file.write(content)
            said = run_program([self._program, *flags(order, paths)])
            if "&&&& PASSED" not in said or not os.path.isfile(paths["plan"]):
                raise why_failed(
                    f"trtexec of TensorRT {self.version} cannot build the engine", errors_in(said)
                )
            with open(paths["plan"], "rb") as file:
                return file.read()
        except OSError as error:
            raise RunnerError(
                f"The engine cannot be built in {order.folder}: {error.strerror or error}.", BAD_MACHINE
            ) from error
        finally:
            for path in paths.values():
                if os.path.exists(path):
                    os.remove(path)

    def __call__(self, batch: Any) -> List[Any]:
        """Refuse: trtexec answers no questions."""
        raise RunnerError(
            "TensorRT's Python package is missing, and without it only --build and --bench work. "
            + HOW_TO_GET_TENSORRT,
            BAD_MACHINE,
        )

    def bench(self, seconds: int) -> Dict[str, Any]:
        """Time the engine with trtexec, transfers included; return what the runner's own bench would."""
        order, path = self._order, os.path.join(self._order.folder, f"timing-{os.getpid()}.plan")
        words = ["--loadEngine=" + path, "--warmUp=1000", f"--duration={seconds}", "--percentile=90"]
        words += ["--includeDataTransfers"] if number_of(self.version) >= (11, 0) else ["--useSpinWait"]
        words += [f"--shapes={shape(order, order.batch)}"] if order.dynamic else []
        try:
            with open(path, "wb") as file:
                file.write(self._plan)
            said = run_program([self._program, *words])
        finally:
            if os.path.exists(path):
                os.remove(path)
        found = re.search(r"\] Latency: min = .*?median = (\S+) ms, percentile\(90%\) = (\S+) ms", said)
        runs = re.search(r"Timing trace has (\d+) queries", said)
        if not found or not runs:
            raise why_failed(f"trtexec of TensorRT {self.version} cannot time the engine", errors_in(said))
        median, high = map(float, found.groups())
        return {
            "median_ms": median, "p90_ms": high, "median_interval_ms": [median, median],
            "throughput_per_s": 1e3 * order.batch / median, "runs": int(runs.group(1)), "by": "trtexec",
        }  # fmt: skip


HOW_TO_GET_TENSORRT = (
    "On a Jetson it belongs to JetPack (`sudo apt-get install python3-libnvinfer`), and the system's own "
    "/usr/bin/python3 sees it; a virtual environment does only when made with --system-site-packages."
)


def run_program(words: List[str]) -> str:
    """Return all that a program prints; what it prints tells whether it did well."""
    import subprocess

    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError as error:
        raise RunnerError(f"{words[0]} does not start: {error.strerror or error}.", BAD_MACHINE) from error
    return done.stdout.decode("utf-8", "replace")


def version_of(said: str) -> str:
    """Return the version in trtexec's first line: v8502 is 8.5.2, v100300 is 10.3.0."""
    found = re.search(r"&&&& RUNNING TensorRT\.trtexec \[TensorRT v(\d{4,7})\]", said)
    if not found:
        raise RunnerError("trtexec does not tell its version.", BAD_MACHINE)
    number = int(found.group(1))
    major, rest = divmod(number, 10000 if number >= 100000 else 1000)
    return f"{major}.{rest // 100}.{rest % 100}"


def shape(order: Order, batch: int) -> str:
    return f"{order.input}:{'x'.join(map(str, [batch, *order.sides]))}"


def flags(order: Order, paths: Dict[str, str]) -> List[str]:
    """Return the arguments of a trtexec of this version: an unknown one makes it refuse all."""
    have, build = number_of(order.version), order.build
    words = ["--onnx=" + paths["onnx"], "--saveEngine=" + paths["plan"]]
    words += ["--skipInference" if have >= (8, 6) else "--buildOnly"]
    words += ["--" + precision for precision in order.precisions]
    words += ["--stronglyTyped"] if build.get("strongly_typed") and (10, 0) <= have < (11, 0) else []
    if order.workspace:
        pool = f"--memPoolSize=workspace:{order.workspace}"
        words += [pool if have >= (8, 4) else f"--workspace={order.workspace}"]
    words += [f"--builderOptimizationLevel={order.level}"] if order.level is not None else []
    if build.get("dla_core") is not None:
        words += [f"--useDLACore={build['dla_core']}"]
        words += ["--allowGPUFallback"] if build.get("gpu_fallback", True) else []
    if order.cache:
        calibrator_taken = have < (11, 0)
        need(calibrator_taken, f"TensorRT {order.version} no longer takes ranges from a calibration cache")
        words += ["--calib=" + paths["cache"]]
    if order.dynamic:
        most = shape(order, order.batch)
        words += [f"--minShapes={shape(order, 1)}", f"--optShapes={most}", f"--maxShapes={most}"]
    return words


def errors_in(said: str) -> List[str]:
    found = re.findall(r"^\[[^\]]*\] \[[EF]\] (.+)$", said, re.MULTILINE)
    return found or re.findall(r"^Unknown option.*$", said, re.MULTILINE)


def tensorrt_runtime(bundle: Bundle, threads: int, batch: int, any_machine: bool) -> Any:
    """Return the model in TensorRT, by its Python package or else by trtexec."""
    try:
        package = module("tensorrt")
    except RunnerError:
        program = next(programs(), "")
        if not program:
            raise RunnerError("TensorRT is not installed. " + HOW_TO_GET_TENSORRT, BAD_MACHINE) from None
        return Trtexec(bundle, batch, any_machine, program, Cuda())
    return TensorRt(bundle, batch, any_machine, package, Cuda())


def programs() -> Iterator[str]:
    import shutil

    for name in TRTEXEC:
        found = shutil.which(name)
        if found:
            yield found


RUNTIMES["tensorrt"] = tensorrt_runtime
