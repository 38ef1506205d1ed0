"""Tasks: how what a model puts out is scored, photograph by photograph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from penjing.errors import StepError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from penjing.model import Model

    Outputs = Sequence[npt.NDArray[Any]]


class Task(ABC):
    """A way to score outputs. Every method takes the outputs of one batch and answers for each photograph."""

    name: ClassVar[str]
    #: what `score` measures, as the report prints it
    metric: ClassVar[str]

    @abstractmethod
    def fits(self, model: Model) -> bool:
        """Tell whether a model puts out what this task scores."""

    @abstractmethod
    def score(self, outputs: Outputs, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_] | None:
        """Return whether each photograph is right, shape [N]; None where the task has no labels to score by."""

    @abstractmethod
    def agreement(self, outputs: Outputs, reference: Outputs) -> npt.NDArray[np.bool_] | None:
        """Return whether each photograph gets the same answer as in `reference`, shape [N]; None where undefined."""


class Classification(Task):
    """The class with the highest of the scores [N, classes] in the first output."""

    name = "classification"
    metric = "top-1"

    def fits(self, model: Model) -> bool:
        """Tell whether the first output is [N, classes] with two classes or more."""
        shape = model.outputs[0].shape if model.outputs else ()
        return len(shape) == 2 and shape[1] is not None and shape[1] > 1

    def score(self, outputs: Outputs, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return whether the highest score is the label's."""
        mine = answers(outputs)
        _check_count(mine, len(labels))
        right: npt.NDArray[np.bool_] = mine == labels
        return right

    def agreement(self, outputs: Outputs, reference: Outputs) -> npt.NDArray[np.bool_]:
        """Return whether the highest score is of the same class."""
        mine, wanted = answers(outputs), answers(reference)
        _check_count(mine, len(wanted))
        same: npt.NDArray[np.bool_] = (mine == wanted) & (wanted >= 0)
        return same


class Fidelity(Task):
    """Outputs of any shape: only their distance to those of the original can be told."""

    name = "fidelity"
    metric = "SQNR"

    def fits(self, model: Model) -> bool:
        """Fit every model."""
        return True

    def score(self, outputs: Outputs, labels: npt.NDArray[np.int64]) -> None:
        """Score nothing."""

    def agreement(self, outputs: Outputs, reference: Outputs) -> None:
        """Leave it to the signal to quantisation noise ratio."""


def _check_count(mine: npt.NDArray[np.int64], wanted: int) -> None:
    """Raise StepError for another number of answers than photographs, which numpy might stretch to as many."""
    if len(mine) != wanted:
        raise StepError(
            f"The model answers {len(mine)} photographs of {wanted} that it was given together.",
            hint="Its first output must have a row for each image of the batch.",
        )


def answers(outputs: Outputs) -> npt.NDArray[np.int64]:
    """Return the class of each photograph, or -1 where a score is not a number: such an answer is never right."""
    import numpy as np

    scores = np.asarray(outputs[0], np.float64)
    best = scores.argmax(axis=1).astype(np.int64)
    return np.where(np.isnan(scores).any(axis=1), -1, best)
