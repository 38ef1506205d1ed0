"""Checking a quantised graph against the scheme of the backend that will run it: what `penjing lint` reports too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penjing_quant.rules import Finding, label
from penjing_quant.rules_numbers import NUMBERS
from penjing_quant.rules_placement import PLACEMENT

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir
    from penjing.step import Scheme

RULES = (*NUMBERS, *PLACEMENT)


def findings(graph: ir.Graph, scheme: Scheme) -> list[Finding]:
    """Return each node of a graph that breaks a rule of `scheme`; shapes are inferred, constants initialisers."""
    return [
        Finding(
            rule.name, rule.says, label(node), node.op_type, what, rule.source or scheme.source, rule.cure
        )
        for rule in RULES
        if scheme.placement in rule.placements
        for node, what in rule.find(graph, scheme)
    ]


def violations(model: onnx.ModelProto, scheme: Scheme) -> list[str]:
    """Return what in a quantised graph breaks `scheme`, a sentence each; none where the backend takes it."""
    import onnx
    import onnx_ir as ir

    inferred = onnx.shape_inference.infer_shapes(model)
    return [finding.what for finding in findings(ir.from_proto(inferred).graph, scheme)]
