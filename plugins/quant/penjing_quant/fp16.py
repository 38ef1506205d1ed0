"""`quant.fp16`: the precision written into the graph, as strongly typed runtimes (TensorRT 11) demand it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from penjing.errors import PlanError, StepError
from penjing.options import option
from penjing.step import Scheme, Technique

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx
    from penjing.device import Device
    from penjing.model import Model
    from penjing.step import Backend, Context
    from typing_extensions import Self

    from penjing_quant.integers import Range

    Array = npt.NDArray[np.float32]

#: the opset that lets Q/DQ take float16
QDQ_OPSET = 19
#: photographs that judge the result; dB that float16 rounding leaves of a sound network at least
JUDGES, ENOUGH = 16, 30.0
#: layers that the report's table shows
SHOWN = 40


@dataclasses.dataclass(frozen=True)
class HalfPrecision(Technique):
    """Write float16 into the graph, and float32 where numbers leave float16's range or its precision."""

    name = "quant.fp16"
    accepts = frozenset({"onnx"})
    produces = "onnx"
    needs = frozenset({"calibration"})

    images: int = option(64, "Photographs to measure ranges with, at most.", between=(1, 100_000))
    headroom: float = option(
        4.0, "How many times beyond the range measured a tensor must fit into float16.", between=(1, 1000)
    )
    islands: bool = option(True, "Keep layers float32 that leave float16's range or precision.")

    def check(self, device: Device, backend: Backend) -> None:
        """Raise PlanError where the device computes in no float16."""
        if "fp16" not in device.precisions:
            raise PlanError(
                f"{device.name} does not compute in fp16, only in {', '.join(device.precisions)}.",
                hint="Leave quant.fp16 out of the recipe.",
            )

    def explain(self, device: Device, backend: Backend) -> str:
        """Return who decides about precision there."""
        scheme = backend.scheme(device)
        typed = scheme is not None and scheme.typed
        return "Layers compute in float16, but for those that leave its range or precision." + (
            " This runtime takes types from the graph alone." if typed else ""
        )

    def resources(self, device: Device, backend: Backend) -> dict[str, Any]:
        """Return the newest opset of the device, and the versions of what measures and writes."""
        from importlib.metadata import version

        return {
            "max_opset": device.max_opset,
            **{name: version(name) for name in ("numpy", "onnx", "onnx-ir", "onnxruntime")},
        }

    def naive(self) -> Self:
        """Return every layer in float16, whatever becomes of it."""
        return dataclasses.replace(self, islands=False)

    def apply(self, model: Model, context: Context) -> Model:
        """Return the network with types of its own; inputs and outputs stay float32."""
        import onnx
        import onnx_ir as ir
        from penjing.onnx_file import external, read

        from penjing_quant.graph import prepared

        proto = read(model.value)
        if external(proto):
            raise StepError(
                f"{model.value.name} keeps its weights in other files.",
                hint="Put onnx.export before: it brings them into one file.",
            )
        proto, scales = _with_half_scales(proto, context.device.max_opset)
        before = ir.to_proto(prepared(proto))
        ranges = self._ranges(before, model, context)
        halved, why = halve(before, ranges, self.headroom if self.islands else None, scales=scales)
        _tell(before, why, context)
        if halved is None:
            context.warn("Nothing in this network can compute in float16; it stays as it was.")
            return model
        self._judge(before, halved, model, context)
        path = context.folder / "model.onnx"
        data = halved.SerializeToString(deterministic=True)
        path.write_bytes(data)
        onnx.checker.check_model(path, full_check=True)
        return model.become("onnx", path, fingerprint=hashlib.sha256(data).hexdigest())

    def _ranges(self, graph: onnx.ModelProto, model: Model, context: Context) -> dict[str, Range]:
        """Return the range of every float tensor over the photographs."""
        import onnx_ir as ir

        from penjing_quant.calibrate import calibrate
        from penjing_quant.half import floats

        # ranges by their ends depend on no scheme; the calibrator's other methods do
        scheme = Scheme("int8", "int8", True, True, False, "float32", "inputs", frozenset(), "none")
        names = [value.name for value in floats(ir.from_proto(graph).graph) if value.name]
        photos = lambda: _photographs(model, context, self.images)  # noqa: E731 - read anew at every pass
        return calibrate(graph, names, photos, scheme, progress=context.progress).ranges

    def _judge(
        self, before: onnx.ModelProto, halved: onnx.ModelProto, model: Model, context: Context
    ) -> None:
        """Compare answers with those of float32, each tensor rounded as float16 rounds it."""
        import numpy as np

        from penjing_quant.half_write import simulate
        from penjing_quant.session import Network, sqnr

        rounded = Network(simulate(halved), simulated=True)
        images = [pixels for _, pixels in _photographs(model, context, min(self.images, JUDGES))]
        if not all(np.isfinite(values).all() for pixels in images for values in rounded(pixels).values()):
            context.details["sqnr_db"] = None
            context.warn("In float16 this network answers with infinite values or NaN on these photographs.")
            return
        decibels = sqnr(Network(before, simulated=True), rounded, images)
        context.details["sqnr_db"] = round(decibels, 2)
        # in a quantised graph rounding moves a code here and there by one, which says nothing of float16
        quantised = any(node.op_type == "QuantizeLinear" for node in before.graph.node)
        if decibels < ENOUGH and not quantised:
            context.warn(
                f"Rounded to float16, the network answers with {decibels:.1f} dB of its float32 answers: "
                "leave quant.fp16 out, or raise its headroom."
            )


