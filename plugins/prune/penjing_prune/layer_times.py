"""Times of single layers on the device, measured once: what removing channels from each of them saves."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from penjing.files import digest, write_text
from penjing.here import this_machine
from penjing.model import Model, Tensor

from penjing_prune.cost import Term
from penjing_prune.trace import Product

if TYPE_CHECKING:
    import onnx
    from penjing.step import Context

FILE = "layer-times.json"
#: shares of a layer's channels at which it is timed; between them times are interpolated
GRID = (0.25, 0.5, 0.75, 1.0)
#: seconds and runs for one time
SECONDS, LEAST, MOST = 0.03, 7, 60


class Table:
    """Seconds by layer: read from finished steps of this run where they were measured alike, else measured."""

    def __init__(self, context: Context) -> None:
        self.context = context
        facts = [
            context.backend.name,
            context.backend.threads,
            context.backend.resources(context.device, context.backend),
            this_machine().title,
        ]
        self.key = digest(json.dumps(facts, sort_keys=True, default=str))
        self.seconds: dict[str, float] = {}
        for path in sorted(context.folder.parent.glob(f"prune.structured-*/{FILE}")):
            self.seconds.update(_read(path, self.key))
        self._idle: float | None = None

    def __len__(self) -> int:
        return len(self.seconds)

    def save(self) -> None:
        """Write the table into the step's folder."""
        text = json.dumps({"key": self.key, "seconds": self.seconds}, indent=1, sort_keys=True)
        write_text(self.context.folder / FILE, text)

    def term(self, product: Product, multiple: int) -> Term:
        """Return the time of a layer as a function of the channels left on its sides."""
        about = dict(product.details)
        flags = about["sides"]
        shape = list(about["weight"])
        axes = [_points(shape[d], multiple) if flags[d] else [shape[d]] for d in (0, 1)]
        times = np.array([[self._time(about, rows, columns) for columns in axes[1]] for rows in axes[0]])
        return Term(product.sides, _interpolated(axes, times, flags))

    def _time(self, about: dict[str, Any], rows: int, columns: int) -> float:
        layer = _layer(about, rows, columns)
        name = json.dumps(layer, sort_keys=True)
        if name not in self.seconds:
            self.seconds[name] = max(self._measured(layer) - self._overhead(), 1e-8)
        return self.seconds[name]

    def _overhead(self) -> float:
        """Return what a session takes that does nothing."""
        if self._idle is None:
            self._idle = self._measured({"kind": "identity", "input": [1, 1, 1, 1]})
        return self._idle

    def _measured(self, layer: dict[str, Any]) -> float:
        import onnx

        with TemporaryDirectory(dir=self.context.folder) as folder:
            path = Path(folder) / "layer.onnx"
            onnx.save(_graph(layer), str(path))
            shape = tuple(layer["input"])
            model = Model("onnx", path, "layer", digest(json.dumps(layer)), (Tensor("x", shape),))
            session = self.context.backend.open(model, self.context.device)
            batch = np.random.default_rng(0).random(shape, np.float32)
            one = min(_once(session, batch) for _ in range(3))
            count = int(max(LEAST, min(MOST, SECONDS / max(one, 1e-7))))
            return statistics.median(_once(session, batch) for _ in range(count))


def _once(session: Any, batch: Any) -> float:
    start = time.perf_counter()
    session(batch)
    return time.perf_counter() - start


def _points(width: int, multiple: int) -> list[int]:
    """Return the widths at which a layer is timed: multiples, as far as they differ."""
    step = max(1, multiple if width >= 2 * multiple else 1)
    return sorted(
        {min(width, max(1, round(share * width / step) * step or step)) for share in GRID} | {width}
    )


def _interpolated(
    axes: Sequence[Sequence[int]], times: Any, flags: Sequence[bool]
) -> Callable[[Sequence[int]], float]:
    """Return bilinear interpolation over the channels of those sides that have ids."""

    def value(counts: Sequence[int]) -> float:
        given = list(counts)
        rows = given.pop(0) if flags[0] else axes[0][0]
        columns = given.pop(0) if flags[1] else axes[1][0]
        line = [float(np.interp(columns, axes[1], row)) for row in times]
        return float(np.interp(rows, axes[0], line))

    return value


def _layer(about: dict[str, Any], rows: int, columns: int) -> dict[str, Any]:
    """Return a layer with so many indices left along the first two dimensions of its weight, as JSON values."""
    if about["kind"] == "linear":
        return {"kind": "linear", "input": [about["rows"], columns], "weight": [columns, rows]}
    first, second, *kernel = about["weight"]
    groups, transposed = about["groups"], about["transposed"]
    inside = first // groups if transposed else second
    if groups > 1 and groups >= inside:  # whole groups go, as `products._grouped` has it
        groups = max(1, rows * groups // first)
    channels = rows if transposed else columns * groups
    return {
        "kind": "transposed" if transposed else "convolution",
        "input": [about["input"][0], channels, *about["input"][2:]],
        "weight": [rows, columns, *kernel],
        "stride": list(about["stride"]),
        "padding": list(about["padding"]),
        "dilation": list(about["dilation"]),
        "groups": groups,
    }


def _graph(layer: dict[str, Any]) -> onnx.ModelProto:
    """Return a layer as an ONNX graph with random weights."""
    from onnx import TensorProto, helper, numpy_helper

    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, layer["input"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    weights = []
    if layer["kind"] == "identity":
        node = helper.make_node("Relu", ["x"], ["y"])
    else:
        values = np.random.default_rng(0).standard_normal(layer["weight"]).astype(np.float32)
        weights = [numpy_helper.from_array(values, "w")]
        if layer["kind"] == "linear":
            node = helper.make_node("Gemm", ["x", "w"], ["y"])
        else:
            node = helper.make_node(
                "ConvTranspose" if layer["kind"] == "transposed" else "Conv",
                ["x", "w"],
                ["y"],
                strides=layer["stride"],
                pads=layer["padding"] * 2,
                dilations=layer["dilation"],
                group=layer["groups"],
            )
    graph = helper.make_graph([node], "layer", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = min(model.ir_version, 10)
    result: onnx.ModelProto = model
    return result


def _read(path: Path, key: str) -> dict[str, float]:
    """Return the times in a file that were measured alike; none where it is damaged or of another kind."""
    try:
        data = json.loads(path.read_text())
        if data["key"] != key:
            return {}
        return {str(name): float(value) for name, value in data["seconds"].items() if float(value) > 0}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # it is measured again
