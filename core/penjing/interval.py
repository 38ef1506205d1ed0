"""95 % intervals, each with the source of its formula. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence

#: the 97.5 % point of the normal distribution
Z = 1.959963984540054


def share(successes: int, n: int) -> tuple[float, float]:
    """Return the interval of a share, `successes` of `n` (Wilson 1927, JASA 22:209)."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is no share")
    p, z2 = successes / n, Z * Z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # At the ends the formula gives 0 and 1 but for rounding
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == n else middle + half
    return max(0.0, low), min(1.0, high)


def paired_drop(lost: int, won: int, n: int) -> tuple[float, float]:
    """Return the interval of the share that `n` pairs lose on balance: `lost` were right before only, `won` after only.

    The adjusted Wald interval of Bonett and Price 2012 (Statistics in Medicine 31:2531), shares not percent.
    """
    if n < 1 or min(lost, won) < 0 or lost + won > n:
        raise ValueError(f"{lost} lost and {won} won of {n} are no pairs")
    p, q = (lost + 1) / (n + 2), (won + 1) / (n + 2)
    half = Z * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    return max(-1.0, p - q - half), min(1.0, p - q + half)


def median(values: Sequence[float]) -> tuple[float, float, float]:
    """Return median, and the interval of it by order statistics (David and Nagaraja 2003, section 7.1)."""
    if not values:
        raise ValueError("no values have no median")
    ordered, n = sorted(values), len(values)
    middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    # as many values below as above; of five or fewer not even the extremes reach 95 %
    outside = max(0, math.floor((n - 1 - Z * math.sqrt(n)) / 2))
    return middle, ordered[outside], ordered[n - 1 - outside]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
