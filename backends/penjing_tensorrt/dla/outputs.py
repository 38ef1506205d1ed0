"""Outputs of a network without the views before them, for a DLA that must run every layer.

A network that classifies ends with a view from N×C×1×1 to N×C, which no DLA has as a layer. It moves no value,
so that the engine may put out N×C×1×1, and who runs it reads that as N×C.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from penjing_tensorrt.dla.flatten import VIEWS
from penjing_tensorrt.dla.graph import inferred, shape

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx
    import onnx_ir as ir
    from penjing.model import Model
    from penjing.step import Session

    Array = npt.NDArray[np.float32]


class Shaped:
    """A session whose outputs come in the shapes that a model tells, whatever the engine's are."""

    def __init__(self, session: Session, model: Model) -> None:
        self._session, self._sides = session, [tensor.shape[1:] for tensor in model.outputs]

    def __call__(self, batch: Array) -> list[Array]:
        """Run one batch, float32 NCHW."""
        return [
            output if None in sides else output.reshape(len(output), *(side or 1 for side in sides))
            for output, sides in zip(self._session(batch), self._sides, strict=True)
        ]


def bare(
    model: onnx.ModelProto, scales: Mapping[str, float]
) -> tuple[onnx.ModelProto, dict[str, float], tuple[str, ...]]:
    """Return a graph whose outputs are what the views before them read, its scales, and the outputs that changed.

    An output keeps its name. Views that something else reads, or that do not keep the batch, stay.
    """
    import onnx_ir as ir
    from onnx_ir.passes import common as passes

    net, kept, changed = ir.from_proto(model), dict(scales), []
    for index, output in enumerate(net.graph.outputs):
        source = _source(output)
        if source is output:
            continue
        name, old = output.name or "", source.name or ""
        net.graph.outputs[index] = source
        output.name, source.name = f"{name}.view", name
        if (scale := kept.pop(old, None)) is not None:
            kept[name] = scale
        changed.append(name)
    if not changed:
        return model, kept, ()
    passes.RemoveUnusedNodesPass()(net)
    return inferred(ir.to_proto(net)), kept, tuple(changed)


def _source(output: ir.Value) -> ir.Value:
    """Return the value that `output` is a view of; itself where it is none, or where more hangs on it."""
    size, value = shape(output), output
    if output.uses():
        return output
    while True:
        node = value.producer()
        if node is None or node.op_type not in VIEWS or node.inputs[0] is None:
            return value
        before = node.inputs[0]
        if before.producer() is None or before.is_graph_output() or len(list(before.uses())) != 1:
            return value
        if size is None or (shape(before) or (None,))[0] != size[0]:
            return value
        value = before
