"""Rules for pooling, activations, arithmetic and scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from penjing_tensorrt.dla.graph import activations, argument, attribute, constant, shape, window
from penjing_tensorrt.dla.limits import Target, limits
from penjing_tensorrt.dla.objections import Objections, later, sides, span, within

if TYPE_CHECKING:
    import onnx_ir as ir


def pooling(node: ir.Node, target: Target) -> Objections:
    """Yield what stands against a MaxPool or AveragePool."""
    table = limits()["pooling"]
    slide = window(node, tuple(attribute(node, "kernel_shape", ())))
    if slide is None:
        yield "pooling rank", "it does not pool over height and width"
        return
    if not all(within(side, table["window"]) for side in slide.kernel):
        yield (
            "pooling window",
            f"its window is {sides(slide.kernel)}; the DLA takes {span(table['window'])}",
        )
    if not all(within(stride, table["stride"]) for stride in slide.strides):
        yield (
            "pooling stride",
            f"its stride is {sides(slide.strides)}; the DLA takes {span(table['stride'])}",
        )
    if not all(within(pad, table["padding"]) for pad in slide.pads):
        yield "pooling padding", f"it pads {sides(slide.pads)}; the DLA takes {span(table['padding'])}"
    if slide.dilations != (1, 1):
        yield "pooling dilation", f"its dilation is {sides(slide.dilations)}; the DLA takes none"
    if len(node.outputs) > 1:
        yield "pooling indices", "it puts out where the maxima were; the DLA does not"
    exclusive = node.op_type == "AveragePool" and not attribute(node, "count_include_pad", 0)
    if target.generation == 1 and exclusive and any(slide.pads):
        yield "pooling average", "its average leaves out the padding; DLA 1.0 counts it in"


def clip(node: ir.Node, target: Target) -> Objections:
    """Yield what stands against a Clip: the DLA has a clipped ReLU."""
    low, high = limits()["activation"]["clip"]
    ends = [constant(argument(node, 1)), constant(argument(node, 2))]
    floor, ceiling = (None if end is None else float(end) for end in ends)
    if any(argument(node, i + 1) is not None and end is None for i, end in enumerate(ends)):
        yield "activation clip", "what it clips to is computed"
    elif floor != 0 or ceiling is None or not low <= ceiling <= high:
        yield (
            "activation clip",
            f"it clips to [{_end(floor)}, {_end(ceiling)}]; the DLA clips to [0, {low} to {high}]",
        )


def _end(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def prelu(node: ir.Node, target: Target) -> Objections:
    """Yield what stands against a PRelu."""
    slope, size = constant(argument(node, 1)), shape(node.inputs[0])
    if slope is None:
        yield "parametric ReLU", "its slopes are computed; the DLA wants constants"
    elif size is not None and slope.ndim not in (len(size), len(size) - 1):
        yield "parametric ReLU", f"its slopes have {slope.ndim} dimensions, its input {len(size)}"


def lrn(node: ir.Node, target: Target) -> Objections:
    """Yield what stands against an LRN."""
    sizes = limits()["lrn"]["window"]
    if attribute(node, "size", 0) not in sizes:
        yield (
            "LRN window",
            f"its window is {attribute(node, 'size', 0)}; the DLA takes {', '.join(map(str, sizes))}",
        )


def free(node: ir.Node, target: Target) -> Objections:
    """Yield nothing: the general limits are all."""
    yield from ()


def elementwise(node: ir.Node, target: Target) -> Objections:
    """Yield what stands against arithmetic: on two tensors, or a scale where one is constant."""
    constants = [array for value in node.inputs if (array := constant(value)) is not None]
    if constants:
        size = shape(activations(node)[0])
        if node.op_type in ("Max", "Div"):
            yield "elementwise constant", f"{node.op_type} of a constant is no scale layer"
        if size is not None and not _scales(constants[0].shape, size):
            yield (
                "scale shape",
                (
                    f"its constant is {sides(constants[0].shape) or 'a scalar'}; the DLA scales by one number, "
                    "one for each channel, or one for each element"
                ),
            )
        return
    sizes = [shape(value) for value in node.inputs]
    if len(sizes) > 1 and not all(size and _broadcasts(size, sizes) for size in sizes):
        sizes_in_words = " and ".join(sides(size or ()) for size in sizes)
        yield (
            "elementwise broadcast",
            f"it combines {sizes_in_words}; the DLA wants equal sides, or N×C×1×1",
        )


def _scales(small: Sequence[int], size: Sequence[int]) -> bool:
    """Return whether a constant is one number, one for each channel, or one for each element."""
    if math.prod(small) == 1:
        return True
    full = (1,) * (len(size) - len(small)) + tuple(small)
    if len(full) != len(size) or full[:-3] != (1,) * (len(size) - 3):
        return False
    return full[-3:] in ((size[-3], 1, 1), tuple(size[-3:]))


def _broadcasts(size: Sequence[int], others: Sequence[Sequence[int] | None]) -> bool:
    largest = max((other for other in others if other), key=math.prod)
    return tuple(size) in (tuple(largest), (*largest[:2], 1, 1), (largest[0], 1, 1, 1))


def div(node: ir.Node, target: Target) -> Objections:
    """Yield what stands against a division."""
    yield from later(node, target)
    yield from elementwise(node, target)


def normalisation(node: ir.Node, target: Target) -> Objections:
    """Yield what stands against a BatchNormalization."""
    if any(constant(value) is None for value in node.inputs[1:5]):
        yield "scale shape", "its mean, variance, scale or shift is computed"
