"""Finding the ranges of activations, in memory that does not grow with the number of photographs.

Every photograph goes through the network alone, so that ranges do not depend on how they were batched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from penjing.errors import StepError
from penjing.step import Silent

from penjing_quant.integers import Range, codes
from penjing_quant.session import Network

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx
    from penjing.step import Progress, Scheme

    Array = npt.NDArray[np.float32]
    Counts = npt.NDArray[np.int64]
    #: yields each photograph's name and pixels [1, channels, height, width], from the first at every call
    Photographs = Callable[[], Iterator[tuple[str, Array]]]

Method = Literal["minmax", "average", "percentile", "entropy", "mse"]

#: bins between the least and the greatest value: 16 for each of 255 codes
BINS = 4096
#: bins of magnitude and step of the search, as TensorRT's entropy calibrator has them
ENTROPY_BINS, ENTROPY_STEP = 2048, 8
#: shares of the greatest value that the search for the least squared error tries
SHARES = tuple(1 - i / 50 for i in range(41))


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The ranges found, by tensor name, and those tensors that never changed."""

    ranges: dict[str, Range]
    constant: tuple[str, ...]
    photographs: int


def calibrate(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    photographs: Photographs,
    scheme: Scheme,
    method: Method = "minmax",
    percentile: float = 99.99,
    progress: Progress | None = None,
) -> Calibration:
    """Return the range to keep of each of `tensors` over the photographs.

    minmax      least and greatest value
    average     mean over the photographs of each one's least and greatest value
    percentile  the range that holds `percentile` % of the values, as much cut off at both ends
    entropy     the range with the least Kullback–Leibler divergence between the values and their codes
                (Migacz, *8-bit Inference with TensorRT*, GTC 2017)
    mse         the range with the least mean squared error between the values and what their codes stand for

    The last three pass over the photographs twice. Raises StepError where there are none, and where a
    value is NaN or infinite, naming tensor and photograph.
    """
    network = Network(model, tensors)
    progress = progress or Silent()
    extremes = _extremes(network, tensors, photographs, progress)
    constant = tuple(name for name, seen in extremes.items() if seen.low == seen.high)
    if method == "average":
        ranges = {name: seen.average for name, seen in extremes.items()}
    elif method == "minmax":
        ranges = {name: Range(seen.low, seen.high) for name, seen in extremes.items()}
    else:
        widest = {name: Range(seen.low, seen.high) for name, seen in extremes.items()}
        histograms = _histograms(network, widest, photographs, progress)
        choose: dict[str, Callable[[Histogram], Range]] = {
            "percentile": lambda h: h.percentile(percentile),
            "entropy": lambda h: h.entropy(scheme),
            "mse": lambda h: h.least_error(scheme),
        }
        ranges = {
            name: widest[name] if name in constant else choose[method](h) for name, h in histograms.items()
        }
    return Calibration(ranges, constant, next(iter(extremes.values())).count if extremes else 0)


@dataclasses.dataclass
class _Extremes:
    low: float = float("inf")
    high: float = float("-inf")
    sum_low: float = 0.0
    sum_high: float = 0.0
    count: int = 0

    def add(self, low: float, high: float) -> None:
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.sum_low, self.sum_high, self.count = self.sum_low + low, self.sum_high + high, self.count + 1

    @property
    def average(self) -> Range:
        return Range(self.sum_low / self.count, self.sum_high / self.count)


def _extremes(
    network: Network, tensors: Sequence[str], photographs: Photographs, progress: Progress
) -> dict[str, _Extremes]:
    import numpy as np

    found = {name: _Extremes() for name in tensors}
    count = 0
    progress.begin("ranges of activations")
    for photo, pixels in photographs():
        if not np.isfinite(pixels).all():
            raise StepError(
                f"{photo} has pixels that are NaN or infinite after preprocessing.",
                hint="Check scale, mean and std of the preprocessing.",
            )
        for name, values in network(pixels).items():
            low, high = float(values.min()), float(values.max())
            if not (np.isfinite(low) and np.isfinite(high)):
                raise StepError(
                    f"The network's tensor {name} holds NaN or infinite values for {photo}.",
                    hint="The float model itself fails on it: check its weights and the preprocessing.",
                )
            found[name].add(low, high)
        count += 1
        progress.advance()
    progress.end()
    if not count:
        raise StepError(
            "There is no photograph to calibrate with.",
            hint="Give --data with photographs like those on the device.",
        )
    return found


