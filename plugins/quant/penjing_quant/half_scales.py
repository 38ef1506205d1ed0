"""Scales of Q/DQ in float16: rounded, and the codes of weights with them where that changes what they stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penjing_quant.graph import attribute, bias_of, constant

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx_ir as ir

LARGEST, LEAST_NORMAL = 65504.0, 2.0**-14
#: the least positive number of float16
LEAST = 2.0**-24
#: least scale of an activation: rounding it up costs a sixteenth of the range
LEAST_ACTIVATION = 2.0**-20
#: relative error that recoding a channel may bring; 8 bits themselves bring 2^-7 or so
RECODING = 2.0**-5


def half_scale(scale: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    """Return scales in float16, rounded up below its normal numbers, so that no code has to grow."""
    import numpy as np

    half = np.clip(scale, LEAST, LARGEST).astype(np.float16)
    short = (scale < LEAST_NORMAL) & (half.astype(np.float64) < scale)
    result: npt.NDArray[np.float16] = np.where(short, np.nextafter(half, np.float16(np.inf)), half).astype(
        np.float16
    )
    return result


def recoded(node: ir.Node) -> npt.NDArray[Any] | None:
    """Return the codes of a weight for scales in float16; None where those it has will do, or it has a zero point."""
    import numpy as np

    codes, scale = constant(node.inputs[0]), constant(node.inputs[1])
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if codes is None or scale is None or codes.dtype != np.int8 or (zero is not None and zero.any()):
        return None
    if not (scale < LEAST_NORMAL).any():
        return None
    factor = np.where(scale < LEAST_NORMAL, scale / half_scale(scale).astype(np.float64), 1.0)
    new: npt.NDArray[Any] = np.rint(codes * _along(factor, node, codes.ndim)).astype(np.int8)
    return new


def _along(values: npt.NDArray[Any], node: ir.Node, rank: int) -> npt.NDArray[Any]:
    """Return one number, or one for each channel, so that it multiplies the node's codes."""
    if values.size == 1:
        return values.reshape(())
    axis = attribute(node, "axis", 1) % rank
    return values.reshape([-1 if place == axis else 1 for place in range(rank)])


def scale_fits(node: ir.Node) -> bool:
    """Tell whether a QuantizeLinear or DequantizeLinear does as well with scales in float16."""
    scale = constant(node.inputs[1])
    if scale is None or (scale >= LEAST_NORMAL).all():
        return scale is None or bool((scale <= LARGEST).all())
    if constant(node.inputs[0]) is None:
        return bool((scale >= LEAST_ACTIVATION).all())
    new = recoded(node)
    return new is not None and not _spoilt(node, new)


def _spoilt(node: ir.Node, new: npt.NDArray[Any]) -> bool:
    """Tell whether a channel that matters beside its bias loses more than `RECODING` of its size."""
    import numpy as np

    codes, scale = constant(node.inputs[0]), constant(node.inputs[1])
    assert codes is not None and scale is not None, "recoded looked at them"
    exact = codes * _along(scale.astype(np.float64), node, codes.ndim)
    error = exact - new * _along(half_scale(scale).astype(np.float64), node, codes.ndim)
    axis = attribute(node, "axis", 1) % codes.ndim if scale.size > 1 else 0
    others = tuple(place for place in range(codes.ndim) if place != axis)
    bad = np.sqrt(np.square(error).sum(others)) > RECODING * np.sqrt(np.square(exact).sum(others))
    if not bad.any():
        return False
    seen = np.abs(exact).sum(others)
    return any(bool((bad & ~_hidden(use.node, seen)).any()) for use in node.outputs[0].uses())


def _hidden(reader: ir.Node, size: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Tell which channels, with weights that add up to `size`, cannot be seen beside their bias in float16."""
    import numpy as np

    bias, before = bias_of(reader), reader.inputs[0].producer() if reader.inputs[0] is not None else None
    scale = (
        constant(before.inputs[1]) if before is not None and before.op_type == "DequantizeLinear" else None
    )
    if bias is None or scale is None or bias.size != size.size:
        return np.zeros(size.shape, np.bool_)
    hidden: npt.NDArray[np.bool_] = size * 128 * float(scale.max()) <= 2.0**-11 * np.abs(bias)
    return hidden
