"""JSON records that tell whether they still say what was written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penjing.errors import InputError
from penjing.files import digest, read_json, write_text

SEAL = "seal"


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record with the digest of what it says, atomically; NaN and infinity are refused."""
    # ASCII, because a file name that is no text (a lone surrogate) has no other way into JSON
    said = json.loads(json.dumps(record, allow_nan=False))
    write_text(path, json.dumps({**said, SEAL: _seal(said)}, indent=1) + "\n")


def read(path: Path) -> dict[str, Any] | None:
    """Return a record; None where there is none, or where it does not say what was written."""
    try:
        record = read_json(path)
    except InputError:
        return None  # to whoever keeps records, a damaged one is one that is not there
    if not isinstance(record, dict) or record.pop(SEAL, None) != _seal(record):
        return None
    return record


def _seal(record: Mapping[str, Any]) -> str:
    return digest(json.dumps(record, sort_keys=True))
