"""Measuring models beside each other: answers on the same photographs, time in interleaved runs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from penjing import interval, promise
from penjing.errors import PluginError, StepError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from penjing.data import Batch, Split
    from penjing.model import Model
    from penjing.preprocess import Preprocess
    from penjing.step import Progress, Session
    from penjing.task import Task

    Array = npt.NDArray[Any]

#: photographs taken together where the model leaves its batch open
BATCH = 8


@dataclasses.dataclass
class Tally:
    """What one model answered, photograph by photograph, beside the original on the same ones."""

    #: right or not; empty without labels
    right: list[bool] = dataclasses.field(default_factory=list)
    #: same answer as the original; empty where the task knows no answers
    agrees: list[bool] = dataclasses.field(default_factory=list)
    #: power of the original's outputs and of the difference from them, over all outputs; None where an output
    #: is not finite, or of another shape than the original's
    signal: float | None = 0.0
    noise: float | None = 0.0
    n: int = 0

    @property
    def sqnr(self) -> float | None:
        """Return the signal to quantisation noise ratio in decibels, 200 at most; None where it is not finite."""
        import math

        if self.signal is None or self.noise is None or self.signal <= 0:
            return None
        return 200.0 if self.noise <= 0 else min(200.0, 10 * math.log10(self.signal / self.noise))


def answer(
    sessions: Mapping[str, Session],
    model: Model,
    split: Split,
    preprocess: Preprocess,
    task: Task,
    progress: Progress,
) -> dict[str, Tally]:
    """Run every photograph of `split` through every session; the one called "original" is the reference.

    Each photograph is read once for all of them. A last batch smaller than the model's fixed batch is filled
    up with zeros, and what comes of those is dropped.
    """
    tallies = {name: Tally() for name in sessions}
    fixed = model.inputs[0].shape[0]
    progress.begin(f"scoring on {split.name}", len(split))
    for batch in split.batches(fixed or BATCH, preprocess):
        reference = _run(sessions["original"], batch.inputs, fixed)
        for name, session in sessions.items():
            outputs = reference if name == "original" else _run(session, batch.inputs, fixed)
            _count(tallies[name], outputs, reference, batch, task)
        progress.advance(len(batch.inputs))
    progress.end(f"{tallies['original'].n} photographs")
    if not tallies["original"].n:
        raise StepError(
            f"No photograph of the {split.name} split can be read.", hint="See the broken files above."
        )
    return tallies


def _run(session: Session, inputs: Array, fixed: int | None) -> list[Array]:
    import numpy as np

    count = len(inputs)
    if fixed and count < fixed:
        inputs = np.concatenate([inputs, np.zeros((fixed - count, *inputs.shape[1:]), inputs.dtype)])
    with promise.kept("The backend", "running a model"):
        outputs = session(inputs)
    if not (isinstance(outputs, list | tuple) and outputs and all(_is_array(output) for output in outputs)):
        raise PluginError(f"The backend answers with no list of arrays of numbers, but {outputs!r:.80}.")
    return [output[:count] if output.ndim and len(output) == len(inputs) else output for output in outputs]


def _is_array(output: object) -> bool:
    import numpy as np

    return isinstance(output, np.ndarray) and output.dtype.kind in "bfiu"


def _count(tally: Tally, outputs: list[Array], reference: list[Array], batch: Batch, task: Task) -> None:
    import numpy as np

    with promise.kept(task.name, "score"):
        if batch.labels is not None and (right := task.score(outputs, batch.labels)) is not None:
            tally.right += [bool(value) for value in right]
    with promise.kept(task.name, "agreement"):
        if (agrees := task.agreement(outputs, reference)) is not None:
            tally.agrees += [bool(value) for value in agrees]
    for output, wanted in zip(outputs, reference, strict=True):
        if np.issubdtype(wanted.dtype, np.floating):
            tally.signal = _add(tally.signal, wanted)
            tally.noise = _add(tally.noise, _difference(output, wanted))
    tally.n += len(batch.inputs)


def _difference(output: Array, wanted: Array) -> Array | None:
    import numpy as np

    if output.shape != wanted.shape:
        return None
    with np.errstate(invalid="ignore"):  # infinity less infinity: not a number, and counted as such
        difference: Array = np.subtract(output, wanted, dtype=np.float64)
    return difference


def _add(power: float | None, values: Array | None) -> float | None:
    """Return `power` and that of `values` together; None once something is not finite."""
    import math

    import numpy as np

    if power is None or values is None:
        return None
    total = power + float(np.square(values, dtype=np.float64).sum())
    return total if math.isfinite(total) else None


def accuracy(tally: Tally, original: Tally | None, metric: str) -> dict[str, Any] | None:
    """Return the report's `accuracy` record; with the drop from `original` where that is given."""
    if not tally.right:
        return None
    n, right = len(tally.right), sum(tally.right)
    record: dict[str, Any] = {
        "metric": metric,
        "value": right / n,
        "n": n,
        "interval": list(interval.share(right, n)),
        "drop": None,
        "drop_interval": None,
        "retained": None,
    }
    if original is not None:
        pairs = list(zip(original.right, tally.right, strict=True))
        lost, won = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
        low, high = interval.paired_drop(lost, won, n)
        record |= {
            "drop": 100 * (lost - won) / n,
            "drop_interval": [100 * low, 100 * high],
            "retained": right / sum(original.right) if any(original.right) else None,
        }
    return record


