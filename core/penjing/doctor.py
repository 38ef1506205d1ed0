"""What stands in the way on this machine, and what to do about it.

`observe` collects what the system says, as text; `examine` judges it. Only the first depends on the machine.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from penjing.here import architecture, ceiling, this_machine

if TYPE_CHECKING:
    from penjing.device import Device

#: packages worth a line of their own; other requirements are named only where they are at fault
_NAMED = ("torch", "torchvision", "onnx", "onnxruntime", "onnxsim", "onnxscript")
#: distributions that bring the same package
_ALSO = {
    "onnxruntime": ("onnxruntime-gpu",),
    "tensorrt": ("tensorrt-cu12", "tensorrt-cu13", "tensorrt-cu11"),
}
_TRTEXEC = Path("/usr/src/tensorrt/bin/trtexec")
_MEMORY_GB = 4  # what PyTorch, a network of 100 MB and its calibration need, with some to spare
_DISK_GB = 2


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


def examine(
    device: Device | None, broken_plugins: Mapping[str, str], evidence: Evidence | None = None
) -> list[Finding]:
    """Return what there is to say about this machine, and about making things for `device` on it.

    `broken_plugins` tells of each plugin that could not be loaded why. `evidence` is observed unless given.
    """
    evidence = evidence or observe()
    return [
        *_machine(evidence),
        *_packages(evidence),
        *_nvidia(evidence),
        *(Finding(f"plugin {name}", "problem", why, _PLUGIN_CURE) for name, why in broken_plugins.items()),
        *(_target(evidence, device) if device else ()),
    ]


_PLUGIN_CURE = "Install what it lacks, or uninstall the plugin; the others work without it."


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


def _machine(evidence: Evidence) -> Iterator[Finding]:
    machine = evidence.machine
    yield Finding("python", "ok", evidence.python)
    if evidence.arch in ("x86_64", "aarch64"):
        yield Finding("platform", "ok", f"{evidence.system} on {evidence.arch}")
    else:
        yield Finding(
            "platform",
            "problem",
            f"{evidence.system} on {evidence.arch}: PyTorch and onnxruntime have no wheels for it",
            "Use a 64-bit system on x86-64 or ARM.",
        )
    if machine.isa:
        what = f"{machine.facts['cpu']}, {' '.join(sorted(machine.isa))}"
        if evidence.arch == "x86_64" and not machine.isa & {"avx512_vnni", "avx_vnni", "amx"}:
            what += " (without VNNI: INT8 weights use 7 bits)"
        yield Finding("cpu", "ok", what)
    else:
        yield Finding("cpu", "warning", machine.facts["note"], "Name the device you mean with --device.")
    if profile := machine.facts.get("profile"):
        yield Finding("board", "ok", machine.title, f"Its profile: --device {profile}")
    memory, cores = machine.memory_gb, machine.facts["cores"]
    if 0 < memory < _MEMORY_GB:
        cure = f"{_MEMORY_GB} GB are comfortable: compress on another machine, or add swap."
        yield Finding("memory", "warning", f"{memory:g} GB, {cores} cores", cure)
    else:
        yield Finding("memory", "ok", f"{memory:g} GB, {cores} cores" if memory else f"{cores} cores")
    disk = f"{evidence.free_disk_gb:.0f} GB free in this folder"
    if evidence.free_disk_gb < _DISK_GB:
        yield Finding("disk", "warning", disk, f"Free {_DISK_GB} GB, or give --out on another disk.")
    else:
        yield Finding("disk", "ok", disk)


def _packages(evidence: Evidence) -> Iterator[Finding]:
    from packaging.requirements import Requirement

    required = {r.name.lower(): r for r in map(Requirement, evidence.requirements)}
    if not required:
        what = "not installed as a package: the versions it needs are not known here"
        yield Finding("penjing", "warning", what, "pip install penjing, or pip install -e . in its sources.")
    for name in (*_NAMED, *(name for name in required if name not in _NAMED)):
        version, requirement = evidence.versions.get(name, ""), required.get(name)
        bounds = str(requirement.specifier) if requirement else ""
        cure = f'pip install "{name}{bounds}"'
        if not version:
            yield Finding(name, "problem", "not installed", cure)
        elif not _within(version, bounds):
            yield Finding(name, "problem", f"{version}, but {bounds} is needed", cure)
        elif name == "onnxruntime":
            yield _onnxruntime(version)
        elif name in _NAMED:
            yield Finding(name, "ok", version)


def _onnxruntime(version: str) -> Finding:
    opset, ir = ceiling(version)
    reads = f"reads up to opset {opset}, IR {ir}" if opset else "which opset it reads is not known"
    return Finding("onnxruntime", "ok", f"{version}, {reads}")


def _nvidia(evidence: Evidence) -> Iterator[Finding]:
    gpus = parse_nvidia_smi(evidence.nvidia_smi)
    for name, driver, memory in gpus:
        yield Finding("gpu", "ok", f"{name}, {memory}, driver {driver}")
    if evidence.nvidia_smi and not gpus:
        said = evidence.nvidia_smi.strip().splitlines()
        cure = "The driver may not match the kernel: reinstall it, or reboot."
        yield Finding("gpu", "warning", f"nvidia-smi tells of no GPU: {said[0] if said else ''}", cure)
    if l4t := parse_tegra_release(evidence.tegra_release):
        yield Finding("l4t", "ok", l4t)
    if cuda := parse_cuda(evidence.cuda_json):
        yield Finding("cuda", "ok", cuda)
    if version := evidence.versions.get("tensorrt"):
        yield Finding("tensorrt", "ok", version)
    else:
        yield Finding(
            "tensorrt", "absent", "not installed", "Only NVIDIA devices need it: pip install tensorrt."
        )
    if not evidence.trtexec:
        cure = "Only NVIDIA devices need it; it comes with TensorRT's apt or tar package, not with pip's."
        yield Finding("trtexec", "absent", f"neither on PATH nor at {_TRTEXEC}", cure)
    elif version := parse_trtexec(evidence.trtexec_output):
        yield Finding("trtexec", "ok", f"{version}, {evidence.trtexec}")
    else:
        cure = f"Run {evidence.trtexec} by hand: a library may be missing."
        yield Finding("trtexec", "warning", f"{evidence.trtexec} does not tell its version", cure)


def _target(evidence: Evidence, device: Device) -> Iterator[Finding]:
    """Compare what `device` expects with what is here."""
    yield Finding(str(device), "ok", f"{device.title}: {_expects(device)}")
    if not device.here:
        cure = "Compress here, then copy the bundle to the board and run it there."
        if device.sm is None:
            cure = "Accuracy can still be measured here; run the bundle on the device to time it."
        yield Finding("latency", "absent", f"this machine is no {device.name}: not measured here", cure)
    for package, versions in device.runtime.items():
        yield from _runtime(evidence, device, package, versions)
    yield from _opset(evidence, device)
    if device.sm and device.here:
        yield from _jetpack(evidence, device)


def _expects(device: Device) -> str:
    facts = device.facts
    parts = [f"JetPack {facts['jetpack']}" if "jetpack" in facts else ""]
    parts += [f"{package} {versions}" for package, versions in device.runtime.items()]
    parts += [f"CUDA {facts['cuda']}" if "cuda" in facts else "", f"opset up to {device.max_opset}"]
    if device.sm:
        parts.append(f"{device.dla_cores} DLA cores" if device.dla_cores else "no DLA")
    return ", ".join(part for part in parts if part)


def _runtime(evidence: Evidence, device: Device, package: str, versions: str) -> Iterator[Finding]:
    """Compare the version of the runtime here with what the device has."""
    subject = f"{package} for {device}"
    installed = evidence.versions.get(package, "")
    if package == "tensorrt":
        installed = parse_trtexec(evidence.trtexec_output) or installed
    if installed and _within(installed, versions):
        yield Finding(subject, "ok", f"{installed} is within {versions}")
    elif package == "tensorrt":
        cure = "An engine loads only in the version that built it: build it on the device"
        cure += f", or choose a stack: {_choices(device)}." if len(device.stacks) > 1 else "."
        status: Status = "absent" if not installed else "problem" if device.here else "warning"
        yield Finding(subject, status, f"{installed or 'none'} is here, {versions} is expected", cure)
    else:
        status = "problem" if device.here else "warning"
        what = f"{installed or 'none'} is here, {versions} is expected"
        yield Finding(subject, status, what, f'pip install "{package}{versions}"')


def _opset(evidence: Evidence, device: Device) -> Iterator[Finding]:
    """Ask whether the onnxruntime here, which measures accuracy for any device, reads the device's graphs."""
    opset, _ = ceiling(evidence.versions.get("onnxruntime", ""))
    if 0 < opset < device.max_opset:
        what = f"{device} reads opset {device.max_opset}, the onnxruntime here only {opset}"
        yield Finding("opset", "warning", what, f"Export at opset {opset}, or upgrade onnxruntime.")


