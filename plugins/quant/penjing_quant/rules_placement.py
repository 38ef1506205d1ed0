"""Rules on where Q/DQ stand in a graph for TensorRT, so that it can fuse what lies between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from penjing_quant.exclusions import exclusion
from penjing_quant.graph import WEIGHTED, constant
from penjing_quant.placement import COMMUTING, KEEPING, POOLS
from penjing_quant.rules import (
    AGAIN,
    GUIDE,
    Rule,
    dequantised,
    is_weight,
    label,
    linear,
    parameters,
    quantiser,
)

if TYPE_CHECKING:
    import onnx_ir as ir
    from penjing.step import Scheme

    Broken = Iterator[tuple[ir.Node, str]]

#: what is computed in one go with the convolution before it
FUSED = frozenset({"BatchNormalization", "Relu", "Clip", "LeakyRelu", "PRelu"})
#: parts of SiLU and hard-swish
GATES = frozenset({"Sigmoid", "HardSigmoid", "HardSwish"})
#: operators of float kernels alone that read integers only where their output becomes integers too
_ONE_SIDED = POOLS


def _between_convolution_and_activation(graph: ir.Graph, scheme: Scheme) -> Broken:
    for node, source, readers in _round_trips(graph):
        producer = source.producer()
        if producer is None or producer.op_type not in WEIGHTED:
            continue
        for reader in readers:
            if reader.op_type in FUSED:
                yield (
                    node,
                    (
                        f"{label(node)} stands between {producer.op_type} {label(producer)} and "
                        f"{reader.op_type} {label(reader)}, which would run as one."
                    ),
                )


def _inside_gates(graph: ir.Graph, scheme: Scheme) -> Broken:
    for node, source, readers in _round_trips(graph):
        producer = source.producer()
        for reader in readers:
            if reader.op_type in GATES:
                yield (
                    node,
                    f"{label(node)} stands before {reader.op_type} {label(reader)}, whose input stays float.",
                )
            elif (
                reader.op_type == "Mul"
                and producer is not None
                and (producer.op_type in GATES or _gated(source, reader))
            ):
                yield (
                    node,
                    f"{label(node)} stands inside the product {label(reader)} of an activation function.",
                )


def _gated(value: ir.Value, product: ir.Node) -> bool:
    """Tell whether the other factor of `product` is a gate on `value` itself."""
    gates = [factor.producer() for factor in product.inputs if factor is not None]
    gates += [trip.inputs[0].producer() for gate in gates if (trip := quantiser(gate)) and trip.inputs[0]]
    return any(
        gate is not None and gate.op_type in GATES and _float_source(gate.inputs[0]) is value
        for gate in gates
    )


def _skip_inputs(graph: ir.Graph, scheme: Scheme) -> Broken:
    for node in graph:
        if node.op_type != "Add" or len(node.inputs) != 2 or not _becomes_integer(node.outputs[0]):
            continue
        floats = [value for value in node.inputs if dequantised(value) is None and constant(value) is None]
        branches = [value for value in floats if _runs_on_integers(value)]
        if len(floats) == 2 and branches:
            yield (
                node,
                f"Neither input of Add {label(node)} is quantised, so that no convolution takes it along.",
            )


def _runs_on_integers(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return (
        producer is not None
        and producer.op_type in WEIGHTED
        and all(dequantised(v) is not None for v in producer.inputs[:2])
    )


def _concatenations(graph: ir.Graph, scheme: Scheme) -> Broken:
    for node in graph:
        if node.op_type != "Concat":
            continue
        trips = [dequantised(value) for value in node.inputs]
        if not any(trip is not None and not is_weight(trip) for trip in trips):
            continue
        if any(trip is None for trip in trips):
            if scheme.placement != "inputs":
                continue  # an accelerator takes whatever reads integers apart
            yield node, f"Some inputs of Concat {label(node)} are quantised, and some are not."
            continue
        scales = {_scale(trip) for trip in trips if trip is not None}
        scales |= {_scale(reader) for reader in _quantisers_after(node.outputs[0])}
        if len(scales) > 1:
            yield node, f"Inputs and output of Concat {label(node)} have {len(scales)} different scales."


def _pools(graph: ir.Graph, scheme: Scheme) -> Broken:
    for node in graph:
        if (
            node.op_type in _ONE_SIDED
            and dequantised(node.inputs[0]) is not None
            and not _becomes_integer(node.outputs[0])
        ):
            yield node, f"{node.op_type} {label(node)} reads integers and puts out float."


def _excluded(graph: ir.Graph, scheme: Scheme) -> Broken:
    for node in graph:
        if node.op_type in WEIGHTED and dequantised(node.inputs[0]) is not None:
            rule = exclusion(node, scheme)
            if rule is not None:
                yield node, f"{node.op_type} {label(node)} is quantised, but {rule.why}."


def _decoders(graph: ir.Graph, scheme: Scheme) -> Broken:
    """Yield concatenations and Sigmoids at the network's outputs that work on integers."""
    for node in graph:
        if node.op_type in ("Concat", "Sigmoid", "Softmax") and _is_at_the_end(node.outputs[0]):
            after = list(_quantisers_after(node.outputs[0]))
            if after or (node.op_type == "Concat" and any(dequantised(value) for value in node.inputs)):
                yield node, f"{node.op_type} {label(node)}, from which the outputs are decoded, is quantised."


