"""Running two graphs of one network in ONNX Runtime on the same inputs, and comparing what they answer."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from penjing.errors import StepError

from penjing_tensorrt.dla.graph import tensors

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from penjing.model import Tensor

    Feed = dict[str, np.ndarray[Any, Any]]

#: dB; float32 graphs of the same network differ by rounding, at 90 dB and better
ENOUGH = 60.0
EXACT = 200.0


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How near the outputs of two graphs are: the worst over outputs and inputs."""

    sqnr_db: float
    max_abs_error: float

    @property
    def enough(self) -> bool:
        """Return whether rounding alone can explain the difference."""
        return self.sqnr_db >= ENOUGH

    def details(self) -> dict[str, float]:
        """Return the numbers for the report."""
        return {"sqnr_db": round(self.sqnr_db, 1), "max_abs_error": self.max_abs_error}


def agree(wanted: onnx.ModelProto, found: onnx.ModelProto, seed: int = 0) -> Agreement:
    """Compare two graphs on noise and on smooth images: SQNR = 10 log10(signal power / power of the difference)."""
    first, second = session(wanted), session(found)
    inputs, outputs = tensors(wanted)
    feeds = _feeds(inputs, seed)
    worst, error = EXACT, 0.0
    for feed in feeds:
        for _, a, b in zip(outputs, first.run(None, feed), second.run(None, feed), strict=True):
            sqnr, difference = _compare(a, b)
            worst, error = min(worst, sqnr), max(error, difference)
    return Agreement(worst, error)


def _compare(wanted: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> tuple[float, float]:
    import numpy as np

    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        return -math.inf, math.inf
    a, b = wanted.astype(np.float64), found.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return EXACT, 0.0
    difference = np.where(same, 0, a - b)
    noise, signal = float((difference**2).sum()), float((np.where(np.isfinite(a), a, 0) ** 2).sum())
    if not math.isfinite(noise) or signal <= 0:
        return -math.inf, math.inf
    return min(EXACT, 10 * math.log10(signal / noise)), float(np.abs(difference).max())


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
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised, not printed
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's errors share no public base
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StepError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load the graph: {first}",
            hint="`penjing doctor` tells which opset and IR version it reads.",
        ) from error
