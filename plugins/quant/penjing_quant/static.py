"""quant.static: weights and activations as 8-bit integers, ranges measured on photographs."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any, Literal

from penjing.errors import PlanError, PluginError
from penjing.options import option
from penjing.step import Backend, Context, Scheme, Technique

from penjing_quant.calibrate import Method

if TYPE_CHECKING:
    from penjing.device import Device
    from penjing.model import Model
    from typing_extensions import Self

    from penjing_quant.quantiser import Candidate, Quantiser

#: the float network whose weights became integers, beside the result: `penjing explain` compares with it
FLOAT = "float.onnx"


@dataclasses.dataclass(frozen=True)
class StaticQuantisation(Technique):
    """Turn weights and activations into 8-bit integers, with ranges measured on photographs."""

    name = "quant.static"
    accepts = frozenset({"onnx"})
    produces = "onnx"
    needs = frozenset({"calibration"})

    method: Method = option(  # noqa: RUF009 - a dataclass field; the alias is a Literal
        "percentile", "How the range of an activation is chosen from the values it took."
    )
    percentile: float = option(99.99, "Share of the values that method percentile keeps.", between=(90, 100))
    other_ranges: bool = option(
        True,
        "Where ranges by percentile leave symmetric integers less than 20 dB of SQNR, try average and mse too.",
    )
    images: int = option(300, "Photographs to calibrate with, at most.", between=(1, 100_000))
    per_channel: bool | None = option(
        None, "One scale for each output channel of a weight; none: as the device wants it."
    )
    equalise: bool = option(True, "Even out channels of neighbouring layers first, where that helps.")
    bias_correction: bool = option(True, "Fit biases to what quantisation shifts, where that helps.")
    adaround: bool = option(
        False, "Learn for each weight whether to round it up or down, where that helps; takes minutes."
    )
    adaround_steps: int = option(1000, "Steps of learning for each layer.", between=(1, 100_000))
    weight_bits: Literal[8, 4] = option(
        8, "Bits of a weight; 4 are simulated: the file is no smaller and nothing runs faster."
    )
    exclude: tuple[str, ...] = option((), "Nodes that stay float, by name or pattern (* and ?).")
    float_layers: int | None = option(
        None,
        "First layers that compute in float, their weights stored as 8 bits; none: as many as timing shows to be "
        "fastest where the device is here, else those that integers make no faster on x86.",
        between=(0, 10_000),
    )

    def check(self, device: Device, backend: Backend) -> None:
        """Raise PlanError where device or backend runs no 8-bit graphs, or asks for what no graph can be."""
        if "int8" not in device.precisions:
            raise PlanError(
                f"{device.name} does not compute in int8, only in {', '.join(device.precisions)}.",
                hint=f"Leave {self.name} out of the recipe.",
            )
        self._scheme(device, backend)

    def check_source(self, model: Model) -> None:
        """Raise PlanError where the model that was opened is quantised already."""
        from penjing_quant.already import refuse_integers

        refuse_integers(self.name, model)

    def explain(self, device: Device, backend: Backend) -> str:
        """Return the types of numbers that the device's kernels want."""
        scheme = self._scheme(device, backend)
        per_channel = scheme.per_channel if self.per_channel is None else self.per_channel
        return (
            f"Activations become {scheme.activation}, weights {scheme.weight}"
            + (" of 7 bits, whose products this CPU adds without overflow" if scheme.reduce_range else "")
            + (" of 4 bits, simulated" if self.weight_bits == 4 else "")
            + (", one scale a channel" if per_channel else ", one scale a tensor")
            + f"; ranges by {self.method}."
            + (" Each weight is rounded as its layer needs." if self.adaround else "")
            + (f" Float stay {', '.join(self.exclude)}." if self.exclude else "")
            + (" Layers that are faster in float stay so." if self.times(device, backend) else "")
        )

    def resources(self, device: Device, backend: Backend) -> dict[str, Any]:
        """Return the scheme, and the versions of what measures ranges and writes graphs."""
        from importlib.metadata import version

        scheme = dataclasses.asdict(self._scheme(device, backend))
        scheme["operators"] = sorted(scheme["operators"])
        return {
            "scheme": scheme,
            "timed": self.times(device, backend),
            **{name: version(name) for name in ("numpy", "onnx", "onnx-ir", "onnxruntime", "torch")},
        }

    def naive(self) -> Self:
        """Return per-tensor weights, MinMax and no recovery: quantize_static's defaults, for this device.

        What the user wants to stay float stays so, and weights keep their number of bits.
        """
        return dataclasses.replace(
            self,
            method="minmax",
            per_channel=False,
            other_ranges=False,
            equalise=False,
            bias_correction=False,
            adaround=False,
            float_layers=0,
        )

    def apply(self, model: Model, context: Context) -> Model:
        """Return the model as a Q/DQ graph that obeys the scheme of `context.backend`."""
        from penjing_quant.quantiser import Quantiser

        quantiser = Quantiser(self, model, self._scheme(context.device, context.backend), context)
        best = quantiser.run()
        quantiser.tell(best)
        if not best.written.integer and not quantiser.floats:
            context.warn("Nothing in this network can be quantised; it stays as it was.")
        elif not best.written.integer and self.float_layers is None:
            context.warn(
                f"All {len(quantiser.floats)} layers compute in float, since integers make none of them faster here; "
                "only their weights are stored as integers. float_layers = 0 has them compute in integers."
            )
        return self._finish(model, quantiser, best)

    def _finish(self, model: Model, quantiser: Quantiser, best: Candidate) -> Model:
        """Write the result and what it came from, and show how each layer fared."""
        import onnx

        from penjing_quant.layerwise import show_layers
        from penjing_quant.verify import violations

        context, written = quantiser.context, best.written
        if written.model is best.model:
            return model
        if found := violations(written.model, quantiser.scheme):
            raise PluginError(
                f"{self.name} wrote a graph that {context.backend.name} refuses: {' '.join(found[:5])}"
            )
        path = context.folder / "model.onnx"
        data = written.model.SerializeToString(deterministic=True)
        path.write_bytes(data)
        onnx.checker.check_model(path)
        (context.folder / FLOAT).write_bytes(best.exact.SerializeToString(deterministic=True))
        show_layers(best.exact, written.model, quantiser.judges, context)
        return model.become("onnx", path, fingerprint=hashlib.sha256(data).hexdigest())

    def times(self, device: Device, backend: Backend) -> bool:
        """Tell whether timing on this machine decides which layers stay float."""
        wanted = self.float_layers is None and self._scheme(device, backend).placement == "all"
        return wanted and device.here and not backend.available(device)

    def _scheme(self, device: Device, backend: Backend) -> Scheme:
        scheme = backend.scheme(device)
        if scheme is None:
            raise PlanError(
                f"{backend.name} runs no quantised graphs on {device.name}.",
                hint=f"Leave {self.name} out of the recipe.",
            )
        if scheme.symmetric and scheme.activation.startswith("u"):
            raise PlanError(
                f"{backend.name} wants zero points of 0 with {scheme.activation}, which has no negatives."
            )
        return scheme
