"""Numbers as integers: value = scale × (code − zero point).

The affine mapping and its zero points are those of Jacob et al. 2018 (arXiv 1712.05877), section 2.1.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from penjing.step import Scheme

    Array = npt.NDArray[np.float32]

#: least scale: the product of two is still a normal float32
SMALLEST = 1e-18
#: shares of the widest scale that the search for the least squared error tries
SHARES = tuple(1 - i / 50 for i in range(36))
#: a bias code stays below it, which leaves the accumulator as much again for the products
BIAS_LIMIT = 2**30


@dataclasses.dataclass(frozen=True)
class Range:
    """The least and greatest value an activation is to keep; what lies outside saturates."""

    low: float
    high: float

    def __or__(self, other: Range) -> Range:
        return Range(min(self.low, other.low), max(self.high, other.high))

    @property
    def reach(self) -> float:
        """Return the greatest magnitude."""
        return max(abs(self.low), abs(self.high))


@dataclasses.dataclass(frozen=True)
class Grid:
    """The values that the codes `first`…`last` stand for."""

    scale: float
    zero: int
    first: int
    last: int

    def clips(self, low: float, high: float) -> bool:
        """Tell whether rounding to this grid does what clipping to `low`…`high` before it would."""
        return (
            low / self.scale + self.zero <= self.first + 0.5
            and high / self.scale + self.zero >= self.last - 0.5
        )


def codes(dtype: str) -> tuple[int, int]:
    """Return the least and greatest code of an integer dtype."""
    import numpy as np

    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def activation_grid(range_: Range, scheme: Scheme) -> Grid:
    """Return the grid of an activation; it holds 0 exactly, as padding needs. Scale 1 for no range."""
    import numpy as np

    first, last = codes(scheme.activation)
    if scheme.symmetric:
        scale = range_.reach / last
        return Grid(_positive(scale), 0, first, last)
    low, high = min(range_.low, 0.0), max(range_.high, 0.0)
    scale = _positive((high - low) / (last - first))
    return Grid(scale, int(np.clip(round(first - low / scale), first, last)), first, last)


def _positive(scale: float) -> float:
    import numpy as np

    return float(np.float32(max(scale, SMALLEST))) if scale > 0 else 1.0


@dataclasses.dataclass(frozen=True)
class Weight:
    """A weight as integers: one scale, or one for each channel along `axis`, and one zero point."""

    codes: npt.NDArray[Any]
    scale: Array
    zero: int
    axis: int | None


def weight_codes(
    array: Array, axis: int | None, scheme: Scheme, floor: Array, bits: int = 8, *, nearest: bool = False
) -> Weight:
    """Quantise a weight, symmetrically, with one scale for each channel along `axis`, or one for all (None).

    The greatest magnitude gets the last code, or with `nearest`, a scale is searched that leaves the least squared
    error. No scale is below `floor` (one number for each output channel), so that the bias fits int32. A channel
    of zeros gets its floor, or 1 where that is 0. With 4 `bits` the codes lie in -8…7, in the same dtype.
    """
    import numpy as np

    low, half = weight_limits(scheme, bits)
    zero = 0 if codes(scheme.weight)[0] < 0 else 128
    others = tuple(i for i in range(array.ndim) if i != axis) if axis is not None else None
    least = floor if axis is not None else floor.max()
    widest = np.abs(array).max(axis=others) / np.float32(half)
    shape = [-1 if i == axis else 1 for i in range(array.ndim)]

    def steps(scale: Array) -> Array:
        rounded: Array = np.clip(
            np.rint(array / (scale if axis is None else scale.reshape(shape))), low, half
        )
        return rounded

    def usable(scale: Array) -> Array:
        scale = np.maximum(scale, least)
        return np.where(scale > 0, np.maximum(scale, SMALLEST), 1).astype(np.float32)

    scale = usable(widest)
    if nearest:
        best = np.full(scale.shape, np.inf)
        for share in SHARES:
            tried = usable(widest * np.float32(share))
            along = tried if axis is None else tried.reshape(shape)
            error = np.square(steps(tried) * along - array, dtype=np.float64).sum(axis=others)
            scale = np.where(error < best, tried, scale).astype(np.float32)
            best = np.minimum(error, best)
    return Weight((steps(scale) + zero).astype(scheme.weight), scale, zero, axis)


def weight_limits(scheme: Scheme, bits: int = 8) -> tuple[int, int]:
    """Return the least and greatest step of a weight, zero point taken off: -127…127, -63…63 or -8…7."""
    if bits == 4:
        return -8, 7
    first, last = codes(scheme.weight)
    half = (last - first) // 2 // (2 if scheme.reduce_range else 1)
    return -half, half


def bias_floor(bias: Array | None, channels: int, activation_scale: float) -> Array:
    """Return each channel's least weight scale with which its bias, in both scales' units, fits int32."""
    import numpy as np

    if bias is None:
        return np.zeros(channels, np.float32)
    return (np.abs(bias) / (activation_scale * BIAS_LIMIT)).astype(np.float32)
