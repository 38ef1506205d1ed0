"""Rules for layers with weights: convolution, deconvolution, matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from penjing_tensorrt.dla.graph import Window, argument, attribute, constant, shape, window
from penjing_tensorrt.dla.limits import Target, limits
from penjing_tensorrt.dla.objections import Objections, sides, span, within

if TYPE_CHECKING:
    import onnx_ir as ir


def convolution(node: ir.Node, target: Target) -> Objections:
    """Yield what stands against a Conv."""
    table = limits()["convolution"]
    weight = constant(argument(node, 1))
    if weight is None:
        yield "convolution weight", "its weight is computed; the DLA wants a constant"
        return
    slide = window(node, weight.shape[2:])
    if slide is None:
        yield "convolution rank", "it is not a convolution over height and width"
        return
    yield from _slides("convolution", slide, table)
    outputs, groups = weight.shape[0], int(attribute(node, "group", 1))
    if not within(outputs, table["output_channels"]):
        yield "convolution channels", f"it has {outputs} output channels; the DLA takes up to 8192"
    if not within(groups, table["groups"]):
        yield "convolution groups", f"it has {groups} groups; the DLA takes up to 8192"
    yield from _banks(node, weight.shape, slide, target)


def _slides(kind: str, slide: Window, table: dict[str, Any]) -> Objections:
    for side in slide.kernel:
        if not within(side, table["kernel"]):
            yield (
                f"{kind} kernel",
                f"its kernel is {sides(slide.kernel)}; the DLA takes {span(table['kernel'])}",
            )
    for stride in slide.strides:
        if not within(stride, table["stride"]):
            yield (
                f"{kind} stride",
                f"its stride is {sides(slide.strides)}; the DLA takes {span(table['stride'])}",
            )
    for dilation in slide.dilations:
        if not within(dilation, table["dilation"]):
            yield (
                f"{kind} dilation",
                f"its dilation is {sides(slide.dilations)}; the DLA takes {span(table['dilation'])}",
            )
    for pad, extent in zip(slide.pads, slide.extent * 2, strict=True):
        if not within(pad, table["padding"]):
            yield f"{kind} padding", f"it pads {sides(slide.pads)}; the DLA takes {span(table['padding'])}"
        elif pad >= extent:
            yield f"{kind} padding", f"it pads {pad}, no less than its kernel covers ({extent})"


def _banks(node: ir.Node, weight: Sequence[int], slide: Window, target: Target) -> Objections:
    """One kernel and the rows it covers must share the 16 banks of the convolution buffer."""
    size = shape(node.inputs[0])
    if size is None or len(size) != 4:
        return
    table, bytes_ = limits()["convolution"], 1 if target.precision == "int8" else 2
    kh, kw = slide.kernel
    channels = weight[1] * int(attribute(node, "group", 1))
    kernel = math.ceil(math.ceil(weight[1] * kh * kw * bytes_ / 128) * 128 / table["bank_bytes"])
    atoms = math.ceil(math.ceil(channels * bytes_ / 32) * size[3] / 4)
    rows = math.ceil(atoms * ((kh - 1) * slide.dilations[0] + 1) / 256)
    if kernel + rows > table["banks"]:
        yield (
            "convolution buffer",
            f"a kernel takes {kernel} and its rows {rows} banks of the convolution buffer, which has {table['banks']}",
        )


def matrix(node: ir.Node, target: Target) -> Objections:
    """Gemm and MatMul: TensorRT's fully connected layer, which is a convolution to the DLA."""
    weight = constant(argument(node, 1))
    if weight is None:
        yield "matrix", "it multiplies two computed tensors, as attention does; the DLA wants a constant"
        return
    before = tuple(int(part) for part in limits()["matrix"]["before"].split("."))
    if target.version >= before:
        yield "matrix", "TensorRT 10 has no fully connected layer; as a 1×1 convolution the DLA would run it"
    size = shape(node.inputs[0]) or ()
    if len(size) != 2:
        yield "matrix", f"it multiplies {sides(size)}; a fully connected layer takes batch by features"
    if weight.ndim != 2:
        yield "matrix", f"its constant has {weight.ndim} dimensions, not 2"
    elif max(weight.shape) > limits()["general"]["dimension"]:
        yield "matrix", f"its constant is {sides(weight.shape)}; the DLA takes sides up to 8192"


def deconvolution(node: ir.Node, target: Target) -> Objections:
    """Yield what stands against a ConvTranspose."""
    table = limits()["deconvolution"]
    weight = constant(argument(node, 1))
    slide = None if weight is None else window(node, weight.shape[2:])
    if weight is None or slide is None:
        yield "deconvolution weight", "its weight is no constant over height and width"
        return
    short = all(within(side, table["kernel"]) for side in slide.kernel)
    long = min(slide.kernel) == 1 and max(slide.kernel) in table["long_kernels"]
    if not (short or long):
        yield (
            "deconvolution kernel",
            f"its kernel is {sides(slide.kernel)}; the DLA takes 1 to 32, or 1×64, 1×96, 1×128",
        )
    if not (all(within(s, table["kernel"]) for s in slide.strides) or slide.strides == slide.kernel):
        yield "deconvolution stride", f"its stride is {sides(slide.strides)}; the DLA takes 1 to 32"
    low, high = table["square_refused"]
    if len({*slide.kernel, *slide.strides}) == 1 and low <= slide.kernel[0] <= high:
        yield (
            "deconvolution kernel",
            f"kernel and stride are {sides(slide.kernel)}; square ones of {low} to {high} are refused",
        )
    if any(slide.pads) or any(attribute(node, "output_padding", (0,))):
        yield "deconvolution padding", f"it pads {sides(slide.pads)}; the DLA takes none"
    if slide.dilations != (1, 1):
        yield "deconvolution dilation", f"its dilation is {sides(slide.dilations)}; the DLA takes 1"
    if attribute(node, "group", 1) != 1:
        yield "deconvolution groups", f"it has {attribute(node, 'group', 1)} groups; the DLA takes 1"
    if not all(within(channels, table["channels"]) for channels in weight.shape[:2]):
        yield (
            "deconvolution channels",
            f"it turns {weight.shape[0]} channels into {weight.shape[1]}; the DLA takes up to 8192",
        )
