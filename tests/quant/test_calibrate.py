import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from penjing.errors import StepError
from penjing_quant.calibrate import Histogram, calibrate
from penjing_quant.integers import Range
from penjing_quant.photographs import Photographs

METHODS = ["minmax", "average", "percentile", "entropy", "mse"]


def stream(pixels):
    return lambda: ((f"photo{i}.jpg", image[None]) for i, image in enumerate(pixels))


@pytest.fixture
def net(build):
    weights = np.random.default_rng(1).standard_normal((4, 3, 3, 3)).astype(np.float32)
    return build([("Conv", ["x", "w"], ["c"], {}), ("Relu", ["c"], ["y"], {})], {"w": weights})


@pytest.mark.parametrize("method", METHODS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=10)
@given(sizes=st.lists(st.integers(1, 4), min_size=5, max_size=5))
def test_ranges_do_not_depend_on_how_photographs_were_batched(method, sizes, net, cpu, photographs, split):
    """Fault R1: batches of 2, 2 and 1 break calibrators that stack them."""

    def ranges(sizes):
        photos = Photographs(split(photographs[:5], sizes), None, 5)
        return calibrate(net.model, ["x", "y"], photos, cpu, method).ranges

    assert ranges(sizes) == ranges([5])


def test_minmax_is_the_least_and_greatest_value(net, cpu, photographs):
    found = calibrate(net.model, ["x"], stream(photographs), cpu)
    assert found.ranges["x"] == Range(float(photographs.min()), float(photographs.max()))
    assert found.photographs == len(photographs)


def test_average_does_not_depend_on_the_order(net, cpu, photographs):
    there = calibrate(net.model, ["y"], stream(photographs), cpu, "average").ranges["y"]
    back = calibrate(net.model, ["y"], stream(photographs[::-1]), cpu, "average").ranges["y"]
    assert back.high == pytest.approx(there.high)


def test_percentile_leaves_out_the_tails(cpu):
    values = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    histogram = Histogram.empty(Range(float(values.min()), float(values.max())))
    histogram.add(values)
    found = histogram.percentile(98)
    assert found.low == pytest.approx(np.percentile(values, 1), abs=0.01)
    assert found.high == pytest.approx(np.percentile(values, 99), abs=0.01)


@pytest.fixture
def long_tailed():
    values = np.random.default_rng(0).standard_t(3, 100_000).astype(np.float32)
    histogram = Histogram.empty(Range(float(values.min()), float(values.max())))
    histogram.add(values)
    return histogram


def test_entropy_saturates_a_long_tail(long_tailed, cpu, tensorrt):
    for scheme in (cpu, tensorrt):
        assert long_tailed.entropy(scheme).reach < long_tailed.range.reach / 2


def test_least_error_is_less_than_that_of_any_other_range(long_tailed, cpu, tensorrt):
    for scheme in (cpu, tensorrt):
        least = long_tailed.squared_error(long_tailed.least_error(scheme), scheme)
        others = (long_tailed.range, long_tailed.percentile(99.9), long_tailed.entropy(scheme))
        assert all(least < long_tailed.squared_error(range_, scheme) for range_ in others)


@given(st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=50, unique=True))
def test_ranges_found_lie_within_what_was_seen(values):
    from penjing.step import Scheme

    scheme = Scheme("uint8", "int8", False, True, False, "int32", "all", frozenset(), "tests")
    array = np.array(values, np.float32)
    seen = Range(float(array.min()), float(array.max()))
    histogram = Histogram.empty(seen)
    histogram.add(array)
    assert histogram.counts.sum() == len(values)
    for found in (histogram.percentile(99.9), histogram.entropy(scheme), histogram.least_error(scheme)):
        assert seen.low <= found.low <= found.high <= seen.high


@pytest.mark.parametrize("batch", [1, 4])
def test_a_network_of_a_fixed_batch_is_fed_one_photograph_at_a_time(batch, build, cpu, photographs):
    weights = np.ones((4, 3, 3, 3), np.float32)
    fixed = build([("Conv", ["x", "w"], ["y"], {})], {"w": weights}, batch=batch, name="fixed.onnx")
    free = build([("Conv", ["x", "w"], ["y"], {})], {"w": weights}, name="free.onnx")
    expected = calibrate(free.model, ["y"], stream(photographs), cpu).ranges["y"]
    assert calibrate(fixed.model, ["y"], stream(photographs), cpu).ranges["y"].high == pytest.approx(
        expected.high
    )


def test_no_photographs_is_an_error_that_says_so(net, cpu):
    """Fault R7."""
    with pytest.raises(StepError, match="no photograph"):
        calibrate(net.model, ["x"], stream([]), cpu)


def test_nan_pixels_name_the_photograph(net, cpu, photographs):
    """Fault R7."""
    photographs[3, 0, 0, 0] = np.nan
    with pytest.raises(StepError, match=r"photo3\.jpg has pixels"):
        calibrate(net.model, ["x"], stream(photographs), cpu)


def test_infinite_activations_name_tensor_and_photograph(build, cpu, photographs):
    """Fault R7."""
    photographs[:] = 1
    photographs[2, 0, 0, 0] = -1
    net = build(
        [("Sqrt", ["x"], ["s"], {}), ("Conv", ["s", "w"], ["y"], {})],
        {"w": np.ones((1, 3, 1, 1), np.float32)},
    )
    with pytest.raises(StepError, match=r"tensor s .* photo2\.jpg"):
        calibrate(net.model, ["x", "s", "y"], stream(photographs), cpu)


@pytest.mark.parametrize("method", METHODS)
def test_tensors_that_never_change_are_reported(method, net, cpu):
    """Fault R7."""
    zeros = np.zeros((3, 3, 8, 8), np.float32)
    found = calibrate(net.model, ["x", "y"], stream(zeros), cpu, method)
    assert found.constant == ("x", "y")
    assert found.ranges["x"] == Range(0, 0)


def test_a_photograph_of_the_wrong_size_says_what_to_do(build, cpu):
    net = build([("Conv", ["x", "w"], ["y"], {})], {"w": np.ones((1, 3, 1, 1), np.float32)})
    with pytest.raises(StepError, match="shape") as caught:
        calibrate(net.model, ["y"], stream(np.zeros((1, 3, 9, 9), np.float32)), cpu)
    assert "preprocessing" in caught.value.hint
