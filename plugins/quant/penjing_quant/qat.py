"""quant.qat: train with the integers in place, so that the weights learn to live with them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from penjing.errors import PlanError, StepError, first_line
from penjing.options import option
from penjing.step import Backend, Context
from penjing_training import TeacherOptions, TrainingOptions

from penjing_quant.quantiser import Quantiser
from penjing_quant.static import StaticQuantisation

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx
    from penjing.device import Device
    from penjing.model import Model
    from typing_extensions import Self

    from penjing_quant.calibrate import Calibration
    from penjing_quant.quantiser import Candidate
    from penjing_quant.trainable import Trainable

    Array = npt.NDArray[np.float32]

#: how well a graph in PyTorch has to agree with the same in ONNX Runtime, in dB
FLOAT_AGREES, INTEGERS_AGREE = 40.0, 20.0


@dataclasses.dataclass(frozen=True)
class QuantisationAwareTraining(TeacherOptions, TrainingOptions, StaticQuantisation):
    """Turn weights and activations into 8-bit integers as quant.static does, then train with them in place."""

    name = "quant.qat"
    needs = frozenset({"calibration", "training"})

    learning_rate: float = option(1e-4, "Highest learning rate.", between=(0, 100))
    learn_scales: bool = option(False, "Learn the scales of weights and activations too.")

    def check(self, device: Device, backend: Backend) -> None:
        """Raise PlanError where quant.static would, and for two ways of learning that undo each other."""
        super().check(device, backend)
        if self.adaround and self.epochs:
            raise PlanError(
                "quant.qat trains the weights, which undoes what AdaRound learns about rounding them.",
                hint="Leave out adaround = true, or use quant.static.",
            )

    def explain(self, device: Device, backend: Backend) -> str:
        """Say that training follows."""
        return f"{super().explain(device, backend)} Then {self.epochs} epochs of training, the float network teaching."

    def naive(self) -> Self:
        """Return quant.static's naive form: no recovery, and so no training."""
        return dataclasses.replace(super().naive(), epochs=0)

    def apply(self, model: Model, context: Context) -> Model:
        """Return the model as a Q/DQ graph whose weights were trained with the integers in place."""
        quantiser = _Together(self, model, self._scheme(context.device, context.backend), context)
        best = quantiser.run()
        if self.epochs and best.written.integer:
            start, best = best, self._trained(model, quantiser, best)
            if best is not start:
                quantiser.tried["trained"] = best.sqnr
        quantiser.tell(best)
        return self._finish(model, quantiser, best)

    def _trained(self, model: Model, quantiser: Quantiser, best: Candidate) -> Candidate:
        """Train the graph of a candidate, and write it anew with what it learnt; itself where that was no better."""
        from penjing_training.loop import train
        from penjing_training.objective import Distil

        from penjing_quant.trainable import Trainable

        context = quantiser.context
        # the first layers compute in float: their weights are packed afterwards
        graph = quantiser.write(best.model, best.calibration, (), exact=quantiser.floats).model
        teacher, student = (
            Trainable(quantiser.model),
            Trainable(
                best.model, graph, quantiser.scheme, bits=self.weight_bits, learn_scales=self.learn_scales
            ),
        )
        _settle(teacher, quantiser.model, quantiser, FLOAT_AGREES)
        student.one_by_one = teacher.one_by_one
        _settle(student, graph, quantiser, INTEGERS_AGREE)
        objective = Distil(
            model.become("torch", teacher),
            temperature=self.temperature,
            weight=self.weight,
            label_smoothing=self.label_smoothing,
        )
        trained = train(student, self, model, context, objective=objective, keep_frozen=True)
        assert isinstance(trained, Trainable)
        if not context.details["training"]["best"]:
            return best  # the user was warned
        weights = _with(best.model, trained)
        calibration = dataclasses.replace(best.calibration, ranges=trained.ranges(best.calibration.ranges))
        return quantiser.candidate(weights, weights, calibration, trained.rounding())


class _Together(Quantiser):
    """One quantisation in every process that trains: what the clock decides, rank 0 decides for all."""

    def float_layers(self, calibration: Calibration) -> int:
        """Return how many layers, from the first on, are to compute in float."""
        ranks = self.context.ranks
        count: int = ranks.tell(super().float_layers(calibration) if ranks.first else None)
        return count


def _with(model: onnx.ModelProto, trained: Trainable) -> onnx.ModelProto:
    """Return a graph with trained weights and biases."""
    import onnx
    from onnx import numpy_helper

    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    learnt = trained.initialisers()
    for tensor in changed.graph.initializer:
        if tensor.name in learnt:
            tensor.CopyFrom(numpy_helper.from_array(learnt[tensor.name], tensor.name))
    return changed


def _settle(module: Trainable, graph: onnx.ModelProto, quantiser: Quantiser, enough: float) -> None:
    """Let a module take batches, or images one by one where batches give something else than ONNX Runtime does.

    Raises StepError where neither agrees.
    """
    decibels = float("-inf")
    for one_by_one in (True,) if module.one_by_one else (False, True):
        module.one_by_one = one_by_one
        try:
            decibels = _agreement(module, graph, quantiser.judges)
        except (RuntimeError, NotImplementedError, ValueError, KeyError) as error:
            if one_by_one:
                raise StepError(
                    f"This network cannot be trained as a graph: {first_line(error)}",
                    hint="Use quant.static, and recover its accuracy before onnx.export with distill.logits.",
                ) from error
            continue
        if decibels >= enough:
            return
    raise StepError(
        f"This network computes something else in PyTorch: {decibels:.1f} dB, under {enough:.0f}.",
        hint="Use quant.static, and recover its accuracy before onnx.export with distill.logits.",
    )


def _agreement(module: Trainable, graph: onnx.ModelProto, photographs: list[Array]) -> float:
    """Return in dB how well a module agrees with its graph in ONNX Runtime; below all where shapes differ."""
    import numpy as np
    import torch

    from penjing_quant.session import Network, Power

    network, power = Network(graph, simulated=True), Power()
    chosen = (photographs * 2)[:4]
    wanted = [network(pixels) for pixels in chosen]
    with torch.no_grad():
        found = module(torch.from_numpy(np.concatenate(chosen)))
    outputs = found if isinstance(found, tuple) else (found,)
    for index, name in enumerate(wanted[0]):
        expected = np.concatenate([answer[name] for answer in wanted])
        got = outputs[index].numpy()
        if got.shape != expected.shape:
            return float("-inf")
        power.add(expected, got)
    return 300.0 if power.decibels is None else power.decibels
