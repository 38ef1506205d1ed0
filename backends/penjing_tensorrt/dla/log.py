"""What TensorRT's verbose log says of where layers run, to compare with what was predicted."""

from __future__ import annotations

import re
from typing import Any

#: after these headers the log lists layers: `[DlaLayer] {ForeignNode[first...last]}`, `[GpuLayer] KIND: name`
_LAYER = re.compile(r"\[(Dla|Gpu)Layer\] (.+?)\s*$", re.MULTILINE)
_FALLBACK = re.compile(
    r"(?:layer |Layer ')(?P<name>[^']+?)'?(?: \([A-Z_]+\))?"
    r"(?: is not supported on DLA, falling back to GPU"
    r"|: Unsupported on DLA\. Switching this layer's device type to GPU)"
)


def placed(log: str) -> dict[str, Any]:
    """Return the loadables, the layers on the GPU, and those that the builder moved there."""
    layers = _LAYER.findall(log)
    return {
        "loadables": [name for device, name in layers if device == "Dla"],
        "gpu": [name for device, name in layers if device == "Gpu"],
        "fallbacks": sorted({found["name"] for found in _FALLBACK.finditer(log)}),
    }
