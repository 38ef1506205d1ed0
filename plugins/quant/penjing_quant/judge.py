"""Judging quantised networks on the photographs set aside for choosing: by the task's metric, else by SQNR."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from penjing import interval

from penjing_quant.session import Network, Power

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx
    from penjing.data import Split
    from penjing.preprocess import Preprocess
    from penjing.task import Task

    Array = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How a network does beside the float one it came from."""

    sqnr: float
    #: share of photographs with the same answer; None where the task knows no answers
    agreement: float | None = None
    #: share of photographs answered right; None without labels
    score: float | None = None
    #: points of the task's metric lost, and the 95 % interval; None without labels
    drop: float | None = None
    drop_interval: tuple[float, float] | None = None

    def within(self, bound: float | None, sqnr: float) -> bool:
        """Tell whether no more is lost than may be.

        With labels: the drop is not beyond `bound`, and where it is established to be a drop (its interval leaves
        out 0), the whole interval is not. Without a bound: no drop is established. Without labels: answers differ
        on no more than `bound` % of the photographs, or where there is no bound or no answer, at least `sqnr` dB.
        """
        if self.drop is not None and self.drop_interval is not None:
            low, high = self.drop_interval
            if bound is None:
                return low <= 0
            return self.drop <= bound and (low <= 0 or high <= bound)
        if self.agreement is not None and bound is not None:
            return 100 * (1 - self.agreement) <= bound
        return self.sqnr >= sqnr

    def key(self) -> tuple[float, float]:
        """Return what sorts the better network first."""
        return (self.drop or 0.0, -self.sqnr)

    def no_better_than(self, other: Verdict) -> bool:
        """Tell whether neither the metric nor SQNR is better than `other`'s."""
        return (self.drop or 0.0) >= (other.drop or 0.0) and self.sqnr <= other.sqnr

    def told(self) -> dict[str, Any]:
        """Return the verdict as the report has it."""
        return {
            "sqnr_db": round(self.sqnr, 2),
            **({"agreement": round(self.agreement, 4)} if self.agreement is not None else {}),
            **({"score": round(self.score, 4)} if self.score is not None else {}),
            **({"drop": round(self.drop, 3)} if self.drop is not None else {}),
            **(
                {"drop_interval": [round(end, 3) for end in self.drop_interval]} if self.drop_interval else {}
            ),
        }


class Judge:
    """Holds photographs, and what the float network answers."""

    def __init__(
        self,
        exact: onnx.ModelProto,
        split: Split | None,
        preprocess: Preprocess | None,
        task: Task | None,
        most: int,
        spare: list[Array] | None = None,
    ) -> None:
        """Take `most` photographs of `split`, or `spare` ones, without labels, where it is empty."""
        import numpy as np

        self.task = task
        self.images: list[Array] = []
        labels: list[int] = []
        if split is not None and preprocess is not None:
            for batch in split.batches(8, preprocess, most):
                self.images += [pixels[None] for pixels in batch.inputs]
                labels += [] if batch.labels is None else [int(label) for label in batch.labels]
        self.where = split.name if split is not None and self.images else "calibrate"
        self.images = self.images or spare or []
        self.labels = np.array(labels, np.int64) if len(labels) == len(self.images) else None
        self.names = [output.name for output in exact.graph.output]
        self.expected = self._answers(exact)
        self.right = self._right(self.expected)

    @property
    def labelled(self) -> bool:
        """Tell whether the task's metric decides."""
        return self.right is not None

    def __call__(self, model: onnx.ModelProto) -> Verdict:
        """Return how `model` does."""
        got = self._answers(model)
        powers = [Power() for _ in self.names]
        for power, wanted, values in zip(powers, self.expected, got, strict=True):
            for a, b in zip(wanted, values, strict=True):
                power.add(a, b)
        found = [power.decibels for power in powers]
        verdict = Verdict(min(300.0 if decibels is None else decibels for decibels in found))
        if self.task is not None:
            same = self.task.agreement(self._stacked(got), self._stacked(self.expected))
            verdict = dataclasses.replace(verdict, agreement=None if same is None else float(same.mean()))
        right = self._right(got)
        if self.right is None or right is None:
            return verdict
        n = len(right)
        lost, won = int((self.right & ~right).sum()), int((right & ~self.right).sum())
        low, high = interval.paired_drop(lost, won, n)
        return dataclasses.replace(
            verdict,
            score=float(right.mean()),
            drop=100 * (lost - won) / n,
            drop_interval=(100 * low, 100 * high),
        )

    def _answers(self, model: onnx.ModelProto) -> list[list[Array]]:
        """Return each output's values for each photograph [1, …]."""
        network = Network(model, simulated=True)
        answers: list[list[Array]] = [[] for _ in self.names]
        for pixels in self.images:
            for kept, values in zip(answers, network(pixels).values(), strict=True):
                kept.append(values[:1] if values.ndim else values)
        return answers

    def _stacked(self, answers: list[list[Array]]) -> list[Array]:
        import numpy as np

        return [np.concatenate([np.atleast_1d(one) for one in values]) for values in answers]

    def _right(self, answers: list[list[Array]]) -> npt.NDArray[np.bool_] | None:
        if self.labels is None or self.task is None:
            return None
        return self.task.score(self._stacked(answers), self.labels)
