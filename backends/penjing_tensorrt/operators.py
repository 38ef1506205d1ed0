"""Which ONNX operators TensorRT's parser reads, by version (`operators.json`, which names its source)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penjing.device import Device


def readable(version: tuple[int, ...]) -> frozenset[str]:
    """Return the operators that the parser of TensorRT `version` reads, such as (8, 5).

    That is the list of the newest release not after it which is known; before the first, the first.
    """
    tables = json.loads((Path(__file__).parent / "operators.json").read_text())["read"]
    known = {tuple(map(int, name.split("."))): names for name, names in tables.items()}
    return frozenset(known[max((v for v in known if v <= version[:2]), default=min(known))].split())


def oldest(device: Device) -> tuple[int, int]:
    """Return the oldest TensorRT, (major, minor), that the profile of `device` is for."""
    from packaging.specifiers import SpecifierSet

    bounds = [
        tuple(int(part) for part in entry.version.split(".")[:2] if part.isdecimal())
        for entry in SpecifierSet(device.runtime.get("tensorrt", ""))
        if entry.operator in ("==", ">=", "~=", "===")
    ]
    major, minor = (*max(bounds, default=(10, 0)), 0)[:2]
    return major, minor
