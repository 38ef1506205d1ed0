"""Predicting where TensorRT runs each layer of a graph: on a DLA or on the GPU, before any board is touched.

TensorRT cuts the network wherever a layer stays on the GPU; each piece on the DLA becomes one loadable. A piece
is here what hangs together on the DLA with the same number of changes of device before it, so that no path leaves
a piece and comes back to it. TensorRT's own partition may differ in a branch; its log is the proof.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal

from penjing.report.words import percent

from penjing_tensorrt.dla.graph import attribute, prepare, shape
from penjing_tensorrt.dla.limits import Target
from penjing_tensorrt.dla.rules import Verdict, judge

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

#: run in FP16 where the network is INT8 (developer guide)
FP16_ONLY = frozenset({"Sigmoid", "Tanh", "Softmax", "LRN"})


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer, where it is predicted to run, and why."""

    name: str
    op: str
    device: Literal["DLA", "GPU"]
    #: of the rule that decided
    rule: str
    why: str
    #: of its first output; empty where it is not known
    shape: tuple[int, ...]
    macs: int
    precision: str
    #: which loadable it is part of, from 0; None on the GPU
    loadable: int | None = None


@dataclasses.dataclass(frozen=True)
class Placement:
    """Every layer of a network, in order, and what becomes of the whole."""

    target: Target
    layers: tuple[Layer, ...]
    loadables: int
    #: tensors that the DLA reads from the GPU, and that the GPU reads from the DLA
    to_dla: int
    to_gpu: int
    #: what the user should know of the whole
    notes: tuple[str, ...] = ()

    @property
    def on_dla(self) -> tuple[Layer, ...]:
        """Return the layers on the DLA."""
        return tuple(layer for layer in self.layers if layer.device == "DLA")

    @property
    def on_gpu(self) -> tuple[Layer, ...]:
        """Return the layers on the GPU."""
        return tuple(layer for layer in self.layers if layer.device == "GPU")

    @property
    def share(self) -> float | None:
        """Return the share of multiply-accumulates on the DLA; None where there are none, or shapes are open."""
        total = sum(layer.macs for layer in self.layers)
        return sum(layer.macs for layer in self.on_dla) / total if total else None

    @property
    def summary(self) -> str:
        """Return the totals in a sentence."""
        share = self.share
        return (
            f"{len(self.on_dla)} of {len(self.layers)} layers on {self.target.title}"
            + ("" if share is None else f", {percent(share)} of the multiply-accumulates")
            + f"; {self.loadables} loadable{'' if self.loadables == 1 else 's'}, "
            f"{self.to_dla} crossing{'' if self.to_dla == 1 else 's'} to the DLA and {self.to_gpu} back to the GPU."
        )

    def reasons(self) -> dict[str, int]:
        """Return how many layers each rule leaves on the GPU, the most frequent first."""
        return dict(Counter(f"{layer.op}: {layer.rule}" for layer in self.on_gpu).most_common())

    def to_dict(self) -> dict[str, Any]:
        """Return the placement as JSON."""
        return {
            "target": dataclasses.asdict(self.target) | {"version": ".".join(map(str, self.target.version))},
            "layers_on_dla": len(self.on_dla),
            "layers_on_gpu": len(self.on_gpu),
            "loadables": self.loadables,
            "crossings_to_dla": self.to_dla,
            "crossings_to_gpu": self.to_gpu,
            "share_of_macs_on_dla": self.share,
            "reasons": self.reasons(),
            "notes": list(self.notes),
            "layers": [dataclasses.asdict(layer) | {"shape": list(layer.shape)} for layer in self.layers],
        }


def place(
    model: onnx.ModelProto,
    target: Target,
    *,
    batch: int | None = 1,
    scales: Collection[str] | None = None,
) -> Placement:
    """Return where each layer of a float graph runs.

    An open batch becomes `batch`; with None it stays open, and nothing can run on the DLA. `scales` names the
    tensors that have an INT8 range: layers with others run in FP16. None: all have one, where the target is INT8.
    """
    import onnx_ir as ir

    prepared, open_batch = prepare(model, batch)
    graph = ir.from_proto(prepared).graph
    nodes = list(graph)
    verdicts: dict[ir.Node, Verdict] = {}
    precisions: dict[ir.Node, str] = {}
    for node in nodes:
        precisions[node] = _precision(node, target, scales)
        precise = dataclasses.replace(target, precision=precisions[node])  # type: ignore[arg-type]  # one of the two
        verdicts[node] = _typed(node, target, scales) or judge(node, precise)
    pieces = _pieces(nodes, verdicts)
    layers = tuple(
        Layer(
            node.name or "",
            node.op_type,
            "DLA" if verdicts[node].dla else "GPU",
            verdicts[node].rule,
            verdicts[node].why,
            shape(node.outputs[0]) or (),
            _macs(node),
            precisions[node] if verdicts[node].dla else "",
            pieces.get(node),
        )
        for node in nodes
    )
    to_dla, to_gpu = _crossings(nodes, verdicts)
    count = len(set(pieces.values()))
    return Placement(target, layers, count, to_dla, to_gpu, tuple(_notes(target, count, open_batch, batch)))


