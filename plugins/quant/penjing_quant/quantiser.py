"""One quantisation: plain, then each way of recovering accuracy, kept where it helps on photographs held out."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from penjing.errors import StepError, did_you_mean

from penjing_quant.photographs import CORRECTORS, HELD_OUT, photographs

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx
    from penjing.model import Model
    from penjing.step import Context, Scheme, Session

    from penjing_quant.calibrate import Calibration, Method
    from penjing_quant.integers import Weight
    from penjing_quant.static import StaticQuantisation
    from penjing_quant.write import Written

    Array = npt.NDArray[np.float32]

#: why a layer stays float, as the report says it
BY_NAME = "it was excluded by name"
BY_TIME = "one of the first layers, which integers make no faster"
#: dB; below this, other ways to choose ranges are tried for symmetric integers, of whose 8 bits one is lost on
#: activations that are never negative, so that what a range keeps matters more
POOR = 20.0
OTHERS: tuple[Method, ...] = ("average", "mse")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A float graph, its ranges, and what they become."""

    #: whose weights become integers
    model: onnx.ModelProto
    #: the same tensors, computed as the float network that was given computes them
    exact: onnx.ModelProto
    calibration: Calibration
    written: Written
    #: of the outputs, in dB, on the photographs held out
    sqnr: float
    #: weights rounded otherwise than to the nearest code, by the name of their layer
    rounding: Mapping[str, Weight] = dataclasses.field(default_factory=dict)


