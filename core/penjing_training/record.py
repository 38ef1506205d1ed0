"""What a training tells: progress while it runs, curves in the report, scalars for TensorBoard."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penjing.errors import StepError
from penjing.exhibit import Lines

if TYPE_CHECKING:
    from penjing.step import Context

    from penjing_training.score import Score

#: points of a curve in the report
POINTS = 200
#: losses from here on are not drawn
DRAWN = 1e9


@dataclasses.dataclass
class Record:
    """The course of a training, as JSON that a checkpoint keeps."""

    steps: int
    #: mean loss over a stretch of steps, with the step at its end
    loss: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    #: steps done, loss on select, share that is right
    select: list[tuple[int, float, float | None]] = dataclasses.field(default_factory=list)
    stretch: list[float] = dataclasses.field(default_factory=list)

    def step(self, step: int, loss: float) -> None:
        """Note the loss of a step, counted from 1."""
        self.stretch.append(loss)
        if len(self.stretch) >= max(1, self.steps // POINTS) or step == self.steps:
            self.loss.append((step, sum(self.stretch) / len(self.stretch)))
            self.stretch = []

    def score(self, step: int, score: Score) -> None:
        """Note the score on select after some steps."""
        self.select.append((step, score.loss, score.accuracy))

    def to_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> Record:
        """Return what a checkpoint kept."""
        loss = [(step, value) for step, value in kept["loss"]]
        select = [(step, value, share) for step, value, share in kept["select"]]
        return cls(kept["steps"], loss, select, kept["stretch"])

    def show(self, context: Context, title: str) -> None:
        """Put the curves into the report."""
        select = [(step, loss) for step, loss, _ in self.select]
        # what a learning rate far too high makes of a loss cannot be drawn beside the rest
        curves = {
            name: [(step, loss) for step, loss in curve if abs(loss) < DRAWN]
            for name, curve in (("training", self.loss), ("select", select))
        }
        context.show(Lines(f"{title}: loss", "step", "loss", {n: c for n, c in curves.items() if len(c) > 1}))
        right = [(step, 100 * share) for step, _, share in self.select if share is not None]
        if len(right) > 1:
            context.show(Lines(f"{title}: right on select", "step", "%", {"select": right}))

    def tensorboard(self, folder: Path) -> None:
        """Write the curves for TensorBoard; StepError where it is not installed."""
        with _writer(folder) as writer:
            for step, loss in self.loss:
                writer.add_scalar("loss/training", loss, step)
            for step, loss, share in self.select:
                writer.add_scalar("loss/select", loss, step)
                if share is not None:
                    writer.add_scalar("right/select", share, step)


def check_tensorboard() -> None:
    """Raise StepError where TensorBoard is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401 - whether it can be
    except ImportError as error:
        raise StepError(
            "Curves for TensorBoard need a package that is not installed.",
            hint="pip install 'penjing[tensorboard]', or leave out tensorboard=true.",
        ) from error


def _writer(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


class Clock:
    """How long the rest will take."""

    def __init__(self, steps: int, start: int) -> None:
        self._left, self._done, self._start = steps - start, 0, time.monotonic()

    def tick(self) -> None:
        """Note that a step is done."""
        self._done += 1

    def left(self) -> str:
        """Return the time left in words."""
        seconds = (time.monotonic() - self._start) / max(1, self._done) * (self._left - self._done)
        if seconds < 90:
            return f"{seconds:.0f} s left"
        return f"{seconds / 60:.0f} min left" if seconds < 5400 else f"{seconds / 3600:.1f} h left"
