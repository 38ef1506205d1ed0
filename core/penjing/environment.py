"""The machine and the versions that a result depends on."""

from __future__ import annotations

import functools
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from penjing.here import this_machine

#: what reads, rewrites and runs models
PACKAGES = (
    "torch", "torchvision", "timm", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxsim", "numpy", "pillow",
)  # fmt: skip


@functools.cache
def packages() -> dict[str, str]:
    """Return the versions of those that are installed."""
    return {name: found for name in PACKAGES if (found := _installed(name))}


def environment(threads: int, seed: int) -> dict[str, Any]:
    """Return the report's `environment` record."""
    machine = this_machine()
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": machine.title,
        "cores": os.cpu_count() or 1,
        "isa": sorted(machine.isa),
        "packages": dict(packages()),
        "threads": threads,
        "seed": seed,
    }


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
