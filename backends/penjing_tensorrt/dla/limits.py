"""The limits of a DLA as data, and the DLA of a device: which generation, under which TensorRT."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from penjing import toml
from penjing.errors import PlanError

if TYPE_CHECKING:
    from penjing.device import Device

Precision = Literal["int8", "fp16"]


@cache
def limits() -> Mapping[str, Any]:
    """Return the tables of limits.toml."""
    return toml.loads((Path(__file__).parent / "limits.toml").read_text("utf-8"))


@dataclasses.dataclass(frozen=True)
class Target:
    """A DLA: its generation, 1 on Xavier and 2 on Orin, and the TensorRT that compiles for it."""

    generation: int
    #: release of TensorRT, as three numbers
    version: tuple[int, int, int] = (10, 3, 0)
    precision: Precision = "int8"
    cores: int = 2
    #: precision is written in the graph, by QuantizeLinear and DequantizeLinear
    strongly_typed: bool = False

    @property
    def title(self) -> str:
        """Return what it is called: DLA 1.0 or DLA 2.0, with the version of TensorRT."""
        return (
            f"DLA {self.generation}.0, TensorRT {'.'.join(map(str, self.version))}, {self.precision.upper()}"
        )

    @property
    def most_loadables(self) -> int:
        """Return how many loadables a core holds."""
        table = limits()["general"]
        return int(table["loadables_before_8_5" if self.version < (8, 5, 0) else "loadables"])


def dla_of(device: Device, precision: Precision = "int8") -> Target:
    """Return the DLA of a device.

    Raises PlanError for a board without one, naming those that have one, and for a TensorRT that cannot use it,
    naming the releases that can.
    """
    if not device.dla_generation:
        raise PlanError(
            f"{device.title} has no DLA.",
            hint=f"Boards that have one: {', '.join(boards())}. The `tensorrt` backend runs on the GPU.",
        )
    if (target := _usable(device, precision)) is not None:
        return target
    from penjing_tensorrt.versions import stacks_where

    stacks = stacks_where(device, lambda _, other: _usable(other, precision) is not None)
    having = "; ".join(
        f"{release['tensorrt']} (JetPack {release['jetpack']})"
        for release in limits()["release"]
        if _carries(release, device.name)
    )
    raise PlanError(
        f"{device}: TensorRT {device.runtime.get('tensorrt', '')} cannot use the DLA of {device.title}.",
        hint=f"TensorRT {having} can. {stacks}".strip(),
    )


def _usable(device: Device, precision: Precision) -> Target | None:
    """Return the DLA that the TensorRT of a device can use; None where it cannot."""
    from packaging.specifiers import SpecifierSet

    versions = SpecifierSet(device.runtime.get("tensorrt", ""))
    for release in reversed(limits()["release"]):
        if device.dla_cores and release["version"] in versions and _carries(release, device.name):
            major, minor, patch = (int(part) for part in release["version"].split("."))
            typed = release.get("strongly_typed", False)
            return Target(device.dla_generation, (major, minor, patch), precision, device.dla_cores, typed)
    return None


def boards() -> tuple[str, ...]:
    """Return the profiles of boards with a DLA that some release can use."""
    return tuple(sorted({board for release in limits()["release"] for board in release["boards"]}))


def _carries(release: Mapping[str, Any], board: str) -> bool:
    # a profile of the user's own, for a board that is not known here, is taken at its word
    return board in release["boards"] or board not in boards()
