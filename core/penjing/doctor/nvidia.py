"""Whether GPU, driver, CUDA, JetPack and TensorRT of this machine go together."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from penjing import toml
from penjing.doctor.evidence import (
    TRTEXEC,
    Evidence,
    Finding,
    parse_compute_capability,
    parse_cuda,
    parse_nvidia_smi,
    parse_tegra_release,
    parse_trtexec,
)


@functools.cache
def facts() -> Mapping[str, Any]:
    """Return what is known of TensorRT and JetPack: facts/tensorrt.toml."""
    return toml.loads((Path(__file__).parents[1] / "facts" / "tensorrt.toml").read_text("utf-8"))


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with, () for what is none."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def why_not_served(tensorrt: str, sm: str) -> str:
    """Return why a TensorRT does not serve GPUs of a compute capability; "" where it does, as far as is known."""
    rows = [row for row in facts()["gpus"] if numbers(row["from"]) <= numbers(tensorrt)]
    if not rows or not numbers(sm):
        return ""
    row = rows[-1]
    if numbers(sm) < numbers(row["least"]):
        return f"TensorRT {_short(tensorrt)} serves compute capability {row['least']} and later, not {sm}"
    if sm in row.get("lacks", ()):
        return f"TensorRT {_short(tensorrt)} is not built for compute capability {sm}"
    if numbers(sm) > numbers(row["most"]):
        return f"TensorRT {_short(tensorrt)} is older than compute capability {sm}"
    return ""


def _short(version: str) -> str:
    return ".".join(version.split(".")[:2])


def nvidia(evidence: Evidence) -> Iterator[Finding]:
    """Tell of GPU, JetPack, CUDA and TensorRT, and of those that do not go together."""
    yield from _gpus(evidence)
    yield from _jetpack(evidence)
    if cuda := parse_cuda(evidence.cuda_json):
        yield Finding("cuda", "ok", cuda)
    yield from _tensorrt(evidence)
    yield from _together(evidence)


def _gpus(evidence: Evidence) -> Iterator[Finding]:
    gpus = parse_nvidia_smi(evidence.nvidia_smi)
    capabilities = parse_compute_capability(evidence.compute_capability)
    told = capabilities if len(capabilities) == len(gpus) else [""] * len(gpus)
    for (name, driver, memory), sm in zip(gpus, told, strict=True):
        capability = f", compute capability {sm}" if sm else ""
        yield Finding("gpu", "ok", f"{name}, {memory}, driver {driver}{capability}")
    if evidence.nvidia_smi and not gpus:
        said = evidence.nvidia_smi.strip().splitlines()
        cure = "The driver may not match the kernel: reinstall it, or reboot."
        yield Finding("gpu", "warning", f"nvidia-smi tells of no GPU: {said[0] if said else ''}", cure)
    if gpus and evidence.versions.get("torch", "").endswith("+cpu"):
        cure = "Training would gain from the build for CUDA: pytorch.org tells how to install it."
        yield Finding("torch's gpu", "warning", "this torch computes on the CPU alone", cure)


def _jetpack(evidence: Evidence) -> Iterator[Finding]:
    """Tell which JetPack this board carries, and whether TensorRT and Python are the ones it came with."""
    l4t = parse_tegra_release(evidence.tegra_release)
    if not l4t:
        return
    row = _jetpack_of(l4t)
    if row is None:
        yield Finding("l4t", "ok", f"{l4t}, of a JetPack that is not known here")
        return
    brings = f"TensorRT {row['tensorrt']}, CUDA {row['cuda']}, Python {row['python']}"
    yield Finding("l4t", "ok", f"{l4t}: JetPack {row['jetpack']}, which brings {brings}")
    have, brought = numbers(evidence.tensorrt), numbers(row["tensorrt"])
    if have and have[:2] != brought:
        cure = "That works where you installed it on purpose; engines of the other one do not load."
        what = f"{evidence.tensorrt} is here, JetPack {row['jetpack']} brings {row['tensorrt']}"
        yield Finding("tensorrt of jetpack", "warning", what, cure)
    if "tensorrt" not in evidence.versions and numbers(evidence.python)[:2] != numbers(row["python"]):
        cure = f"Use the system's Python {row['python']}, in an environment made with --system-site-packages."
        what = f"JetPack's module of TensorRT is for Python {row['python']}, and this is {evidence.python}"
        yield Finding("tensorrt's python", "warning", what, cure)


def _jetpack_of(l4t: str) -> Mapping[str, Any] | None:
    same = [row for row in facts()["jetpack"] if numbers(row["l4t"])[0] == numbers(l4t)[0]]
    older = [row for row in same if numbers(row["l4t"]) <= numbers(l4t)]
    return older[-1] if older else None


def _tensorrt(evidence: Evidence) -> Iterator[Finding]:
    if version := evidence.versions.get("tensorrt"):
        yield Finding("tensorrt", "ok", version)
    else:
        cure = "Only NVIDIA devices need it: pip install tensorrt."
        if parse_tegra_release(evidence.tegra_release):
            cure = (
                "It comes with JetPack: sudo apt-get install python3-libnvinfer, and --system-site-packages."
            )
        yield Finding("tensorrt", "absent", "its Python module is not installed", cure)
    if not evidence.trtexec:
        cure = "Only NVIDIA devices need it; it comes with TensorRT's apt or tar package, not with pip's."
        yield Finding("trtexec", "absent", f"neither on PATH nor at {TRTEXEC}", cure)
    elif version := parse_trtexec(evidence.trtexec_output):
        yield Finding("trtexec", "ok", f"{version}, {evidence.trtexec}")
    else:
        cure = f"Run {evidence.trtexec} by hand: a library may be missing."
        yield Finding("trtexec", "warning", f"{evidence.trtexec} does not tell its version", cure)


def _together(evidence: Evidence) -> Iterator[Finding]:
    """Tell of versions that are here and do not go together."""
    module, program = evidence.versions.get("tensorrt", ""), parse_trtexec(evidence.trtexec_output)
    if numbers(module) and numbers(program) and numbers(module)[:3] != numbers(program)[:3]:
        cure = f"Engines of one do not load in the other: pip install tensorrt=={program}, or use the newer for both."
        yield Finding("tensorrt and trtexec", "warning", f"{module} and {program} are two TensorRTs", cure)
    for sm in parse_compute_capability(evidence.compute_capability):
        if why := why_not_served(evidence.tensorrt, sm):
            cure = "Install another TensorRT: `penjing devices NAME` tells which one the card's profile has."
            yield Finding("tensorrt's gpu", "problem", why, cure)
    gpus, cuda = parse_nvidia_smi(evidence.nvidia_smi), numbers(parse_cuda(evidence.cuda_json))
    least = next((row["least"] for row in facts()["driver"] if cuda and row["cuda"] == cuda[0]), "")
    on_board = bool(parse_tegra_release(evidence.tegra_release))  # whose driver comes with L4T
    for name, driver, _ in gpus if least and not on_board else ():
        if numbers(driver) < numbers(least):
            what = f"driver {driver} of {name} is older than {least}, which CUDA {cuda[0]} needs"
            yield Finding("driver", "problem", what, "Install a newer driver, or an older CUDA.")
