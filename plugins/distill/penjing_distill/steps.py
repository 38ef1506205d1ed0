"""The steps: which network learns, and from what of the teacher."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from penjing.errors import PlanError, StepError
from penjing.options import option
from penjing.step import Source, Technique
from penjing_training import TeacherOptions, TrainingOptions

if TYPE_CHECKING:
    from penjing.device import Device
    from penjing.model import Model
    from penjing.step import Backend, Context, Open
    from penjing_training.objective import Distil


@dataclasses.dataclass(frozen=True)
class _Taught(TrainingOptions, TeacherOptions, Technique):
    """What all steps share that learn from a teacher: the original model unless another is named."""

    accepts = frozenset({"torch"})
    produces = "torch"
    needs = frozenset({"training"})

    teacher: str = option("", "Source of the teacher; empty is the original model.")
    teacher_weights: str = option("", "File of weights for the teacher named.")

    def check(self, device: Device, backend: Backend) -> None:
        """Raise PlanError for weights of a teacher that is not named."""
        if self.teacher_weights and not self.teacher:
            raise PlanError(
                f"{self.name} has teacher_weights, and no teacher to load them into.",
                hint='Name its source: teacher = "torchvision:NAME?num_classes=N".',
            )

    def explain(self, device: Device, backend: Backend) -> str:
        """Say who teaches, and for how long."""
        teacher = self.teacher or "the original model"
        return f"{super().explain(device, backend)[:-1]}: {teacher} teaches, {self.epochs} epochs."

    def sources(self) -> tuple[Source, ...]:
        """Return the teacher, where one is named."""
        return (_source(self.teacher, self.teacher_weights),) if self.teacher else ()

    def apply(self, model: Model, context: Context) -> Model:
        """Train a copy of the network."""
        from penjing_training.loop import train

        network = train(model.value, self, model, context, objective=self.objective(context))
        return model.become("torch", network)

    def objective(self, context: Context) -> Distil:
        """Return what training makes small."""
        from penjing_training.objective import Distil

        return Distil(
            self.teach(context),
            temperature=self.temperature,
            weight=self.weight,
            label_smoothing=self.label_smoothing,
        )

    def teach(self, context: Context) -> Model:
        """Return the teacher."""
        if self.teacher:
            return context.open(_source(self.teacher, self.teacher_weights))
        if context.original is None:
            raise StepError("There is no original model to learn from.", hint="Name a teacher.")
        return context.original

    def naive(self) -> None:
        """Leave it out: the direct column has no recovery."""
        return


@dataclasses.dataclass(frozen=True)
class Logits(_Taught):
    """Train the network to put out what the teacher does."""

    name = "distill.logits"


@dataclasses.dataclass(frozen=True)
class _Watched(_Taught):
    """What steps share that compare layers inside the networks too."""

    hint: float = option(1.0, "Weight of the layers inside, beside that of the outputs.", between=(0, 1e6))
    layers: tuple[str, ...] = option(
        (), "Names of layers to compare, the same in both networks; empty finds the last of each size."
    )

    #: how the layers inside are compared
    how = "features"

    def objective(self, context: Context) -> Distil:
        """Return what training makes small."""
        from penjing_distill.inside import DISTANCES, Inside

        return Inside(
            self.teach(context),
            distance=DISTANCES[self.how],
            hint=self.hint,
            layers=self.layers,
            temperature=self.temperature,
            weight=self.weight,
            label_smoothing=self.label_smoothing,
        )


@dataclasses.dataclass(frozen=True)
class Features(_Watched):
    """Train the network to put out, and to compute on the way, what the teacher does."""

    name = "distill.features"


@dataclasses.dataclass(frozen=True)
class Attention(_Watched):
    """Train the network to put out what the teacher does, and to look where it looks."""

    name = "distill.attention"
    how = "attention"


@dataclasses.dataclass(frozen=True)
class Student(_Taught):
    """Train another network, smaller than the teacher, in its place."""

    name = "distill.student"
    student: str = option(
        "",
        "Source of the network to train, such as torchvision:mobilenet_v3_small?num_classes=10&weights=none.",
    )
    student_weights: str = option("", "File of weights that it begins with.")

    def check(self, device: Device, backend: Backend) -> None:
        """Raise PlanError where no student is named."""
        super().check(device, backend)
        if not self.student:
            raise PlanError(
                f"{self.name} needs a network to train.",
                hint="--set distill.student.student='torchvision:mobilenet_v3_small?num_classes=10&weights=none'",
            )

    def explain(self, device: Device, backend: Backend) -> str:
        """Say which network takes the place of the one given."""
        teacher = self.teacher or "the original model"
        return f"Train {self.student} in its place: {teacher} teaches, {self.epochs} epochs."

    def sources(self) -> tuple[Source, ...]:
        """Return the student, and the teacher where one is named."""
        return (self._student(), *super().sources())

    def apply(self, model: Model, context: Context) -> Model:
        """Train the student, which takes the same images and puts out the same classes."""
        from penjing_training.loop import train

        student = context.open(self._student())
        if student.form != "torch":
            raise StepError(
                f"{self.student} is of form {student.form}; only a PyTorch network can be trained.",
                hint="Name a source such as torchvision:NAME or model.py:factory.",
            )
        network = train(student.value, self, model, context, objective=self.objective(context))
        context.details["student"] = {
            name: sum(parameter.numel() for parameter in each.parameters())
            for name, each in (("parameters_before", model.value), ("parameters", network))
        }
        return model.become("torch", network)

    def skeleton(self, model: Model, folder: Path, open_model: Open) -> Model:
        """Return the student as it was opened."""
        return open_model(self._student())

    def _student(self) -> Source:
        return dataclasses.replace(_source(self.student, self.student_weights), alike=True)


def _source(name: str, weights: str) -> Source:
    return Source(name, Path(weights) if weights else None)
