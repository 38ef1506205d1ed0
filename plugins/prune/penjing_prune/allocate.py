"""Which units go, so that a cost meets its target: the least important first, in steps that keep channels multiples."""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from penjing_prune.cost import Cost
from penjing_prune.groups import Group
from penjing_prune.importance import Scores
from penjing_prune.labels import Ids

Ranking = Literal["global", "uniform"]
#: share of what a group saves on the whole, by unit, that a step has to save where the cost is measured: less is noise
LEAST = 0.05


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a layer keeps at least, and what its channels should be multiples of."""

    floor: float
    multiple: int
    #: channels that layers had in the beginning, by name, where some went before
    widths: Mapping[str, int] = dataclasses.field(default_factory=dict)
    #: below the multiple, quarters of it are allowed too: where the cost is measured, it tells what they are worth
    quarters: bool = False


def allowed(group: Group, limits: Limits) -> list[int]:
    """Return how many units may be left of a group, from all of them downwards.

    A layer of as many channels as the multiple or more keeps to it; a narrower one keeps to half of it, or a
    quarter, and so on, until there are two such parts. With `quarters` any layer may go on below the multiple.
    """
    grown = limits.widths.get(group.name, group.total) / group.total
    least = min(len(group), max(1, math.ceil(limits.floor * grown * len(group) - 1e-9)))
    multiple = max(1, limits.multiple)
    if limits.quarters:
        quarter = max(1, multiple // 4)
        fine = [
            left
            for left in range(len(group) - 1, least - 1, -1)
            for channels in [group.total - (len(group) - left) * group.width]
            if channels % (multiple if channels > multiple else quarter) == 0
        ]
        if fine:
            return [len(group), *fine]
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
    ahead: int = 1,
    price: Cost | None = None,
    ceiling: float = 0.0,
) -> list[int]:
    """Return the units to remove so that `cost` comes as near to `target` as these steps allow.

    "global" removes the step of least mean importance first, divided by what a unit saves to the power of `thrift`:
    1 is importance for what it saves, 0 importance alone. With `ahead` steps of a group are weighed together, so that
    one that saves little by itself may go for the sake of those behind it, and one that saves nothing does not go.
    What is saved is of `cost`, or of another that is given as `price`. In the end steps are taken back that fit below
    `ceiling`, those first that are worth most for their cost.
    "uniform" removes the same share of every group. Costs are left with these units removed.
    """
    orders = _orders(groups, scores)
    steps = [allowed(group, limits) for group in groups]
    if ranking == "uniform":
        return _uniform(groups, orders, steps, cost, target)
    costs = [cost] if price is None else [cost, price]
    greedy = _Greedy(orders, [np.sort(s) for s in scores], steps, costs, target, thrift, ahead)
    greedy.run()
    for _ in greedy.back(ceiling):
        pass
    return greedy.removed


@dataclasses.dataclass(frozen=True)
class Back:
    """A step that a group may have back: its units, and what all costs once they and those before are back."""

    group: int
    units: list[int]
    total: float


def way_back(
    groups: Sequence[Group],
    scores: Sequence[Scores],
    cost: Cost,
    removed: Sequence[int],
    limits: Limits,
    ahead: int,
    ceiling: float,
) -> list[Back]:
    """Return the steps that may be taken back where `removed` are gone, those first that are worth most for their cost.

    They go as far as `cost`, of which nothing is removed yet, stays below `ceiling`.
    """
    greedy = _Greedy(
        _orders(groups, scores), [np.sort(s) for s in scores], [allowed(group, limits) for group in groups],
        [cost], 0.0, 0.0, ahead,
    )  # fmt: skip
    greedy.go_to(removed)
    return list(greedy.back(ceiling))


def lost(groups: Sequence[Group], scores: Sequence[Scores], removed: Sequence[int]) -> float:
    """Return the importance of all units that go, as a share of that of all there are."""
    gone = np.array(removed, np.int64)
    return float(
        sum(score[np.isin(group.units, gone)].sum() for group, score in zip(groups, scores, strict=True))
        / max(sum(score.sum() for score in scores), 1e-30)
    )


def _orders(groups: Sequence[Group], scores: Sequence[Scores]) -> list[Ids]:
    """Return the units of each group, the least important first."""
    return [group.units[np.argsort(s, kind="stable")] for group, s in zip(groups, scores, strict=True)]


class _Greedy:
    """Steps taken one after another, the cheapest in importance for what it saves first."""

    def __init__(
        self,
        orders: Sequence[Ids],
        scores: Sequence[Scores],
        steps: Sequence[list[int]],
        costs: Sequence[Cost],
        target: float,
        thrift: float,
        ahead: int,
    ) -> None:
        self.orders, self.scores, self.steps, self.costs = orders, scores, steps, costs
        #: what has a target, and what a step's importance is divided by
        self.cost, self.price = costs[0], costs[-1]
        self.target, self.thrift, self.ahead = target, thrift, ahead
        self.at = [0] * len(steps)
        self.removed: list[int] = []
        #: seconds, or what else the cost is in, that a unit of each group saves where all go that may
        self.worth = [self._worth(i) for i in range(len(steps))] if ahead > 1 else []

    def run(self) -> None:
        """Remove units until the target is met."""
        heap = [entry for i in range(len(self.steps)) if (entry := self._cheapest(i)) is not None]
        heapq.heapify(heap)
        closed: list[int] = []
        while heap and self.cost.total > self.target:
            price, i, further = heapq.heappop(heap)
            if self.ahead > 1:  # what it saves has changed with the layers beside it
                now = self._cheapest(i)
                if now is not None and heap and now[0] > max(price, heap[0][0]):
                    heapq.heappush(heap, now)
                    continue
                if now is None:
                    continue
                _, i, further = now
            while further and self.cost.without(self._units(i, further)) < self.target:
                further -= 1
            if not further:
                closed.append(i)
                continue
            self._take(i, further)
            if (entry := self._cheapest(i)) is not None:
                heapq.heappush(heap, entry)
        self._nearest(closed)

    def go_to(self, removed: Sequence[int]) -> None:
        """Take all the steps that remove these units."""
        gone = set(removed)
        for i, (order, steps) in enumerate(zip(self.orders, self.steps, strict=True)):
            self.at[i] = steps.index(len(order) - sum(unit in gone for unit in order.tolist()))
        for cost in self.costs:
            cost.remove(removed)
        self.removed = list(removed)

    def back(self, ceiling: float) -> Iterator[Back]:
        """Take steps back while the cost stays below `ceiling`, and yield each."""
        while (last := max(self._steps_back(ceiling), default=None)) is not None:
            _, i, back = last
            units = self._last(i, back)[1]
            for cost in self.costs:
                cost.restore(units)
            kept = set(units)
            self.removed = [unit for unit in self.removed if unit not in kept]
            self.at[i] -= back
            yield Back(i, units, self.cost.total)

    def _steps_back(self, ceiling: float) -> Iterator[tuple[float, int, int]]:
        """Yield the importance that steps back bring for what they cost, the group, and how many steps that is."""
        before = self.cost.total
        for i, at in enumerate(self.at):
            for back in range(1, min(at, self.ahead) + 1):
                part, units = self._last(i, back)
                self.cost.restore(units)
                total = self.cost.total
                self.cost.remove(units)
                if total <= ceiling:
                    yield float(self.scores[i][part].sum()) / max(total - before, 1e-30), i, back

    def _last(self, i: int, back: int) -> tuple[slice, list[int]]:
        """Return the last steps that a group lost, and the units of them."""
        steps, at = self.steps[i], self.at[i]
        part = slice(steps[0] - steps[at - back], steps[0] - steps[at])
        return part, self.orders[i][part].tolist()

    def _part(self, i: int, further: int) -> slice | None:
        """Return which units of a group go with its next steps, least important first; None where it has no more."""
        steps, at = self.steps[i], self.at[i]
        if at + further >= len(steps):
            return None
        return slice(steps[0] - steps[at], steps[0] - steps[at + further])

    def _units(self, i: int, further: int) -> list[int]:
        part = self._part(i, further)
        return [] if part is None else self.orders[i][part].tolist()

    def _cheapest(self, i: int) -> tuple[float, int, int] | None:
        """Return the least price of the next steps of a group, the group, and how many steps that is."""
        found: tuple[float, int, int] | None = None
        further = 1
        # beyond what is weighed together only where all of that saves nothing
        while (part := self._part(i, further)) is not None and (further <= self.ahead or found is None):
            price = self._price(i, part)
            if price < math.inf and (found is None or price < found[0]):
                found = (price, i, further)
            further += 1
        return found

    def _price(self, i: int, part: slice) -> float:
        mean = float(self.scores[i][part].mean())
        units = self.orders[i][part].tolist()
        if self.ahead > 1:
            saved = self.cost.total - self.cost.without(units)
            if saved <= LEAST * self.worth[i] * len(units):
                return math.inf
        if not self.thrift:
            return mean
        saved = (self.price.total - self.price.without(units)) / len(units)
        return float(mean / max(saved, 1e-30) ** self.thrift)

    def _worth(self, i: int) -> float:
        units = self.orders[i][: self.steps[i][0] - self.steps[i][-1]].tolist()
        return max(0.0, self.cost.total - self.cost.without(units)) / max(1, len(units))

    def _take(self, i: int, further: int) -> None:
        units = self._units(i, further)
        for cost in self.costs:
            cost.remove(units)
        self.removed += units
        self.at[i] += further

    def _nearest(self, closed: Sequence[int]) -> None:
        """Take one more step, of those that would leave too little, where that comes nearer."""
        last = [(self.target - self.cost.without(units), i) for i in closed if (units := self._units(i, 1))]
        if last and 0 < min(last)[0] < self.cost.total - self.target:
            self._take(min(last)[1], 1)


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
