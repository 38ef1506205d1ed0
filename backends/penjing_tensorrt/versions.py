"""Releases of TensorRT: which ones a device may have, and what all of those can do."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from packaging.specifiers import SpecifierSet
from packaging.version import Version
from penjing.device import builtin_profiles, find_device
from penjing.errors import PenjingError, PlanError

if TYPE_CHECKING:
    from penjing.device import Device

#: "weak": the builder chooses among the precisions that flags allow; "strong": every tensor has the type the graph says
Typing = Literal["weak", "strong"]
#: from here on all networks are strongly typed (NVIDIA/TensorRT, CHANGELOG.md of 11.0)
STRONG_ONLY = Version("11.0")
#: the flag of trtexec that lets a weakly typed build use a number format
PRECISION_FLAGS = {"fp16": "--fp16", "bf16": "--bf16", "int8": "--int8", "fp8": "--fp8", "int4": "--int4"}


@functools.cache
def _table() -> tuple[tuple[str, ...], Mapping[str, tuple[str, str]]]:
    """Return the releases whose trtexec was read, oldest first, and first and last release of each flag."""
    table = json.loads((Path(__file__).parent / "trtexec_flags.json").read_text("utf-8"))
    return tuple(table["releases"]), {flag: (first, last) for flag, (first, last) in table["flags"].items()}


def releases() -> tuple[str, ...]:
    """Return the releases whose trtexec was read, oldest first."""
    return _table()[0]


def flags_of(release: str) -> frozenset[str]:
    """Return the flags that trtexec of a listed release takes."""
    listed, flags = _table()
    place = listed.index(release)
    return frozenset(
        flag for flag, (first, last) in flags.items() if listed.index(first) <= place <= listed.index(last)
    )


def nearest(version: str) -> str:
    """Return the newest listed release that is not newer than `version`, else the oldest listed."""
    older = [listed for listed in releases() if _major_minor(listed) <= _major_minor(version)]
    return older[-1] if older else releases()[0]


@dataclasses.dataclass(frozen=True)
class Target:
    """The TensorRT that will build an engine: one version, or any of a range.

    A flag counts as there where all `listed` releases have it: those of the flag table within the range, or
    the nearest one below it.
    """

    #: as people say it: "10.3", or ">=10.0,<11"
    name: str
    listed: tuple[str, ...]

    @property
    def typing(self) -> Typing:
        """Return how it builds unless told otherwise: weakly typed as long as every release can."""
        return "weak" if self.weak else "strong"

    @property
    def weak(self) -> bool:
        """Tell whether every release builds weakly typed networks."""
        return all(Version(release) < STRONG_ONLY for release in self.listed)

    @property
    def strong(self) -> bool:
        """Tell whether every release builds strongly typed networks."""
        return self.has("--stronglyTyped")

    @property
    def choice(self) -> bool:
        """Tell whether a release builds either way, so that a strongly typed network must be asked for."""
        return any(Version(release) < STRONG_ONLY for release in self.listed)

    @property
    def meant(self) -> tuple[str, ...]:
        """Return the versions themselves: the one that is named, else those of a range that are listed."""
        return (self.name,) if self.name[:1].isdigit() else self.listed

    @property
    def newest(self) -> str:
        """Return the newest listed release."""
        return self.listed[-1]

    def has(self, flag: str) -> bool:
        """Tell whether trtexec of every release takes `flag`, given with or without a value."""
        bare = flag.partition("=")[0]
        return all(bare in flags_of(release) for release in self.listed)


def target(device: Device, installed: str = "") -> Target:
    """Return the TensorRT that `device` has; `installed` narrows a range to the version found there.

    A device without TensorRT gets the newest release that is listed: nothing will be built for it.
    """
    specifier = device.runtime.get("tensorrt", "")
    if installed:
        return of_version(installed)
    if not specifier:
        return of_version(releases()[-1])
    allowed = SpecifierSet(specifier)
    within = tuple(release for release in releases() if allowed.contains(_full(release), prereleases=True))
    exact = re.fullmatch(r"==(\d+(?:\.\d+)*)(?:\.\*)?", specifier)
    if within:
        return Target(exact[1] if exact else specifier, within)
    numbers = re.findall(r"\d+(?:\.\d+)*", specifier)
    return Target(exact[1] if exact else specifier, (nearest(numbers[0]),))


def of_version(version: str) -> Target:
    """Return a target of one version, such as "10.3.0.30"."""
    return Target(".".join(version.split(".")[:2]), (nearest(version),))


def since(flag: str) -> str:
    """Return in words from which release to which trtexec takes `flag`."""
    listed, flags = _table()
    if flag not in flags:
        return "none has it"
    first, last = flags[flag]
    if last == listed[-1]:
        return f"{_short(first)} and later have it"
    if first == listed[0]:
        return f"up to {_short(last)} they have it"
    return f"{_short(first)} to {_short(last)} have it"


def stacks_where(device: Device, fits: Callable[[Target, Device], bool]) -> str:
    """Return as a hint the stacks of this device whose TensorRT fits; "" where its profile has none."""
    found = []
    for stack in device.stacks:
        try:
            other = find_device(f"{device.name}@{stack}", builtin_profiles())
        except PenjingError:
            return ""  # a profile of the user's own: its path is not known here
        if fits(target(other), other):
            found.append(str(other))
    return f"--device {' or '.join(found)}" if found else ""


def need(device: Device, aim: Target, flag: str, what: str) -> None:
    """Raise PlanError where a release of `aim` has no `flag`, which `what` needs, naming those that have it."""
    if aim.has(flag):
        return
    raise PlanError(
        f"TensorRT {aim.name} of {device.title} has no {what} ({flag}): {since(flag)}.",
        hint=stacks_where(device, lambda other, _: other.has(flag)) or "Leave the option as it is.",
    )


def _full(release: str) -> str:
    """Return a listed release with a patch number, so that 10.16 is within ==10.16.*."""
    return release if release.count(".") > 1 else f"{release}.0"


def _short(release: str) -> str:
    return ".".join(release.split(".")[:2])


def _major_minor(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in [*version.split("."), "0"][:2])
