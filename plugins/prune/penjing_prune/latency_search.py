"""Which units go so that a measured share of the time is left: a table suggests, and what it suggests is timed."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from itertools import product
from typing import Literal

from penjing.step import Progress

from penjing_prune.allocate import Back, Limits, Ranking, choose, lost, way_back
from penjing_prune.cost import Cost, Term, macs
from penjing_prune.groups import Group, Structure
from penjing_prune.importance import Scores

#: how near the measured share has to come
NEAR = 0.05
#: how many networks the table suggests at most, and how many are timed beyond these to give back what fits
TRIES, BACK = 5, 8
#: how often the network that is taken is timed: the machine may have been busy
AGAIN = 2


@dataclasses.dataclass(frozen=True)
class Way:
    """How steps of channels are priced: by importance for what they save, to some power (None: the criterion's)."""

    price: Literal["time", "macs"]
    thrift: float | None


#: a step removed early changes what later ones save, so that no one way is best for every network: each is tried on
#: the table, and of those that meet the aim the one that removes the least importance is taken
WAYS = [Way(price, thrift) for price in ("time", "macs") for thrift in (None, 0.75, 1.0)]
#: shares of the aim that each way is tried with: where one step is left out, another path may lose less in less time
BELOW = (1.0, 0.96, 0.92, 0.88, 0.84)
#: steps of channels that are weighed together: kernels do not get faster at each of them
AHEAD = 3


@dataclasses.dataclass
class Try:
    """A network that was timed: the units it lacks, its share of the time by the table, and as measured each time."""

    removed: list[int]
    #: the share that was last asked of the table when it came out
    aim: float
    foretold: float
    times: list[float] = dataclasses.field(default_factory=list)

    @property
    def share(self) -> float:
        """Return the share of the original's time that it takes."""
        return statistics.median(self.times)


@dataclasses.dataclass
class Search:
    """A search for the units that go.

    The table of layer times suggests an allocation, the network it makes is timed beside the original, and the aim
    is corrected by what that missed. Where that leaves a gap around the target, since what the table does not know
    differs from one allocation to the next, channels are given back to a network that is too fast, a few steps at a
    time, for as long as it is fast enough when it is timed.
    """

    structure: Structure
    groups: Sequence[Group]
    scores: Sequence[Scores]
    limits: Limits
    ranking: Ranking
    #: the power that the criterion of importance takes for itself
    thrift: float
    #: seconds of each layer, and of the whole network before anything went
    terms: list[Term]
    whole: float
    #: times a network without some units, as a share of the original's time
    measure: Callable[[list[int]], float]
    progress: Progress
    tries: list[Try] = dataclasses.field(default_factory=list)

    def run(self, share: float) -> Try:
        """Return the network whose time comes nearest to `share` of the original's, of those timed."""
        self.progress.begin("correcting by measured time", TRIES + BACK)
        self._suggested(share)
        if (
            self.ranking == "global"
            and not self._near(self._nearest(share), share)
            and any(one.share < share for one in self.tries)
        ):
            self._given_back(share)
        best = self._nearest(share)
        self.progress.end(f"{best.share:.1%} of the time, {share:.0%} asked")
        return best

    def _nearest(self, share: float) -> Try:
        """Return the network that comes nearest, after it has been timed often enough to be believed."""
        while True:
            best = min(self.tries, key=lambda one: abs(one.share / share - 1))
            if len(best.times) >= AGAIN:
                return best
            self._time(best)

    def _near(self, one: Try, share: float) -> bool:
        return abs(one.share / share - 1) <= NEAR / 2

    def _time(self, one: Try) -> None:
        one.times.append(self.measure(one.removed))
        self.progress.advance()

    def _suggested(self, share: float) -> None:
        """Time what the table suggests, and correct the aim."""
        aim, asked = share, dict[float, Try]()
        for _ in range(TRIES):
            if aim not in asked:
                best = self._allocated(aim)
                asked[aim] = next((one for one in self.tries if set(one.removed) == set(best.removed)), best)
            here = asked[aim]
            if here not in self.tries:
                self.tries.append(here)
            here.aim = aim
            if len(here.times) < AGAIN:
                self._time(here)
            if not self._near(here, share):
                aim = next_aim(self.tries, share)
            elif len(here.times) >= AGAIN:
                return

    def _allocated(self, aim: float) -> Try:
        """Return the allocation that the table suggests for a share of the time."""
        ways = product(WAYS, BELOW) if self.ranking == "global" else [(WAYS[0], 1.0)]
        found = [self._allocate(way, part, aim) for way, part in ways]
        return least_lost(found, aim, self.groups, self.scores)

    def _allocate(self, way: Way, part: float, aim: float) -> Try:
        """Go a way to a part of the aim, and give back what then fits."""
        time = Cost(self.structure, self.terms)
        price = Cost(self.structure, macs(self.structure)) if way.price == "macs" else None
        removed = choose(
            self.groups, self.scores, time, aim * part * self.whole, self.limits, self.ranking,
            thrift=way.thrift or self.thrift, ahead=AHEAD, price=price, ceiling=aim * self.whole,
        )  # fmt: skip
        return Try(removed, aim, time.total / self.whole)

    def _given_back(self, share: float) -> None:
        """Time networks that have some of their channels back, from one that is too fast onwards.

        As many steps are taken at once as fit by the table, and where they do not fit by the clock, half of them; a
        step that is the first not to fit is left out, with those of its group behind it.
        """
        here = max((one for one in self.tries if one.share < share), key=lambda one: one.share)
        way = self._way_back(here)
        slow = len(way) + 1  # so many steps do not fit
        for _ in range(BACK):
            if not way:
                return
            # what the table does not know makes up the same part of the time as in the network at hand
            fit = sum(step.total / self.whole * here.share <= share * here.foretold for step in way)
            count = max(1, min(fit, slow // 2 if slow <= len(way) else len(way)))
            there = _with(here, way[:count], self.whole)
            self.tries.append(there)
            self._time(there)
            if self._near(there, share):
                self._time(there)
                if self._near(there, share):
                    return
            if there.share < share:
                here, way, slow = there, way[count:], slow - count
            else:
                slow = count
            if slow == 1 and way:
                way = [step for step in way if step.group != way[0].group]
                slow = len(way) + 1

    def _way_back(self, fast: Try) -> list[Back]:
        """Return the steps that a network may have back, as far as the table has it half as slow again as asked."""
        return way_back(
            self.groups, self.scores, Cost(self.structure, self.terms), fast.removed, self.limits, AHEAD,
            1.5 * fast.foretold * self.whole,
        )  # fmt: skip


def _with(one: Try, steps: Sequence[Back], whole: float) -> Try:
    """Return a network that has these steps back."""
    back = {unit for step in steps for unit in step.units}
    foretold = steps[-1].total / whole
    return Try([unit for unit in one.removed if unit not in back], foretold, foretold)


def least_lost(found: Sequence[Try], aim: float, groups: Sequence[Group], scores: Sequence[Scores]) -> Try:
    """Return the one that loses the least importance of those that meet the aim, else the one that comes nearest."""
    meet = [one for one in found if one.foretold <= aim * (1 + NEAR / 2)]
    if not meet:
        return min(found, key=lambda one: one.foretold)
    return min(meet, key=lambda one: lost(groups, scores, one.removed))


def next_aim(tries: Sequence[Try], share: float) -> float:
    """Return the share of the table's time to ask for next, between those that were too fast and too slow.

    The original takes all of its time, for which the table was asked in a way; layers it does not know make a
    straight line of what is between.
    """
    slow = min(
        [(one.share, one.aim) for one in tries if one.share > share] + [(1.0, 1.0)],
        key=lambda pair: pair[0],
    )
    fast = max([(one.share, one.aim) for one in tries if one.share <= share], default=None)
    if fast is None:
        last, asked = min(((one.share, one.aim) for one in tries), key=lambda pair: pair[1])
        slope = (1 - asked) / (1 - last) if last < 1 and asked < 1 else 1.0
        return max(0.0, asked + (share - last) * slope)
    low, high = min(fast[1], slow[1]), max(fast[1], slow[1])
    part = (share - fast[0]) / max(slow[0] - fast[0], 1e-9)
    # away from both ends, which are known, and further from them the more has been tried in vain
    edge = min(0.5, 0.1 * len(tries))
    return low + (high - low) * min(max(part, edge), 1 - edge)
