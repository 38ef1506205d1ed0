"""TensorRT's calibration cache, written and read."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penjing.errors import InputError
from penjing_tensorrt.dla.calibration_cache import ALGORITHMS, Cache, read

NAMES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1).filter(
    lambda n: n == n.strip()
)
SCALES = st.floats(2.0**-126, 2.0**100, width=32)
VERSIONS = st.one_of(
    st.tuples(st.integers(7, 9), st.integers(0, 9), st.integers(0, 99)),
    st.tuples(st.integers(10, 11), st.integers(0, 99), st.integers(0, 99)),
)


@given(VERSIONS, st.dictionaries(NAMES, SCALES), st.sampled_from(ALGORITHMS))
def test_what_is_written_is_read_again(
    version: tuple[int, int, int], scales: dict[str, float], algorithm: str
) -> None:
    cache = Cache(version, scales, algorithm)
    text = cache.write()

    assert read(text) == cache
    assert read(text).write() == text
    assert text.isascii()


def test_the_file_is_as_trtexec_reads_it() -> None:
    """0.0078740157 = 1 / 127 is 3c010204; a colon may stand in a name; leading zeros stay."""
    cache = Cache(
        (10, 3, 0), {"input": 1 / 127, "a: b": 1.0, "tiny": struct.unpack(">f", bytes.fromhex("00800000"))[0]}
    )

    assert (
        cache.write() == "TRT-100300-EntropyCalibration2\ninput: 3c010204\na: b: 3f800000\ntiny: 00800000\n"
    )


@pytest.mark.parametrize(
    ("version", "number"), [((8, 5, 2), 8502), ((8, 6, 2), 8602), ((8, 2, 1), 8201), ((10, 3, 0), 100300)]
)
def test_the_first_line_names_the_release(version: tuple[int, int, int], number: int) -> None:
    text = Cache(version, {}).write()

    assert text == f"TRT-{number}-EntropyCalibration2\n"
    assert read(text).version == version


def test_digits_that_others_left_out_are_zeros_in_front() -> None:
    assert read("TRT-8502-EntropyCalibration2\r\nx: 800000\r\n").scales == {"x": 2.0**-126}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "first line"),
        ("TRT-x-EntropyCalibration2\n", "first line"),
        ("TRT-8502-SomeCalibration\n", "no calibrator"),
        ("TRT-8502-EntropyCalibration2\nx 3c010204\n", "Line 2"),
        ("TRT-8502-EntropyCalibration2\nx: 3c010204\nx: 3c010204\n", "names x again"),
        ("TRT-8502-EntropyCalibration2\nx: 3c01020405\n", "Line 2"),
        ("TRT-8502-EntropyCalibration2\nx: zz\n", "Line 2"),
        ("TRT-8502-EntropyCalibration2\nx: 7f800000\n", "positive, finite"),
        ("TRT-8502-EntropyCalibration2\nx: bf800000\n", "positive, finite"),
        ("TRT-8502-EntropyCalibration2\nx: 0\n", "positive, finite"),
    ],
)
def test_a_malformed_cache_is_an_error_not_zeros(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read(text)


@pytest.mark.parametrize("name", ["", "Ünïcode", "two\nlines", " edge"])
def test_a_name_that_would_break_the_file_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="ASCII"):
        Cache((10, 3, 0), {name: 1.0})


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan"), 1e300, 1e-300])
def test_a_scale_that_is_none_is_refused(scale: float) -> None:
    with pytest.raises(InputError, match="scale"):
        Cache((10, 3, 0), {"x": scale})