def _is_at_the_end(value: ir.Value) -> bool:
    """Tell whether no weighted operator comes after `value`."""
    waiting, seen = [value], {value}
    while waiting:
        for use in waiting.pop().uses():
            if use.node.op_type in WEIGHTED:
                return False
            for output in use.node.outputs:
                if output not in seen:
                    seen.add(output)
                    waiting.append(output)
    return True


def _round_trips(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Value, list[ir.Node]]]:
    """Yield each QuantizeLinear of an activation, what it reads, and the readers of what is dequantised from it."""
    for node in linear(graph, "QuantizeLinear"):
        source = node.inputs[0]
        if source is None or is_weight(node):
            continue
        readers = [
            use.node
            for trip in node.outputs[0].uses()
            if trip.node.op_type == "DequantizeLinear"
            for use in trip.node.outputs[0].uses()
        ]
        yield node, source, readers


def _float_source(value: ir.Value | None) -> ir.Value | None:
    """Return what `value` was before Q/DQ."""
    before = quantiser(value.producer()) if value is not None else None
    return before.inputs[0] if before is not None else value


def _becomes_integer(value: ir.Value) -> bool:
    """Tell whether something quantises `value`, clipped or moved on the way, or another addition takes it."""
    return any(
        use.node.op_type == "QuantizeLinear"
        or (use.node.op_type in COMMUTING and use.idx == 0 and any(map(_becomes_integer, use.node.outputs)))
        for use in value.uses()
    )


def _quantisers_after(value: ir.Value) -> Iterator[ir.Node]:
    for use in value.uses():
        if use.node.op_type == "QuantizeLinear":
            yield use.node
        elif use.node.op_type in KEEPING and use.idx == 0:
            for output in use.node.outputs:
                yield from _quantisers_after(output)


def _scale(node: ir.Node) -> tuple[float, ...]:
    scale = constant(parameters(node)[0])
    return () if scale is None else tuple(float(number) for number in scale.reshape(-1))


PLACEMENT = (
    Rule(
        "activation-function",
        "Nothing stands between a convolution and its normalisation or activation function.",
        "Put Q/DQ behind the activation function.",
        GUIDE,
        ("inputs", "every"),
        _between_convolution_and_activation,
    ),
    Rule(
        "silu",
        "Nothing stands inside SiLU and hard-swish.",
        "Put Q/DQ behind the product.",
        GUIDE,
        ("inputs",),
        _inside_gates,
    ),
    Rule(
        "residual",
        "The skip input of a residual addition is quantised, its other input is not.",
        AGAIN,
        f"{GUIDE}; NVIDIA Model-Optimizer, build_non_residual_input_map",
        ("inputs",),
        _skip_inputs,
    ),
    Rule(
        "concat",
        "Inputs and output of a Concat share one scale.",
        AGAIN,
        "NVIDIA Model-Optimizer, concat_elimination",
        ("inputs", "every"),
        _concatenations,
    ),
    Rule(
        "pool",
        "Average pooling has integers on both sides, or on neither.",
        "Leave its input float.",
        GUIDE,
        ("inputs",),
        _pools,
    ),
    Rule(
        "left-float",
        "Layers that integers make no faster stay float.",
        AGAIN,
        "NVIDIA Model-Optimizer, modelopt/onnx/quantization",
        ("inputs",),
        _excluded,
    ),
    Rule(
        "decoder",
        "What decodes the outputs of a detector stays float.",
        AGAIN,
        "scores and boxes of unlike ranges on one scale lose the scores (reproduced on a CPU)",
        ("inputs",),
        _decoders,
    ),
)
