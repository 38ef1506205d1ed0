"""What TensorRT wants of a graph with QuantizeLinear and DequantizeLinear, as data that the quantiser obeys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penjing.step import Exclusion, Scheme

if TYPE_CHECKING:
    from penjing.device import Device

_GUIDE = "TensorRT Developer Guide, Working with Quantized Types: Q/DQ Layer-Placement Recommendations"
_MODELOPT = "NVIDIA Model-Optimizer, modelopt/onnx/quantization"

#: operators that TensorRT runs on integers where Q/DQ stand at what they read
OPERATORS = frozenset(
    {
        "Conv",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "Add",
        "Concat",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
    }
)
#: operators that a DLA can run on integers or that only move them, so that none of them leaves int8
DLA_OPERATORS = OPERATORS | {
    "Clip", "DepthToSpace", "Div", "Elu", "Flatten", "HardSigmoid", "HardSwish", "LeakyRelu", "Max", "Min", "Mul",
    "Pad", "PRelu", "ReduceMean", "Relu", "Reshape", "Resize", "Sigmoid", "Slice", "Softmax", "SpaceToDepth", "Split",
    "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze",
}  # fmt: skip

EXCLUSIONS = (
    Exclusion(
        operators=("Conv", "ConvTranspose"),
        when=("in_channels < 16", "out_channels < 16"),
        unless=(
            "groups == 1, square == 1, out_channels % 8 == 0, first == 1",
            "groups == 1, square == 1, out_channels % 8 == 0, in_channels >= 16",
            "groups == 1, square == 1, out_channels % 8 == 0, out_channels >= 16",
            "groups == 1, square == 1, in_channels % 8 == 0, first == 1",
            "groups == 1, square == 1, in_channels % 8 == 0, in_channels >= 16",
            "groups == 1, square == 1, in_channels % 8 == 0, out_channels >= 16",
            "groups > 1, out_channels % 8 == 0, kernel_least >= 3",
        ),
        why="it has too few channels to fill integer tensor cores",
        source=_MODELOPT,
    ),
    Exclusion(
        operators=("Gemm", "MatMul"),
        when=("rows == 1", "columns == 1"),
        why="it multiplies a matrix by a vector, which integers make no faster",
        source=_MODELOPT,
    ),
    Exclusion(
        operators=("Conv",),
        when=("rows == 1, kernel_most == 1, groups == 1",),
        why="it multiplies a matrix by a vector, as squeeze-and-excitation does, which integers make no faster",
        source=f"{_MODELOPT}, of Gemm and MatMul: a 1x1 convolution of one position is the same product",
    ),
    Exclusion(
        operators=("Gemm", "MatMul"),
        when=("depth < 16", "columns < 16"),
        why="its matrix is too narrow to fill integer tensor cores",
        source=_MODELOPT,
    ),
    Exclusion(
        operators=("Conv", "Gemm", "MatMul"),
        when=("reads == Softmax",),
        why="it decodes a detector's distribution of distances, whose sum one scale would blur",
        source="fault of today's quantisers: scores and boxes through one scale lose the scores (reproduced on a CPU)",
    ),
)


def scheme(device: Device, *, dla: bool = False) -> Scheme | None:
    """Return the scheme for the GPU of `device`, or for its deep learning accelerator; None without int8."""
    if "int8" not in device.precisions:
        return None
    return Scheme(
        activation="int8",
        weight="int8",
        symmetric=True,
        per_channel=True,
        reduce_range=False,
        bias="float32",
        placement="every" if dla else "inputs",
        operators=DLA_OPERATORS if dla else OPERATORS,
        source=f"{_GUIDE}; NvInfer.h; {_MODELOPT}; measured with the parser and builder of TensorRT-RTX 1.7.1",
        exclusions=() if dla else EXCLUSIONS,
        typed=strongly_typed(device),
    )


def strongly_typed(device: Device) -> bool:
    """Tell whether TensorRT on `device` computes in the types that the graph says (always, from 11.0 on)."""
    from penjing_tensorrt.operators import oldest

    return device.facts.get("typing") == "strong" or oldest(device) >= (11, 0)
