"""quant.static: weights and activations as 8-bit integers, ranges measured on photographs."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from penjing.errors import PlanError, PluginError, StepError
from penjing.options import option
from penjing.step import Backend, Context, Scheme, Technique

from penjing_quant.calibrate import Method

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx
    from penjing.data import Split
    from penjing.device import Device
    from penjing.model import Model
    from penjing.preprocess import Preprocess
    from penjing.step import Session
    from typing_extensions import Self

    from penjing_quant.calibrate import Calibration
    from penjing_quant.write import Written

    Array = npt.NDArray[np.float32]

#: every so many photographs one is kept from calibration, to judge by
HELD_OUT = 5
#: photographs to judge a candidate by, and to correct biases with, at most: they are kept in memory
JUDGES, CORRECTORS = 50, 64


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
    images: int = option(300, "Photographs to calibrate with, at most.", between=(1, 100_000))
    per_channel: bool | None = option(
        None, "One scale for each output channel of a weight; none: as the device wants it."
    )
    equalise: bool = option(True, "Even out channels of neighbouring layers first, where that helps.")
    bias_correction: bool = option(True, "Fit biases to what quantisation shifts, where that helps.")
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
                hint="Leave quant.static out of the recipe.",
            )
        self._scheme(device, backend)

    def explain(self, device: Device, backend: Backend) -> str:
        """Return the types of numbers that the device's kernels want."""
        scheme = self._scheme(device, backend)
        per_channel = scheme.per_channel if self.per_channel is None else self.per_channel
        return (
            f"Activations become {scheme.activation}, weights {scheme.weight}"
            + (" of 7 bits, whose products this CPU adds without overflow" if scheme.reduce_range else "")
            + (", one scale a channel" if per_channel else ", one scale a tensor")
            + f"; ranges by {self.method}."
            + (" Layers that are faster in float stay so." if self._times(device, backend) else "")
        )

    def resources(self, device: Device, backend: Backend) -> dict[str, Any]:
        """Return the scheme, and the versions of what measures ranges and writes graphs."""
        from importlib.metadata import version

        scheme = dataclasses.asdict(self._scheme(device, backend))
        scheme["operators"] = sorted(scheme["operators"])
        return {
            "scheme": scheme,
            "timed": self._times(device, backend),
            **{name: version(name) for name in ("numpy", "onnx", "onnx-ir", "onnxruntime")},
        }

    def naive(self) -> Self:
        """Return per-tensor weights, MinMax and no recovery: quantize_static's defaults, for this device."""
        return dataclasses.replace(
            self, method="minmax", per_channel=False, equalise=False, bias_correction=False, float_layers=0
        )

    def apply(self, model: Model, context: Context) -> Model:
        """Return the model as a Q/DQ graph that obeys the scheme of `context.backend`."""
        import onnx

        from penjing_quant.graph import load
        from penjing_quant.verify import violations

        work = _Work(
            self,
            model,
            load(model.value),
            self._scheme(context.device, context.backend),
            context,
            _photographs(model, context, self.images),
        )
        written = work.run()
        if not written.integer and not work.floats:
            context.warn("Nothing in this network can be quantised; it stays as it was.")
            return model
        if found := violations(written.model, work.scheme):
            raise PluginError(
                f"quant.static wrote a graph that {context.backend.name} refuses: {' '.join(found[:5])}"
            )
        path = context.folder / "model.onnx"
        data = written.model.SerializeToString(deterministic=True)
        path.write_bytes(data)
        onnx.checker.check_model(path)
        return model.become("onnx", path, fingerprint=hashlib.sha256(data).hexdigest())

    def _times(self, device: Device, backend: Backend) -> bool:
        """Tell whether timing on this machine decides which layers stay float."""
        wanted = self.float_layers is None and self._scheme(device, backend).placement == "all"
        return wanted and device.here and not backend.available(device)

    def _scheme(self, device: Device, backend: Backend) -> Scheme:
        scheme = backend.scheme(device)
        if scheme is None:
            raise PlanError(
                f"{backend.name} runs no quantised graphs on {device.name}.",
                hint="Leave quant.static out of the recipe.",
            )
        if scheme.symmetric and scheme.activation.startswith("u"):
            raise PlanError(
                f"{backend.name} wants zero points of 0 with {scheme.activation}, which has no negatives."
            )
        return scheme