class Quantiser:
    """Quantises one network as the options of a step say."""

    def __init__(self, step: StaticQuantisation, given: Model, scheme: Scheme, context: Context) -> None:
        from penjing_quant.graph import load

        self.step, self.given, self.scheme, self.context = step, given, scheme, context
        self.model = load(given.value)
        self.excluded = named(self.model, step.exclude)
        self.photos = photographs(given, context, step.images)
        self.judges = self.photos.judges()
        #: names of the first layers, which compute in float with weights stored as integers
        self.floats: frozenset[str] = frozenset()
        #: how ranges are chosen
        self.method: Method = step.method
        #: SQNR in dB after each attempt, and the pairs of layers that were equalised
        self.tried: dict[str, float] = {}
        self.equalised: list[str] = []

    def run(self) -> Candidate:
        """Return the best of what the options allow."""
        from penjing_quant.layers import first

        calibration = self.calibrate(self.model)
        self.floats = first(self.model, self.float_layers(calibration)) - self.excluded
        best = self.candidate(self.model, self.model, calibration)
        self.tried["plain"] = best.sqnr
        self.warn(best.calibration)
        if best.written.integer and self.step.other_ranges:
            best = self.other_ranges(best)
        if best.written.integer and self.step.equalise:
            best = self.equalise(best)
        if best.written.integer and self.step.bias_correction:
            best = self.correct_bias(best)
        if best.written.integer and self.step.adaround:
            best = self.adaround(best)
        return best

    # -- recovery

    def other_ranges(self, best: Candidate) -> Candidate:
        """Return the best of `best`, whose ranges are by percentile, and of the same with ranges by other methods."""
        if self.method != "percentile" or not self.scheme.symmetric or best.sqnr >= POOR:
            return best
        for method in OTHERS:
            other = self.candidate(self.model, self.model, self.calibrate(self.model, method))
            self.tried[method] = other.sqnr
            if other.sqnr > best.sqnr:
                best, self.method = other, method
        return best

    def equalise(self, best: Candidate) -> Candidate:
        """Return the better of `best` and of the same with neighbouring layers evened out."""
        from penjing_quant.equalise import equalise

        model, pairs = equalise(self.model)
        if not pairs:
            return best
        equal = self.candidate(model, model, self.calibrate(model))
        self.tried["equalised"] = equal.sqnr
        if equal.sqnr <= best.sqnr:
            return best
        self.equalised = pairs
        return equal

    def correct_bias(self, best: Candidate) -> Candidate:
        """Return the better of `best` and of the same with biases that make up for shifts."""
        from penjing_quant.bias_correction import correct_bias

        model = correct_bias(best.model, best.written, self.photos.first(CORRECTORS))
        corrected = self.candidate(model, best.exact, best.calibration)
        self.tried["bias_corrected"] = corrected.sqnr
        return corrected if corrected.sqnr > best.sqnr else best

    def adaround(self, best: Candidate) -> Candidate:
        """Return the better of `best` and of the same with each weight rounded up or down as its layer needs."""
        from penjing_quant.adaround import Rounder

        rounder = Rounder(best, self.scheme, self.step, self.context)
        rounding = rounder.run(self.photos)
        rounded = self.candidate(best.model, best.exact, best.calibration, rounding)
        self.tried["adaround"] = rounded.sqnr
        return rounded if rounded.sqnr > best.sqnr else best

    # -- parts

    def float_layers(self, calibration: Calibration) -> int:
        """Return how many layers, from the first on, are to compute in float."""
        from penjing_quant.layers import fastest, first, layers, stem

        device, backend, count = self.context.device, self.context.backend, len(layers(self.model))
        if self.step.float_layers is not None:
            return min(self.step.float_layers, count)
        if self.scheme.placement != "all":
            return 0
        usual = stem(self.model) if device.arch == "x86_64" else 0
        usual = usual if usual < count else 0
        if not self.step.times(device, backend):
            if any(node.op_type == "HardSwish" for node in self.model.graph.node):
                self.context.warn(
                    "HardSwish has no integer kernel, so that integers may be slower than float. Compress on the "
                    "device itself, where timing decides which layers stay float, or set float_layers."
                )
            return usual
        with TemporaryDirectory(dir=self.context.folder) as folder:

            def load(number: int) -> Session:
                path = Path(folder) / f"{number}.onnx"
                written = self.write(self.model, calibration, first(self.model, number) - self.excluded)
                path.write_bytes(written.model.SerializeToString())
                return backend.open(self.given.become("onnx", path), device)

            image = self.judges[0].repeat(self.given.inputs[0].shape[0] or 1, axis=0)
            choice = fastest(usual, count, load, image, self.context.progress)
        self.context.details["float_layers_timed"] = {
            str(count): round(share, 3) for count, share in choice.relative.items()
        }
        return choice.count

    def calibrate(self, model: onnx.ModelProto, method: Method | None = None) -> Calibration:
        """Measure the ranges of `model`, by the method in use where none is named."""
        import onnx_ir as ir

        from penjing_quant.calibrate import calibrate
        from penjing_quant.placement import observed

        tensors = observed(ir.from_proto(model).graph, self.scheme, self.floats | self.excluded)
        method = method or self.method
        return calibrate(
            model, tensors, self.photos, self.scheme, method, self.step.percentile, self.context.progress
        )

    def write(
        self,
        model: onnx.ModelProto,
        calibration: Calibration,
        packed: Collection[str],
        rounding: Mapping[str, Weight] | None = None,
        exact: Collection[str] = (),
        original: onnx.ModelProto | None = None,
    ) -> Written:
        """Quantise `model`. Layers `packed` compute in float, their weights stored as 8 bits.

        Those in `exact` compute in float with the weights and biases that they have in `original`, where
        nothing makes up for quantisation.
        """
        from penjing_quant.layers import pack
        from penjing_quant.write import write

        if original is not None and original is not model:
            model = restored(model, original, {*exact, *packed})
        written = write(
            model,
            calibration.ranges,
            self.scheme,
            self.excluded.union(packed, exact),
            per_channel=self.step.per_channel,
            bits=self.step.weight_bits,
            rounding=rounding,
        )
        if not packed or self.scheme.placement != "all":
            return written
        return dataclasses.replace(written, model=pack(written.model, packed, self.scheme))

    def candidate(
        self,
        model: onnx.ModelProto,
        exact: onnx.ModelProto,
        calibration: Calibration,
        rounding: Mapping[str, Weight] | None = None,
    ) -> Candidate:
        """Quantise `model` with known ranges, and judge the result against the float model that was given."""
        from penjing_quant.session import Network, sqnr

        written = self.write(model, calibration, self.floats, rounding)
        decibels = float("inf")
        if written.integer or self.floats:
            decibels = sqnr(Network(self.model), Network(written.model, simulated=True), self.judges)
        return Candidate(model, exact, calibration, written, decibels, rounding or {})

    # -- telling

    def warn(self, calibration: Calibration) -> None:
        """Tell the user what makes ranges or judgement doubtful."""
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
        if self.step.weight_bits == 4:
            self.context.warn(
                "Weights of 4 bits are simulated: their codes, -8 to 7, are stored as 8 bits, so that accuracy is "
                "that of 4 bits while the file is no smaller and nothing runs faster than with 8."
            )

    def tell(self, best: Candidate, why: Mapping[str, str] | None = None) -> None:
        """Fill in what the report tells; `why` has the reasons of layers that stay float, by name."""
        names = {node.name: node.op_type for node in self.model.graph.node}
        total, done = Counter(names.values()), Counter(names[name] for name in best.written.integer)
        reasons = (
            dict.fromkeys(self.floats, BY_TIME) | dict.fromkeys(self.excluded, BY_NAME) | dict(why or {})
        )
        self.context.details.update(
            method=self.method,
            photographs=best.calibration.photographs,
            photographs_held_out=len(self.judges) if self.photos.held_out else 0,
            tensors=len(best.written.tensors),
            quantised={op: [done[op], total[op]] for op in ("Conv", "Gemm", "MatMul") if total[op]},
            float_layers=len(self.floats),
            left_float=[
                {**dataclasses.asdict(left), "why": reasons.get(left.node, left.why)}
                for left in best.written.left
            ],
            sqnr_db={name: round(value, 2) for name, value in self.tried.items() if value != float("inf")},
            equalised=self.equalised,
        )
        if self.step.weight_bits == 4:
            self.context.details["weight_bits"] = "4, simulated"


