"""`onnx.export`: a module, or an ONNX file as found, becomes one tidy ONNX file the device can read."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from penjing.errors import PlanError, StepError, first_line
from penjing.files import digest, write_bytes
from penjing.onnx_file import LARGEST, signature
from penjing.options import option
from penjing.step import Technique

from penjing_onnx.lower import OLDEST

if TYPE_CHECKING:
    import onnx
    from penjing.agreement import Agreement, Arrays
    from penjing.device import Device
    from penjing.model import Model, Tensor
    from penjing.step import Backend, Context
    from torch import nn

    from penjing_onnx.verify import Run

#: the opset written where the device reads newer ones too: the first that torch's exporter writes itself
PREFERRED = 18


@dataclasses.dataclass(frozen=True)
class Export(Technique):
    """Write the network as one ONNX file in an opset the device reads, and compare it with the original."""

    name = "onnx.export"
    accepts = frozenset({"torch", "onnx"})
    produces = "onnx"
    exact = True

    opset: int = option(0, "Opset to write; 0 takes the device's newest, up to 18.", between=(0, 99))
    batch: int = option(1, "Images in a batch; 0 leaves it open.", between=(0, 65536))

    def check(self, device: Device, backend: Backend) -> None:
        """Raise PlanError for an opset that cannot be written or read, or a batch that the backend does not take."""
        if self.opset > device.max_opset:
            raise PlanError(
                f"{device.name} reads opsets up to {device.max_opset}, not {self.opset}.",
                hint="opset = 0 chooses.",
            )
        if self.opset and self.opset < OLDEST:
            raise PlanError(f"{self.name} writes opset {OLDEST} and newer, not {self.opset}.")
        if device.max_opset < OLDEST:
            raise PlanError(
                f"{device.name} reads opsets up to {device.max_opset}; {self.name} writes {OLDEST} and newer."
            )
        if backend.batch and self.batch not in (0, backend.batch):
            raise PlanError(
                f"{self.name}.batch={self.batch} fixes the batch of the graph, and {backend.name}.batch asks for "
                f"{backend.batch}.",
                hint=f"--set {self.name}.batch={backend.batch} writes it for that; {self.name}.batch=0 leaves it open.",
            )

    def resources(self, device: Device, backend: Backend) -> dict[str, Any]:
        """Return the newest opset of the device, and the operators that its runtime reads."""
        readable = backend.operators(device)
        return {
            "max_opset": device.max_opset,
            "operators": None if readable is None else sorted(readable),
        }

    def apply(self, model: Model, context: Context) -> Model:
        """Write `model.onnx` into the step's folder."""
        opset = self.opset or min(context.device.max_opset, PREFERRED)
        maximum = self.opset or context.device.max_opset
        readable = context.backend.operators(context.device)
        if model.form == "torch":
            return finish(model, context, *_from_torch(model, opset, self.batch, readable))
        opsets = (self.opset or OLDEST, maximum)
        return finish(model, context, *_from_file(model, context, opsets, self.batch, readable))


def finish(
    model: Model,
    context: Context,
    graph: onnx.ModelProto,
    inputs: tuple[Tensor, ...],
    agreement: Agreement | None,
) -> Model:
    """Write a graph that was verified, with what Penjing knows about it, and tell the report of it."""
    from penjing_onnx.files import serialise
    from penjing_onnx.macs import describe
    from penjing_onnx.source import LABELS, PREPROCESS, SOURCE
    from penjing_onnx.tidy import lifted

    graph = lifted(graph)
    about = {entry.key: entry.value for entry in graph.metadata_props}
    about[SOURCE] = model.source
    if model.preprocess:
        about[PREPROCESS] = json.dumps(model.preprocess.to_dict(), sort_keys=True)
    if model.labels:
        about[LABELS] = json.dumps(model.labels, ensure_ascii=False)
    del graph.metadata_props[:]
    for key, value in sorted(about.items()):
        graph.metadata_props.add(key=key, value=value)
    if graph.ByteSize() > LARGEST:
        raise StepError(f"The ONNX file would have {graph.ByteSize()} bytes; one file has at most {LARGEST}.")
    data = serialise(graph)
    path = context.folder / "model.onnx"
    write_bytes(path, data)
    context.details.update(describe(graph))
    context.details["bytes"] = len(data)
    if agreement:
        context.details.update(agreement.details())
        if agreement.blind:
            context.warn("The outputs are the same for every input, so that comparing them proves nothing.")
    return model.become("onnx", path, fingerprint=digest(data), inputs=inputs, outputs=signature(graph)[1])


