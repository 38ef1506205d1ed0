"""Whether an engine file loads here or on a device, by its header alone: nothing of it is executed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from penjing.doctor.evidence import Evidence, Finding, observe
from penjing.doctor.machine import within
from penjing.doctor.nvidia import numbers
from penjing.engine_file import Header, read_header

if TYPE_CHECKING:
    from penjing.device import Device

_BUILD = (
    "Build it there from the bundle's model.onnx: `python3 runner.py --build`, or the command in its README."
)


def examine_engine(path: Path, device: Device | None, evidence: Evidence | None = None) -> list[Finding]:
    """Return who made the engine at `path`, and whether it loads here and on `device`.

    Raises InputError for a file that is no engine. The header tells neither the GPU nor the operating system.
    """
    evidence = evidence or observe()
    header = read_header(path)
    return [
        *_maker(path, header),
        *_here(header, evidence),
        *(_there(header, device) if device else ()),
    ]


def _maker(path: Path, header: Header) -> Iterator[Finding]:
    version = header.full or "of a version that its header does not tell (before 8.6 none does)"
    yield Finding(
        "engine", "ok", f"{path.name}, {header.size / 1e6:.1f} MB, made by {header.maker} {version}"
    )
    if header.maker == "TensorRT":
        what = (
            "the header does not tell for which: it loads on the GPU, system and architecture it was built on"
        )
        yield Finding("engine's gpu", "ok", what)


def _here(header: Header, evidence: Evidence) -> Iterator[Finding]:
    """Compare the maker with the TensorRT of this machine."""
    if header.maker == "TensorRT-RTX":
        cure = "TensorRT-RTX alone loads it, on a PC with a GeForce RTX card. For TensorRT, build another with trtexec."
        yield Finding("engine here", "problem", "TensorRT does not load what TensorRT-RTX made", cure)
        return
    version = evidence.tensorrt
    if not numbers(version):
        cure = "Copy it to the device, or install the TensorRT that made it."
        yield Finding("engine here", "absent", "there is no TensorRT here that could load it", cure)
        return
    yield _judged("engine here", header, version, "the TensorRT here")


def _there(header: Header, device: Device) -> Iterator[Finding]:
    """Compare the maker with the TensorRT of a device."""
    subject = f"engine on {device}"
    expected = device.runtime.get("tensorrt", "")
    if not expected:
        cure = f"Its models run by {device.backend}."
        yield Finding(subject, "problem", f"{device.title} has no TensorRT", cure)
    elif header.maker == "TensorRT-RTX":
        yield Finding(subject, "problem", "TensorRT does not load what TensorRT-RTX made", _BUILD)
    elif not header.version:
        yield Finding(subject, "warning", f"whether TensorRT {expected} made it cannot be told", _BUILD)
    elif within(header.version, expected):
        cure = "Both numbers after the first must agree too, and the GPU: it must have been built on such a device."
        yield Finding(subject, "ok", f"TensorRT {header.version} is within {expected}", cure)
    else:
        what = f"TensorRT {header.version} made it, and {device} has {expected}"
        yield Finding(subject, "problem", what, _BUILD)


def _judged(subject: str, header: Header, version: str, which: str) -> Finding:
    """Judge by the rules of engine portability (TensorRT Developer Guide; version compatibility is from 8.6 on)."""
    made, here = numbers(header.version)[:3], numbers(version)[:3]
    if not made:
        if here >= (8, 6):
            what = f"it was made before TensorRT 8.6, and {which} is {version}"
            return Finding(subject, "problem", what, "Build it anew with the TensorRT that is here.")
        return Finding(
            subject, "warning", "which TensorRT made it cannot be told", "Build it anew to be sure."
        )
    if made == here:
        return Finding(subject, "ok", f"{which} is {version}: it loads if this is the GPU it was built on")
    if made[0] == here[0] and made < here:
        what = f"TensorRT {header.version} made it and {which} is {version}: it loads only if built version-compatible"
        cure = (
            "Build it anew, or with --versionCompatible (tensorrt.version_compatible=true) on the older one."
        )
        return Finding(subject, "warning", what, cure)
    newer = "an older TensorRT never loads a newer engine" if made > here else "the major versions differ"
    what = f"TensorRT {header.version} made it and {which} is {version}: {newer}"
    return Finding(subject, "problem", what, "Build it anew with the TensorRT that is here.")
