"""Comparing a graph with what it came from, on seeded inputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from penjing.errors import StepError

from penjing_onnx.files import opset_of, serialise

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from penjing.model import Tensor

    Arrays = Sequence[np.ndarray[Any, Any]]
    Run = Callable[[dict[str, np.ndarray[Any, Any]]], Arrays]

#: dB; float32 graphs of the same network differ by rounding, at 90 dB and better
ENOUGH = 60.0
#: dB, given where nothing differs at all
EXACT = 200.0


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How near outputs are to the wanted ones: the worst over outputs and inputs tried."""

    sqnr_db: float
    max_abs_error: float
    #: the output that differs most
    worst: str
    #: the outputs wanted are the same for every input tried, so that agreeing proves nothing
    blind: bool = False

    @property
    def enough(self) -> bool:
        """Whether rounding alone can explain the difference."""
        return self.sqnr_db >= ENOUGH

    def details(self) -> dict[str, float]:
        """Return the numbers for the report."""
        return {"sqnr_db": round(self.sqnr_db, 1), "max_abs_error": self.max_abs_error}


def session(model: onnx.ModelProto) -> Run:
    """Return a function that runs a model in ONNX Runtime on one thread; StepError where it cannot."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised, not printed
    try:
        loaded = onnxruntime.InferenceSession(serialise(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no public base
        raise StepError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load the graph "
            f"(opset {opset_of(model)}, IR {model.ir_version}): {_brief(error)}"
        ) from error

    def run(feed: dict[str, np.ndarray[Any, Any]]) -> Arrays:
        try:
            return list(loaded.run(None, feed))
        except Exception as error:  # onnxruntime's errors share no public base
            raise StepError(
                f"ONNX Runtime {onnxruntime.__version__} cannot run the graph: {_brief(error)}"
            ) from error

    return run


def random_inputs(inputs: Sequence[Tensor], seed: int, open_size: int = 1) -> dict[str, np.ndarray[Any, Any]]:
    """Return normal noise for each input (0…255 for integers); a dimension left open becomes `open_size`."""
    import numpy as np

    generator = np.random.default_rng(seed)
    feed = {}
    for tensor in inputs:
        shape = tuple(open_size if size is None else size for size in tensor.shape)
        if np.issubdtype(np.dtype(tensor.dtype), np.floating):
            feed[tensor.name] = generator.standard_normal(shape).astype(tensor.dtype)
        else:
            high = 2 if tensor.dtype == "bool" else min(256, np.iinfo(tensor.dtype).max)
            feed[tensor.name] = generator.integers(0, high, shape).astype(tensor.dtype)
    return feed


def compare(names: Sequence[str], wanted: Arrays, found: Arrays) -> Agreement:
    """Compare outputs: SQNR = 10 log10(sum of squares wanted / sum of squares of the difference)."""
    import numpy as np

    worst = Agreement(EXACT, 0.0, "")
    for name, a, b in zip(names, wanted, found, strict=True):
        if a.shape != b.shape:
            return Agreement(-math.inf, math.inf, f"{name} (shape {b.shape} instead of {a.shape})")
        same = (a == b) | ((a != a) & (b != b))  # so that infinities and NaN of both do not count
        if same.all():
            continue
        with np.errstate(invalid="ignore", over="ignore"):
            difference = np.where(same, 0, a.astype(np.float64) - b.astype(np.float64))
        noise, signal = (
            float(np.sum(difference**2)),
            float(np.sum(np.where(np.isfinite(a), a, 0).astype(np.float64) ** 2)),
        )
        sqnr = 10 * math.log10(signal / noise) if signal > 0 and math.isfinite(noise) else -math.inf
        if sqnr < worst.sqnr_db or not worst.worst:
            worst = Agreement(
                min(sqnr, EXACT), max(worst.max_abs_error, float(np.abs(difference).max())), name
            )
        else:
            worst = dataclasses.replace(
                worst, max_abs_error=max(worst.max_abs_error, float(np.abs(difference).max()))
            )
    return worst


def agree(inputs: Sequence[Tensor], names: Sequence[str], wanted: Run, found: Run) -> Agreement:
    """Compare what two functions put out for two seeded inputs; a dimension left open is 1, then 2."""
    import numpy as np

    results, references = [], []
    for seed in (0, 1):
        feed = random_inputs(inputs, seed, open_size=seed + 1)
        references.append(wanted(feed))
        results.append(compare(names, references[-1], found(feed)))
    first = [[np.atleast_1d(output)[:1] for output in outputs] for outputs in references]
    blind = all(np.array_equal(a, b) for a, b in zip(*first, strict=True))
    return dataclasses.replace(min(results, key=lambda result: result.sqnr_db), blind=blind)


def _brief(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
