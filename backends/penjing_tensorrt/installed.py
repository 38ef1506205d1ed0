"""TensorRT and the GPU of the machine we run on, and whether they are those of a device."""

from __future__ import annotations

import dataclasses
import functools
import re
import shutil
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.specifiers import SpecifierSet
from penjing.doctor import parse_trtexec
from penjing.errors import StepError
from penjing.here import this_machine

from penjing_tensorrt import trtexec

if TYPE_CHECKING:
    from penjing.device import Device

#: distributions that bring the Python module
_DISTRIBUTIONS = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu11")
#: words of a GPU's name that say who makes it, not which it is
_MAKER = re.compile(r"\b(NVIDIA|GeForce|Tesla|Quadro)\b", re.IGNORECASE)
#: what follows a GPU's name where it is another one
_ANOTHER = re.compile(r"^\s*(Ti|SUPER|D|Laptop|Mobile|Max-Q|G)\b", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Installed:
    """What is here; "" for what is not."""

    #: version of the Python module
    module: str = ""
    #: path of trtexec, and the TensorRT it belongs to
    trtexec: str = ""
    trtexec_version: str = ""
    #: names of the GPUs that nvidia-smi tells of, and the compute capability of the first
    gpus: tuple[str, ...] = ()
    sm: str = ""

    @property
    def version(self) -> str:
        """Return the version that would build an engine here; "" where none can."""
        return self.module or self.trtexec_version


@functools.cache
def look() -> Installed:
    """Look at this machine; nothing of TensorRT is loaded into this process."""
    program = trtexec.find()
    gpus = _gpus()
    return Installed(
        module=_module(),
        trtexec=program,
        trtexec_version=parse_trtexec(_output([program, "--help"])) if program else "",
        gpus=tuple(name for name, _ in gpus),
        sm=gpus[0][1] if gpus else "",
    )


def why_no_engine(device: Device, found: Installed | None = None) -> str:
    """Return why no engine of `device` can be built and run on this machine; "" where one can."""
    found = found or look()
    if why := _why_another_machine(device, found):
        return why
    if not found.version:
        return "TensorRT is not installed here: neither its Python module nor trtexec"
    allowed = device.runtime.get("tensorrt", "")
    if not SpecifierSet(allowed).contains(found.version, prereleases=True):
        return f"TensorRT {found.version} is here, and {device} has {allowed}"
    return ""


def why_no_session(device: Device, found: Installed | None = None) -> str:
    """Return why networks cannot be run through TensorRT in this process; "" where they can."""
    found = found or look()
    if why := why_no_engine(device, found):
        return why
    return (
        ""
        if found.module
        else "only trtexec is here, not TensorRT's Python module: `penjing tune` times with it"
    )


def _why_another_machine(device: Device, found: Installed) -> str:
    """Return why this machine is not such a device: a board by its identity, a desktop GPU by its name."""
    if "identity" in device.facts:
        return "" if device.here else f"this machine ({this_machine().title}) is not a {device.title}"
    if not found.gpus:
        return f"this machine has no NVIDIA GPU, and {device.title} is one"
    if not same_gpu(device.title, found.gpus[0]):
        return f"the GPU of this machine ({found.gpus[0]}) is not a {device.title}"
    return ""


def same_gpu(title: str, name: str) -> bool:
    """Tell whether nvidia-smi's `name` is the GPU that a profile calls `title`."""
    wanted = _MAKER.sub("", title).split()
    found = re.search(
        rf"\b{re.escape(' '.join(wanted))}(?!\w)(.*)$", " ".join(_MAKER.sub("", name).split()), re.I
    )
    return bool(wanted and found and not _ANOTHER.match(found[1]))


def _module() -> str:
    for name in _DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""


def _gpus() -> list[tuple[str, str]]:
    """Return name and compute capability of each GPU by nvidia-smi; [] where it tells of none."""
    program = shutil.which("nvidia-smi")
    if not program:
        return []
    text = _output([program, "--query-gpu=name,compute_cap", "--format=csv,noheader"])
    rows = [line.rpartition(",") for line in text.splitlines()]
    return [(name.strip(), sm.strip()) for name, _, sm in rows if re.fullmatch(r"\s*\d+\.\d+\s*", sm)]


def _output(command: list[str]) -> str:
    try:
        return trtexec.run(command, Path.cwd(), timeout=20)
    except StepError:
        return ""  # it cannot be started, or does not end: this machine does not tell
