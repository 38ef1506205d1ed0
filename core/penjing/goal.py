"""What the user demands of the result."""

from __future__ import annotations

import dataclasses
import math

from penjing.errors import PlanError


@dataclasses.dataclass(frozen=True)
class Goal:
    """Bounds the optimised model must keep; None where there is no demand."""

    #: accuracy lost against the original, in percentage points of the task's metric
    max_drop: float | None = None
    #: median latency of one inference in milliseconds, on the device
    max_latency: float | None = None
    #: size of the model file in megabytes (10**6 bytes)
    max_size: float | None = None

    def __post_init__(self) -> None:
        for name, bound in dataclasses.asdict(self).items():
            if bound is None:
                continue
            number = isinstance(bound, int | float) and not isinstance(bound, bool)
            if not (number and 0 <= bound < math.inf):
                raise PlanError(
                    f"{name} is {bound!r}; it must be a number of 0 or more.", hint="None makes no demand."
                )

    def __bool__(self) -> bool:
        return any(bound is not None for bound in dataclasses.astuple(self))
