"""The rules by which TensorRT puts a layer on the DLA or leaves it to the GPU, one function for a kind of layer.

A rule yields what stands against the layer: the name of the rule and a sentence. Nothing yielded: the DLA runs it.
The numbers are in limits.toml, each with its source.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from penjing_tensorrt.dla import pointwise, shaping, weighted
from penjing_tensorrt.dla.graph import (
    activations,
    is_float,
    shape,
)
from penjing_tensorrt.dla.limits import Target, limits
from penjing_tensorrt.dla.objections import Objections, later

if TYPE_CHECKING:
    import onnx_ir as ir

Rule = Callable[["ir.Node", Target], Objections]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Where a layer runs, the rule that decided, and why in a sentence."""

    dla: bool
    rule: str
    why: str


def judge(node: ir.Node, target: Target) -> Verdict:
    """Return where TensorRT runs a node of a graph whose shapes are inferred."""
    kind, rule = _KINDS.get(node.op_type, ("not mapped", _unknown))
    if node.domain not in ("", "ai.onnx"):
        kind, rule = "not mapped", _custom
    objections = (_any_layer, rule) if kind != "not mapped" else (rule, _any_layer)
    for name, why in (found for ask in objections for found in ask(node, target)):
        return Verdict(False, name, why)
    return Verdict(True, kind, f"within the limits of {_article(kind)} {kind} layer")


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


# -- what holds for every layer


def _any_layer(node: ir.Node, target: Target) -> Objections:
    table = limits()["general"]
    reads = activations(node)
    if not reads:
        yield "constant", "it depends on no input, and constants of their own are not placed on the DLA"
    for value in (*reads, *node.outputs):
        size = shape(value)
        if size is None:
            yield "static shapes", f"the shape of {value.name} is not fixed; the DLA builds for one shape"
        elif not is_float(value):
            yield "data type", f"{value.name} holds {_type(value)}; the DLA computes in FP16 and INT8"
        elif len(size) < 4 and node.op_type not in _NEVER and node.op_type not in ("Gemm", "MatMul"):
            yield "rank", f"{value.name} has {len(size)} dimensions; the DLA works on NCHW"
        elif len(size) >= 4 and (big := [side for side in size[-3:] if side > table["dimension"]]):
            yield "dimension", f"a side of {value.name} is {big[0]}, over {table['dimension']}"
        elif len(size) >= 4 and math.prod(size[:-3]) > table["batch"]:
            yield "batch", f"the batch of {value.name} is {math.prod(size[:-3])}, over {table['batch']}"


def _type(value: ir.Value) -> str:
    return value.dtype.name.lower() if value.dtype is not None else "an unknown type"


def _custom(node: ir.Node, target: Target) -> Objections:
    yield "not mapped", f"{node.domain}.{node.op_type} is a plugin to TensorRT; the DLA runs none"


def _unknown(node: ir.Node, target: Target) -> Objections:
    if node.op_type in limits()["operators"]["reconstructed"]:
        yield "not mapped", f"TensorRT maps no {node.op_type} to the DLA; other operators can do its work"
    elif node.op_type in limits()["operators"]["later"]:
        yield from later(node, target)
    else:
        yield "not mapped", f"TensorRT maps no {node.op_type} to the DLA"


#: operators that no shape would bring to the DLA: their own rule says more than their rank
_NEVER = frozenset({"Flatten", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "Slice", "Split", "Reduce"})

_KINDS: dict[str, tuple[str, Rule]] = {
    "Conv": ("convolution", weighted.convolution),
    "Gemm": ("fully connected", weighted.matrix),
    "MatMul": ("fully connected", weighted.matrix),
    "ConvTranspose": ("deconvolution", weighted.deconvolution),
    "MaxPool": ("pooling", pointwise.pooling),
    "AveragePool": ("pooling", pointwise.pooling),
    "Relu": ("activation", pointwise.free),
    "Sigmoid": ("activation", pointwise.free),
    "Tanh": ("activation", pointwise.free),
    "LeakyRelu": ("activation", pointwise.free),
    "Clip": ("activation", pointwise.clip),
    "PRelu": ("parametric ReLU", pointwise.prelu),
    "LRN": ("LRN", pointwise.lrn),
    "Add": ("elementwise", pointwise.elementwise),
    "Sub": ("elementwise", pointwise.elementwise),
    "Mul": ("elementwise", pointwise.elementwise),
    "Sum": ("elementwise", pointwise.elementwise),
    "Max": ("elementwise", pointwise.elementwise),
    "Div": ("elementwise", pointwise.div),
    "BatchNormalization": ("scale", pointwise.normalisation),
    "Concat": ("concatenation", shaping.concatenation),
    "Resize": ("resize", shaping.resize),
    "Upsample": ("resize", shaping.resize),
    "Abs": ("unary", pointwise.free),
    "Slice": ("slice", shaping.slice_),
    "Split": ("slice", shaping.split),
    "Reshape": ("shuffle", shaping.shuffle),
    "Transpose": ("shuffle", shaping.shuffle),
    "Softmax": ("softmax", shaping.softmax),
    "ReduceMax": ("reduce", shaping.reduce),
    "GlobalMaxPool": ("reduce", later),
}
