"""TensorRT-RTX as a gate: its parser and builder accept a graph, or say why not, without a GPU.

That proves that TensorRT reads and plans the graph, with integers where Q/DQ stand. It proves nothing about speed,
and the engines run on GeForce RTX cards alone. (PyPI tensorrt-rtx-cu13-libs and -bindings, measured with 1.7.1.)
"""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from penjing.errors import InputError

if TYPE_CHECKING:
    from penjing.device import Device

#: compute capabilities that a machine without a GPU can build for (measured); 7.5 has no float32 products there
BUILDABLE = ("8.0", "8.6", "8.9", "12.0", "12.1")
#: Ampere, Ada and Blackwell cards: one engine for all three
USUAL = ("8.6", "8.9", "12.0")
PACKAGES = ("tensorrt-rtx-cu13-libs", "tensorrt-rtx-cu13-bindings")
#: seconds
LONGEST = 600
#: what the builder says of a layer that the parser read and it has no kernel for, such as NonMaxSuppression, for
#: which TensorRT has one (NVIDIA/TensorRT-RTX, issue 5)
_NO_KERNEL = re.compile(r"([^\s(]+) has no runners that implement it")
#: what in a message tells the rule that was broken: (pattern, rule, cure)
_RULES = (
    (
        r"[Nn]on-zero zero point",
        "zero points are 0",
        "Quantise for this device with quant.static, whose zero points are 0 there.",
    ),
    (
        r"Scale coefficients must all be positive",
        "scales are positive",
        "Quantise the float network again with quant.static.",
    ),
    (
        r"must have type FP8|unsupported input type",
        "DequantizeLinear reads int8, not int32 or uint8",
        "Leave biases float32 and weights int8: quant.static does so for this device.",
    ),
    (
        r"must be of same type|must have the same type|type mismatch",
        "the inputs of one operator have one type, since the graph's types decide",
        "Cast one of them; quant.fp16 writes graphs in which types agree.",
    ),
    (
        r"external|[Ff]ailed to open file|could not be read",
        "weights lie in the file itself",
        "Write the network with onnx.export, which makes one file.",
    ),
)


@dataclasses.dataclass(frozen=True)
class Refusal:
    """What the parser or builder refuses: the node, the rule that it breaks, and what to do."""

    node: str
    operator: str
    rule: str
    cure: str
    #: as the library says it
    message: str

    def __str__(self) -> str:
        where = f"{self.node} ({self.operator}): " if self.node else ""
        return f"{where}{self.rule}. {self.cure}"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether TensorRT-RTX takes a graph; "undecided" where it is absent, died or took too long."""

    outcome: Literal["accepted", "refused", "undecided"]
    #: compute capabilities it was asked to build for
    targets: tuple[str, ...]
    #: of TensorRT-RTX; "" where it is absent
    version: str = ""
    refusals: tuple[Refusal, ...] = ()
    #: why it is undecided
    reason: str = ""
    #: bytes of the engine, and seconds to build it
    engine_bytes: int = 0
    seconds: float = 0.0

    @property
    def accepted(self) -> bool:
        """Whether the graph was parsed and built."""
        return self.outcome == "accepted"

    def details(self) -> dict[str, Any]:
        """Return the verdict for the report."""
        return dataclasses.asdict(self)


def available() -> str:
    """Return why the gate cannot be used on this machine; "" where it can."""
    import importlib.util

    if importlib.util.find_spec("tensorrt_rtx_bindings") is None:
        return f"TensorRT-RTX is not installed; pip install {' '.join(PACKAGES)}"
    return ""


def targets(device: Device) -> tuple[str, ...]:
    """Return for which compute capabilities to build: the device's own where that is possible, else the usual."""
    return (device.sm,) if device.sm in BUILDABLE else USUAL


def gate(
    path: Path, sms: Sequence[str] = USUAL, *, timeout: float = LONGEST, engine: Path | None = None
) -> Verdict:
    """Parse the ONNX file at `path` and build it for the compute capabilities `sms`, in another process.

    The engine is written to `engine` where that is given. An open first dimension is built for 1. Raises ValueError
    for a compute capability that cannot be built for without a GPU, InputError where there is no such file.
    """
    if unknown := set(sms) - set(BUILDABLE):
        raise ValueError(f"no engine for {', '.join(sorted(unknown))} can be built here: {BUILDABLE} can")
    wanted = tuple(sms)
    if not path.is_file():
        raise InputError(f"{path} does not exist.")
    if reason := available():
        return Verdict("undecided", wanted, reason=reason)
    worker = Path(__file__).parent / "rtx_build.py"
    command = [sys.executable, str(worker), str(path), ",".join(wanted), str(engine or "")]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return Verdict("undecided", wanted, reason=f"TensorRT-RTX did not finish in {timeout:g} s")
    report = _last_json(done.stdout)
    if report is None:
        how = f"by signal {-done.returncode}" if done.returncode < 0 else f"with code {done.returncode}"
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        return Verdict(
            "undecided", wanted, reason=f"TensorRT-RTX ended {how}: {lines[-1][:300] if lines else ''}"
        )
    return _verdict(report, wanted)


def _last_json(output: bytes) -> dict[str, Any] | None:
    """Return what the worker reports on the last line of its output; None where it did not come so far."""
    lines = output.decode(errors="replace").strip().splitlines()
    try:
        report = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return report if isinstance(report, dict) else None


def _verdict(report: Mapping[str, Any], wanted: tuple[str, ...]) -> Verdict:
    lacking = [found.group(1) for e in report["errors"] if (found := _NO_KERNEL.search(e["message"]))]
    if lacking and len(lacking) == len(report["errors"]):
        reason = (
            f"TensorRT-RTX reads the graph, and has no kernel for {', '.join(lacking)}; TensorRT may have one"
        )
        return Verdict("undecided", wanted, report["version"], reason=reason)
    refusals = tuple(_refusal(**error) for error in report["errors"])
    return Verdict(
        "refused" if refusals else "accepted",
        wanted,
        report["version"],
        refusals,
        engine_bytes=report["bytes"],
        seconds=round(report["seconds"], 2),
    )


def _brief(message: str) -> str:
    """Return what a message says of the graph, without its sources' lines and the GPU that is not here."""
    text = re.sub(
        r"\[[\w.]+::\w+::\d+\] Error Code \d+: Cuda Runtime \(.*?\)\)", "", message, flags=re.DOTALL
    )
    said = re.search(r"Error Code \d+: [\w ]+ \((.*?)(?: In \w+ at |\)$|$)", text, flags=re.DOTALL)
    return " ".join((said.group(1) if said else text).split()).rstrip(".")[:300]


def _refusal(node: str, operator: str, code: str, message: str) -> Refusal:
    brief = _brief(message)
    if code.startswith("UNSUPPORTED_NODE"):
        return Refusal(
            node,
            operator,
            f"the parser reads no {operator}"
            + ("" if brief == "false" else f" as it is used here ({brief})"),
            "Replace that operation in the network by others.",
            brief,
        )
    for pattern, rule, cure in _RULES:
        if re.search(pattern, message):
            return Refusal(node, operator, rule, cure, brief)
    return Refusal(
        node,
        operator,
        brief,
        "Replace that operation in the network, or leave it out of quantisation.",
        brief,
    )
