"""Whether what is here goes with what a device runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from penjing.doctor.evidence import Evidence, Finding, Status, parse_cuda, parse_tegra_release
from penjing.doctor.machine import within
from penjing.doctor.nvidia import numbers, why_not_served
from penjing.here import ceiling

if TYPE_CHECKING:
    from penjing.device import Device


def target(evidence: Evidence, device: Device) -> Iterator[Finding]:
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
    yield from _gpu(evidence, device)
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
        installed = evidence.tensorrt
    if installed and within(installed, versions):
        yield Finding(subject, "ok", f"{installed} is within {versions}")
    elif package == "tensorrt":
        cure = "An engine loads only in the version that built it: build it on the device"
        cure += f", or choose a stack: {choices(device)}." if len(device.stacks) > 1 else "."
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


def _gpu(evidence: Evidence, device: Device) -> Iterator[Finding]:
    """Tell what the GPU and the accelerator of the device have to do with its TensorRT, and with this one."""
    if not device.sm:
        return
    yield Finding(
        f"gpu of {device.name}", "ok", f"compute capability {device.sm}, {' '.join(device.precisions)}"
    )
    if evidence.tensorrt and (why := why_not_served(evidence.tensorrt, device.sm)):
        yield Finding("gpu for tensorrt", "warning", f"{why}: {device.title}", "Build on the device itself.")
    if device.dla_generation and not device.dla_cores:
        cure = f"Other software has: {choices(device)}." if device.stacks else ""
        what = f"{device.title} has an accelerator, and the TensorRT of {device.stack or 'its profile'} cannot use it"
        yield Finding("dla", "absent", what, cure)
    elif device.dla_cores and device.here and evidence.tensorrt and _without_dla(evidence.tensorrt):
        what = f"TensorRT {evidence.tensorrt} has no DLA: 10.7 was the last before 11.4.1"
        yield Finding(
            "dla", "problem", what, f"Install {device.runtime['tensorrt']}, or leave the accelerator out."
        )


def _without_dla(tensorrt: str) -> bool:
    """Tell whether a release has no DLA on any Jetson (docs.nvidia.com, TensorRT 11.3 and 11.4.1)."""
    return (10, 8) <= numbers(tensorrt)[:3] < (11, 4, 1)


def _jetpack(evidence: Evidence, device: Device) -> Iterator[Finding]:
    """Compare what is flashed on this board with the stack that was chosen."""
    l4t, expected = parse_tegra_release(evidence.tegra_release), device.facts.get("l4t", "")
    if l4t and not within(l4t, expected):
        cure = f"Choose the stack that is on this board ({choices(device)}), or flash {device.stack}."
        yield Finding("jetpack", "problem", f"L4T {l4t} is here, {device.stack} has {expected}", cure)
    cuda, expected = parse_cuda(evidence.cuda_json), device.facts.get("cuda", "")
    if cuda and expected and not within(cuda, f"=={expected}.*"):
        cure = "Install the CUDA that comes with this JetPack, or choose another stack."
        yield Finding("cuda", "warning", f"{cuda} is here, {device.stack} comes with {expected}", cure)


def choices(device: Device) -> str:
    return " or ".join(f"{device.name}@{stack}" for stack in device.stacks if stack != device.stack)
