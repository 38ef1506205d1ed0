"""The machine we run on, as a device."""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from penjing import toml
from penjing.device import THIS_MACHINE, Device, builtin_profiles, read_profile

#: what Linux calls the instructions that matter, by our name; all of them must be there
_LINUX = {
    "avx2": ("avx2",),
    "avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl"),
    "avx512_vnni": ("avx512_vnni",),
    "avx_vnni": ("avx_vnni",),
    "amx": ("amx_int8",),
    "neon": ("asimd",),
    "dotprod": ("asimddp",),
    "i8mm": ("i8mm",),
    "fp16": ("asimdhp",),
}
#: the same for macOS: names of `sysctl hw.optional`
_MACOS = {
    "avx2": ("hw.optional.avx2_0",),
    "avx512": ("hw.optional.avx512f", "hw.optional.avx512bw", "hw.optional.avx512dq", "hw.optional.avx512vl"),
    "neon": ("hw.optional.neon",),
    "dotprod": ("hw.optional.arm.FEAT_DotProd",),
    "i8mm": ("hw.optional.arm.FEAT_I8MM",),
    "fp16": ("hw.optional.arm.FEAT_FP16",),
}
#: instructions for integers, the fastest first: onnxruntime takes the first that is there
_FASTEST = ("amx", "avx512_vnni", "avx_vnni", "avx512", "avx2", "i8mm", "dotprod", "neon")
_ARCHITECTURES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}
_RECIPE = ({"use": "onnx.export"}, {"use": "onnx.simplify"}, {"use": "quant.static"}, {"use": "onnxrt"})


@dataclasses.dataclass(frozen=True)
class Cpu:
    """A processor as the operating system tells of it; empty where it does not."""

    model: str
    isa: frozenset[str]


@functools.cache
def this_machine() -> Device:
    """Return the machine we run on as a device; what cannot be told is assumed at its least, with a note."""
    cpu, cpu_source = _cpu()
    arch = architecture()
    board = board_text()
    opset, runtime, runtime_source = _runtime()
    facts: dict[str, Any] = {"cpu": cpu.model or "unknown", "cores": os.cpu_count() or 1}
    facts["system"] = f"{platform.system()} {platform.release()}"
    if profile := fitting_profile(f"{board}\n{cpu.model}"):
        facts["profile"] = profile
    isa = cpu.isa or (frozenset({"neon"}) if arch == "aarch64" else frozenset())
    if not isa:
        facts["note"] = "This CPU's instructions cannot be told: the least are assumed."
    precisions = ("fp32", "fp16", "int8") if "fp16" in isa else ("fp32", "int8")
    detected = {"isa": cpu_source, "max_opset": runtime_source, "runtime": runtime_source}
    fields = ("arch", "precisions", "channel_multiple", "memory_gb", *facts)
    return Device(
        name=THIS_MACHINE,
        title=board.splitlines()[0] if board else cpu.model or f"{arch} machine",
        backend="onnxrt",
        arch=arch,
        isa=isa,
        precisions=precisions,
        channel_multiple=8 if arch == "aarch64" else 16,
        max_opset=opset,
        memory_gb=_memory_gb(),
        runtime=runtime,
        facts=facts,
        sources={**dict.fromkeys(fields, "this machine's operating system (detected)"), **detected},
        recipe=_RECIPE,
        here=True,
    )


def is_here(device: Device) -> bool:
    """Tell whether the machine we run on is such a device, so that latency measured here holds for it.

    A class of CPUs (x86-64-avx2) is here where architecture and the fastest integer instructions agree. A
    certain board or CPU, whose profile has the fact `identity`, must also be recognised by one of those texts
    in the name of the board or CPU. A desktop GPU is never claimed: only its backend can tell.
    """
    if device.here:
        return True
    machine = this_machine()
    if device.arch != machine.arch or kernels(device.isa) != kernels(machine.isa):
        return False
    identity = device.facts.get("identity")
    if identity is None:
        return device.sm is None
    return matches(identity, f"{board_text()}\n{machine.facts['cpu']}")


