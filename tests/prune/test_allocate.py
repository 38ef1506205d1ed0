"""Which units go, whatever the groups, scores and limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penjing_prune.allocate import Limits, allowed, choose, lost
from penjing_prune.cost import Cost, Term
from penjing_prune.groups import Group, Structure
from penjing_prune.labels import Union
from penjing_prune.trace import Traced


def groups_of(sizes: list[tuple[int, int]]) -> tuple[list[Group], Structure, Union]:
    """Return groups of (units, width), in a structure whose ids are theirs."""
    union, groups = Union(), []
    for number, (units, width) in enumerate(sizes):
        ids = union.fresh(units * width).reshape(units, width)
        union.join(ids, np.broadcast_to(ids[:, :1], ids.shape))
        groups.append(Group(f"layer{number}", ids[:, 0], {}, width, units * width))
    return groups, Structure(Traced(union, []), union, union.roots(), groups, []), union


def product(counts: object) -> float:
    return float(np.prod(counts))  # type: ignore[call-overload]  # any sequence of numbers


SIZES = st.lists(st.tuples(st.integers(2, 40), st.integers(1, 4)), min_size=1, max_size=5)


@settings(deadline=None, max_examples=60)
@given(
    SIZES,
    st.floats(0.1, 1),
    st.sampled_from([1, 4, 8, 16]),
    st.floats(0, 0.5),
    st.sampled_from(["global", "uniform"]),
    st.sampled_from([0.0, 0.25, 1.0]),
    st.booleans(),
    st.integers(0, 99),
)
def test_what_is_left_obeys_the_limits_and_no_step_comes_nearer(
    sizes: list[tuple[int, int]],
    share: float,
    multiple: int,
    floor: float,
    ranking: str,
    thrift: float,
    measured: bool,
    seed: int,
) -> None:
    groups, structure, _ = groups_of(sizes)
    sides = [np.flatnonzero(np.isin(structure.roots, g.units)) for g in groups]
    cost = Cost(structure, [Term((side,), product) for side in sides])
    whole, limits = cost.total, Limits(floor, multiple, quarters=measured)
    scores = [np.random.default_rng(seed).random(len(g)) for g in groups]

    removed = choose(
        groups, scores, cost, share * whole, limits, ranking, thrift=thrift, ahead=1 + 2 * measured
    )  # type: ignore[arg-type]

    assert len(set(removed)) == len(removed)
    assert cost.total == pytest.approx(
        whole - sum(w for g in groups for w in [g.width] * int(np.isin(g.units, removed).sum()))
    )
    for group, score in zip(groups, scores, strict=True):
        gone = np.isin(group.units, removed)
        left = int((~gone).sum())
        assert left in allowed(group, limits)
        assert left >= max(1, floor * len(group) - 1e-6)
        if gone.any() and left:
            assert score[gone].max() <= score[~gone].min()
        if group.total % multiple == 0 and group.total > multiple and not measured:
            assert left * group.width % multiple == 0 or group.width % multiple or multiple % group.width
        steps = allowed(group, limits)
        further = group.units[np.argsort(score, kind="stable")][: len(group) - steps[-1]].tolist()
        after = [n for n in steps if n < left]
        if ranking == "global" and not measured and after:  # one more step of any group is no nearer
            more = cost.without([unit for unit in further[: len(group) - after[0]] if unit not in removed])
            assert abs(more - share * whole) >= abs(cost.total - share * whole) - 1e-9


@pytest.mark.parametrize(
    ("units", "width", "multiple", "wanted"),
    [
        (12, 1, 8, [12, 8]),
        (20, 1, 8, [20, 16, 8]),
        (8, 1, 8, [8]),
        (6, 1, 8, [6, 4, 2]),
        (24, 1, 32, [24, 16, 8]),
        (8, 4, 8, [8, 6, 4, 2]),
        (4, 1, 1, [4, 3, 2, 1]),
    ],
)
def test_layers_keep_to_multiples_and_narrow_ones_to_smaller_ones(
    units: int, width: int, multiple: int, wanted: list[int]
) -> None:
    (group,), _, _ = groups_of([(units, width)])

    assert allowed(group, Limits(0.0, multiple)) == wanted


@pytest.mark.parametrize(
    ("units", "width", "wanted"),
    [(40, 1, [40, 32, 16, 12, 8, 4]), (16, 1, [16, 12, 8, 4]), (3, 5, [3, 2])],
)
def test_quarters_of_the_multiple_are_allowed_below_it(units: int, width: int, wanted: list[int]) -> None:
    (group,), _, _ = groups_of([(units, width)])

    assert allowed(group, Limits(0.1, 16, quarters=True)) == wanted


def test_steps_that_save_nothing_by_themselves_go_together_or_not_at_all() -> None:
    groups, structure, _ = groups_of([(4, 1), (4, 1)])
    sides = [np.flatnonzero(np.isin(structure.roots, g.units)) for g in groups]

    def stairs(counts: object) -> float:
        return 2.0 * np.ceil(counts[0] / 2)  # type: ignore[index,no-any-return]  # as fast with one as with two

    cost = Cost(structure, [Term((side,), stairs) for side in sides])
    scores = [np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.1, 1.2, 5.0, 5.0])]

    removed = choose(groups, scores, cost, 6.0, Limits(0.25, 1), "global", thrift=1.0, ahead=2)

    assert sorted(removed) == sorted(groups[1].units[:2].tolist())


@pytest.mark.parametrize("thrift", [0.0, 0.5])
def test_what_saves_nothing_stays_however_channels_are_ranked(thrift: float) -> None:
    groups, structure, _ = groups_of([(8, 1), (8, 1)])
    sides = [np.flatnonzero(np.isin(structure.roots, g.units)) for g in groups]
    cost = Cost(structure, [Term((sides[0],), lambda counts: 8.0), Term((sides[1],), product)])
    scores = [np.full(8, 0.1), np.full(8, 1.0)]

    removed = choose(groups, scores, cost, 12.0, Limits(0.25, 1), "global", thrift=thrift, ahead=3)

    assert np.isin(removed, groups[1].units).all()
    assert len(removed) == 4


def test_a_kernel_of_many_channels_is_left_behind_by_as_many_steps_as_that_takes() -> None:
    groups, structure, _ = groups_of([(32, 1)])
    side = np.flatnonzero(np.isin(structure.roots, groups[0].units))
    cost = Cost(structure, [Term((side,), lambda counts: 16.0 * np.ceil(counts[0] / 16))])

    removed = choose(groups, [np.ones(32)], cost, 16.0, Limits(0.1, 1), "global", ahead=3)

    assert len(removed) == 16


def test_a_narrow_layer_of_a_large_network_goes_too() -> None:
    groups, structure, _ = groups_of([(4, 1)] * 400 + [(400, 1)])
    sides = [np.flatnonzero(np.isin(structure.roots, g.units)) for g in groups]
    cost = Cost(structure, [Term((side,), product) for side in sides])
    scores = [np.full(4, 0.1)] * 400 + [np.full(400, 1.0)]

    choose(groups, scores, cost, 1000.0, Limits(0.25, 1), "global", thrift=1.0, ahead=3)

    assert cost.total == pytest.approx(1000, abs=2)


def test_what_fits_below_the_ceiling_is_given_back_the_worthiest_first() -> None:
    groups, structure, _ = groups_of([(4, 1), (4, 1)])
    sides = [np.flatnonzero(np.isin(structure.roots, g.units)) for g in groups]
    cost = Cost(structure, [Term((side,), product) for side in sides])
    scores = [np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.5, 1.6, 1.7, 1.8])]

    removed = choose(groups, scores, cost, 3.0, Limits(0.25, 1), "global", ahead=1, ceiling=4.0)

    assert cost.total == pytest.approx(4)
    assert groups[0].units[2] not in removed, "worth more than what else was removed"
    assert len(removed) == 4


def test_steps_may_be_priced_by_another_cost_than_that_which_has_the_target() -> None:
    groups, structure, _ = groups_of([(4, 1), (4, 1)])
    sides = [np.flatnonzero(np.isin(structure.roots, g.units)) for g in groups]

    def each(value: float) -> object:
        return lambda counts: value * counts[0]

    def cost(*values: float) -> Cost:
        return Cost(structure, [Term((s,), each(v)) for s, v in zip(sides, values, strict=True)])  # type: ignore[arg-type]  # as above

    scores = [np.array([1.0, 1.0, 1.0, 1.0]), np.array([2.0, 2.0, 2.0, 2.0])]
    found = []
    for price in (None, cost(1.0, 4.0)):
        time = cost(1.0, 1.0)
        found.append(choose(groups, scores, time, 5.0, Limits(0.25, 1), "global", thrift=1.0, price=price))
        assert time.total == 5.0

    assert sorted(found[0]) == sorted(groups[0].units[:3].tolist())
    assert sorted(found[1]) == sorted(groups[1].units[:3].tolist())
    assert [lost(groups, scores, removed) for removed in found] == [0.25, 0.5]
