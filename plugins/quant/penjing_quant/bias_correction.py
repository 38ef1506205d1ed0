"""Empirical bias correction: quantisation shifts what a layer puts out on average; its bias takes that back.

After Nagel et al. 2019 (arXiv 1906.04721), section 4.2, with two differences. Means are measured layer after
layer, with the layers before already corrected. And with the mean the gain is fitted, channel by channel: of
all a and b those with the least E[(a·q + b − f)²] between quantised output q and float output f. The gain
goes into the weight, where it costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from penjing_quant.graph import WEIGHTED, bias_of, constant, replace_constant, weight_axis
from penjing_quant.session import Walk

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx
    import onnx_ir as ir

    from penjing_quant.write import Written

    Array = npt.NDArray[np.float32]


def correct_bias(model: onnx.ModelProto, written: Written, photographs: Sequence[Array]) -> onnx.ModelProto:
    """Return the float `model` with weights and biases that make up for what its form `written` shifts.

    Quantise the result with the same ranges. Layers that share a weight, and MatMul, which has no bias, stay.
    """
    import onnx_ir as ir

    net = ir.from_proto(model)
    exact, rounded = Walk(model, photographs), Walk(written.model, photographs)
    for node in net.graph:
        if node.name not in written.integer or node.op_type not in WEIGHTED - {"MatMul"}:
            continue
        weight = node.inputs[1]
        if weight is None or len(weight.uses()) > 1:
            continue
        name = node.name or ""
        expected, got = exact.to(name), rounded.to(name)
        gain, shift = fit(expected, got)
        along = [-1] + [1] * (got[0].ndim - 2)
        for values in got:
            values *= gain.reshape(along)
            values += shift.reshape(along)
        _absorb(net.graph, node, gain, shift)
    return ir.to_proto(net)


def fit(expected: Sequence[Array], got: Sequence[Array]) -> tuple[Array, Array]:
    """Return for each channel (axis 1) the gain and shift that bring `got` nearest to `expected`.

    A gain that so few photographs do not establish is drawn to 1, by as much as its standard error says
    (James–Stein, positive part); pixels of one photograph are not taken for independent.
    """
    import numpy as np

    errors = np.array([np.mean(np.square(f - q)) for f, q in zip(expected, got, strict=True)]) + 1e-30
    # one photograph that saturates must not bend the fit for all others
    weights = np.minimum(1, np.median(errors) / errors)
    sums = np.zeros((5, got[0].shape[1]))
    for f, q, weight in zip(expected, got, weights, strict=True):
        axes = tuple(i for i in range(f.ndim) if i != 1)
        moments = (f, q, f * f, f * q, q * q)
        sums += weight * np.stack([np.mean(moment, axis=axes, dtype=np.float64) for moment in moments])
    mean_f, mean_q, ff, fq, qq = sums / weights.sum()
    variance, covariance = qq - mean_q**2, fq - mean_f * mean_q
    flat = variance <= 1e-9 * np.maximum(qq, 1e-30)
    excess = np.where(flat, 0, covariance / np.where(flat, 1, variance) - 1)
    residual = np.maximum(ff - mean_f**2 - covariance * (1 + excess), 0)
    doubt = residual / np.where(flat, 1, variance * weights.sum())
    gain = 1 + excess * np.maximum(0, 1 - doubt / np.maximum(excess**2, 1e-30))
    gain = np.clip(gain, 0.5, 2)
    return gain.astype(np.float32), (mean_f - gain * mean_q).astype(np.float32)


def _absorb(graph: ir.Graph, node: ir.Node, gain: Array, shift: Array) -> None:
    """Make `node` put out gain × its output + shift."""
    weight = constant(node.inputs[1])
    assert weight is not None
    bias = bias_of(node)
    axis = weight_axis(node)
    along = [-1 if i == axis else 1 for i in range(weight.ndim)]
    replace_constant(graph, node, 1, weight * gain.reshape(along))
    replace_constant(graph, node, 2, shift if bias is None else bias * gain + shift)
