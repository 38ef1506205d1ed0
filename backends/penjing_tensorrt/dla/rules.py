"""The rules by which TensorRT puts a layer on the DLA or leaves it to the GPU, one function for a kind of layer.

A rule yields what stands against the layer: the name of the rule and a sentence. Nothing yielded: the DLA runs it.
The numbers are in limits.toml, each with its source.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from penjing_tensorrt.dla.graph import Window, activations, argument, attribute, constant, is_float, shape, window
from penjing_tensorrt.dla.limits import Target, limits

if TYPE_CHECKING:
    import onnx_ir as ir

Objections = Iterator[tuple[str, str]]
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


def _within(value: int, limit: Sequence[int]) -> bool:
    return limit[0] <= value <= limit[1]


def _range(limit: Sequence[int]) -> str:
    return f"{limit[0]} to {limit[1]}"


def _pair(values: Sequence[int]) -> str:
    return "×".join(map(str, values))


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
        yield from _later(node, target)
    else:
        yield "not mapped", f"TensorRT maps no {node.op_type} to the DLA"


def _later(node: ir.Node, target: Target) -> Objections:
    """Operators mapped since 8.6.12, a release for DRIVE OS: JetPack has them from TensorRT 10 on."""
    if target.version < (10, 0, 0):
        yield "not mapped", f"TensorRT maps {node.op_type} to the DLA from 8.6.12 on, which JetPack has from 10.3 on"


# -- layers with weights


def _convolution(node: ir.Node, target: Target) -> Objections:
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
    if not _within(outputs, table["output_channels"]):
        yield "convolution channels", f"it has {outputs} output channels; the DLA takes up to 8192"
    if not _within(groups, table["groups"]):
        yield "convolution groups", f"it has {groups} groups; the DLA takes up to 8192"
    yield from _banks(node, weight.shape, slide, target)


def _slides(kind: str, slide: Window, table: dict[str, Any]) -> Objections:
    for side in slide.kernel:
        if not _within(side, table["kernel"]):
            yield f"{kind} kernel", f"its kernel is {_pair(slide.kernel)}; the DLA takes {_range(table['kernel'])}"
    for stride in slide.strides:
        if not _within(stride, table["stride"]):
            yield f"{kind} stride", f"its stride is {_pair(slide.strides)}; the DLA takes {_range(table['stride'])}"
    for dilation in slide.dilations:
        if not _within(dilation, table["dilation"]):
            yield f"{kind} dilation", f"its dilation is {_pair(slide.dilations)}; the DLA takes {_range(table['dilation'])}"
    for pad, extent in zip(slide.pads, slide.extent * 2, strict=True):
        if not _within(pad, table["padding"]):
            yield f"{kind} padding", f"it pads {_pair(slide.pads)}; the DLA takes {_range(table['padding'])}"
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


def _matrix(node: ir.Node, target: Target) -> Objections:
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
        yield "matrix", f"it multiplies {_pair(size)}; a fully connected layer takes batch by features"
    if weight.ndim != 2:
        yield "matrix", f"its constant has {weight.ndim} dimensions, not 2"
    elif max(weight.shape) > limits()["general"]["dimension"]:
        yield "matrix", f"its constant is {_pair(weight.shape)}; the DLA takes sides up to 8192"


def _deconvolution(node: ir.Node, target: Target) -> Objections:
    table = limits()["deconvolution"]
    weight = constant(argument(node, 1))
    slide = None if weight is None else window(node, weight.shape[2:])
    if weight is None or slide is None:
        yield "deconvolution weight", "its weight is no constant over height and width"
        return
    short = all(_within(side, table["kernel"]) for side in slide.kernel)
    long = min(slide.kernel) == 1 and max(slide.kernel) in table["long_kernels"]
    if not (short or long):
        yield "deconvolution kernel", f"its kernel is {_pair(slide.kernel)}; the DLA takes 1 to 32, or 1×64, 1×96, 1×128"
    if not (all(_within(s, table["kernel"]) for s in slide.strides) or slide.strides == slide.kernel):
        yield "deconvolution stride", f"its stride is {_pair(slide.strides)}; the DLA takes 1 to 32"
    low, high = table["square_refused"]
    if len({*slide.kernel, *slide.strides}) == 1 and low <= slide.kernel[0] <= high:
        yield "deconvolution kernel", f"kernel and stride are {_pair(slide.kernel)}; square ones of {low} to {high} are refused"
    if any(slide.pads) or any(attribute(node, "output_padding", (0,))):
        yield "deconvolution padding", f"it pads {_pair(slide.pads)}; the DLA takes none"
    if slide.dilations != (1, 1):
        yield "deconvolution dilation", f"its dilation is {_pair(slide.dilations)}; the DLA takes 1"
    if attribute(node, "group", 1) != 1:
        yield "deconvolution groups", f"it has {attribute(node, 'group', 1)} groups; the DLA takes 1"
    if not all(_within(channels, table["channels"]) for channels in weight.shape[:2]):
        yield "deconvolution channels", f"it turns {weight.shape[0]} channels into {weight.shape[1]}; the DLA takes up to 8192"


# -- pooling and functions of one value


def _pooling(node: ir.Node, target: Target) -> Objections:
    table = limits()["pooling"]
    slide = window(node, tuple(attribute(node, "kernel_shape", ())))
    if slide is None:
        yield "pooling rank", "it does not pool over height and width"
        return
    if not all(_within(side, table["window"]) for side in slide.kernel):
        yield "pooling window", f"its window is {_pair(slide.kernel)}; the DLA takes {_range(table['window'])}"
    if not all(_within(stride, table["stride"]) for stride in slide.strides):
        yield "pooling stride", f"its stride is {_pair(slide.strides)}; the DLA takes {_range(table['stride'])}"
    if not all(_within(pad, table["padding"]) for pad in slide.pads):
        yield "pooling padding", f"it pads {_pair(slide.pads)}; the DLA takes {_range(table['padding'])}"
    if slide.dilations != (1, 1):
        yield "pooling dilation", f"its dilation is {_pair(slide.dilations)}; the DLA takes none"
    if len(node.outputs) > 1:
        yield "pooling indices", "it puts out where the maxima were; the DLA does not"
    exclusive = node.op_type == "AveragePool" and not attribute(node, "count_include_pad", 0)
    if target.generation == 1 and exclusive and any(slide.pads):
        yield "pooling average", "its average leaves out the padding; DLA 1.0 counts it in"


def _clip(node: ir.Node, target: Target) -> Objections:
    low, high = limits()["activation"]["clip"]
    ends = [constant(argument(node, 1)), constant(argument(node, 2))]
    floor, ceiling = (None if end is None else float(end) for end in ends)
    if any(argument(node, i + 1) is not None and end is None for i, end in enumerate(ends)):
        yield "activation clip", "what it clips to is computed"
    elif floor != 0 or ceiling is None or not low <= ceiling <= high:
        yield "activation clip", f"it clips to [{_end(floor)}, {_end(ceiling)}]; the DLA clips to [0, {low} to {high}]"


def _end(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def _prelu(node: ir.Node, target: Target) -> Objections:
    slope, size = constant(argument(node, 1)), shape(node.inputs[0])
    if slope is None:
        yield "parametric ReLU", "its slopes are computed; the DLA wants constants"
    elif size is not None and slope.ndim not in (len(size), len(size) - 1):
        yield "parametric ReLU", f"its slopes have {slope.ndim} dimensions, its input {len(size)}"


def _lrn(node: ir.Node, target: Target) -> Objections:
    sizes = limits()["lrn"]["window"]
    if attribute(node, "size", 0) not in sizes:
        yield "LRN window", f"its window is {attribute(node, 'size', 0)}; the DLA takes {', '.join(map(str, sizes))}"


def _free(node: ir.Node, target: Target) -> Objections:
    yield from ()


# -- elementwise and scale


def _elementwise(node: ir.Node, target: Target) -> Objections:
    constants = [array for value in node.inputs if (array := constant(value)) is not None]
    if constants:
        size = shape(activations(node)[0])
        if node.op_type in ("Max", "Div"):
            yield "elementwise constant", f"{node.op_type} of a constant is no scale layer"
        if size is not None and not _scales(constants[0].shape, size):
            yield "scale shape", (
                f"its constant is {_pair(constants[0].shape) or 'a scalar'}; the DLA scales by one number, "
                "one for each channel, or one for each element"
            )
        return
    sizes = [shape(value) for value in node.inputs]
    if len(sizes) > 1 and not all(size and _broadcasts(size, sizes) for size in sizes):
        yield "elementwise broadcast", (
            f"it combines {' and '.join(_pair(size or ()) for size in sizes)}; the DLA wants equal sides, or N×C×1×1"
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


def _div(node: ir.Node, target: Target) -> Objections:
    yield from _later(node, target)
    yield from _elementwise(node, target)


def _normalisation(node: ir.Node, target: Target) -> Objections:
    if any(constant(value) is None for value in node.inputs[1:5]):
        yield "scale shape", "its mean, variance, scale or shift is computed"


# -- shapes


def _concatenation(node: ir.Node, target: Target) -> Objections:
    size = shape(node.outputs[0]) or ()
    axis = int(attribute(node, "axis", 0)) % max(1, len(size))
    if axis != len(size) - 3:
        yield "concatenation axis", f"it joins along axis {axis}; the DLA joins channels"
    if len(node.inputs) < 2:
        yield "concatenation inputs", "it has one input; the DLA joins two or more"
    if any(constant(value) is not None for value in node.inputs):
        yield "concatenation inputs", "one of its inputs is a constant, which is not placed on the DLA"


def _resize(node: ir.Node, target: Target) -> Objections:
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
    if tuple(scales[:2]) != (1, 1) or not all(s == int(s) and _within(int(s), limit) for s in scales[2:]):
        yield "resize scales", f"it scales by {_pair([f'{s:g}' for s in scales])}; the DLA takes whole factors of {_range(limit)} for height and width"
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


def _slice(node: ir.Node, target: Target) -> Objections:
    size = shape(node.inputs[0]) or ()
    if len(size) != 4:
        yield "slice rank", f"its input has {len(size)} dimensions; the DLA slices 4"
    parameters = [constant(argument(node, i)) for i in (1, 2, 3, 4)]
    if any(argument(node, i + 1) is not None and value is None for i, value in enumerate(parameters)):
        yield "slice parameters", "where it cuts is computed; the DLA wants constants"
        return
    starts, _, axes, steps = parameters
    if steps is not None and any(int(step) != 1 for step in steps):
        yield "slice stride", f"it takes every {_pair([abs(int(s)) for s in steps])}th; the DLA takes stride 1"
    cut = range(len(starts) if starts is not None else 0) if axes is None else [int(a) % max(1, len(size)) for a in axes]
    if 0 in cut and shape(node.outputs[0]) is not None and (shape(node.outputs[0]) or (0,))[0] != size[0]:
        yield "slice batch", "it cuts the batch"


def _split(node: ir.Node, target: Target) -> Objections:
    size = shape(node.inputs[0]) or ()
    if len(size) != 4:
        yield "slice rank", f"its input has {len(size)} dimensions; the DLA slices 4"
    if int(attribute(node, "axis", 0)) % max(1, len(size)) == 0:
        yield "slice batch", "it cuts the batch"


def _shuffle(node: ir.Node, target: Target) -> Objections:
    before, after = shape(node.inputs[0]) or (), shape(node.outputs[0]) or ()
    if len(before) != 4 or len(after) != 4:
        yield "shuffle rank", f"it turns {_pair(before)} into {_pair(after)}; the DLA shuffles 4 dimensions into 4"
    elif node.op_type == "Transpose" and tuple(attribute(node, "perm", (3, 2, 1, 0)))[0] != 0:
        yield "shuffle batch", "it moves the batch"
    elif before[0] != after[0]:
        yield "shuffle batch", f"it turns a batch of {before[0]} into {after[0]}"


def _softmax(node: ir.Node, target: Target) -> Objections:
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


def _reduce(node: ir.Node, target: Target) -> Objections:
    yield from _later(node, target)
    size = shape(node.inputs[0]) or ()
    axes = constant(argument(node, 1))
    listed = attribute(node, "axes", None) if axes is None else [int(axis) for axis in axes]
    if len(size) != 4 or not attribute(node, "keepdims", 1):
        yield "reduce rank", "the DLA reduces 4 dimensions and keeps them"
    if listed is None or any(int(axis) % max(1, len(size)) == 0 for axis in listed):
        yield "reduce axes", "it reduces the batch"


#: operators that no shape would bring to the DLA: their own rule says more than their rank
_NEVER = frozenset({"Flatten", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "Slice", "Split", "Reduce"})

_KINDS: dict[str, tuple[str, Rule]] = {
    "Conv": ("convolution", _convolution),
    "Gemm": ("fully connected", _matrix),
    "MatMul": ("fully connected", _matrix),
    "ConvTranspose": ("deconvolution", _deconvolution),
    "MaxPool": ("pooling", _pooling),
    "AveragePool": ("pooling", _pooling),
    "Relu": ("activation", _free),
    "Sigmoid": ("activation", _free),
    "Tanh": ("activation", _free),
    "LeakyRelu": ("activation", _free),
    "Clip": ("activation", _clip),
    "PRelu": ("parametric ReLU", _prelu),
    "LRN": ("LRN", _lrn),
    "Add": ("elementwise", _elementwise),
    "Sub": ("elementwise", _elementwise),
    "Mul": ("elementwise", _elementwise),
    "Sum": ("elementwise", _elementwise),
    "Max": ("elementwise", _elementwise),
    "Div": ("elementwise", _div),
    "BatchNormalization": ("scale", _normalisation),
    "Concat": ("concatenation", _concatenation),
    "Resize": ("resize", _resize),
    "Upsample": ("resize", _resize),
    "Abs": ("unary", _free),
    "Slice": ("slice", _slice),
    "Split": ("slice", _split),
    "Reshape": ("shuffle", _shuffle),
    "Transpose": ("shuffle", _shuffle),
    "Softmax": ("softmax", _softmax),
    "ReduceMax": ("reduce", _reduce),
    "GlobalMaxPool": ("reduce", _later),
}
