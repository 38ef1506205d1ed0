"""The README of a bundle: the commands for its board."""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from penjing.bundle.runner import LAST_FOR, older

if TYPE_CHECKING:
    from penjing.device import Device


def render(device: Device, manifest: dict[str, Any]) -> str:
    """Return the README, in Markdown."""
    template = Template((Path(__file__).parent / "readme.md").read_text("utf-8"))
    minimum = manifest["runtime"]["minimum"]
    install, python = _install(device, minimum)
    golden = manifest["golden"]
    return template.substitute(
        device=manifest["device"]["title"],
        stack=f" with {device.stack}" if device.stack else "",
        version=manifest["penjing"],
        source=manifest["source"].replace("`", "'"),
        needs=_needs(device, minimum),
        install=install,
        python=python,
        golden="some of the photographs that the model was calibrated with, and the"
        if golden["from"] == "photographs"
        else "noise, and the",
        tolerance=f"{golden['tolerance']:.3g}",
    )


def _install(device: Device, minimum: str) -> tuple[str, str]:
    """Return the lines that install numpy, Pillow and the runtime, and the Python that has them then."""
    version = device.facts.get("python", "")
    known = tuple(int(part) for part in version.split(".")[:2]) if version else ()
    if known in LAST_FOR and known < (3, 10):
        # an old pip does not know today's wheels
        lines = ("python3 -m pip install --user --upgrade pip", "python3 -m pip install --user")
        return f"{lines[0]}\n{lines[1]} numpy pillow onnxruntime=={LAST_FOR[known]}", "python3"
    package = f'"onnxruntime>={minimum}"' if minimum else "onnxruntime"
    apt = "sudo apt-get install -y python3-venv\n" if device.arch == "aarch64" and not device.here else ""
    return (
        f"{apt}python3 -m venv ~/penjing\n~/penjing/bin/pip install numpy pillow {package}",
        "~/penjing/bin/python",
    )


def _needs(device: Device, minimum: str) -> str:
    """Return what the board must have before."""
    version = device.facts.get("python")
    if version:
        return f"Python {version}, as {device.stack or 'its system'} has it"
    newer = [python for python, last in LAST_FOR.items() if not older(last, minimum)]
    lowest = min(newer, default=(3, 11))
    return f"a 64-bit system with Python {lowest[0]}.{lowest[1]} or later"
