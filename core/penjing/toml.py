"""TOML: the standard library's reader, or the package it came from on Python 3.10."""

from __future__ import annotations

import sys
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib as _reader
else:
    import tomli as _reader

TOMLDecodeError: type[ValueError] = _reader.TOMLDecodeError


def loads(text: str) -> dict[str, Any]:
    """Return the table that `text` holds; TOMLDecodeError where it is no TOML."""
    table: dict[str, Any] = _reader.loads(
        text.removeprefix("\ufeff")
    )  # the mark that editors on Windows put first
    return table