@dataclasses.dataclass
class _Photographs:
    """Those that measure ranges, read anew at every pass, and those kept apart to judge by."""

    split: Split
    preprocess: Preprocess
    limit: int

    def __call__(self) -> Iterator[tuple[str, Array]]:
        """Yield the photographs to calibrate with, one by one."""
        return (photo for number, photo in enumerate(self._all()) if not self._is_held_out(number))

    def judges(self) -> list[Array]:
        """Return photographs kept apart; where there are too few to keep any, those that calibrate."""
        kept = [
            pixels
            for number, (_, pixels) in enumerate(self._all(JUDGES * HELD_OUT))
            if self._is_held_out(number)
        ]
        return kept or [pixels for _, pixels in self()]

    def correctors(self) -> list[Array]:
        """Return the first photographs to calibrate with."""
        return [pixels for _, (_, pixels) in zip(range(CORRECTORS), self(), strict=False)]

    @property
    def held_out(self) -> bool:
        """Tell whether there are enough photographs to keep some apart."""
        return min(self.limit, len(self.split)) >= HELD_OUT

    def _is_held_out(self, number: int) -> bool:
        return number % HELD_OUT == HELD_OUT - 1

    def _all(self, most: int | None = None) -> Iterator[tuple[str, Array]]:
        limit = self.limit if most is None else min(self.limit, most)
        for batch in self.split.batches(8, self.preprocess, limit):
            for photo, pixels in zip(batch.photos, batch.inputs, strict=True):
                yield str(photo.path), pixels[None]


def _photographs(model: Model, context: Context, limit: int) -> _Photographs:
    if context.data is None or not len(context.data.calibrate):
        raise StepError(
            "There is no photograph to calibrate with.",
            hint="Give --data with photographs like those on the device.",
        )
    if model.preprocess is None:
        raise StepError(
            "How photographs become this network's input is not known.", hint="Give --preprocess FILE."
        )
    return _Photographs(context.data.calibrate, model.preprocess, limit)


@dataclasses.dataclass
class _Candidate:
    """A float graph, its ranges, and what they become."""

    model: onnx.ModelProto
    calibration: Calibration
    written: Written
    sqnr: float


