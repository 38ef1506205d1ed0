"""Which units go, so that a cost meets its target: the least important first, in steps that keep channels multiples."""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from penjing_prune.cost import Cost
from penjing_prune.groups import Group
from penjing_prune.importance import Scores
from penjing_prune.labels import Ids

Ranking = Literal["global", "uniform"]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a layer keeps at least, and what its channels should be multiples of."""

    floor: float
    multiple: int
    #: channels that layers had in the beginning, by name, where some went before
    widths: Mapping[str, int] = dataclasses.field(default_factory=dict)


def allowed(group: Group, limits: Limits) -> list[int]:
    """Return how many units may be left of a group, from all of them downwards.

    A layer of as many channels as the multiple or more keeps to it; a narrower one keeps to half of it, or a
    quarter, and so on, until there are two such parts.
    """
    grown = limits.widths.get(group.name, group.total) / group.total
    least = min(len(group), max(1, math.ceil(limits.floor * grown * len(group) - 1e-9)))
    multiple = max(1, limits.multiple)
    while multiple > 1 and group.total < multiple:
        multiple = _half(multiple)
    if multiple < max(1, limits.multiple):  # a narrow layer
        while multiple > 1 and group.total < 2 * multiple:
            multiple = _half(multiple)
    while True:
        kept = [
            left
            for left in range(len(group) - 1, least - 1, -1)
            if (group.total - (len(group) - left) * group.width) % multiple == 0
        ]
        # a layer that has room for a smaller multiple, which its units cannot make
        if kept or multiple == 1 or group.total < 2 * multiple:
            return [len(group), *kept]
        multiple = _half(multiple)


def _half(multiple: int) -> int:
    return multiple // 2 if multiple % 2 == 0 else 1


def choose(
    groups: Sequence[Group],
    scores: Sequence[Scores],
    cost: Cost,
    target: float,
    limits: Limits,
    ranking: Ranking,
    *,
    thrift: float = 0.0,
) -> list[int]:
    """Return the units to remove so that `cost` comes as near to `target` as these steps allow.

    "global" removes the step of least mean importance first, divided by what a unit saves to the power of `thrift`:
    1 is importance for what it saves, 0 importance alone. "uniform" removes the same share of every group. `cost` is
    left with these units removed.
    """
    orders = [
        group.units[np.argsort(score, kind="stable")] for group, score in zip(groups, scores, strict=True)
    ]
    steps = [allowed(group, limits) for group in groups]
    if ranking == "uniform":
        return _uniform(groups, orders, steps, cost, target)
    return _greedy(groups, orders, [np.sort(s) for s in scores], steps, cost, target, thrift)


def _greedy(
    groups: Sequence[Group],
    orders: Sequence[Ids],
    scores: Sequence[Scores],
    steps: Sequence[list[int]],
    cost: Cost,
    target: float,
    thrift: float,
) -> list[int]:
    at = [0] * len(groups)
    removed: list[int] = []

    def chunk(i: int) -> slice | None:
        if at[i] + 1 >= len(steps[i]):
            return None
        return slice(len(groups[i]) - steps[i][at[i]], len(groups[i]) - steps[i][at[i] + 1])

    def price(i: int, part: slice) -> float:
        mean = float(scores[i][part].mean())
        if not thrift:
            return mean
        units = orders[i][part].tolist()
        saved = (cost.total - cost.without(units)) / len(units)
        return float(mean / max(saved, 1e-30) ** thrift)

    heap = [(price(i, part), i) for i in range(len(groups)) if (part := chunk(i)) is not None]
    heapq.heapify(heap)
    closed: list[int] = []
    while heap and cost.total > target:
        _, i = heapq.heappop(heap)
        part = chunk(i)
        assert part is not None
        units = orders[i][part].tolist()
        if cost.without(units) < target:
            closed.append(i)
            continue
        cost.remove(units)
        removed += units
        at[i] += 1
        if (further := chunk(i)) is not None:
            heapq.heappush(heap, (price(i, further), i))
    last = [(target - cost.without(u), u) for i in closed if (p := chunk(i)) and (u := orders[i][p].tolist())]
    if last and 0 < min(last)[0] < cost.total - target:
        cost.remove(min(last)[1])
        removed += min(last)[1]
    return removed


def _uniform(
    groups: Sequence[Group], orders: Sequence[Ids], steps: Sequence[list[int]], cost: Cost, target: float
) -> list[int]:
    """Remove the same share of every group, rounded so that none loses more than that."""

    def units(share: float) -> list[int]:
        found: list[int] = []
        for group, order, counts in zip(groups, orders, steps, strict=True):
            left = min(count for count in counts if count >= (1 - share) * len(group) - 1e-9)
            found += order[: len(group) - left].tolist()
        return found

    shares = sorted({1 - c / len(g) for g, counts in zip(groups, steps, strict=True) for c in counts})
    low, high = 0, len(shares) - 1
    while low < high:
        middle = (low + high) // 2
        if cost.without(units(shares[middle])) > target:
            low = middle + 1
        else:
            high = middle
    best = min(
        (shares[i] for i in (low - 1, low) if 0 <= i < len(shares)),
        key=lambda share: abs(cost.without(units(share)) - target),
        default=0.0,
    )
    chosen = units(best)
    cost.remove(chosen)
    return chosen
