"""What errors of others are quoted with."""

import pytest
from penjing.errors import first_line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  two  \n"), "two"),
        (NotImplementedError(), "NotImplementedError"),
        (RuntimeError(" \n "), "RuntimeError"),
        (ValueError("a" * 999), "a" * 300),
    ],
)
def test_the_first_line_that_says_anything_is_quoted_and_the_type_where_none_does(error, said):
    assert first_line(error) == said