def restored(model: onnx.ModelProto, original: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """Return `model` with the layers `names` as they are in `original`, weights and biases with them."""
    import onnx

    from penjing_quant.session import reads

    result = onnx.ModelProto()
    result.CopyFrom(model)
    before = {node.name: node for node in original.graph.node if node.name in names}
    constants = {tensor.name: tensor for tensor in original.graph.initializer}
    added: set[str] = set()
    for node in result.graph.node:
        if (old := before.get(node.name)) is None:
            continue
        node.CopyFrom(old)
        for index, entry in enumerate(old.input):
            if index and entry in constants:
                name = f"{entry}.exact"
                node.input[index] = name
                if name not in added:
                    added.add(name)
                    tensor = result.graph.initializer.add()
                    tensor.CopyFrom(constants[entry])
                    tensor.name = name
    used = {entry for node in result.graph.node for entry in reads(node)}
    kept = [tensor for tensor in result.graph.initializer if tensor.name in used]
    del result.graph.initializer[:]
    result.graph.initializer.extend(kept)
    return result


def named(model: onnx.ModelProto, patterns: Collection[str]) -> frozenset[str]:
    """Return the nodes that `patterns` name: each a node, its weight without ".weight", or a pattern of either.

    Raises StepError for one that names nothing, with the nearest names.
    """
    from penjing_quant.graph import WEIGHTED

    names: dict[str, set[str]] = {}
    for node in model.graph.node:
        names.setdefault(node.name, set()).add(node.name)
        if node.op_type in WEIGHTED and len(node.input) > 1:
            names.setdefault(node.input[1].removesuffix(".weight"), set()).add(node.name)
    found: set[str] = set()
    for pattern in patterns:
        matches = [name for name in names if name == pattern or fnmatchcase(name, pattern)]
        if not matches:
            raise StepError(
                f"exclude: {pattern!r} names no node of this network.",
                hint=_nearest(pattern, [name for name in names if name]),
            )
        found.update(node for name in matches for node in names[name])
    return frozenset(found)


def _nearest(pattern: str, names: list[str]) -> str:
    hint = did_you_mean(pattern, names)
    if not hint.startswith("Known") or len(names) <= 20:
        return hint
    return f"Its nodes are {', '.join(names[:10])} and {len(names) - 10} more; patterns may hold * and ?."
