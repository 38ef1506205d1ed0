"""Why trtexec failed, and what to do about it: known messages are data (`failures.toml`), each with its source."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penjing import toml
from penjing.errors import StepError

#: what is said of any failure, and tells nothing
_HOLLOW = re.compile(
    r"Engine (could not be created|set up failed|creation failed)|Parsing model failed|Failed to parse onnx file|"
    r"Failed to create engine from model or file|Building engine failed|Assertion failed: .*Builder failed",
    re.IGNORECASE,
)


@functools.cache
def _known() -> tuple[dict[str, Any], ...]:
    table = toml.loads((Path(__file__).parent / "failures.toml").read_text("utf-8"))
    return tuple({**entry, "pattern": re.compile(entry["says"], re.IGNORECASE)} for entry in table["failure"])


def explained(lines: Sequence[str], said: Sequence[tuple[str, str]], status: str) -> StepError:
    """Return the error that tells the first thing that went wrong, with the cure where it is known.

    `lines` is the whole log, `said` the severity and text of those lines that have one.
    """
    errors = [text for severity, text in said if severity in "FE"]
    telling = [text for text in errors if not _HOLLOW.search(text)]
    first = next(iter(telling or errors), "")
    # an unknown option is told on a line of its own, without a severity
    first = next((line.strip() for line in lines if "Unknown option" in line), first)
    return StepError(
        f"trtexec {status.lower()}: {first.strip()[:400] or 'it does not say why'}",
        hint=cure("\n".join([first, *telling])) or "Run the command by hand with --verbose.",
    )


def cure(text: str) -> str:
    """Return what to do about a message of TensorRT, or of the first known one in a text; "" for none."""
    for line in text.splitlines():
        for entry in _known():
            if entry["pattern"].search(line):
                return str(entry["cure"])
    return ""