@dataclasses.dataclass
class Histogram:
    """How often values fell into equal bins from `range.low` to `range.high`."""

    range: Range
    counts: Counts

    @classmethod
    def empty(cls, range_: Range) -> Histogram:
        """Start a histogram that has seen nothing."""
        import numpy as np

        return cls(range_, np.zeros(BINS, np.int64))

    def add(self, values: Array) -> None:
        """Count values, all of which lie in the range."""
        import numpy as np

        # the same sum in float32 puts a few values into the next bin: a sixteenth of a code
        factor = np.float32(BINS / max(self.range.high - self.range.low, 1e-30))
        bins = ((values.reshape(-1) - np.float32(self.range.low)) * factor).astype(np.int32)
        self.counts += np.bincount(np.clip(bins, 0, BINS - 1, out=bins), minlength=BINS)

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """Return where the bins begin and end."""
        import numpy as np

        return np.linspace(self.range.low, self.range.high, BINS + 1)

    def percentile(self, percentile: float) -> Range:
        """Return the range that holds `percentile` % of the values, as much cut off at both ends."""
        import numpy as np

        tail = (1 - percentile / 100) / 2
        share = np.concatenate([[0.0], np.cumsum(self.counts) / self.counts.sum()])
        low, high = np.interp([tail, 1 - tail], share, self.edges)
        # ties: a flat start belongs to the empty bins before the first value
        return Range(self.range.low if tail < share[1] else float(low), float(high))

    def least_error(self, scheme: Scheme) -> Range:
        """Return the range that codes the values with the least squared error, each end searched in turn."""
        best = self.range
        for _ in range(2):
            lows = (
                [Range(self.range.low * share, best.high) for share in SHARES]
                if self.range.low < 0
                else [best]
            )
            best = min(lows, key=lambda r: self.squared_error(r, scheme))
            highs = (
                [Range(best.low, self.range.high * share) for share in SHARES]
                if self.range.high > 0
                else [best]
            )
            best = min(highs, key=lambda r: self.squared_error(r, scheme))
        return best

    def squared_error(self, range_: Range, scheme: Scheme) -> float:
        """Return the sum of squared errors of the values, taken at their bins' centres, as codes."""
        import numpy as np

        from penjing_quant.integers import activation_grid

        grid = activation_grid(range_, scheme)
        centres = (self.edges[1:] + self.edges[:-1]) / 2
        steps = np.clip(np.rint(centres / grid.scale) + grid.zero, grid.first, grid.last)
        return float(self.counts @ np.square((steps - grid.zero) * grid.scale - centres))

    def entropy(self, scheme: Scheme) -> Range:
        """Return the range whose codes diverge least from the values."""
        import numpy as np

        first, last = codes(scheme.activation)
        one_sided = self.range.low >= 0 and not scheme.symmetric
        levels = (last - first + 1) if one_sided else (last - first + 1) // 2
        reach = self.range.reach
        centres = np.abs((self.edges[1:] + self.edges[:-1]) / 2)
        bins = np.minimum((centres / reach * ENTROPY_BINS).astype(np.int64), ENTROPY_BINS - 1)
        magnitudes = np.bincount(bins, self.counts, ENTROPY_BINS).astype(np.float64)
        limit = reach * _least_divergence(magnitudes, levels) / ENTROPY_BINS
        return Range(max(self.range.low, -limit), min(self.range.high, limit))


def _least_divergence(counts: npt.NDArray[np.float64], levels: int) -> int:
    """Return after how many bins of magnitude to saturate, so that `levels` codes tell most."""
    import numpy as np

    counts = counts.copy()
    counts[0] = counts[1]  # exact zeros cost no code: padding and ReLU would drown the rest
    best, least = len(counts), float("inf")
    for end in range(levels, len(counts) + 1, ENTROPY_STEP):
        kept = counts[:end]
        reference = kept.copy()
        reference[-1] += counts[end:].sum()
        code = np.arange(end) * levels // end
        filled = kept > 0
        sums = np.bincount(code, weights=kept, minlength=levels)
        spread = np.bincount(code, weights=filled, minlength=levels)
        coded = np.where(filled, (sums / np.maximum(spread, 1))[code], 0)
        divergence = _divergence(reference, coded)
        if divergence < least:
            best, least = end, divergence
    return best


def _divergence(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> float:
    """Return the Kullback–Leibler divergence of two histograms, those of q's bins that are empty smoothed."""
    import numpy as np

    if not p.sum() or not q.sum():
        return float("inf")
    p, q = p / p.sum(), np.maximum(q / q.sum(), 1e-9)
    seen = p > 0
    return float(np.sum(p[seen] * np.log(p[seen] / q[seen])))


def _histograms(
    network: Network, widest: dict[str, Range], photographs: Photographs, progress: Progress
) -> dict[str, Histogram]:
    found = {name: Histogram.empty(range_) for name, range_ in widest.items()}
    progress.begin("distribution of activations")
    for _, pixels in photographs():
        for name, values in network(pixels).items():
            found[name].add(values)
        progress.advance()
    progress.end()
    return found
