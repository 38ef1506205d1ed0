"""What it costs to compute a group of layers in float: milliseconds where they can be measured here, else products."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from penjing import onnx_session

from penjing_quant.graph import WEIGHTED

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx

    from penjing_quant.sensitivity import Group

    Array = npt.NDArray[np.float32]

#: runs to warm up with and to time; the least of the latter counts
WARM_UP, RUNS = 3, 15
#: share of a layer's time in float that it costs at least: what is timed once is never quite free
LEAST = 0.02
#: share of the layers whose time must be found in a profile, for it to be used
FOUND = 0.8


@dataclasses.dataclass(frozen=True)
class Costs:
    """What each group costs in float beyond what it costs on integers."""

    unit: str
    of: dict[str, float]
    #: how they were found, as the report says it
    how: str


def sizes(model: onnx.ModelProto, groups: Mapping[str, Group]) -> Costs:
    """Return the bytes that float weights take more than 8-bit ones."""
    nodes = {node.name: node for node in model.graph.node}
    count = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    of = {
        name: 3e-3 * count.get(nodes[name].input[1], 0) if nodes[name].op_type in WEIGHTED else 0.0
        for name in groups
    }
    return Costs("kB", {name: max(cost, 1e-3) for name, cost in of.items()}, "bytes of float weights")


def products(model: onnx.ModelProto, groups: Mapping[str, Group]) -> Costs:
    """Return the multiplications of each group, in millions; one for each value where there are none."""
    nodes = {node.name: node for node in model.graph.node}
    dims = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    values = {
        value.name: math.prod(max(d.dim_value, 1) for d in value.type.tensor_type.shape.dim)
        for value in (*model.graph.value_info, *model.graph.output)
    }

    def one(name: str) -> float:
        node = nodes[name]
        count = values.get(node.output[0], 1)
        if node.op_type not in WEIGHTED or node.input[1] not in dims:
            return float(count) / 1e6
        weight = dims[node.input[1]]
        channels = weight[0] if node.op_type == "Conv" else weight[-1]
        if node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute):
            channels = weight[0]
        return float(count * math.prod(weight) / max(channels, 1) / 1e6)

    of = {name: sum(map(one, group.nodes)) for name, group in groups.items()}
    return Costs("million products", of, "multiplications, as the device is not here to be timed")


def times(
    exact: onnx.ModelProto,
    quantised: onnx.ModelProto,
    groups: Mapping[str, Group],
    image: Array,
    folder: Path,
    threads: int,
) -> Costs | None:
    """Return by how many milliseconds each group is slower in float, by onnxruntime's own profile of both networks.

    None where the profile does not name enough of the layers. One that is faster in float costs next to nothing.
    """
    slow = _profile(exact, exact, image, folder, threads)
    fast = _profile(quantised, exact, image, folder, threads)
    found = [
        name for name, group in groups.items() if all(node in slow and node in fast for node in group.nodes)
    ]
    if len(found) < FOUND * len(groups):
        return None
    of = {}
    for name, group in groups.items():
        floating, whole = (sum(times.get(node, 0.0) for node in group.nodes) for times in (slow, fast))
        of[name] = max(floating - whole, LEAST * floating, 1e-6)
    return Costs(
        "ms", of, "milliseconds that each takes longer in float, by onnxruntime's profile on this machine"
    )


def _profile(
    model: onnx.ModelProto, exact: onnx.ModelProto, image: Array, folder: Path, threads: int
) -> dict[str, float]:
    """Return the milliseconds of each node of `exact` in a run of `model`, whose nodes may have been fused."""
    names = _names(exact)
    with TemporaryDirectory(dir=folder) as scratch:
        session = onnx_session.load(
            model.SerializeToString(), threads=threads, profile=str(Path(scratch) / "profile")
        )
        name = session.get_inputs()[0].name
        for _ in range(WARM_UP + RUNS):
            session.run(None, {name: image})
        events = json.loads(Path(session.end_profiling()).read_text())
    runs: dict[str, list[float]] = {}
    for event in events:
        label = event.get("name", "")
        if event.get("cat") == "Node" and label.endswith("_kernel_time"):
            runs.setdefault(label.removesuffix("_kernel_time"), []).append(event["dur"] / 1e3)
    found: dict[str, float] = {}
    for label, durations in runs.items():
        node = names.get(re.sub(r"(_nchwc|_token_\d+|_quant)+$", "", label))
        if node is not None:
            found[node] = found.get(node, 0.0) + min(durations[WARM_UP:] or durations)
    return found


def _names(exact: onnx.ModelProto) -> dict[str, str]:
    """Return the node behind each name that onnxruntime gives what it fuses: the node's own, or its last output's."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in exact.graph.node:
        for entry in node.input:
            readers.setdefault(entry, []).append(node)
    names: dict[str, str] = {}
    for node in exact.graph.node:
        names[node.name] = node.name
        output = node.output[0]
        names.setdefault(output, node.name)
        while len(after := readers.get(output, [])) == 1 and after[0].op_type not in WEIGHTED:
            output = after[0].output[0]
            names.setdefault(output, node.name)
    return names
