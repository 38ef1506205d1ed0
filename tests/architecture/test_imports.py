"""`penjing --help` and `penjing plugins` wait for no framework: no module of the host, and no plugin, loads one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = [
    "torch", "torchvision", "timm", "onnx", "onnxruntime", "onnx_ir", "onnxscript", "onnxsim", "safetensors",
    "tensorrt", "numpy", "PIL", "rich",
]  # fmt: skip
EVERY_MODULE = """
import importlib, pkgutil, penjing
for module in pkgutil.walk_packages(penjing.__path__, "penjing."):
    if module.name != "penjing.__main__":  # which runs
        importlib.import_module(module.name)
"""
EVERY_PLUGIN = """
from penjing import Host
host = Host()
assert host.plugins, "no plugin is installed"
host.steps, host.tasks, host.profiles, host.broken
for profile in host.profiles:
    host.device(profile.stem)
"""


@pytest.mark.parametrize("code", [EVERY_MODULE, EVERY_PLUGIN], ids=["modules", "plugins"])
def test_nothing_heavy_is_loaded(code: str) -> None:
    end = f"\nimport json, sys\nprint(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    result = subprocess.run([sys.executable, "-c", code + end], capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == []


def test_the_host_works_without_any_of_them() -> None:
    """An import tried and caught would leave no trace in sys.modules."""
    block = f"import sys\nsys.modules.update(dict.fromkeys({HEAVY}))\n"
    result = subprocess.run(
        [sys.executable, "-c", block + EVERY_PLUGIN + "\nassert not host.broken, host.broken"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert result.returncode == 0, result.stderr
