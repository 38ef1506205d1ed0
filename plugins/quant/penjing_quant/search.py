"""The search of quant.mixed: which layers go back to float so that accuracy is kept at the least cost.

Greedy, as for a knapsack: of the sets of groups that can go back together, those with the most noise gone for their
cost come first. A step takes enough of them to remove a good part of the noise that is left; what comes of it is
measured, and a step after which nothing is better is taken back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from penjing_quant.sensitivity import Group, Noisy, moves, remaining

if TYPE_CHECKING:
    from penjing.step import Progress

    from penjing_quant.judge import Verdict

#: share of the noise left that one step removes at least, and steps at most
STEP, STEPS = 0.2, 30


@dataclasses.dataclass(frozen=True)
class Step:
    """One state that was measured: the groups in float, and whether it was kept."""

    floats: frozenset[str]
    verdict: Verdict
    kept: bool


@dataclasses.dataclass(frozen=True)
class Found:
    """The result of a search, and how it went."""

    floats: frozenset[str]
    verdict: Verdict
    met: bool
    steps: tuple[Step, ...]


def search(
    groups: Mapping[str, Group],
    quantisers: Sequence[Noisy],
    costs: Mapping[str, float],
    measure: Callable[[frozenset[str]], Verdict | None],
    met: Callable[[Verdict], bool],
    most: int,
    progress: Progress,
) -> Found:
    """Return the first state within the bound, or else the best one seen.

    `measure` says how the network does with some groups in float, None where they cannot be; no more than `most`
    of them will be.
    """
    floats: frozenset[str] = frozenset()
    verdict = measure(floats)
    assert verdict is not None
    steps = [Step(floats, verdict, True)]
    refused: set[frozenset[str]] = set()
    possible = moves(groups, quantisers)
    progress.begin("layers back to float", STEPS)
    for _ in range(STEPS):
        if met(verdict):
            break
        chosen = _choose(possible, refused, quantisers, costs, floats, most)
        if not chosen:
            break
        tried = floats.union(*chosen)
        progress.advance()
        if (after := measure(tried)) is None:
            refused.update(chosen)
            continue
        # success is success, whatever the state before was
        kept = met(after) or not after.no_better_than(verdict)
        steps.append(Step(tried, after, kept))
        if kept:
            floats, verdict = tried, after
        else:
            refused.update(chosen)
    progress.end()
    best = steps[-1] if met(verdict) else min(steps, key=lambda step: step.verdict.key())
    return Found(best.floats, best.verdict, met(best.verdict), tuple(steps))


def _choose(
    possible: Sequence[frozenset[str]],
    refused: set[frozenset[str]],
    quantisers: Sequence[Noisy],
    costs: Mapping[str, float],
    floats: frozenset[str],
    most: int,
) -> list[frozenset[str]]:
    """Return the sets to take back next: those with the most noise gone for their cost, until enough is gone."""
    left = remaining(quantisers, floats)
    gone, chosen = 0.0, []
    open_ = [move for move in possible if move not in refused and not move <= floats]
    while open_ and gone < STEP * left:
        rated = [
            (worth, move) for move in open_
            if len(floats | move) <= most and (worth := _worth(move, floats, quantisers, costs)) > 0
        ]  # fmt: skip
        if not rated:
            break
        _, best = max(rated, key=lambda pair: pair[0])
        before = remaining(quantisers, floats)
        floats |= best
        gone += before - remaining(quantisers, floats)
        chosen.append(best)
        open_ = [move for move in open_ if not move <= floats]
    return chosen


def _worth(
    move: frozenset[str], floats: frozenset[str], quantisers: Sequence[Noisy], costs: Mapping[str, float]
) -> float:
    """Return the noise that goes with `move`, for its cost."""
    after = floats | move
    gain = sum(
        one.noise for one in quantisers if one.groups and one.groups <= after and not one.groups <= floats
    )
    return gain / max(sum(costs[name] for name in move - floats), 1e-9)
