"""Which tensors of a graph to quantise, by the scheme of the backend that will run it.

"all" (onnxruntime's CPU kernels) puts every tensor between two integer operators on integers. A weighted
operator always runs on integers; any other only *between* integers, so that heads and decoders stay float.

"inputs" (TensorRT) quantises what weighted operators read. The skip input of a residual Add is quantised so
that the addition fuses into the convolution before it; its other input is not. A Concat's inputs share its
output's scale, so that it moves integers. Nothing comes between a convolution and its activation.
(TensorRT Developer Guide, *Working with Quantized Types*, "Q/DQ Layer-Placement Recommendations".)

"every" (a deep learning accelerator) quantises whatever an operator with an integer kernel reads or puts out,
so that no layer leaves the integers; between a weighted operator and its activation there is one layer.

Layers that fall under an exclusion of the scheme stay float in all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from penjing_quant.exclusions import exclusion
from penjing_quant.graph import (
    CLIPPING,
    SAME_SCALE,
    WEIGHTED,
    activations,
    attribute,
    bounds,
    clipped,
    constant,
    is_activation,
    unclipped,
    weight_axis,
)

if TYPE_CHECKING:
    import onnx_ir as ir
    from penjing.step import Scheme

    from penjing_quant.integers import Range

#: a Concat of inputs whose ranges differ by more than this many times stays float, each at its own precision
UNLIKE = 8.0
POOLS = frozenset({"AveragePool", "GlobalAveragePool"})
#: operators that TensorRT moves quantisation through
COMMUTING = SAME_SCALE | CLIPPING
#: operators that keep all values they are given, so that a scale before them serves behind them as well
KEEPING = SAME_SCALE - {"Gather", "Slice", "Split"}

#: operators that scale or shift where one input is constant
SCALES = frozenset({"Add", "Sub", "Mul", "Div"})
#: weighted operators whose integer kernel can put out float
FLOAT_OUTPUT = frozenset({"Gemm", "MatMul"})


@dataclasses.dataclass(frozen=True)
class Left:
    """A node that stays float, and why."""

    node: str
    op: str
    why: str


@dataclasses.dataclass
class Placement:
    """What to quantise."""

    #: nodes that run on integers
    integer: list[ir.Node]
    #: activations to quantise, each with a tensor that stands for all those which share its scale
    tensors: dict[ir.Value, ir.Value]
    #: which uses of those tensors read integers; None for all of them
    uses: frozenset[tuple[ir.Node, int]] | None
    left: list[Left]


def observed(graph: ir.Graph, scheme: Scheme, exclude: Collection[str] = ()) -> list[str]:
    """Return the names of the activations whose ranges `place` and the writer may need, in graph order."""
    tensors: dict[ir.Value, None] = {}
    for node in graph:
        if node.op_type in scheme.operators and node.name not in exclude:
            tensors.update(dict.fromkeys(value for _, value in activations(node)))
            for value in node.outputs:
                after = clipped(value)
                tensors[after] = None
                # kept only where the quantiser cannot stand in for the clipping
                if after is not value and (scheme.symmetric or _clips_above_zero(value)):
                    tensors[value] = None
    return [value.name for value in tensors if value.name and is_activation(value)]


def _clips_above_zero(value: ir.Value) -> bool:
    between = bounds(next(iter(value.uses())).node)
    return between is not None and between[0] > 0


def place(
    graph: ir.Graph, scheme: Scheme, ranges: Mapping[str, Range], exclude: Collection[str] = ()
) -> Placement:
    """Decide what to quantise. `exclude` names nodes that must stay float."""
    left = {}
    candidates = []
    for node in graph:
        if why := _objection(node, scheme, ranges, exclude):
            left[node] = why
        else:
            candidates.append(node)
    placement = _PLACEMENTS[scheme.placement](candidates)
    if scheme.placement == "all":
        left.update(
            dict.fromkeys(set(candidates) - set(placement.integer), "it does not lie between integers")
        )
    else:
        left = {node: why for node, why in left.items() if node.op_type in scheme.operators}
        left.update(dict.fromkeys(set(candidates) - set(placement.integer), "no integer operator reads it"))
    placement.left = [Left(node.name or "", node.op_type, left[node]) for node in graph if node in left]
    return placement


def _objection(node: ir.Node, scheme: Scheme, ranges: Mapping[str, Range], exclude: Collection[str]) -> str:
    """Return why `node` cannot run on integers, "" where it can."""
    if node.name in exclude:
        return "it was excluded"
    if node.op_type not in scheme.operators:
        return "the backend has no integer kernel for it"
    if node.op_type in WEIGHTED and (why := _objection_to_weight(node)):
        return why
    if (rule := exclusion(node, scheme)) is not None:
        return rule.why
    if node.op_type in WEIGHTED:
        return ""
    if node.op_type in SAME_SCALE or bounds(node) is not None:
        return "" if is_activation(node.inputs[0]) else "it does not work on floats"
    constants = [value for value in node.inputs if constant(value) is not None]
    # an accelerator has layers that scale and shift by constants
    if constants and not (scheme.placement == "every" and node.op_type in SCALES):
        return "one of its inputs is constant"
    if not all(is_activation(value) for value in node.inputs if value not in constants):
        return "it does not work on floats alone"
    # an accelerator joins at one range whatever the inputs'
    if node.op_type == "Concat" and scheme.placement != "every" and _unlike(node, ranges):
        return f"the ranges of its inputs differ by more than {UNLIKE:g} times"
    return ""


def _objection_to_weight(node: ir.Node) -> str:
    weight = constant(node.inputs[1])
    if weight is None or weight.dtype != "float32" or not is_activation(node.inputs[0]):
        return "its weight is not a float32 constant"
    if node.op_type == "MatMul" and weight.ndim != 2:
        return "its weight is not a matrix"
    if node.op_type == "ConvTranspose" and attribute(node, "group", 1) != 1:
        return "its output channels are spread over groups"
    if node.op_type == "Gemm" and (
        attribute(node, "alpha", 1.0) != 1
        or attribute(node, "beta", 1.0) != 1
        or attribute(node, "transA", 0)
    ):
        return "it scales or transposes its input"
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias, channels = constant(node.inputs[2]), weight.shape[weight_axis(node)]
        if bias is None or bias.size != channels or bias.shape[-1:] != (channels,):
            return "its bias is not one constant for each output channel"
    return ""


def _unlike(node: ir.Node, ranges: Mapping[str, Range]) -> bool:
    names = [value.name or "" for value in node.inputs if value is not None]
    reaches = [ranges[name].reach for name in names if name in ranges and ranges[name].reach > 0]
    return len(reaches) > 1 and max(reaches) > UNLIKE * min(reaches)


class _Groups:
    """Tensors that share a scale (union-find)."""

    def __init__(self) -> None:
        self.parent: dict[ir.Value, ir.Value] = {}

    def root(self, value: ir.Value) -> ir.Value:
        while (parent := self.parent.get(value, value)) is not value:
            value = parent
        return value

    def join(self, first: ir.Value, *others: ir.Value) -> None:
        for other in others:
            a, b = self.root(first), self.root(other)
            if a is not b:
                self.parent[b] = a


def _place_between(candidates: list[ir.Node]) -> Placement:
    integer = set(candidates)

    def needed(value: ir.Value) -> bool:
        return any(use.node in integer and _reads(use.node, use.idx) for use in clipped(value).uses())

    def available(value: ir.Value) -> bool:
        producer = unclipped(value).producer()
        return producer in integer or any(
            use.node in integer and use.node.op_type in WEIGHTED for use in value.uses()
        )

    changed = True
    while changed:  # a node taken out may strand its neighbours
        changed = False
        for node in candidates:
            if node in integer and node.op_type not in WEIGHTED:
                enters = any(available(value) for _, value in activations(node))
                if not enters or not any(needed(value) for value in node.outputs):
                    integer.remove(node)
                    changed = True
    groups = _Groups()
    tensors: dict[ir.Value, None] = {}
    for node in candidates:
        if node not in integer:
            continue
        tensors.update(dict.fromkeys(value for _, value in activations(node)))
        outputs = [clipped(value) for value in node.outputs]
        if node.op_type not in FLOAT_OUTPUT or any(map(needed, node.outputs)):
            tensors.update(dict.fromkeys(outputs))
        if node.op_type in SAME_SCALE:
            groups.join(activations(node)[0][1], *outputs)
    return Placement(
        [node for node in candidates if node in integer],
        {value: groups.root(value) for value in tensors},
        None,
        [],
    )


def _reads(node: ir.Node, index: int) -> bool:
    return any(i == index for i, _ in activations(node))


def _place_inputs(candidates: list[ir.Node]) -> Placement:
    uses: set[tuple[ir.Node, int]] = set()
    integer: set[ir.Node] = set()
    groups = _Groups()

    def needed(value: ir.Value) -> bool:
        return any(
            (use.node, use.idx) in uses
            or (use.node.op_type in COMMUTING and use.idx == 0 and any(map(needed, use.node.outputs)))
            for use in value.uses()
        )

    for node in candidates:
        if node.op_type in WEIGHTED:
            integer.add(node)
            uses.add((node, 0))
    for node in reversed(candidates):  # consumers first
        if node.op_type in WEIGHTED or not needed(node.outputs[0]):
            continue
        inputs = activations(node)
        if node.op_type == "Add":
            inputs = list(_skip_input(node))
        elif node.op_type == "Concat":
            groups.join(node.outputs[0], *(value for _, value in inputs), *_kept(node.outputs[0]))
        elif node.op_type not in POOLS or not _from_integers(inputs[0][1], integer):
            continue
        if inputs:
            integer.add(node)
            uses.update((node, i) for i, _ in inputs)
    tensors = {
        value: groups.root(value)
        for node in candidates
        for i, value in activations(node)
        if (node, i) in uses
    }
    return Placement([node for node in candidates if node in integer], tensors, frozenset(uses), [])


def _kept(value: ir.Value) -> Iterator[ir.Value]:
    """Yield the tensors that hold the values of `value` in another order or shape."""
    for use in value.uses():
        if use.node.op_type in KEEPING and use.idx == 0:
            for output in use.node.outputs:
                yield output
                yield from _kept(output)


def _from_integers(value: ir.Value, integer: set[ir.Node]) -> bool:
    """Tell whether a weighted operator on integers makes `value`, clipped, added or moved on the way."""
    producer = value.producer()
    if producer is None or producer in integer:
        return producer is not None
    passes = producer.op_type in COMMUTING | {"Add", "Concat"}
    return passes and any(_from_integers(before, integer) for _, before in activations(producer))


def _place_every(candidates: list[ir.Node]) -> Placement:
    tensors: dict[ir.Value, None] = {}
    groups = _Groups()
    for node in candidates:
        read = [value for _, value in activations(node)]
        tensors.update(dict.fromkeys(read))
        tensors.update(dict.fromkeys(value for value in node.outputs if is_activation(value)))
        if node.op_type in SAME_SCALE:
            groups.join(read[0], *node.outputs)
        elif node.op_type == "Concat":
            groups.join(node.outputs[0], *read, *_kept(node.outputs[0]))
    kept = [value for value in tensors if not _is_fused(value)]
    return Placement(candidates, {value: groups.root(value) for value in kept}, None, [])


def _is_fused(value: ir.Value) -> bool:
    """Tell whether `value` lies between a weighted operator and the clipping that alone reads it: one layer."""
    return _producer_type(value) in WEIGHTED | {"Add"} and clipped(value) is not value


def _skip_input(add: ir.Node) -> Iterator[tuple[int, ir.Value]]:
    """Yield the input of a residual addition that does not come through its branch of convolutions.

    That is the input which the other is computed from; where neither is, as with a convolution on the skip,
    the one that is not the first to come straight from a convolution.
    """
    (i, a), (j, b) = activations(add)
    if _comes_from(b, a):
        yield i, a
    elif _comes_from(a, b) or _producer_type(a) in WEIGHTED:
        yield j, b
    elif _producer_type(b) in WEIGHTED:
        yield i, a


def _producer_type(value: ir.Value) -> str:
    producer = value.producer()
    return producer.op_type if producer is not None else ""


def _comes_from(value: ir.Value, ancestor: ir.Value) -> bool:
    waiting, seen = [value], {value}
    while waiting:
        producer = waiting.pop().producer()
        for before in producer.inputs if producer is not None else ():
            if before is ancestor:
                return True
            if before is not None and before not in seen:
                seen.add(before)
                waiting.append(before)
    return False


_PLACEMENTS: dict[str, Callable[[list[ir.Node]], Placement]] = {
    "all": _place_between,
    "inputs": _place_inputs,
    "every": _place_every,
}
