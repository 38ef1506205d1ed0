"""Comparing a graph with what it came from, on seeded inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from penjing import onnx_session
from penjing.agreement import Agreement, compare, worst
from penjing.errors import StepError, first_line

from penjing_onnx.files import opset_of, serialise

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from penjing.agreement import Arrays
    from penjing.model import Tensor

    Run = Callable[[dict[str, np.ndarray[Any, Any]]], Arrays]


def session(model: onnx.ModelProto) -> Run:
    """Return a function that runs a model in ONNX Runtime on one thread; StepError where it cannot."""
    loaded = onnx_session.load(
        serialise(model), name=f"the graph (opset {opset_of(model)}, IR {model.ir_version})"
    )

    def run(feed: dict[str, np.ndarray[Any, Any]]) -> Arrays:
        try:
            return list(loaded.run(None, feed))
        except Exception as error:  # onnxruntime's errors share no public base
            raise StepError(f"ONNX Runtime cannot run the graph: {first_line(error)}") from error

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
    return dataclasses.replace(worst(results), blind=blind)
