"""Layers that a scheme leaves float: its exclusions compared with what each layer is."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from penjing.errors import PluginError

from penjing_quant.graph import SAME_SCALE, WEIGHTED, attribute

if TYPE_CHECKING:
    import onnx_ir as ir
    from penjing.step import Exclusion, Scheme

#: what is known of a layer, by the names that exclusions compare; numbers that an open dimension hides are absent
Facts = dict[str, float | str]

_COMPARISON = re.compile(r"(\w+)(?: % (\d+))? (<|<=|==|!=|>=|>) (\w+)")
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, "==": operator.eq, "!=": operator.ne, ">=": operator.ge, ">": operator.gt,
}  # fmt: skip


def exclusion(node: ir.Node, scheme: Scheme) -> Exclusion | None:
    """Return the first of the scheme's exclusions that `node` falls under; None where it falls under none."""
    concerned = [rule for rule in scheme.exclusions if node.op_type in rule.operators]
    if not concerned:
        return None
    known = facts(node)
    for rule in concerned:
        if any(_holds(case, known) for case in rule.when) and not any(
            _holds(case, known) for case in rule.unless
        ):
            return rule
    return None


def facts(node: ir.Node) -> Facts:
    """Return what exclusions can compare of a layer (`penjing.step.Exclusion` lists it)."""
    found: Facts = {"reads": _reads(node)}
    weight = node.inputs[1] if node.op_type in WEIGHTED and len(node.inputs) > 1 else None
    shape = _static(weight)
    if shape is None or len(shape) < 2:
        return found
    output = _static(node.outputs[0])
    if node.op_type in ("Conv", "ConvTranspose"):
        groups, kernel = attribute(node, "group", 1), shape[2:]
        inner, outer = (
            (shape[1], shape[0]) if node.op_type == "Conv" else (shape[0] // groups, shape[1] * groups)
        )
        found |= {
            "in_channels": inner,
            "out_channels": outer,
            "groups": groups,
            "kernel_least": min(kernel, default=1),
            "kernel_most": max(kernel, default=1),
            "square": int(len(set(kernel)) <= 1),
            "first": int(_is_first(node)),
            "depth": inner * math.prod(kernel),
            "columns": outer,
        }
        if output is not None:
            found["rows"] = output[0] * math.prod(output[2:])
    else:
        transposed = node.op_type == "Gemm" and attribute(node, "transB", 0)
        depth, columns = (shape[-1], shape[-2]) if transposed else (shape[-2], shape[-1])
        found |= {
            "in_channels": depth,
            "out_channels": columns,
            "groups": 1,
            "depth": depth,
            "columns": columns,
        }
        found["first"] = int(_is_first(node))
        if output is not None:
            found["rows"] = math.prod(output[:-1])
    return found


def _holds(case: str, known: Facts) -> bool:
    """Tell whether every comparison of a case holds."""
    return all(_compare(part.strip(), known) for part in case.split(","))


def _compare(text: str, known: Facts) -> bool:
    match = _COMPARISON.fullmatch(text)
    if match is None:
        raise PluginError(f"A backend's scheme excludes layers by {text!r}, which is no comparison.")
    name, modulus, sign, wanted = match.groups()
    value = known.get(name)
    if value is None:
        return False
    if isinstance(value, str):
        return (value == wanted) == (sign == "==")
    return _OPERATORS[sign](value % int(modulus) if modulus else value, float(wanted))


def _static(value: ir.Value | None) -> tuple[int, ...] | None:
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return tuple(size for size in value.shape if isinstance(size, int))


def _reads(node: ir.Node) -> str:
    """Return the operator whose values `node` reads, those that only move values passed over."""
    value = node.inputs[0] if node.inputs else None
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type not in SAME_SCALE | {"QuantizeLinear", "DequantizeLinear"}:
            return producer.op_type
        value = producer.inputs[0]
    return ""


def _is_first(node: ir.Node) -> bool:
    """Tell whether no weighted operator comes before `node`."""
    waiting, seen = list(node.inputs), set()
    while waiting:
        value = waiting.pop()
        producer = value.producer() if value is not None else None
        if producer is None or producer in seen:
            continue
        if producer.op_type in WEIGHTED:
            return False
        seen.add(producer)
        waiting += producer.inputs
    return True
