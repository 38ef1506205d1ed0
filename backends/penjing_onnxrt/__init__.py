"""ONNX Runtime on the CPU."""

from __future__ import annotations

from penjing.hookspecs import hookimpl
from penjing.step import Backend


@hookimpl
def penjing_backends() -> list[type[Backend]]:
    """Bring `onnxrt`."""
    from penjing_onnxrt.backend import OnnxRuntime

    return [OnnxRuntime]