def _jetpack(evidence: Evidence, device: Device) -> Iterator[Finding]:
    """Compare what is flashed on this board with the stack that was chosen."""
    l4t, expected = parse_tegra_release(evidence.tegra_release), device.facts.get("l4t", "")
    if l4t and not _within(l4t, expected):
        cure = f"Choose the stack that is on this board ({_choices(device)}), or flash {device.stack}."
        yield Finding("jetpack", "problem", f"L4T {l4t} is here, {device.stack} has {expected}", cure)
    cuda, expected = parse_cuda(evidence.cuda_json), device.facts.get("cuda", "")
    if cuda and expected and not _within(cuda, f"=={expected}.*"):
        cure = "Install the CUDA that comes with this JetPack, or choose another stack."
        yield Finding("cuda", "warning", f"{cuda} is here, {device.stack} comes with {expected}", cure)


def _within(version: str, specifier: str) -> bool:
    """Tell whether `version` meets `specifier`; one that is no Python version meets only an empty one."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion, Version

    try:
        return SpecifierSet(specifier).contains(Version(version), prereleases=True)
    except InvalidVersion:
        return not specifier


def _choices(device: Device) -> str:
    return " or ".join(f"{device.name}@{stack}" for stack in device.stacks if stack != device.stack)


def observe() -> Evidence:
    """Look at this machine. Imports no framework and asks no network."""
    from packaging.requirements import Requirement

    try:
        requirements = metadata.requires("penjing") or []
    except metadata.PackageNotFoundError:
        requirements = []
    needed = [r for r in map(Requirement, requirements) if not r.marker or r.marker.evaluate({"extra": ""})]
    names = {*_NAMED, "tensorrt", *(r.name.lower() for r in needed)}
    trtexec = shutil.which("trtexec") or (str(_TRTEXEC) if _TRTEXEC.is_file() else "")
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
        trtexec_output=_output([trtexec, "--help"]) if trtexec else "",
        tegra_release=_text(Path("/etc/nv_tegra_release")),
        cuda_json=_text(Path("/usr/local/cuda/version.json")),
        nvidia_smi=_output(query) if query else "",
    )


def _version(name: str) -> str:
    for distribution in (name, *_ALSO.get(name, ())):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return ""


def _output(command: list[str]) -> str:
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
