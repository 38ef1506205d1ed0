"""What this machine says of itself, as text. Only this module looks at it; the others judge."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from penjing.here import architecture, this_machine

if TYPE_CHECKING:
    from penjing.device import Device

#: packages worth a line of their own; other requirements are named only where they are at fault
NAMED = ("torch", "torchvision", "onnx", "onnxruntime", "onnxsim", "onnxscript")
#: distributions that bring the same package
_ALSO = {
    "onnxruntime": ("onnxruntime-gpu",),
    "tensorrt": ("tensorrt-cu12", "tensorrt-cu13", "tensorrt-cu11"),
}
TRTEXEC = Path("/usr/src/tensorrt/bin/trtexec")

Status = Literal["ok", "warning", "problem", "absent"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing looked at: what was found, and the cure where it is not in order."""

    subject: str
    status: Status
    what: str
    cure: str = ""


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What this machine says of itself; "" or 0 where it says nothing."""

    python: str
    system: str
    arch: str
    machine: Device
    free_disk_gb: float
    #: what Penjing needs, as in the metadata of its distribution: "torch>=2.9"
    requirements: tuple[str, ...]
    #: installed versions by package
    versions: Mapping[str, str]
    #: where trtexec is, and what it prints
    trtexec: str
    trtexec_output: str
    #: /etc/nv_tegra_release, CUDA's version.json, and name, driver and memory of each GPU by nvidia-smi
    tegra_release: str
    cuda_json: str
    nvidia_smi: str
    #: the compute capability of each GPU by nvidia-smi, which old drivers do not tell
    compute_capability: str = ""

    @property
    def tensorrt(self) -> str:
        """Return the version of the TensorRT here, trtexec's before the Python module's; "" for none."""
        return parse_trtexec(self.trtexec_output) or self.versions.get("tensorrt", "")


def parse_tegra_release(text: str) -> str:
    """Return the L4T version in the text of /etc/nv_tegra_release, such as "36.4.4"; "" without one."""
    found = re.search(r"R(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)", text)
    return f"{found[1]}.{found[2]}" if found else ""


def parse_trtexec(text: str) -> str:
    """Return the TensorRT version in trtexec's banner, such as "10.3.0"; "" where there is no banner.

    The tag is major * 10000 + minor * 100 + patch from version 10 on; before, major * 1000 + the same.
    """
    found = re.search(r"\[TensorRT v(\d{4,6})\]", text)
    if not found:
        return ""
    number = int(found[1])
    unit = 10_000 if number >= 100_000 else 1_000
    return f"{number // unit}.{number % unit // 100}.{number % 100}"


def parse_cuda(text: str) -> str:
    """Return the toolkit's version in the text of CUDA's version.json; "" where it tells none."""
    try:
        version = json.loads(text)["cuda"]["version"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    return version if isinstance(version, str) else ""


def parse_nvidia_smi(text: str) -> list[tuple[str, str, str]]:
    """Return name, driver version and memory of each GPU in nvidia-smi's answer, [] for anything else."""
    rows = [tuple(part.strip() for part in line.split(",")) for line in text.splitlines()]
    return [(row[0], row[1], row[2]) for row in rows if len(row) == 3 and re.fullmatch(r"[\d.]+", row[1])]


def parse_compute_capability(text: str) -> list[str]:
    """Return the compute capability of each GPU in nvidia-smi's answer, such as ["8.6"]; [] for anything else."""
    rows = [line.strip() for line in text.splitlines() if line.strip()]
    return rows if all(re.fullmatch(r"\d{1,2}\.\d", row) for row in rows) else []


def observe() -> Evidence:
    """Look at this machine. Imports no framework and asks no network."""
    from packaging.requirements import Requirement

    try:
        requirements = metadata.requires("penjing") or []
    except metadata.PackageNotFoundError:
        requirements = []
    needed = [r for r in map(Requirement, requirements) if not r.marker or r.marker.evaluate({"extra": ""})]
    names = {*NAMED, "tensorrt", *(r.name.lower() for r in needed)}
    trtexec = shutil.which("trtexec") or (str(TRTEXEC) if TRTEXEC.is_file() else "")
    smi = shutil.which("nvidia-smi")
    query = [smi, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"] if smi else []
    return Evidence(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}",
        arch=architecture(),
        machine=this_machine(),
        free_disk_gb=shutil.disk_usage(Path.cwd()).free / 1e9,
        requirements=tuple(f"{r.name}{r.specifier}" for r in needed),
        versions={name: version for name in names if (version := _version(name))},
        trtexec=trtexec,
        trtexec_output=output([trtexec, "--help"]) if trtexec else "",
        tegra_release=_text(Path("/etc/nv_tegra_release")),
        cuda_json=_text(Path("/usr/local/cuda/version.json")),
        nvidia_smi=output(query) if query else "",
        compute_capability=output([smi, "--query-gpu=compute_cap", "--format=csv,noheader"]) if smi else "",
    )


def _version(name: str) -> str:
    for distribution in (name, *_ALSO.get(name, ())):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return ""


def output(command: list[str]) -> str:
    """Return what a command prints on both streams, however it ends; "" where it cannot run or takes long."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            timeout=5,
            check=False,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout[:100_000].decode("utf-8", "replace")


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