class _Work:
    """One quantisation: plain, then each recovery method, kept where it helps on photographs held out."""

    def __init__(
        self,
        step: StaticQuantisation,
        given: Model,
        model: onnx.ModelProto,
        scheme: Scheme,
        context: Context,
        photos: _Photographs,
    ) -> None:
        self.step, self.given, self.model = step, given, model
        self.scheme, self.context, self.photos = scheme, context, photos
        self.judges = photos.judges()
        #: names of the layers that compute in float
        self.floats: frozenset[str] = frozenset()

    def run(self) -> Written:
        from penjing_quant.bias_correction import correct_bias
        from penjing_quant.equalise import equalise
        from penjing_quant.layers import first

        calibration = self.calibrate(self.model)
        self.floats = first(self.model, self.float_layers(calibration))
        best = self.candidate(self.model, calibration)
        sqnr = {"plain": best.sqnr}
        self.warn_of_ranges(best.calibration)
        pairs: list[str] = []
        if best.written.integer and self.step.equalise:
            model, pairs = equalise(self.model)
            if pairs:
                equal = self.candidate(model, self.calibrate(model))
                sqnr["equalised"] = equal.sqnr
                if equal.sqnr > best.sqnr:
                    best = equal
                else:
                    pairs = []
        if best.written.integer and self.step.bias_correction:
            model = correct_bias(best.model, best.written, self.photos.correctors())
            corrected = self.candidate(model, best.calibration)
            sqnr["bias_corrected"] = corrected.sqnr
            if corrected.sqnr > best.sqnr:
                best = corrected
        self.tell(best, sqnr, pairs)
        return best.written

    def float_layers(self, calibration: Calibration) -> int:
        """Return how many layers are to compute in float."""
        from penjing_quant.layers import fastest, first, layers, stem

        device, backend, count = self.context.device, self.context.backend, len(layers(self.model))
        if self.step.float_layers is not None:
            return min(self.step.float_layers, count)
        if self.scheme.placement != "all":
            return 0
        usual = stem(self.model) if device.arch == "x86_64" else 0
        usual = usual if usual < count else 0
        if not self.step._times(device, backend):
            if any(node.op_type == "HardSwish" for node in self.model.graph.node):
                self.context.warn(
                    "HardSwish has no integer kernel, so that integers may be slower than float. Compress on the "
                    "device itself, where timing decides which layers stay float, or set float_layers."
                )
            return usual
        with TemporaryDirectory(dir=self.context.folder) as folder:

            def load(number: int) -> Session:
                path = Path(folder) / f"{number}.onnx"
                path.write_bytes(
                    self.write(self.model, calibration, first(self.model, number)).model.SerializeToString()
                )
                return backend.open(self.given.become("onnx", path), device)

            image = self.judges[0].repeat(self.given.inputs[0].shape[0] or 1, axis=0)
            choice = fastest(usual, count, load, image, self.context.progress)
        self.context.details["float_layers_timed"] = {
            str(count): round(share, 3) for count, share in choice.relative.items()
        }
        return choice.count

    def calibrate(self, model: onnx.ModelProto) -> Calibration:
        """Measure the ranges of `model`."""
        import onnx_ir as ir

        from penjing_quant.calibrate import calibrate
        from penjing_quant.placement import observed

        tensors = observed(ir.from_proto(model).graph, self.scheme, self.floats)
        step = self.step
        return calibrate(
            model, tensors, self.photos, self.scheme, step.method, step.percentile, self.context.progress
        )

    def write(self, model: onnx.ModelProto, calibration: Calibration, floats: frozenset[str]) -> Written:
        """Quantise `model`, with the layers `floats` in float and their weights packed."""
        from penjing_quant.layers import pack
        from penjing_quant.write import write

        per_channel = self.step.per_channel
        written = write(model, calibration.ranges, self.scheme, floats, per_channel=per_channel)
        if not floats or self.scheme.placement != "all":
            return written
        return dataclasses.replace(written, model=pack(written.model, floats, self.scheme))

    def candidate(self, model: onnx.ModelProto, calibration: Calibration) -> _Candidate:
        """Quantise `model` with known ranges, and judge the result against the float model that was given."""
        from penjing_quant.session import Network, sqnr

        written = self.write(model, calibration, self.floats)
        if not written.integer and not self.floats:
            return _Candidate(model, calibration, written, float("inf"))
        decibels = sqnr(Network(self.model), Network(written.model, simulated=True), self.judges)
        return _Candidate(model, calibration, written, decibels)

    def warn_of_ranges(self, calibration: Calibration) -> None:
        from penjing_quant.session import only_input

        image = only_input(self.model).name
        constant = list(calibration.constant)
        if image in constant:
            self.context.warn(
                f"All calibration photographs are one same value at the network's input {image}: "
                "the ranges measured mean nothing for others."
            )
        elif constant:
            more = f" and {len(constant) - 3} more" if len(constant) > 3 else ""
            self.context.warn(
                f"These tensors never change over the photographs: {', '.join(constant[:3])}{more}."
            )
        if not self.photos.held_out:
            self.context.warn(
                f"Fewer than {HELD_OUT} photographs calibrate: what helps is judged by the same ones."
            )

    def tell(self, best: _Candidate, sqnr: dict[str, float], pairs: list[str]) -> None:
        """Fill in what the report tells."""
        names = {node.name: node.op_type for node in self.model.graph.node}
        total, done = Counter(names.values()), Counter(names[name] for name in best.written.integer)
        self.context.details.update(
            method=self.step.method,
            photographs=best.calibration.photographs,
            photographs_held_out=len(self.judges) if self.photos.held_out else 0,
            tensors=len(best.written.tensors),
            quantised={op: [done[op], total[op]] for op in ("Conv", "Gemm", "MatMul") if total[op]},
            float_layers=len(self.floats),
            left_float=[dataclasses.asdict(left) for left in best.written.left],
            sqnr_db={name: round(value, 2) for name, value in sqnr.items() if value != float("inf")},
            equalised=pairs,
        )
