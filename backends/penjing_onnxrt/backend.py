"""The backend for ONNX Runtime's CPU execution provider."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Any

from penjing import onnx_session
from penjing.here import this_machine
from penjing.onnx_session import ImageSession
from penjing.options import option
from penjing.step import Backend, Deployment, Scheme

if TYPE_CHECKING:
    from penjing.device import Device
    from penjing.model import Model
    from penjing.step import Context

#: operators that ONNX Runtime 1.32 runs on integers between DequantizeLinear and QuantizeLinear, read from
#: qdq_selector_action_transformer.cc and confirmed by the nodes of optimised graphs
OPERATORS = frozenset({
    "Conv", "MatMul", "Gemm", "Add", "Mul", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid",
    "Softmax", "Concat", "MaxPool", "Resize", "Flatten", "Reshape", "Slice", "Squeeze", "Unsqueeze",
    "Transpose", "Gather", "Split", "Expand", "Tile",
})  # fmt: skip
_SOURCE = "onnxruntime quantize.py guide; mlas/lib/platform.cpp; measured with 1.32"


@dataclasses.dataclass(frozen=True)
class OnnxRuntime(Backend):
    """Load the network in ONNX Runtime on the CPU, and see what runs on integers."""

    name = "onnxrt"
    accepts = frozenset({"onnx"})
    produces = "onnx"
    exact = True

    threads: int = option(1, "Threads of one inference.", between=(1, 1024))

    def available(self, device: Device) -> str:
        """Return "" where this machine has the kernels that the device has."""
        if device.here:
            return ""
        return f"this machine ({this_machine().title}) is not a {device.title}"

    def resources(self, device: Device, backend: Backend) -> dict[str, Any]:
        """Return the version that optimises the graph."""
        from importlib.metadata import version

        return {"onnxruntime": version("onnxruntime"), "here": device.here}

    def scheme(self, device: Device) -> Scheme:
        """Return the types whose kernels are fast and exact on the device's CPU.

        x86 without VNNI adds pairs of products in 16 bits (vpmaddubsw), which 7-bit weights cannot overflow.
        """
        arm = device.arch == "aarch64"
        vnni = bool(device.isa & {"avx512_vnni", "avx_vnni", "amx"})
        return Scheme(
            activation="int8" if arm else "uint8",
            weight="int8",
            symmetric=False,
            per_channel=True,
            reduce_range=not arm and not vnni,
            bias="float32",
            placement="all",
            operators=OPERATORS,
            source=_SOURCE,
        )

    def deployment(self, model: Model, device: Device) -> Deployment:
        """Return that ONNX Runtime takes the model as it is."""
        return Deployment("onnxruntime")

    def apply(self, model: Model, context: Context) -> Model:
        """Load the model, and count what the runtime made of it."""
        from importlib.metadata import version

        import onnx

        context.details["onnxruntime"] = version("onnxruntime")
        if context.device.here:
            path = context.folder / "optimised.onnx"
            self._load(model, floats=False, optimised=str(path))
            graph = onnx.load(path, load_external_data=False).graph
            path.unlink()
            context.details["nodes"] = dict(Counter(node.op_type for node in graph.node).most_common())
        else:
            self._load(model, floats=True)
        return model

    def open(self, model: Model, device: Device) -> ImageSession:
        """Load a model with the device's kernels, or else with Q/DQ computed in float.

        Kernels of this CPU may differ from the device's (without VNNI they overflow on 8-bit weights), so
        where the device is elsewhere the integers are simulated exactly, which is slow but says what it will answer.
        """
        return self._load(model, floats=not device.here)

    def _load(self, model: Model, *, floats: bool, optimised: str = "") -> ImageSession:
        loaded = onnx_session.load(
            model.value, name=str(model.value), threads=self.threads, floats=floats, optimised=optimised
        )
        return ImageSession(loaded, model)