def _notes(target: Target, loadables: int, open_batch: bool, batch: int | None) -> list[str]:
    notes = []
    if loadables > target.most_loadables:
        notes.append(
            f"{loadables} loadables, and a core holds {target.most_loadables}: TensorRT leaves the rest to the GPU."
        )
    if open_batch:
        notes.append(
            "The batch is open; the DLA builds for one size."
            if batch is None
            else f"The batch is open; it is taken as {batch}, and must be fixed to build: the DLA takes one size."
        )
    return notes


def _typed(node: ir.Node, target: Target, scales: Collection[str] | None) -> Verdict | None:
    """Refuse what computes in FP32 where TensorRT keeps to the graph's types; None where nothing is to be said."""
    import onnx_ir as ir

    if not target.strongly_typed or scales is None or node.outputs[0].dtype != ir.DataType.FLOAT:
        return None
    if all(value.name in scales for value in _tensors(node)):
        return None
    return Verdict(
        False, "strong typing", "it computes in FP32, which TensorRT 11 keeps to; the DLA has INT8 and FP16"
    )


def _tensors(node: ir.Node) -> list[ir.Value]:
    """Return what a node reads and puts out, constants aside."""
    return [
        value for value in (*node.inputs, *node.outputs) if value is not None and value.const_value is None
    ]


def _precision(node: ir.Node, target: Target, scales: Collection[str] | None) -> str:
    if target.precision == "fp16" or node.op_type in FP16_ONLY:
        return "fp16"
    if scales is None:
        return "int8"
    return "int8" if all(value.name in scales for value in _tensors(node)) else "fp16"


def _pieces(nodes: list[ir.Node], verdicts: Mapping[ir.Node, Verdict]) -> dict[ir.Node, int]:
    """Return the number of the loadable that each node on the DLA is part of, in the order of their first nodes."""
    changes: dict[ir.Node, int] = {}
    parent: dict[ir.Node, ir.Node] = {}

    def root(node: ir.Node) -> ir.Node:
        while parent[node] is not node:
            node = parent[node]
        return node

    for node in nodes:
        before = [p for value in node.inputs if value is not None and (p := value.producer()) in verdicts]
        here = verdicts[node].dla
        changes[node] = max(
            (changes[p] + (verdicts[p].dla != here) for p in before if p), default=0 if here else 1
        )
        parent[node] = node
        for p in before:
            if p is not None and here and verdicts[p].dla and changes[p] == changes[node]:
                parent[root(p)] = root(node)
    numbers: dict[ir.Node, int] = {}
    found: dict[ir.Node, int] = {}
    for node in nodes:
        if verdicts[node].dla:
            found[node] = numbers.setdefault(root(node), len(numbers))
    return found


def _crossings(nodes: list[ir.Node], verdicts: Mapping[ir.Node, Verdict]) -> tuple[int, int]:
    """Count tensors that change device between layers: to the DLA, and to the GPU. Inputs and outputs do not count."""
    to_dla = to_gpu = 0
    for node in nodes:
        for value in node.outputs:
            readers = {verdicts[use.node].dla for use in value.uses() if use.node in verdicts}
            to_dla += not verdicts[node].dla and True in readers
            to_gpu += verdicts[node].dla and False in readers
    return to_dla, to_gpu


def _macs(node: ir.Node) -> int:
    """Return the multiply-accumulates of a node for the batch of the graph; 0 where shapes are not known."""
    output, data = shape(node.outputs[0]), shape(node.inputs[0]) if node.inputs else None
    if output is None or data is None:
        return 0
    if node.op_type in ("Conv", "ConvTranspose"):
        weight = shape(node.inputs[1])
        per = math.prod(weight[1:]) if weight else 0
        return math.prod(output if node.op_type == "Conv" else data) * per
    if node.op_type == "MatMul":
        return math.prod(output) * data[-1]
    if node.op_type == "Gemm":
        return math.prod(output) * data[0 if attribute(node, "transA", 0) else -1]
    return 0
