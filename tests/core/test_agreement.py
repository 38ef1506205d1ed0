"""How near two sets of outputs are."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from penjing.agreement import ENOUGH, EXACT, compare

FLOATS = arrays(np.float32, (2, 3), elements=st.floats(-1e6, 1e6, width=32))


@given(FLOATS)
def test_outputs_agree_exactly_with_themselves(outputs):
    assert compare(["y"], [outputs], [outputs]).sqnr_db == EXACT


def test_a_tenth_of_the_amplitude_is_twenty_decibels():
    found = compare(["y"], [np.full(4, 10.0)], [np.full(4, 11.0)])

    assert found.sqnr_db == pytest.approx(20)
    assert found.max_abs_error == 1
    assert not found.enough


def test_the_worst_output_is_named_and_the_largest_error_is_of_all():
    wanted = [np.full(4, 1000.0), np.ones(4)]
    found = compare(["large", "small"], wanted, [wanted[0] + 5, wanted[1] + 0.5])

    assert (found.output, found.max_abs_error) == ("small", 5)


def test_infinities_and_nan_that_both_have_do_not_count():
    outputs = np.array([math.inf, -math.inf, math.nan, 1.0])

    assert compare(["y"], [outputs], [np.append(outputs[:3], 1 + 1e-6)]).sqnr_db > ENOUGH


@pytest.mark.parametrize("other", [math.nan, math.inf])
def test_a_number_that_became_none_agrees_with_nothing(other):
    assert compare(["y"], [np.ones(2)], [np.array([1.0, other])]).sqnr_db == -math.inf


def test_another_shape_or_type_is_told():
    assert "(shape (3,) instead of (2,))" in compare(["y"], [np.ones(2)], [np.ones(3)]).output
    assert "(float32 instead of float64)" in compare(["y"], [np.ones(2)], [np.ones(2, np.float32)]).output
