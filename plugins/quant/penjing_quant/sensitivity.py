"""Which quantisers of a network cost its outputs how much, measured one by one.

Each quantiser is put alone into the float network: the weight of a layer, or an activation with all those that
share its scale. The power of the error at the outputs is its noise. Errors of different quantisers are as good as
independent, so that noises add up: what a set of layers in float would leave can be told without trying each set.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from penjing_quant.graph import SAME_SCALE, WEIGHTED, activations, unclipped
from penjing_quant.session import Network, Power

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx
    import onnx_ir as ir
    from penjing.step import Progress, Scheme

    from penjing_quant.integers import Grid, Range
    from penjing_quant.placement import Placement
    from penjing_quant.write import Written

    Array = npt.NDArray[np.float32]

#: an activation that more groups than this touch is not taken back to float for its own sake
WIDE = 6


@dataclasses.dataclass(frozen=True)
class Group:
    """Nodes that compute in float or on integers together: a layer, several of one weight, or an Add."""

    name: str
    nodes: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Noisy:
    """One quantiser: it is gone once all of `groups` compute in float."""

    name: str
    kind: str  # "weights" or "activation"
    groups: frozenset[str]
    #: noise at the outputs by this quantiser alone, as a share of their power: that of the worst output
    noise: float


def groups_of(model: onnx.ModelProto, integer: Sequence[str]) -> dict[str, Group]:
    """Return the groups of the nodes `integer`, by name, in graph order.

    An operator that only moves values is in none: it follows those around it.
    """
    weights: dict[str, str] = {}
    members: dict[str, set[str]] = {}
    chosen = set(integer)
    for node in model.graph.node:
        if node.name not in chosen or node.op_type in SAME_SCALE:
            continue
        key = node.name
        if node.op_type in WEIGHTED:
            key = weights.setdefault(node.input[1], node.name)
        members.setdefault(key, set()).add(node.name)
    return {name: Group(name, frozenset(nodes)) for name, nodes in members.items()}


class Sensitivity:
    """Measures each quantiser of a quantised network alone."""

    def __init__(
        self,
        exact: onnx.ModelProto,
        written: Written,
        ranges: Mapping[str, Range],
        scheme: Scheme,
        exclude: frozenset[str],
    ) -> None:
        self.exact, self.written, self.ranges, self.scheme, self.exclude = (
            exact, written, ranges, scheme, exclude,
        )  # fmt: skip
        self.groups = groups_of(exact, written.integer)

    def movable(self) -> dict[str, Group]:
        """Return the groups that may go back to float.

        Where only inputs of weighted operators are quantised, an Add reads integers so that the convolution
        before it can: it goes with that.
        """
        if self.scheme.placement != "inputs":
            return self.groups
        kinds = {node.name: node.op_type for node in self.exact.graph.node}
        return {name: group for name, group in self.groups.items() if kinds[name] in WEIGHTED | {"Concat"}}

    def measure(self, photographs: Sequence[Array], progress: Progress) -> list[Noisy]:
        """Return every quantiser with its noise over `photographs`, in graph order."""
        reference = Network(self.exact)
        expected = [reference(pixels) for pixels in photographs]
        probes = [*self._weights(), *self._activations()]
        progress.begin("sensitivity of quantisers", len(probes))
        found = []
        for name, kind, groups, probe, renamed in probes:
            network = Network(probe, [renamed.get(output, output) for output in reference.names])
            powers = {output: Power() for output in reference.names}
            for pixels, wanted in zip(photographs, expected, strict=True):
                got = network(pixels)
                for output, power in powers.items():
                    power.add(wanted[output], got[renamed.get(output, output)])
            noise = max(power.share for power in powers.values())
            found.append(Noisy(name, kind, groups, noise))
            progress.advance()
        progress.end()
        return found

    def _weights(self) -> Iterator[tuple[str, str, frozenset[str], onnx.ModelProto, dict[str, str]]]:
        """Yield, for each group with weights, the float network with those as their codes have them."""
        import onnx

        from penjing_quant.layerwise import Reading

        reading = Reading.of(self.written.model)
        nodes = {node.name: node for node in self.exact.graph.node}
        for group in self.groups.values():
            if nodes[group.name].op_type not in WEIGHTED:
                continue
            values = reading.values(reading.nodes[group.name].input[1])
            name = nodes[group.name].input[1]
            probe = onnx.ModelProto()
            probe.CopyFrom(self.exact)
            target = next(tensor for tensor in probe.graph.initializer if tensor.name == name)
            assert values is not None
            target.CopyFrom(onnx.numpy_helper.from_array(values, name))
            yield group.name, "weights", frozenset([group.name]), probe, {}

    def _activations(self) -> Iterator[tuple[str, str, frozenset[str], onnx.ModelProto, dict[str, str]]]:
        """Yield, for each activation quantised, the float network with it and those of its scale rounded."""
        import onnx_ir as ir

        from penjing_quant.placement import place
        from penjing_quant.write import grids_of

        graph = ir.from_proto(self.exact).graph
        placement = place(graph, self.scheme, self.ranges, self.exclude)
        grids = grids_of(placement, self.ranges, self.scheme)
        joint: dict[ir.Value, list[ir.Value]] = {}
        for value, root in placement.tensors.items():
            joint.setdefault(root, []).append(value)
        for values in joint.values():
            groups = frozenset(name for value in values for name in self._touching(value, placement))
            name = values[0].name or ""
            probe, renamed = self._rounded({value: grids[value] for value in values}, placement)
            yield name, "activation", groups, probe, renamed

    def _touching(self, value: ir.Value, placement: Placement) -> Iterator[str]:
        """Yield the groups that read `value` as integers, or make it."""
        integer = set(placement.integer)
        of = {node: group.name for group in self.groups.values() for node in group.nodes}
        nodes = [
            use.node
            for use in value.uses()
            if use.node in integer
            and any(index == use.idx for index, _ in activations(use.node))
            and (placement.uses is None or (use.node, use.idx) in placement.uses)
        ]
        producer = unclipped(value).producer()
        if placement.uses is None and producer is not None and producer in integer:
            nodes.append(producer)
        for node in nodes:
            if node.name in of:
                yield of[node.name]

    def _rounded(
        self, grids: Mapping[ir.Value, Grid], placement: Placement
    ) -> tuple[onnx.ModelProto, dict[str, str]]:
        """Return the float network with some activations rounded, and outputs that have another name in it."""
        import numpy as np
        import onnx
        from onnx import numpy_helper

        probe = onnx.ModelProto()
        probe.CopyFrom(self.exact)
        uses = None if placement.uses is None else {(node.name, index) for node, index in placement.uses}
        renamed = {value.name or "": f"{value.name}.penjing.rounded" for value in grids}
        nodes = []
        for node in probe.graph.node:
            for index, entry in enumerate(node.input):
                if entry in renamed and (uses is None or (node.name, index) in uses):
                    node.input[index] = renamed[entry]
        made = {output: node for node in probe.graph.node for output in node.output}
        for number, (value, grid) in enumerate(grids.items()):
            parameters = [f"penjing.scale.{number}", f"penjing.zero.{number}"]
            arrays = np.array(grid.scale, np.float32), np.array(grid.zero, self.scheme.activation)
            for name, array in zip(parameters, arrays, strict=True):
                probe.graph.initializer.append(numpy_helper.from_array(array, name))
            source, codes = value.name or "", f"penjing.codes.{number}"
            nodes.append(
                (made.get(source), onnx.helper.make_node("QuantizeLinear", [source, *parameters], [codes]))
            )
            nodes.append(
                (
                    made.get(source),
                    onnx.helper.make_node("DequantizeLinear", [codes, *parameters], [renamed[source]]),
                )
            )
        ordered = [node for producer, node in nodes if producer is None]
        for node in probe.graph.node:
            ordered.append(node)
            ordered += [
                new for producer, new in nodes if producer is not None and producer.output[0] in node.output
            ]
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
        del probe.graph.node[:]
        probe.graph.node.extend(kept)
        outputs = {output.name for output in probe.graph.output}
        return probe, {name: new for name, new in renamed.items() if name in outputs and uses is None}


def remaining(quantisers: Sequence[Noisy], floats: frozenset[str]) -> float:
    """Return the noise that is left once the groups `floats` compute in float."""
    return sum(one.noise for one in quantisers if not one.groups or not one.groups <= floats)


def moves(groups: Mapping[str, Group], quantisers: Sequence[Noisy]) -> list[frozenset[str]]:
    """Return sets of groups worth taking back to float together: each alone, and those around one activation."""
    sets = dict.fromkeys(frozenset([name]) for name in groups)
    sets |= dict.fromkeys(
        one.groups for one in quantisers if 1 < len(one.groups) <= WIDE and one.groups <= groups.keys()
    )
    return list(sets)
