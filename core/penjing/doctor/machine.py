"""Whether the machine and its packages suffice for Penjing itself."""

from __future__ import annotations

from collections.abc import Iterator

from penjing.doctor.evidence import NAMED, Evidence, Finding
from penjing.here import ceiling

_MEMORY_GB = 4  # what PyTorch, a network of 100 MB and its calibration need, with some to spare
_DISK_GB = 2


def machine(evidence: Evidence) -> Iterator[Finding]:
    here = evidence.machine
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
    if here.isa:
        what = f"{here.facts['cpu']}, {' '.join(sorted(here.isa))}"
        if evidence.arch == "x86_64" and not here.isa & {"avx512_vnni", "avx_vnni", "amx"}:
            what += " (without VNNI: INT8 weights use 7 bits)"
        yield Finding("cpu", "ok", what)
    else:
        yield Finding("cpu", "warning", here.facts["note"], "Name the device you mean with --device.")
    if profile := here.facts.get("profile"):
        yield Finding("board", "ok", here.title, f"Its profile: --device {profile}")
    memory, cores = here.memory_gb, here.facts["cores"]
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


def packages(evidence: Evidence) -> Iterator[Finding]:
    from packaging.requirements import Requirement

    required = {r.name.lower(): r for r in map(Requirement, evidence.requirements)}
    if not required:
        what = "not installed as a package: the versions it needs are not known here"
        yield Finding("penjing", "warning", what, "pip install penjing, or pip install -e . in its sources.")
    for name in (*NAMED, *(name for name in required if name not in NAMED)):
        version, requirement = evidence.versions.get(name, ""), required.get(name)
        bounds = str(requirement.specifier) if requirement else ""
        cure = f'pip install "{name}{bounds}"'
        if not version:
            yield Finding(name, "problem", "not installed", cure)
        elif not within(version, bounds):
            yield Finding(name, "problem", f"{version}, but {bounds} is needed", cure)
        elif name == "onnxruntime":
            yield _onnxruntime(version)
        elif name in NAMED:
            yield Finding(name, "ok", version)


def _onnxruntime(version: str) -> Finding:
    opset, ir = ceiling(version)
    reads = f"reads up to opset {opset}, IR {ir}" if opset else "which opset it reads is not known"
    return Finding("onnxruntime", "ok", f"{version}, {reads}")


def within(version: str, specifier: str) -> bool:
    """Tell whether `version` meets `specifier`; one that is no Python version meets only an empty one."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion, Version

    try:
        return SpecifierSet(specifier).contains(Version(version), prereleases=True)
    except InvalidVersion:
        return not specifier
