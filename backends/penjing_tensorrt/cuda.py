"""The few calls of the CUDA runtime that running an engine takes, through its C library.

A Jetson has the library and seldom a Python package for it: PyPI's torch computes on its CPU alone.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Iterator
from typing import Any

from penjing.errors import StepError

#: enum cudaMemcpyKind of driver_types.h
_TO_DEVICE, _TO_HOST = 1, 2
_MAJORS = ("13", "12", "11.0", "10.2")


class Cuda:
    """The CUDA runtime; every call that fails raises StepError."""

    def __init__(self, library: Any = None) -> None:
        self._library = library or _load()

    def stream(self) -> int:
        """Return a new stream."""
        handle = ctypes.c_void_p()
        self._call("cudaStreamCreate", ctypes.byref(handle))
        return int(handle.value or 0)

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes on the GPU, one at least."""
        address = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(max(1, size)))
        return int(address.value or 0)

    def free(self, address: int) -> None:
        """Give memory back."""
        self._call("cudaFree", ctypes.c_void_p(address))

    def to_device(self, address: int, array: Any, stream: int) -> None:
        """Copy a contiguous numpy array to the GPU."""
        self._copy(address, array.ctypes.data, array.nbytes, _TO_DEVICE, stream)

    def to_host(self, array: Any, address: int, stream: int) -> None:
        """Copy from the GPU into a contiguous numpy array."""
        self._copy(array.ctypes.data, address, array.nbytes, _TO_HOST, stream)

    def wait(self, stream: int) -> None:
        """Wait until everything asked of a stream is done."""
        self._call("cudaStreamSynchronize", ctypes.c_void_p(stream))

    def _copy(self, target: int, source: int, size: int, kind: int, stream: int) -> None:
        self._call(
            "cudaMemcpyAsync",
            ctypes.c_void_p(target),
            ctypes.c_void_p(source),
            ctypes.c_size_t(size),
            ctypes.c_int(kind),
            ctypes.c_void_p(stream),
        )

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            describe = self._library.cudaGetErrorString
            describe.restype = ctypes.c_char_p
            text = describe(code)
            what = text.decode() if isinstance(text, bytes) else str(code)
            hint = "`penjing doctor` tells what is here."
            if code == 2:  # cudaErrorMemoryAllocation
                hint = "Close other programs; CPU and GPU of a Jetson share their memory."
            raise StepError(f"CUDA: {name} failed: {what} ({code}).", hint=hint)


def _load() -> Any:
    for name in _names():
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise StepError(
        "The CUDA runtime (libcudart) is not found.",
        hint="On a Jetson it comes with JetPack (apt install nvidia-jetpack); elsewhere with CUDA.",
    )


def _names() -> Iterator[str]:
    if found := ctypes.util.find_library("cudart"):
        yield found
    for major in _MAJORS:
        yield f"libcudart.so.{major}"
        yield f"/usr/local/cuda/lib64/libcudart.so.{major}"
    for package in ("nvidia.cuda_runtime", "nvidia.cu13"):  # where pip puts it
        yield from _packaged(package)


def _packaged(package: str) -> Iterator[str]:
    import importlib.util
    from pathlib import Path

    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        return
    for place in (spec.submodule_search_locations or []) if spec else []:
        yield from map(str, sorted(Path(place).glob("lib/libcudart.so.*")))
