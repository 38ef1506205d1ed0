"""How near the outputs of two forms of a network are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Arrays = Sequence[np.ndarray[Any, Any]]

#: dB; float32 graphs of the same network differ by rounding, at 90 dB and better
ENOUGH = 60.0
#: dB, given where nothing differs at all
EXACT = 200.0


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How near outputs are to the wanted ones: the worst over outputs and inputs tried."""

    sqnr_db: float
    max_abs_error: float
    #: the output that differs most
    output: str = ""
    #: the outputs wanted are the same for every input tried, so that agreeing proves nothing
    blind: bool = False

    @property
    def enough(self) -> bool:
        """Return whether rounding alone can explain the difference."""
        return self.sqnr_db >= ENOUGH

    def details(self) -> dict[str, float]:
        """Return the numbers for the report."""
        return {"sqnr_db": round(self.sqnr_db, 1), "max_abs_error": self.max_abs_error}


def compare(names: Sequence[str], wanted: Arrays, found: Arrays) -> Agreement:
    """Compare outputs: SQNR = 10 log10(sum of squares wanted / sum of squares of the difference)."""
    return worst(_compare(name, a, b) for name, a, b in zip(names, wanted, found, strict=True))


def worst(found: Iterable[Agreement]) -> Agreement:
    """Return the least agreement there is, with the largest error of all; EXACT where there is none."""
    every = [Agreement(EXACT, 0.0), *found]
    least = min(every, key=lambda one: (one.sqnr_db, not one.output))
    return dataclasses.replace(least, max_abs_error=max(one.max_abs_error for one in every))


def _compare(name: str, wanted: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> Agreement:
    import numpy as np

    if wanted.shape != found.shape:
        return Agreement(-math.inf, math.inf, f"{name} (shape {found.shape} instead of {wanted.shape})")
    if wanted.dtype != found.dtype:
        return Agreement(-math.inf, math.inf, f"{name} ({found.dtype} instead of {wanted.dtype})")
    same = (wanted == found) | (
        (wanted != wanted) & (found != found)
    )  # infinities and NaN of both do not count
    if same.all():
        return Agreement(EXACT, 0.0, name)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where(same, 0, wanted.astype(np.float64) - found.astype(np.float64))
    noise = float(np.sum(difference**2))
    signal = float(np.sum(np.where(np.isfinite(wanted), wanted, 0).astype(np.float64) ** 2))
    sqnr = 10 * math.log10(signal / noise) if signal > 0 and math.isfinite(noise) else -math.inf
    return Agreement(min(sqnr, EXACT), float(np.abs(difference).max()), name)