def _from_torch(
    model: Model, opset: int, batch: int, readable: frozenset[str] | None
) -> tuple[onnx.ModelProto, tuple[Tensor, ...], Agreement]:
    """Export a module by torch's exporter and tidy, lower and verify the result."""
    import onnx_ir as ir

    from penjing_onnx.lower import check_lowered, lower
    from penjing_onnx.tidy import tidy
    from penjing_onnx.torch_export import export, float_module, run

    module: nn.Module = float_module(copy.deepcopy(model.value))
    shape = model.inputs[0].shape
    exported = export(
        module,
        (batch or 2, *shape[1:]),
        max(opset, PREFERRED),
        [t.name for t in model.outputs],
        open_batch=not batch,
    )
    tidy(exported)
    lower(exported, opset, readable)
    graph = ir.to_proto(exported)
    inputs, outputs = signature(graph)
    check_lowered(graph)
    agreement = _verify(graph, inputs, outputs, lambda feed: run(module, feed["input"]))
    return graph, inputs, agreement


def _verify(
    graph: onnx.ModelProto, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], reference: Run
) -> Agreement:
    """Compare a graph with `reference`; StepError below 60 dB."""
    from penjing.agreement import ENOUGH

    from penjing_onnx.verify import agree, session

    agreement = agree(inputs, [tensor.name for tensor in outputs], reference, session(graph))
    if not agreement.enough:
        raise StepError(
            f"The ONNX graph does not compute what the network does: {agreement.output} agrees to "
            f"{agreement.sqnr_db:.1f} dB, under {ENOUGH:.0f}.",
            hint="Something in the network depends on more than its input, or the exporter is at fault: "
            "compare with another opset.",
        )
    return agreement


def _from_file(
    model: Model, context: Context, opsets: tuple[int, int], batch: int, readable: frozenset[str] | None
) -> tuple[onnx.ModelProto, tuple[Tensor, ...], Agreement | None]:
    """Bring an ONNX file into one piece, an opset within `opsets`, operators `readable`, and the batch wanted."""
    import onnx
    import onnx_ir as ir

    from penjing_onnx.files import load, opset_of, serialise
    from penjing_onnx.lower import check_lowered, lower, unreadable
    from penjing_onnx.shapes import set_shapes
    from penjing_onnx.verify import session

    minimum, maximum = opsets
    original = load(model.value)
    graph = onnx.ModelProto.FromString(serialise(original))
    if opset_of(graph) < minimum:
        graph = _raised(graph, minimum)
    if opset_of(graph) > maximum or unreadable(graph, readable):
        lowered = ir.from_proto(onnx.shape_inference.infer_shapes(graph))
        lower(lowered, min(maximum, opset_of(graph)), readable)
        graph = ir.to_proto(lowered)
        check_lowered(graph)
    size = model.preprocess.size if model.preprocess else None
    set_shapes(graph, batch, size)
    inputs, outputs = signature(graph)
    if serialise(graph) == serialise(original):
        return graph, inputs, None
    if _is_custom(graph):
        context.warn("Operators of its maker's own: the changed graph cannot be verified here.")
        return graph, inputs, None
    reference = _one_by_one(session(original), model)
    try:
        agreement = _verify(graph, inputs, outputs, reference)
    except StepError as error:
        fixed = model.inputs[0].shape[0] if model.inputs and model.inputs[0].shape else None
        if fixed is not None and fixed != batch:
            raise StepError(
                f"The file takes a batch of {fixed}, not {batch or 'any size'}: {error.message}",
                hint=f"Set onnx.export.batch={fixed}, or export the network with an open batch.",
            ) from error
        raise
    return graph, inputs, agreement


def _one_by_one(run: Run, model: Model) -> Run:
    """Return `run` for any batch, image by image where the file itself takes one at a time."""
    import numpy as np

    if not all(tensor.shape and tensor.shape[0] == 1 for tensor in model.inputs):
        return run

    def reference(feed: dict[str, np.ndarray[Any, Any]]) -> Arrays:
        count = len(next(iter(feed.values())))
        results = [run({name: value[i : i + 1] for name, value in feed.items()}) for i in range(count)]
        return [np.concatenate(parts) for parts in zip(*results, strict=True)]

    return reference


def _raised(graph: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Return a graph in a newer opset, by onnx's own converter."""
    from onnx import version_converter

    from penjing_onnx.files import opset_of
    from penjing_onnx.lower import ir_version_of

    try:
        raised: onnx.ModelProto = version_converter.convert_version(graph, opset)
    except Exception as error:  # the converter raises whatever its C++ raises
        raise StepError(
            f"The file is written in opset {opset_of(graph)} and cannot be raised to {opset}: "
            f"{first_line(error)}",
            hint=f"Export the network again, with opset {opset} or newer.",
        ) from error
    raised.ir_version = max(graph.ir_version, ir_version_of(opset))
    return raised


def _is_custom(graph: onnx.ModelProto) -> bool:
    known = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
    return any(node.domain not in known for node in graph.graph.node)
