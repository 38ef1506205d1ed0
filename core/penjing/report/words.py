"""Numbers and names as the reader sees them: the same in HTML, Markdown and the terminal."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from datetime import datetime, timezone

ABSENT = "–"
#: characters that turn the direction of the text around them: a file name could disguise itself with them
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: str) -> str:
    r"""Return `text` on one line, what could disguise it (controls, turned direction) spelt as \u202e."""
    return "".join(map(_spelt, " ".join(text.split())))


def _spelt(character: str) -> str:
    hidden = character in _TURNING or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
    return f"\\u{ord(character):04x}" if hidden else character


def clipped(text: str, length: int) -> str:
    """Return `text`, shortened in its middle to at most `length` characters."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 3
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :] if tail else ''}"


def decimal(value: float, digits: int = 3) -> str:
    """Return `value` with at least `digits` significant digits, none of its whole part dropped."""
    if value == 0 or abs(value) < 1e-9:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    return f"{value:,.{max(0, places)}f}".replace("-", "−")


def size(size_bytes: int) -> str:
    """Return a size in megabytes of 10^6 bytes."""
    return f"{decimal(size_bytes / 1e6)} MB"


def milliseconds(value: float) -> str:
    """Return a time in milliseconds."""
    return f"{decimal(value)} ms"


def seconds(value: float) -> str:
    """Return a time in seconds, or in minutes where these are many."""
    return f"{decimal(value, 2)} s" if value < 120 else f"{decimal(value / 60, 2)} min"


def times(value: float) -> str:
    """Return a ratio."""
    return f"{decimal(value)} ×"


def many(value: int) -> str:
    """Return a count in thousands (k), millions (M) or thousands of millions (G), where it is that large."""
    for factor, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= factor:
            return decimal(value / factor) + letter
    return str(value)


def percent(share: float) -> str:
    """Return a share as a percentage with one digit, more where one digit would make it all or nothing."""
    value = 100 * share
    for places in (1, 2, 3):
        text = f"{value:,.{places}f}"
        if float(text.replace(",", "")) not in (0, 100):
            return f"{text} %"
    return "100 %" if value > 50 else "0 %"


def points(value: float) -> str:
    """Return a difference of percentages, in points."""
    return f"{_point(value)} points"


def _point(value: float) -> str:
    return f"{value:.1f}".replace("-", "−") if abs(value) >= 0.1 else decimal(value, 1)


def decibels(value: float) -> str:
    """Return a ratio of powers in decibels."""
    return f"{value:.1f} dB".replace("-", "−")


def span(ends: Sequence[float], shown: Callable[[float], str]) -> str:
    """Return both ends of an interval, the unit once."""
    low, high = shown(ends[0]), shown(ends[1])
    number, _, unit = low.partition(" ")
    return f"{number if high.endswith(f' {unit}') else low} to {high}"


def instant(iso: str) -> datetime:
    """Read ISO 8601; the Z for UTC, which Python 3.10 does not know, included. ValueError for anything else."""
    return datetime.fromisoformat(iso.removesuffix("Z") + "+00:00" if iso.endswith("Z") else iso)


def moment(iso: str) -> str:
    """Return a date and time, in UTC."""
    return f"{instant(iso).astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC"


def photographs(n: int) -> str:
    """Return a number of photographs with its noun."""
    return f"{n:,} photograph{'' if n == 1 else 's'}"


def superscript(number: int) -> str:
    """Return the mark of a note."""
    return str(number).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def plain(value: object) -> str:
    """Return a JSON value in one line, as an option or a detail reads."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}".replace("-", "−")
    if isinstance(value, dict):
        return ", ".join(f"{visible(str(key))} {plain(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        shown = ", ".join(plain(item) for item in value[:12])
        return f"{shown}, … ({len(value)} in all)" if len(value) > 12 else shown or "none"
    return visible(str(value))
