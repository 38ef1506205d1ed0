"""What stands against a layer on the DLA, and the words for it: what every file of rules shares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from penjing_tensorrt.dla.limits import Target

if TYPE_CHECKING:
    import onnx_ir as ir

#: the name of a rule and a sentence, for each obstacle
Objections = Iterator[tuple[str, str]]


def within(value: int, limit: Sequence[int]) -> bool:
    return limit[0] <= value <= limit[1]


def span(limit: Sequence[int]) -> str:
    return f"{limit[0]} to {limit[1]}"


def sides(values: Sequence[int]) -> str:
    return "×".join(map(str, values))


def later(node: ir.Node, target: Target) -> Objections:
    """Operators mapped since 8.6.12, a release for DRIVE OS: JetPack has them from TensorRT 10 on."""
    if target.version < (10, 0, 0):
        yield (
            "not mapped",
            f"TensorRT maps {node.op_type} to the DLA from 8.6.12 on, which JetPack has from 10.3 on",
        )
