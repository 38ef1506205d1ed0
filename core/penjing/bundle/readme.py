"""The README of a bundle: the commands for its board."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from penjing.bundle.runner import LAST_FOR, python_for

if TYPE_CHECKING:
    from penjing.device import Device


def render(device: Device, manifest: dict[str, Any]) -> str:
    """Return the README, in Markdown."""
    template = Template((Path(__file__).parent / "readme.md").read_text("utf-8"))
    minimum, tensorrt = manifest["runtime"]["minimum"], manifest["runtime"]["name"] == "tensorrt"
    install, python = _install_tensorrt(device) if tensorrt else _install(device, minimum)
    golden = manifest["golden"]
    return template.substitute(
        device=manifest["device"]["title"],
        stack=f" with {device.stack}" if device.stack else "",
        version=manifest["penjing"],
        source=manifest["source"].replace("`", "'"),
        needs=_needs(device, minimum),
        install=install,
        python=python,
        build=_engine(device, manifest["runtime"].get("build", {}), python) if tensorrt else "",
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


def _install_tensorrt(device: Device) -> tuple[str, str]:
    """Return the same where TensorRT runs the model: on a Jetson it belongs to the system, and to its Python."""
    if device.arch == "aarch64":
        return "sudo apt-get install -y python3-libnvinfer python3-numpy python3-pil", "python3"
    package = f'"tensorrt{device.runtime.get("tensorrt", "")}"'
    return (
        f"python3 -m venv ~/penjing\n~/penjing/bin/pip install numpy pillow {package}",
        "~/penjing/bin/python",
    )


def _engine(device: Device, build: Mapping[str, Any], python: str) -> str:
    """Return what the README says of the engine."""
    text = (
        f"\n**Build the engine**, once for this board, which takes minutes:\n\n```\n{python} runner.py --build\n```\n\n"
        "It is kept beside the model and built anew when the network, TensorRT or the GPU is another; without this "
        "command the first photograph waits for it. An engine from another machine is never used."
    )
    if build.get("command"):
        text += (
            f" By hand, in the version that the bundle is for:\n\n```\n{shlex.join(build['command'])}\n```"
        )
    if device.arch == "aarch64":
        text += (
            "\n\nBefore timing, choose a power mode (`sudo nvpmodel -q` tells the present one) and fix the clocks with "
            "`sudo jetson_clocks`; `--bench` records both."
        )
    return text + "\n"


def _needs(device: Device, minimum: str) -> str:
    """Return what the board must have before."""
    version = device.facts.get("python")
    if version:
        return f"Python {version}, as {device.stack or 'its system'} has it"
    lowest = python_for(minimum)
    return f"a 64-bit system with Python {lowest[0]}.{lowest[1]} or later"