def fidelity(tally: Tally) -> dict[str, Any]:
    """Return the report's `fidelity` record."""
    n, same = len(tally.agrees), sum(tally.agrees)
    return {
        "agreement": same / n if n else None,
        "agreement_interval": list(interval.share(same, n)) if n else None,
        "sqnr_db": tally.sqnr,
        "n": tally.n,
    }


@dataclasses.dataclass(frozen=True)
class Timing:
    """How models were timed beside each other: seconds for each run, in rounds A B C, A B C and so on."""

    rounds: Mapping[str, Sequence[Sequence[float]]]
    batch: int
    threads: int

    def record(self, name: str) -> dict[str, Any]:
        """Return the report's `latency` record of one of them.

        The speed-up is the median over rounds of original over this one, so that what slows the machine for
        a while slows both; its interval is that median's, by order statistics.
        """
        runs = [seconds for block in self.rounds[name] for seconds in block]
        middle, low, high = interval.median(runs)
        ratio = [
            interval.median(theirs)[0] / interval.median(own)[0]
            for theirs, own in zip(self.rounds["original"], self.rounds[name], strict=True)
        ]
        speedup, slowest, fastest = interval.median(ratio)
        return {
            "median_ms": 1e3 * middle,
            "p90_ms": 1e3 * interval.percentile(runs, 0.9),
            "median_interval": [1e3 * low, 1e3 * high],
            "throughput_per_s": self.batch / middle,
            "runs": len(runs),
            "threads": self.threads,
            "speedup": speedup,
            "speedup_interval": [slowest, fastest],
        }


def interleave(
    sessions: Mapping[str, Session],
    inputs: Array,
    *,
    threads: int,
    seconds: float,
    progress: Progress,
    rounds: int = 15,
    what: str = "timing, interleaved",
) -> Timing:
    """Time sessions on the same input, one block of runs each in turn, about `seconds` in all.

    The first runs of a block warm caches and clocks after another model used them, and are not counted.
    """
    for session in sessions.values():
        for _ in range(3):
            session(inputs)
    one = {name: max(_seconds(session, inputs), 1e-6) for name, session in sessions.items()}
    # a block costs five runs at least: slow networks get fewer rounds rather than minutes of them
    rounds = max(5, min(rounds, int(seconds / (5 * sum(one.values())))))
    share = seconds / rounds / len(sessions)
    blocks: dict[str, list[list[float]]] = {name: [] for name in sessions}
    progress.begin(what, rounds)
    for _ in range(rounds):
        for name, session in sessions.items():
            count = max(3, min(200, int(share / one[name])))
            for _ in range(2):
                session(inputs)
            blocks[name].append([_seconds(session, inputs) for _ in range(count)])
        progress.advance()
    progress.end()
    return Timing(blocks, len(inputs), threads)


def _seconds(session: Session, inputs: np.ndarray[Any, Any]) -> float:
    start = time.perf_counter()
    session(inputs)
    return time.perf_counter() - start
