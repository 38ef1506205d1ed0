"""Times of single layers on the device, measured once: what removing channels from each of them saves.

A runtime may keep tensors in a layout of its own between layers, and a layer on its own pays for the way there and
back. A convolution is therefore timed between two passes (depthwise convolutions of one pixel), less what two passes
take by themselves.
"""

from __future__ import annotations

import functools
import json
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
#: seconds and runs for one time; of these the lower quartile counts: what else the machine does only adds
SECONDS, LEAST, MOST = 0.03, 9, 60
#: how layers are timed, so that times measured in another way are not taken for these
METHOD = 2


class Table:
    """Seconds by layer: read from finished steps of this run where they were measured alike, else measured."""

    def __init__(self, context: Context) -> None:
        self.context = context
        facts = [
            METHOD,
            context.backend.name,
            context.backend.threads,
            context.backend.resources(context.device, context.backend),
            this_machine().title,
        ]
        self.key = digest(json.dumps(facts, sort_keys=True, default=str))
        self.seconds: dict[str, float] = {}
        for path in sorted(context.folder.parent.glob(f"prune.structured-*/{FILE}")):
            self.seconds.update(_read(path, self.key))

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
        steps = (_step(about), 1)
        axes = [points(shape[d], multiple, steps[d]) if flags[d] else [shape[d]] for d in (0, 1)]
        layers = [[_layer(about, product.output, rows, columns) for columns in axes[1]] for rows in axes[0]]
        times = np.array([[self._time(layer) for layer in line] for line in layers])
        return Term(product.sides, _interpolated(axes, times, flags))

    def _time(self, layer: dict[str, Any]) -> float:
        name = json.dumps(layer, sort_keys=True)
        if name not in self.seconds:
            if layer["kind"] == "linear":
                own = self._measured([layer]) - self._passing([1, 1, 1, 1])
            else:
                ends = [layer["input"], layer["output"]]
                chain = [_pass(ends[0]), layer, _pass(ends[1])]
                own = self._measured(chain) - sum(self._passing(end) for end in ends) / 2
            self.seconds[name] = max(own, 1e-8)
        return self.seconds[name]

    def _passing(self, shape: list[int]) -> float:
        """Return what a session takes with two passes over a tensor of this shape."""
        name = json.dumps({"kind": "passes", "input": shape})
        if name not in self.seconds:
            self.seconds[name] = self._measured([_pass(shape), _pass(shape)])
        return self.seconds[name]

    def _measured(self, layers: list[dict[str, Any]]) -> float:
        import onnx

        with TemporaryDirectory(dir=self.context.folder) as folder:
            path = Path(folder) / "layer.onnx"
            onnx.save(_graph(layers), str(path))
            shape = tuple(layers[0]["input"])
            model = Model("onnx", path, "layer", digest(json.dumps(layers)), (Tensor("x", shape),))
            session = self.context.backend.open(model, self.context.device)
            batch = np.random.default_rng(0).random(shape, np.float32)
            one = min(_once(session, batch) for _ in range(3))
            count = int(max(LEAST, min(MOST, SECONDS / max(one, 1e-7))))
            return float(np.quantile([_once(session, batch) for _ in range(count)], 0.25))


def _once(session: Any, batch: Any) -> float:
    start = time.perf_counter()
    session(batch)
    return time.perf_counter() - start


def points(width: int, multiple: int, step: int = 1) -> list[int]:
    """Return the widths at which a layer is timed: multiples, and quarters of the first of them.

    Those of a layer that only loses `step` at a time are rounded to what it can have.
    """
    quarter = max(1, multiple // 4)
    near = [max(1, round(share * width / multiple)) * multiple for share in GRID]
    possible = {max(1, round(n / step)) * step for n in (quarter, *range(quarter, multiple, quarter), *near)}
    return sorted({n for n in possible if n < width} | {width})


def _step(about: dict[str, Any]) -> int:
    """Return how many indices of the first dimension of a weight go together, as `products._grouped` has it."""
    groups = about.get("groups", 1)
    return int(about["weight"][0] // groups if about.get("whole_groups") else groups)


def _interpolated(
    axes: Sequence[Sequence[int]], times: Any, flags: Sequence[bool]
) -> Callable[[Sequence[int]], float]:
    """Return bilinear interpolation over the channels of those sides that have ids.

    A search asks for the same few counts again and again: they are remembered.
    """

    @functools.cache
    def found(*counts: int) -> float:
        given = list(counts)
        rows = given.pop(0) if flags[0] else axes[0][0]
        columns = given.pop(0) if flags[1] else axes[1][0]
        line = [float(np.interp(columns, axes[1], row)) for row in times]
        return float(np.interp(rows, axes[0], line))

    return lambda counts: found(*counts)


def _layer(about: dict[str, Any], output: Sequence[int], rows: int, columns: int) -> dict[str, Any]:
    """Return a layer with so many indices left along the first two dimensions of its weight, as JSON values."""
    if about["kind"] == "linear":
        return {"kind": "linear", "input": [about["rows"], columns], "weight": [columns, rows]}
    first, _, *kernel = about["weight"]
    groups, transposed = about["groups"], about["transposed"]
    if about["whole_groups"]:
        groups = max(1, rows * groups // first)
    taken, made = (rows, columns * groups) if transposed else (columns * groups, rows)
    return {
        "kind": "transposed" if transposed else "convolution",
        "input": [about["input"][0], taken, *about["input"][2:]],
        "output": [output[0], made, *output[2:]],
        "weight": [rows, columns, *kernel],
        "stride": list(about["stride"]),
        "padding": list(about["padding"]),
        "dilation": list(about["dilation"]),
        "groups": groups,
    }


def _pass(shape: list[int]) -> dict[str, Any]:
    """Return a depthwise convolution that looks at one pixel."""
    ones = [1] * len(shape[2:])
    return {
        "kind": "convolution",
        "input": shape,
        "weight": [shape[1], 1, *ones],
        "stride": ones,
        "padding": [0] * len(ones),
        "dilation": ones,
        "groups": shape[1],
    }


def _graph(layers: Sequence[dict[str, Any]]) -> onnx.ModelProto:
    """Return layers, each reading what the one before puts out, as an ONNX graph with random weights."""
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    nodes, weights = [], []
    for number, layer in enumerate(layers):
        values = random.standard_normal(layer["weight"]).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{number}"))
        reads, makes = [f"x{number}", f"w{number}"], [f"x{number + 1}"]
        if layer["kind"] == "linear":
            nodes.append(helper.make_node("Gemm", reads, makes))
            continue
        nodes.append(
            helper.make_node(
                "ConvTranspose" if layer["kind"] == "transposed" else "Conv",
                reads,
                makes,
                strides=layer["stride"],
                pads=layer["padding"] * 2,
                dilations=layer["dilation"],
                group=layer["groups"],
            )
        )
    first = helper.make_tensor_value_info("x0", TensorProto.FLOAT, layers[0]["input"])
    last = helper.make_tensor_value_info(f"x{len(layers)}", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "layer", [first], [last], weights)
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
