"""TensorRT, and the deep learning accelerator of Jetson boards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penjing.hookspecs import hookimpl

if TYPE_CHECKING:
    from penjing.step import Backend


@hookimpl
def penjing_backends() -> list[type[Backend]]:
    """Bring `tensorrt`."""
    from penjing_tensorrt.backend import TensorRT

    return [TensorRT]