def halve(
    graph: onnx.ModelProto, ranges: dict[str, Range], headroom: float | None, *, scales: bool
) -> tuple[onnx.ModelProto | None, dict[str, str]]:
    """Return a graph, as `prepared`, in float16, and why each node that stays float32 does.

    `headroom` None leaves ranges and depths out of account. Nothing is returned where no node can change.
    """
    import onnx_ir as ir

    from penjing_quant.half import must, singles
    from penjing_quant.half_write import convert

    net = ir.from_proto(graph)
    opset = net.opset_imports.get("", 1)
    if headroom is None:
        why = must(net.graph, opset, scales=scales)
    else:
        why = singles(net.graph, opset, ranges, headroom, scales=scales)
    names = {node.name or "": reason for node, reason in why.items()}
    if not convert(net, why.keys(), scales=scales):
        return None, names
    net.producer_name = "penjing"
    result = ir.to_proto(net)
    result.graph.ClearField("value_info")
    return result, names


def _with_half_scales(model: onnx.ModelProto, newest: int) -> tuple[onnx.ModelProto, bool]:
    """Return a quantised model in an opset whose Q/DQ take float16, and whether there is one on the device.

    From opset 18 to 19 the operators changed in the types they take; older ones go through onnx's converter.
    """
    import onnx

    opset = next((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), 1)
    quantised = any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node)
    if opset >= QDQ_OPSET or not quantised:
        return model, True
    if newest < QDQ_OPSET:
        return model, False
    if opset == QDQ_OPSET - 1:
        raised = onnx.ModelProto()
        raised.CopyFrom(model)
        for entry in raised.opset_import:
            if entry.domain in ("", "ai.onnx"):
                entry.version = QDQ_OPSET
    else:
        try:
            raised = onnx.version_converter.convert_version(model, QDQ_OPSET)
        except Exception as error:  # the converter raises whatever its C++ raises
            raise StepError(
                f"The graph cannot be raised from opset {opset} to {QDQ_OPSET}, whose Q/DQ take float16: {error}",
                hint="Export with opset 18 or later.",
            ) from error
    raised.ir_version = max(raised.ir_version, 9)
    return raised, True


def _photographs(model: Model, context: Context, limit: int) -> Iterator[tuple[str, Array]]:
    if context.data is None or not len(context.data.calibrate):
        raise StepError(
            "There is no photograph to measure ranges with.",
            hint="Give --data with photographs like those on the device.",
        )
    if model.preprocess is None:
        raise StepError(
            "How photographs become this network's input is not known.", hint="Give --preprocess FILE."
        )
    for batch in context.data.calibrate.batches(8, model.preprocess, limit):
        for photo, pixels in zip(batch.photos, batch.inputs, strict=True):
            yield str(photo.path), pixels[None]


def _tell(before: onnx.ModelProto, why: dict[str, str], context: Context) -> None:
    """Fill in what the report tells."""
    from penjing.exhibit import Table

    kinds = {node.name: node.op_type for node in before.graph.node}
    counted = Counter(kinds.values())
    kept = Counter(kinds[name] for name in why)
    context.details.update(
        float32={kind: [kept[kind], counted[kind]] for kind in sorted(kept)},
        islands=[{"node": name, "op": kinds[name], "why": reason} for name, reason in why.items()],
    )
    if why:
        rows = [(name, kinds[name], reason) for name, reason in why.items()][:SHOWN]
        context.show(Table("Layers that compute in float32", ("layer", "operator", "why"), rows))
