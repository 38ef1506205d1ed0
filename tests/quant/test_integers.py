import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from penjing.step import Scheme
from penjing_quant.integers import BIAS_LIMIT, Range, activation_grid, bias_floor, weight_codes

CPU = Scheme("uint8", "int8", False, True, False, "int32", "all", frozenset({"Conv"}), "tests")
SIGNED = dataclasses.replace(CPU, activation="int8")
SYMMETRIC = dataclasses.replace(CPU, activation="int8", symmetric=True)
numbers = st.floats(-(2.0**60), 2.0**60, width=32)


@given(st.sampled_from([CPU, SIGNED, SYMMETRIC]), numbers, numbers)
def test_a_grid_is_positive_holds_zero_and_covers_its_range(scheme, a, b):
    range_ = Range(min(a, b), max(a, b))
    grid = activation_grid(range_, scheme)
    assert 0 < grid.scale < np.inf
    assert grid.first <= grid.zero <= grid.last
    low, high = (grid.first - grid.zero) * grid.scale, (grid.last - grid.zero) * grid.scale
    assert low <= range_.low + grid.scale * 0.51
    assert high >= range_.high - grid.scale * 0.51


@given(numbers, numbers)
def test_symmetric_grids_have_zero_points_of_zero(a, b):
    assert activation_grid(Range(min(a, b), max(a, b)), SYMMETRIC).zero == 0


@given(st.floats(0.01, 100), st.floats(0.01, 100), st.floats(-5, 105), st.integers(0, 2**32))
def test_a_grid_that_clips_gives_the_same_codes_with_and_without_the_clip(high, clip, offset, seed):
    grid = activation_grid(Range(0, min(high, clip)), CPU)
    assert grid.clips(0, clip)
    values = np.random.default_rng(seed).normal(offset, clip, 100)

    def code(array):
        return np.clip(np.rint(array / grid.scale) + grid.zero, grid.first, grid.last)

    assert np.abs(code(np.clip(values, 0, clip)) - code(values)).max() == 0


def test_a_grid_that_reaches_beyond_a_clip_does_not_clip():
    assert not activation_grid(Range(-1, 6), CPU).clips(0, 6)
    assert not activation_grid(Range(0, 6), CPU).clips(1, 6)


@given(st.integers(0, 2**32), st.floats(-15, 15), st.sampled_from([None, 0, 1]), st.booleans())
def test_weights_come_back_within_half_a_step(seed, exponent, axis, reduce_range):
    scheme = dataclasses.replace(CPU, reduce_range=reduce_range)
    array = (np.random.default_rng(seed).standard_normal((4, 5)) * 10**exponent).astype(np.float32)
    channels = array.shape[axis or 0]
    weight = weight_codes(array, axis, scheme, np.zeros(channels, np.float32))
    assert np.abs(weight.codes.astype(int)).max() <= (63 if reduce_range else 127)
    scale = weight.scale if axis is None else np.expand_dims(weight.scale, 1 - axis)
    assert (np.abs(weight.codes * scale - array) <= scale * 0.5001).all()


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_weights_take_the_dtype_of_the_scheme(dtype):
    array = np.array([[-1.0, 0.5, 0.0]], np.float32)
    weight = weight_codes(array, 0, dataclasses.replace(CPU, weight=dtype), np.zeros(1, np.float32))
    assert weight.codes.dtype == dtype
    assert np.allclose((weight.codes.astype(int) - weight.zero) * weight.scale, array, atol=0.005)


@given(st.floats(-30, 30), st.floats(-15, 15), st.floats(-15, 3))
def test_no_bias_overflows_int32_however_small_its_weights(bias, weight, activation):
    """Fault R5."""
    biases, scale = np.array([10.0**bias]), 10.0**activation
    array = np.array([[10.0**weight]], np.float32)
    floor = bias_floor(biases, 1, scale)
    product = float(weight_codes(array, 0, CPU, floor).scale[0]) * scale
    assert biases[0] / product <= BIAS_LIMIT * 1.001


def test_a_channel_of_zeros_has_a_finite_scale():
    """Fault R6."""
    array = np.array([[0.0, 0.0], [1.0, 2.0]], np.float32)
    weight = weight_codes(array, 0, CPU, np.zeros(2, np.float32))
    assert weight.scale[0] == 1
    assert not weight.codes[0].any()
