"""Which units go for a latency, with times that are computed and not measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from penjing.step import Silent
from penjing_prune import latency_search
from penjing_prune.allocate import Limits, allowed, way_back
from penjing_prune.cost import Cost, macs
from penjing_prune.groups import Group
from penjing_prune.guard import analyse
from penjing_prune.latency_search import AGAIN, BACK, NEAR, TRIES, Search, Try, least_lost, next_aim
from torch import nn


def search(measure: Callable[[list[int]], float], ranking: Any = "global", multiple: int = 1) -> Search:
    """Return a search on a network of three layers, of which a table knows the multiply-accumulates."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 24, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip
    found = analyse(network, (torch.zeros(1, 3, 8, 8),)).structure
    scores = [np.random.default_rng(0).random(len(group)) for group in found.groups]
    terms = macs(found)
    whole = Cost(found, terms).total
    limits = Limits(0.125, multiple, quarters=True)
    return Search(found, found.groups, scores, limits, ranking, 0.5, terms, whole, measure, Silent())


def foretold(by: Search, removed: list[int]) -> float:
    """Return what the table says of a network."""
    return Cost(by.structure, by.terms).without(removed) / by.whole


def test_a_table_that_is_right_is_timed_no_more_than_twice() -> None:
    right = search(lambda removed: foretold(right, removed))

    best = right.run(0.5)

    assert best.share == pytest.approx(0.5, rel=NEAR / 2)
    assert [len(one.times) for one in right.tries] == [AGAIN]


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.3, 0.8))
def test_a_table_that_is_wrong_by_another_part_each_time_is_made_up_for(seed: int, share: float) -> None:
    """What the table suggests leaves gaps of a quarter; what is given back step by step closes them."""

    def measure(removed: list[int]) -> float:
        # an allocation that the table has suggested is slower than it says, by a part that nobody knows
        part = np.random.default_rng([seed, len(wrong.tries) if len(wrong.tries) < TRIES else TRIES])
        return foretold(wrong, removed) * float(part.uniform(1.0, 1.3))

    wrong = search(measure)

    best = wrong.run(share)

    if any(one.share < share for one in wrong.tries):
        assert best.share == pytest.approx(share, rel=0.1)
    assert sum(len(one.times) for one in wrong.tries) <= TRIES + BACK + 2 * AGAIN


def test_a_step_that_does_not_fit_is_left_out_and_others_are_taken() -> None:
    """One layer is dear whatever the table says: nothing but the others can fill the gap."""

    def measure(removed: list[int]) -> float:
        dear = {int(unit) for unit in jump.groups[1].units} & set(removed)
        return foretold(jump, removed) + (0.0 if len(dear) >= 18 else 0.4)

    jump = search(measure)

    best = jump.run(0.3)

    assert best.share == pytest.approx(0.3, rel=NEAR)
    assert len({int(unit) for unit in jump.groups[1].units} & set(best.removed)) >= 18


def test_what_is_given_back_leaves_every_layer_a_width_that_it_may_have() -> None:
    whole = search(lambda removed: 0.0, multiple=4)
    removed = whole._allocate(latency_search.WAYS[0], 1.0, 0.3).removed
    cost = Cost(whole.structure, whole.terms)

    way = way_back(whole.groups, whole.scores, cost, removed, whole.limits, 3, whole.whole)

    left = set(removed)
    for step in way:
        assert set(step.units) <= left
        left -= set(step.units)
        for group in whole.groups:
            gone = sum(int(unit) in left for unit in group.units)
            assert len(group) - gone in allowed(group, whole.limits)
        assert step.total == pytest.approx(foretold(whole, sorted(left)) * whole.whole)
    assert not left


def test_the_same_share_of_every_layer_stays_the_same() -> None:
    even = search(lambda removed: min(1.0, 1.4 * foretold(even, removed)), "uniform")

    best = even.run(0.5)

    kept = [1 - np.isin(group.units, best.removed).mean() for group in even.groups]
    assert max(kept) - min(kept) < 0.3


def test_the_way_that_loses_least_is_taken_of_those_that_are_fast_enough() -> None:
    groups, scores = [Group("a", np.arange(4), {}, 1, 4)], [np.array([1.0, 1.0, 1.0, 97.0])]
    early, late, dear = Try([0], 0.5, 0.8), Try([0, 1, 2], 0.5, 0.51), Try([3], 0.5, 0.5)

    assert least_lost([early, late, dear], 0.5, groups, scores) == late
    assert least_lost([early], 0.5, groups, scores) == early


def test_the_next_aim_lies_between_what_was_too_fast_and_too_slow() -> None:
    slow, fast = Try([1], 0.5, 0.5, [0.6]), Try([2], 0.3, 0.3, [0.35])

    assert next_aim([slow], 0.5) == pytest.approx(0.5 - 0.1 * 0.5 / 0.4)
    assert next_aim([fast], 0.5) == pytest.approx(0.3 + 0.7 * 0.15 / 0.65)
    assert next_aim([slow, fast], 0.5) == pytest.approx(0.3 + 0.2 * 0.6)
    assert next_aim([Try([], 1.0, 1.0, [1.1])], 0.5) == pytest.approx(0.4)


def test_a_network_that_comes_out_again_is_not_timed_again_and_the_aim_moves_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    aims: list[float] = []
    timed: list[list[int]] = []

    def measure(removed: list[int]) -> float:
        timed.append(removed)
        return 0.4

    def allocate(way: Any, part: float, aim: float) -> Try:
        aims.append(aim)
        return Try([1], aim, 0.4)

    again = search(measure, "uniform")
    monkeypatch.setattr(again, "_allocate", allocate)

    again.run(0.5)

    assert len(timed) == AGAIN
    assert aims == sorted(aims)
    assert aims[-1] > 0.7
