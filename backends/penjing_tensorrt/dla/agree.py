"""Running two graphs of one network in ONNX Runtime on the same inputs, and comparing what they answer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from penjing import onnx_session
from penjing.agreement import Agreement, compare, worst
from penjing.onnx_file import signature

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from penjing.model import Tensor

    Feed = dict[str, np.ndarray[Any, Any]]


def agree(wanted: onnx.ModelProto, found: onnx.ModelProto, seed: int = 0) -> Agreement:
    """Compare two graphs on noise and on smooth images: SQNR = 10 log10(signal power / power of the difference)."""
    first, second = session(wanted), session(found)
    inputs, outputs = signature(wanted)
    names = [tensor.name for tensor in outputs]
    return worst(
        compare(names, first.run(None, feed), second.run(None, feed)) for feed in _feeds(inputs, seed)
    )


def _feeds(inputs: tuple[Tensor, ...], seed: int) -> list[Feed]:
    """Return noise of two sizes, and a picture whose neighbours are alike, as photographs' are."""
    import numpy as np

    generator = np.random.default_rng(seed)

    def noise(tensor: Tensor, scale: float) -> np.ndarray[Any, Any]:
        size = tuple(1 if side is None else side for side in tensor.shape)
        values: np.ndarray[Any, Any] = (scale * generator.standard_normal(size)).astype(tensor.dtype)
        return values

    def smooth(tensor: Tensor) -> np.ndarray[Any, Any]:
        values = noise(tensor, 1.0)
        for axis in range(2, values.ndim):
            values = np.cumsum(values, axis) / math.sqrt(values.shape[axis])
        return values.astype(tensor.dtype)

    return [
        {tensor.name: noise(tensor, 1.0) for tensor in inputs},
        {tensor.name: noise(tensor, 4.0) for tensor in inputs},
        {tensor.name: smooth(tensor) for tensor in inputs},
    ]


def session(model: onnx.ModelProto) -> Any:
    """Return a session of ONNX Runtime on one thread, Q/DQ computed in floats; StepError where it loads none."""
    return onnx_session.load(model.SerializeToString(), floats=True)
