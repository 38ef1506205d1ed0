"""Rules for layers that join, cut, resize, reshape or reduce."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from penjing_tensorrt.dla.graph import argument, attribute, constant, shape
from penjing_tensorrt.dla.limits import Target, limits
from penjing_tensorrt.dla.objections import Objections, later, sides, span, within

if TYPE_CHECKING:
    import onnx_ir as ir


def concatenation(node: ir.Node, target: Target) -> Objections:
    """Yield what stands against a Concat."""
    size = shape(node.outputs[0]) or ()
    axis = int(attribute(node, "axis", 0)) % max(1, len(size))
    if axis != len(size) - 3:
        yield "concatenation axis", f"it joins along axis {axis}; the DLA joins channels"
    if len(node.inputs) < 2:
        yield "concatenation inputs", "it has one input; the DLA joins two or more"
    if any(constant(value) is not None for value in node.inputs):
        yield "concatenation inputs", "one of its inputs is a constant, which is not placed on the DLA"


def resize(node: ir.Node, target: Target) -> Objections:
    """Yield what stands against a Resize."""
    table = limits()["resize"]
    scales = constant(argument(node, 2)) if node.op_type == "Resize" else constant(argument(node, 1))
    mode = attribute(node, "mode", "nearest")
    if mode not in ("nearest", "linear"):
        yield "resize mode", f"its mode is {mode}; the DLA has nearest and linear"
        return
    if scales is None or scales.size != 4:
        yield "resize scales", "it says sizes, not scales; TensorRT takes scales alone for the DLA"
        return
    limit = table[mode]
    if tuple(scales[:2]) != (1, 1) or not all(s == int(s) and within(int(s), limit) for s in scales[2:]):
        yield (
            "resize scales",
            f"it scales by {'×'.join(f'{s:g}' for s in scales)}; the DLA scales the sides by whole {span(limit)}",
        )
    if mode == "linear" and target.version < (8, 4, 0) and target.generation == 1:
        yield "resize mode", "linear resizing on DLA 1.0 came after TensorRT 8.2"
    yield from _resize_modes(node, mode)


def _resize_modes(node: ir.Node, mode: str) -> Objections:
    where = attribute(node, "coordinate_transformation_mode", "half_pixel")
    rounding = attribute(node, "nearest_mode", "round_prefer_floor")
    rounding = "round_half_down" if rounding == "round_prefer_floor" else rounding
    rounding = "round_half_up" if rounding == "round_prefer_ceil" else rounding
    if node.op_type == "Upsample":
        return
    if mode == "linear" and where != "half_pixel":
        yield "resize coordinates", f"its coordinates are {where}; the DLA interpolates half_pixel"
    pairs = {("asymmetric", "floor"), ("half_pixel", "round_half_down"), ("half_pixel", "round_half_up")}
    if mode == "nearest" and (where, rounding) not in pairs:
        yield "resize coordinates", f"it takes the nearest by {where} and {rounding}, which the DLA does not"


def slice_(node: ir.Node, target: Target) -> Objections:
    """Yield what stands against a Slice."""
    size = shape(node.inputs[0]) or ()
    if len(size) != 4:
        yield "slice rank", f"its input has {len(size)} dimensions; the DLA slices 4"
    parameters = [constant(argument(node, i)) for i in (1, 2, 3, 4)]
    if any(argument(node, i + 1) is not None and value is None for i, value in enumerate(parameters)):
        yield "slice parameters", "where it cuts is computed; the DLA wants constants"
        return
    starts, _, axes, steps = parameters
    if steps is not None and any(int(step) != 1 for step in steps):
        yield (
            "slice stride",
            f"it takes every {sides([abs(int(s)) for s in steps])}th; the DLA takes stride 1",
        )
    cut = (
        range(len(starts) if starts is not None else 0)
        if axes is None
        else [int(a) % max(1, len(size)) for a in axes]
    )
    if 0 in cut and shape(node.outputs[0]) is not None and (shape(node.outputs[0]) or (0,))[0] != size[0]:
        yield "slice batch", "it cuts the batch"


def split(node: ir.Node, target: Target) -> Objections:
    """Yield what stands against a Split."""
    size = shape(node.inputs[0]) or ()
    if len(size) != 4:
        yield "slice rank", f"its input has {len(size)} dimensions; the DLA slices 4"
    if int(attribute(node, "axis", 0)) % max(1, len(size)) == 0:
        yield "slice batch", "it cuts the batch"


def shuffle(node: ir.Node, target: Target) -> Objections:
    """Yield what stands against a Reshape or Transpose."""
    before, after = shape(node.inputs[0]) or (), shape(node.outputs[0]) or ()
    if len(before) != 4 or len(after) != 4:
        yield (
            "shuffle rank",
            f"it turns {sides(before)} into {sides(after)}; the DLA shuffles 4 dimensions into 4",
        )
    elif node.op_type == "Transpose" and attribute(node, "perm", (3, 2, 1, 0))[0] != 0:
        yield "shuffle batch", "it moves the batch"
    elif before[0] != after[0]:
        yield "shuffle batch", f"it turns a batch of {before[0]} into {after[0]}"


def softmax(node: ir.Node, target: Target) -> Objections:
    """Yield what stands against a Softmax."""
    table = limits()["softmax"]
    size = shape(node.inputs[0]) or ()
    axis = int(attribute(node, "axis", -1)) % max(1, len(size))
    if target.generation < 2:
        yield "softmax", "DLA 1.0 has no softmax"
    elif axis < len(size) - 3:
        yield "softmax axis", "it runs along the batch"
    else:
        others = math.prod(size[:axis] + size[axis + 1 :])
        if target.version < (8, 5, 0) and others != 1:
            yield "softmax axis", "before TensorRT 8.5 every side but the one it runs along must be 1"
        limit = table["axis_alone" if others == 1 else "axis_among_others"]
        if size[axis] > limit:
            yield "softmax axis", f"it runs along {size[axis]} values; the DLA takes up to {limit}"


def reduce(node: ir.Node, target: Target) -> Objections:
    """Yield what stands against a ReduceMax."""
    yield from later(node, target)
    size = shape(node.inputs[0]) or ()
    axes = constant(argument(node, 1))
    listed = attribute(node, "axes", None) if axes is None else [int(axis) for axis in axes]
    if len(size) != 4 or not attribute(node, "keepdims", 1):
        yield "reduce rank", "the DLA reduces 4 dimensions and keeps them"
    if listed is None or any(int(axis) % max(1, len(size)) == 0 for axis in listed):
        yield "reduce axes", "it reduces the batch"
