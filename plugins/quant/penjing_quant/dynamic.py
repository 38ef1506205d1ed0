"""quant.dynamic: weights of matrix products as 8-bit integers, activations measured anew at every run."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from penjing.errors import PlanError
from penjing.options import option
from penjing.step import Backend, Context, Technique

if TYPE_CHECKING:
    from penjing.device import Device
    from penjing.model import Model

#: an integer convolution with scales found at run time has no fast kernel, and its scale is that of the whole
#: batch, so that a photograph's result would depend on its neighbours
OPERATORS = ("MatMul", "Gemm")


@dataclasses.dataclass(frozen=True)
class DynamicQuantisation(Technique):
    """Turn the weights of matrix products into 8-bit integers; activations are quantised as they come."""

    name = "quant.dynamic"
    accepts = frozenset({"onnx"})
    produces = "onnx"

    per_channel: bool = option(True, "One scale for each output channel of a weight.")

    def check(self, device: Device, backend: Backend) -> None:
        """Raise PlanError where the backend has no operators that quantise at run time."""
        scheme = backend.scheme(device)
        if scheme is None or scheme.placement != "all":
            raise PlanError(
                f"{backend.name} has no operators that quantise at run time.",
                hint="Use quant.static with photographs.",
            )

    def check_source(self, model: Model) -> None:
        """Raise PlanError where the model that was opened is quantised already."""
        from penjing_quant.already import refuse_integers

        refuse_integers(self.name, model)

    def resources(self, device: Device, backend: Backend) -> dict[str, Any]:
        """Return whether weights use 7 bits, and the versions of what writes graphs."""
        from importlib.metadata import version

        scheme = backend.scheme(device)
        return {
            "reduce_range": scheme is not None and scheme.reduce_range,
            "onnxruntime": version("onnxruntime"),
        }

    def apply(self, model: Model, context: Context) -> Model:
        """Return the model with integer weights in its matrix products."""
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        from penjing_quant.graph import load

        net = load(model.value)
        products, convolutions, rest = _weights(net)
        context.details.update(quantised_bytes=products, convolution_bytes=convolutions)
        if not products:
            context.warn("This network has no matrix product with a constant weight; it stays as it was.")
            return model
        share = convolutions / (products + convolutions + rest)
        if share > 0.5:
            context.warn(
                f"{share:.0%} of the weights are in convolutions, which quant.dynamic leaves float: "
                "it saves little. quant.static quantises them."
            )
        scheme = context.backend.scheme(context.device)
        path = context.folder / "model.onnx"
        with TemporaryDirectory(dir=context.folder) as scratch:
            source = Path(scratch) / "float.onnx"
            # shapes of weights that are transposed on the way would contradict those inferred before
            net.graph.ClearField("value_info")
            # else onnxruntime warns, through the root logger, that its own simplifier was not used
            net.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
            onnx.save(net, source)
            quantize_dynamic(
                source,
                path,
                op_types_to_quantize=list(OPERATORS),
                per_channel=self.per_channel,
                reduce_range=scheme is not None and scheme.reduce_range,
                weight_type=QuantType.QInt8,
            )
        return model.become("onnx", path, fingerprint=hashlib.sha256(path.read_bytes()).hexdigest())


def _weights(model: Any) -> tuple[int, int, int]:
    """Return how many bytes of weights matrix products, convolutions and all else hold."""
    import math

    size = {tensor.name: 4 * math.prod(tensor.dims) for tensor in model.graph.initializer}
    held = {"product": 0, "convolution": 0}
    for node in model.graph.node:
        kind = (
            "product"
            if node.op_type in OPERATORS
            else "convolution"
            if node.op_type.startswith("Conv")
            else ""
        )
        if kind and len(node.input) > 1:
            held[kind] += size.pop(node.input[1], 0)
    return held["product"], held["convolution"], sum(size.values())