def kernels(isa: frozenset[str]) -> tuple[str, bool]:
    """Return which instructions integer kernels use, and whether there are half-precision kernels."""
    return next((name for name in _FASTEST if name in isa), ""), "fp16" in isa


def architecture() -> str:
    """Return the CPU architecture, "x86_64" and "aarch64" by those names on every system."""
    machine = platform.machine().lower()
    return _ARCHITECTURES.get(machine, machine or "unknown")


def matches(identity: list[str], text: str) -> bool:
    """Tell whether one of the texts in `identity` stands in `text` as words of their own."""
    return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in identity)


def fitting_profile(text: str) -> str:
    """Return the built-in profile of the board or CPU that `text` names, "" where none has this identity."""
    if not re.search(r"raspberry|nvidia|jetson|\bN\d{2,3}\b", text, re.IGNORECASE):
        return ""  # most machines are none of them, and need not read every profile
    for path in builtin_profiles():
        device = read_profile(path)
        if matches(device.facts.get("identity", []), text):
            return device.name
    return ""


def parse_cpuinfo(text: str) -> Cpu:
    """Return the first processor in the text of Linux's /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    model = fields.get("model name", "")
    if not model and "CPU part" in fields:
        model = f"ARM core, implementer {fields.get('CPU implementer', '?')}, part {fields['CPU part']}"
    return Cpu(model, _isa(_LINUX, flags))


def parse_sysctl(text: str) -> Cpu:
    """Return the processor in the text of macOS's `sysctl hw.optional machdep.cpu`."""
    fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    present = [key for key, value in fields.items() if value.strip() == "1"]
    vnni = "AVX512VNNI" in fields.get("machdep.cpu.leaf7_features", "").split()
    isa = _isa(_MACOS, present) | (frozenset({"avx512_vnni"}) if vnni else frozenset())
    return Cpu(fields.get("machdep.cpu.brand_string", "").strip(), isa)


def ceiling(version: str) -> tuple[int, int]:
    """Return the highest ai.onnx opset and IR version that this onnxruntime loads; (0, 0) below 1.16."""
    table = toml.loads((Path(__file__).parent / "facts" / "onnxruntime.toml").read_text("utf-8"))
    older = [row for row in table["release"] if _release(row["version"]) <= _release(version)]
    return (older[-1]["opset"], older[-1]["ir"]) if older else (0, 0)


def _release(version: str) -> tuple[int, ...]:
    """Return major and minor version, () for what is no version."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else ()


def _isa(names: dict[str, tuple[str, ...]], present: list[str]) -> frozenset[str]:
    return frozenset(name for name, needed in names.items() if set(needed) <= set(present))


def _cpu() -> tuple[Cpu, str]:
    """Return this machine's processor, and where that was read."""
    system = platform.system()
    if system == "Linux" and (text := _read(Path("/proc/cpuinfo"))):
        return parse_cpuinfo(text), "/proc/cpuinfo (detected)"
    if system == "Darwin":
        command = ["/usr/sbin/sysctl", "hw.optional", "machdep.cpu"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
        except (OSError, subprocess.TimeoutExpired):
            pass  # told as not known, below
        else:
            return parse_sysctl(done.stdout), "sysctl (detected)"
    return Cpu(platform.processor(), frozenset()), "not told by this system (assumed)"


def board_text() -> str:
    """Return what the device tree calls this board, model first, one name a line; "" without one."""
    tree = Path("/proc/device-tree")
    texts = (_read(tree / name) for name in ("model", "compatible"))
    return "\n".join(part for text in texts for part in text.split("\0") if part)


def _runtime() -> tuple[int, dict[str, str], str]:
    """Return the opset that the installed onnxruntime reads, its version, and where that is from."""
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return ceiling(version)[0], {"onnxruntime": f"=={version}"}, f"installed {name} {version} (measured)"
    return 22, {"onnxruntime": ">=1.21"}, "onnxruntime is not installed: what 1.21 reads (assumed)"


def _memory_gb() -> float:
    """Return this machine's memory in gigabytes (10**9 bytes), 0 where it cannot be told."""
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return 0.0


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
