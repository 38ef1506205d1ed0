"""A graph for TensorRT, run on a CPU: ONNX Runtime computes Q/DQ in floats, so that its answers are the engine's.

What differs is what TensorRT leaves to each GPU: sums in another order, and half precision where an engine
takes it. A graph's own float16 tensors are rounded as float16 rounds them (`rounding`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from penjing import onnx_session
from penjing.onnx_file import read
from penjing.onnx_session import ImageSession

if TYPE_CHECKING:
    from penjing.model import Model


def session(model: Model) -> ImageSession:
    """Return a graph with one image input, ready to run."""
    loaded = onnx_session.load(
        _graph(model), name=str(model.value), floats=True, role=", which stands in for TensorRT here,"
    )
    return ImageSession(loaded, model)


def _graph(model: Model) -> str | bytes:
    """Return the path of a graph, or where float16 is in it the bytes of one that rounds to it."""
    from penjing_tensorrt.rounding import rounded

    loaded = read(Path(model.value))
    simulated = rounded(loaded)
    return str(model.value) if simulated is loaded else simulated.SerializeToString()
