"""95 % intervals: values from the literature, and what must hold for every one."""

from __future__ import annotations

import math
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penjing import interval

finite = st.floats(-1e6, 1e6)


def binomial(n: int, p: float) -> list[float]:
    return [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_a_share_has_wilsons_interval(successes, n, low, high):
    assert interval.share(successes, n) == pytest.approx((low, high), abs=5e-5)
    assert interval.share(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_a_drop_has_the_interval_of_bonett_and_price():
    """Worked by hand, one added to either count and two to n; 1 and 7 of 21 are the airways of Bentur 2009."""
    assert interval.paired_drop(1, 7, 21) == pytest.approx((-0.5084, -0.0134), abs=5e-5)
    assert interval.paired_drop(43, 21, 300) == pytest.approx((0.0208, 0.1249), abs=5e-5)
    assert interval.paired_drop(0, 0, 18)[1] == pytest.approx(0.1386, abs=5e-5)


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_of_a_share_holds_the_share_and_stays_within_none_and_all(pair):
    successes, n = pair
    low, high = interval.share(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert low < high


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n - 1), st.just(n))))
def test_the_interval_of_a_share_rises_with_it(pair):
    successes, n = pair
    lower, higher = interval.share(successes, n), interval.share(successes + 1, n)
    assert lower[0] < higher[0]
    assert lower[1] < higher[1]


@given(st.integers(1, 200), st.integers(0, 200))
def test_more_photographs_with_the_same_share_tell_more(n, successes):
    successes = min(successes, n)
    few, many = interval.share(successes, n), interval.share(10 * successes, 10 * n)
    assert many[1] - many[0] < few[1] - few[0]


pairs = st.integers(1, 2000).flatmap(
    lambda n: st.integers(0, n).flatmap(
        lambda lost: st.tuples(st.just(lost), st.integers(0, n - lost), st.just(n))
    )
)


@given(pairs)
def test_the_interval_of_a_drop_turns_round_when_gains_and_losses_do(pair):
    lost, won, n = pair
    low, high = interval.paired_drop(lost, won, n)
    assert -1 <= low <= high <= 1
    assert interval.paired_drop(won, lost, n) == pytest.approx((-high, -low))
    if lost == won:
        assert low < 0 < high


@pytest.mark.parametrize(
    ("lost_share", "won_share", "n"), [(0.1, 0.1, 50), (0.05, 0.01, 100), (0.2, 0.0, 60)]
)
def test_a_drop_lies_in_its_interval_about_nineteen_times_of_twenty(lost_share, won_share, n):
    true, covered = lost_share - won_share, 0.0
    for lost in range(n + 1):
        for won in range(n - lost + 1):
            low, high = interval.paired_drop(lost, won, n)
            if low <= true <= high:
                ways = math.comb(n, lost) * math.comb(n - lost, won)
                covered += (
                    ways
                    * lost_share**lost
                    * won_share**won
                    * (1 - lost_share - won_share) ** (n - lost - won)
                )
    assert 0.93 < covered < 0.99


@pytest.mark.parametrize("p", [0.02, 0.3, 0.5, 0.9])
def test_a_share_lies_in_its_interval_about_nineteen_times_of_twenty(p):
    covered = sum(
        chance
        for k, chance in enumerate(binomial(100, p))
        if interval.share(k, 100)[0] <= p <= interval.share(k, 100)[1]
    )
    assert 0.93 < covered < 0.99


@pytest.mark.parametrize("n", [*range(6, 200), 501, 1000])
def test_the_interval_of_a_median_holds_it_nineteen_times_of_twenty(n):
    """Exactly, by the binomial distribution of how many values lie below the median."""
    _, low, high = interval.median(range(n))
    below = list(accumulate(math.comb(n, k) / 2**n for k in range(n + 1)))
    covered = below[int(high)] - below[int(low)]
    assert covered >= 0.9495
    assert low + high == n - 1, "as many values below as above"


@given(st.lists(finite, min_size=1, max_size=60))
def test_the_median_lies_in_its_interval_and_both_turn_round_with_the_sign(values):
    middle, low, high = interval.median(values)
    assert min(values) <= low <= middle <= high <= max(values)
    assert interval.median([-value for value in values]) == pytest.approx((-middle, -high, -low))


@given(st.lists(finite, min_size=1, max_size=60), st.floats(0.01, 1))
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(values, share):
    found = interval.percentile(values, share)
    assert found in values
    enough = share * len(values) - 1e-9
    assert sum(value <= found for value in values) >= enough
    assert sum(value < found for value in values) <= enough + 1e-6


@pytest.mark.parametrize("arguments", [(1, 0), (-1, 5), (6, 5)])
def test_a_share_that_is_none_is_refused(arguments):
    with pytest.raises(ValueError, match="no share"):
        interval.share(*arguments)


@pytest.mark.parametrize("arguments", [(0, 0, 0), (3, 3, 5), (-1, 0, 5)])
def test_pairs_that_are_none_are_refused(arguments):
    with pytest.raises(ValueError, match="no pairs"):
        interval.paired_drop(*arguments)


def test_nothing_has_no_median():
    with pytest.raises(ValueError, match="no median"):
        interval.median([])
