"""A stand-in for TensorRT's Python package: what each version has, and no more, computed by ONNX Runtime.

FAKE_TENSORRT names the version. What was asked for is kept in `asked`, so that tests can see it. The names are
those in the bindings of the wheels 8.6.1, 10.3.0 and 11.4.0, and for 8.2 those in its API reference.
"""

import ctypes
import enum
import json
import os
from types import SimpleNamespace
from typing import Any

import numpy as np

__version__ = os.environ.get("FAKE_TENSORRT", "10.3.0")
NUMBER = tuple(map(int, __version__.split(".")[:2]))
#: "memory": building runs out of it; "load": engines of before are refused
FAULT = os.environ.get("FAKE_TENSORRT_FAULT", "")
asked: dict[str, Any] = {}


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None:
        pass


class _Flag(enum.IntEnum):
    FP16, INT8, BF16, GPU_FALLBACK = range(4)


_LACKS = {"BF16"} if NUMBER < (10, 0) else {"FP16", "INT8", "BF16"} if NUMBER >= (11, 0) else set()
BuilderFlag = SimpleNamespace(**{flag.name: flag for flag in _Flag if flag.name not in _LACKS})
_NETWORK = {"EXPLICIT_BATCH": 0} if NUMBER < (10, 0) else {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}
NetworkDefinitionCreationFlag = SimpleNamespace(**(_NETWORK if NUMBER < (11, 0) else {"STRONGLY_TYPED": 1}))
MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
DeviceType = SimpleNamespace(GPU="GPU", DLA="DLA")
DataType = enum.Enum("DataType", "FLOAT HALF BF16")
if NUMBER < (11, 0):

    class IInt8EntropyCalibrator2:
        def __init__(self) -> None:
            pass


class _Config:
    _own = ("default_device_type", "DLA_core", "add_optimization_profile", "set_flag")

    def __init__(self) -> None:
        object.__setattr__(self, "asked", asked)
        asked.clear()
        asked["flags"] = []
        if NUMBER >= (8, 4):
            object.__setattr__(self, "set_memory_pool_limit", self._limit)

    def set_flag(self, flag: _Flag) -> None:
        asked["flags"].append(flag.name)

    def _limit(self, pool: str, size: int) -> None:
        asked[pool] = size

    def add_optimization_profile(self, profile: Any) -> None:
        asked["profile"] = profile.shapes

    def __setattr__(self, name: str, value: Any) -> None:
        known = {"default_device_type", "DLA_core"}
        known |= {"int8_calibrator"} if NUMBER < (11, 0) else set()
        known |= {"max_workspace_size"} if NUMBER < (8, 4) else set()
        known |= {"builder_optimization_level"} if NUMBER >= (8, 6) else set()
        if name not in known:
            raise AttributeError(f"TensorRT {__version__} has no IBuilderConfig.{name}")
        asked[name] = value.read_calibration_cache() if name == "int8_calibrator" else value


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, least: Any, usual: Any, most: Any) -> None:
        self.shapes[name] = [list(least), list(usual), list(most)]


class Builder:
    num_DLA_cores = 1  # noqa: N815  # TensorRT's name

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def create_network(self, flags: int = 0) -> Any:
        if NUMBER < (10, 0) and not flags & 1:
            raise ValueError("implicit batch")
        return SimpleNamespace(flags=flags)

    def create_builder_config(self) -> _Config:
        return _Config()

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: Any, config: _Config) -> Any:
        asked["network_flags"] = network.flags
        if FAULT == "memory":
            self._logger.log(ILogger.Severity.ERROR, "[defaultAllocator] Error Code 1: out of memory")
            return None
        head = json.dumps({"version": __version__, "profile": asked.get("profile")})
        return memoryview(head.encode() + b"\n" + network.model)


class OnnxParser:
    def __init__(self, network: Any, logger: Any) -> None:
        self._network, self.num_errors = network, 0

    def parse(self, model: bytes) -> bool:
        if model.startswith(b"no model"):
            self.num_errors = 1
            return False
        self._network.model = model
        return True

    def get_error(self, index: int) -> Any:
        return SimpleNamespace(desc=lambda: "In node 3 (importAbacus): UNSUPPORTED_NODE")


class Runtime:
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        head, _, model = bytes(plan).partition(b"\n")
        if json.loads(head)["version"] != __version__ or FAULT == "load":
            self._logger.log(
                ILogger.Severity.ERROR, "engine plan file is generated on an incompatible device"
            )
            return None
        return _Engine(model)


class _Engine:
    def __init__(self, model: bytes) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self._names = [entry.name for entry in (*self._session.get_inputs(), *self._session.get_outputs())]
        old, new = _Old(self), _New(self)
        for name in [name for name in dir(old if NUMBER < (8, 5) else new) if not name.startswith("_")]:
            setattr(self, name, getattr(old if NUMBER < (8, 5) else new, name))

    def create_execution_context(self) -> Any:
        return _Context(self)


class _Old:
    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self.num_bindings = len(engine._names)

    def get_binding_name(self, index: int) -> str:
        return self._engine._names[index]

    def get_binding_index(self, name: str) -> int:
        return self._engine._names.index(name)

    def get_binding_dtype(self, index: int) -> Any:
        return DataType.FLOAT


class _New:
    def __init__(self, engine: _Engine) -> None:
        self.num_io_tensors = len(engine._names)

    def get_tensor_dtype(self, name: str) -> Any:
        return DataType.FLOAT


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self._engine, self._pointers = engine, {}  # type: ignore[var-annotated]  # filled below
        self._shape: tuple[int, ...] = ()
        if NUMBER < (8, 5):
            self.set_binding_shape = lambda index, shape: self._set_shape(shape)
            self.get_binding_shape = lambda index: self._result_shape()
            self.execute_v2 = self._execute
        else:
            self.set_input_shape = lambda name, shape: self._set_shape(shape)
            self.get_tensor_shape = lambda name: self._result_shape()
            self.set_tensor_address = self._pointers.__setitem__
            self.execute_async_v3 = lambda stream: self._execute(
                [self._pointers[name] for name in engine._names]
            )

    def _set_shape(self, shape: tuple[int, ...]) -> bool:
        self._shape = shape
        return True

    def _result_shape(self) -> tuple[int, ...]:
        return (self._shape[0], 3)

    def _execute(self, pointers: list[int]) -> bool:
        first, second = (
            np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), shape)
            for pointer, shape in zip(pointers, (self._shape, self._result_shape()))  # noqa: B905  # two of each
        )
        answer = self._engine._session.run(None, {self._engine._names[0]: first})[0]
        second[...] = answer.reshape(second.shape)
        return True


class Cuda:
    """A stand-in for the runner's class of that name: the memory of the "GPU" is this machine's."""

    name, capability = "Orin", "8.7"

    def __init__(self) -> None:
        self._buffers: dict[int, Any] = {}

    def allocate(self, size: int) -> int:
        buffer = ctypes.create_string_buffer(size)
        self._buffers[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def free(self, pointer: int) -> None:
        del self._buffers[pointer]

    def upload(self, pointer: int, array: Any) -> None:
        ctypes.memmove(pointer, array.ctypes.data, array.nbytes)

    def download(self, array: Any, pointer: int) -> None:
        ctypes.memmove(array.ctypes.data, pointer, array.nbytes)

    def stream(self) -> int:
        return 1

    def wait(self, stream: int) -> None:
        pass
