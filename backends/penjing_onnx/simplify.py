"""`onnx.simplify`: constants folded and what does nothing removed, by onnxsim, held to computing the same."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections import Counter
from typing import TYPE_CHECKING, Any

from penjing.errors import StepError, first_line
from penjing.step import Technique

from penjing_onnx.export import finish

if TYPE_CHECKING:
    import onnx
    from penjing.agreement import Agreement
    from penjing.device import Device
    from penjing.model import Model
    from penjing.step import Backend, Context

#: bytes; onnxsim keeps several copies in memory
LARGEST = 1_500_000_000
#: operators that must come out as they went in
UNTOUCHED = frozenset({"NonMaxSuppression", "QuantizeLinear", "DequantizeLinear"})


@dataclasses.dataclass(frozen=True)
class Simplify(Technique):
    """Fold constants and remove what does nothing; keep the graph where that would change the outputs."""

    name = "onnx.simplify"
    accepts = frozenset({"onnx"})
    produces = "onnx"
    exact = True

    def resources(self, device: Device, backend: Backend) -> dict[str, Any]:
        """Return the operators that the device's runtime reads."""
        readable = backend.operators(device)
        return {"operators": None if readable is None else sorted(readable)}

    def apply(self, model: Model, context: Context) -> Model:
        """Write `model.onnx` into the step's folder."""
        from penjing.onnx_file import signature

        from penjing_onnx.files import load

        before = load(model.value)
        after, agreement, reason = _simplified(before, model, context.backend.operators(context.device))
        if reason:
            context.warn(f"onnx.simplify kept the graph as it was: {reason}")
        context.details["nodes_before"] = len(before.graph.node)
        return finish(model, context, after, signature(after)[0], agreement)


def _simplified(
    before: onnx.ModelProto, model: Model, readable: frozenset[str] | None
) -> tuple[onnx.ModelProto, Agreement | None, str]:
    """Return the simplified graph and how it agrees; or the graph as it was, and why."""
    from penjing.onnx_file import signature

    from penjing_onnx.files import opset_of
    from penjing_onnx.lower import unreadable
    from penjing_onnx.verify import agree, session

    if before.ByteSize() > LARGEST:
        return before, None, f"it has {before.ByteSize()} bytes, more than {LARGEST}."
    after, reason = _onnxsim(before)
    if after is None:
        return before, None, reason
    if unreadable(after, readable) and not unreadable(before, readable):
        after = _written_out(after, readable)
    if [str(t.name) for side in signature(after) for t in side] != [
        str(t.name) for side in signature(before) for t in side
    ]:
        return before, None, "onnxsim changed its inputs or outputs."
    if opset_of(after) != opset_of(before) or _special(after) != _special(before):
        return before, None, "onnxsim touched its opset, or operators that must stay."
    after.ir_version = before.ir_version
    try:
        inputs, outputs = signature(before)
        agreement = agree(inputs, [tensor.name for tensor in outputs], session(before), session(after))
    except StepError as error:
        return before, None, f"the result cannot be verified. {error.message}"
    if not agreement.enough:
        return before, None, f"onnxsim changed {agreement.output} (agreement {agreement.sqnr_db:.1f} dB)."
    return after, agreement, ""


def _written_out(graph: onnx.ModelProto, readable: frozenset[str] | None) -> onnx.ModelProto:
    """Return a graph without what onnxsim puts together again, such as LayerNormalization."""
    import onnx
    import onnx_ir as ir

    from penjing_onnx.files import opset_of
    from penjing_onnx.lower import lower

    net = ir.from_proto(onnx.shape_inference.infer_shapes(graph))
    lower(net, opset_of(graph), readable)
    return ir.to_proto(net)


def _onnxsim(model: onnx.ModelProto) -> tuple[onnx.ModelProto | None, str]:
    import onnx
    import onnxsim

    from penjing_onnx.files import serialise

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            simplified, _ = onnxsim.simplify(onnx.ModelProto.FromString(serialise(model)))
        onnx.checker.check_model(simplified)
    except Exception as error:  # onnxsim raises whatever its C++ raises; the graph as it was is still right
        return None, f"onnxsim failed ({type(error).__name__}: {first_line(error)})."
    return simplified, ""


def _special(model: onnx.ModelProto) -> Counter[tuple[str, str]]:
    """Count the operators that must come out as they went in: those of other domains, NMS, Q/DQ."""
    from penjing.onnx_file import graphs

    return Counter(
        (node.domain, node.op_type)
        for graph in graphs(model.graph)
        for node in graph.node
        if node.domain not in ("", "ai.onnx") or node.op_type in UNTOUCHED
    )
