"""What stands in the way on this machine, and what to do about it.

`observe` collects what the system says, as text; `examine` judges it. Only the first depends on the machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from penjing.doctor.engine import examine_engine
from penjing.doctor.evidence import (
    Evidence,
    Finding,
    Status,
    observe,
    output,
    parse_compute_capability,
    parse_cuda,
    parse_nvidia_smi,
    parse_tegra_release,
    parse_trtexec,
)
from penjing.doctor.machine import machine, packages
from penjing.doctor.nvidia import nvidia, why_not_served
from penjing.doctor.target import target

if TYPE_CHECKING:
    from penjing.device import Device

__all__ = [
    "Evidence", "Finding", "Status", "examine", "examine_engine", "observe", "output", "parse_compute_capability",
    "parse_cuda", "parse_nvidia_smi", "parse_tegra_release", "parse_trtexec", "why_not_served",
]  # fmt: skip

_PLUGIN_CURE = "Install what it lacks, or uninstall the plugin; the others work without it."


def examine(
    device: Device | None, broken_plugins: Mapping[str, str], evidence: Evidence | None = None
) -> list[Finding]:
    """Return what there is to say about this machine, and about making things for `device` on it.

    `broken_plugins` tells of each plugin that could not be loaded why. `evidence` is observed unless given.
    """
    evidence = evidence or observe()
    return [
        *machine(evidence),
        *packages(evidence),
        *nvidia(evidence),
        *(Finding(f"plugin {name}", "problem", why, _PLUGIN_CURE) for name, why in broken_plugins.items()),
        *(target(evidence, device) if device else ()),
    ]
