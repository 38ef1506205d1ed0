"""Devices: what is known about a target, read from a TOML profile.

A profile is data that anybody may write, so its reader is strict: a key it does not know, a field that
is missing or of the wrong kind, and a fact without a source are errors that name the file and the field.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from penjing import toml
from penjing.errors import InputError, PlanError, did_you_mean

#: the name of the profile that describes the machine we run on; `penjing.here` makes it up, no file holds it
THIS_MACHINE = "this-machine"
ISA = frozenset(
    {"avx2", "avx512", "avx512_vnni", "avx_vnni", "amx", "neon", "dotprod", "i8mm", "fp16"},
)
PRECISIONS = frozenset({"fp32", "tf32", "bf16", "fp16", "fp8", "fp4", "int8", "int4"})
LARGEST_PROFILE = 1_000_000  # bytes
_INFINITE = (math.inf, -math.inf)


@dataclasses.dataclass(frozen=True)
class Device:
    """What is known about a target, and the recipe that suits it."""

    name: str
    title: str
    #: name of the backend that ends a plan for it
    backend: str
    #: of the CPU: "x86_64" or "aarch64"
    arch: str
    #: instructions of the CPU that its integer and half-precision kernels depend on: of `ISA`
    isa: frozenset[str]
    #: number formats it computes in: of `PRECISIONS`
    precisions: tuple[str, ...]
    #: channel counts that are multiples of this fill its vectors
    channel_multiple: int
    #: highest ai.onnx opset that every runtime in `runtime` reads
    max_opset: int
    #: memory in gigabytes; 0 where it cannot be told
    memory_gb: float
    #: versions of the runtime it is meant for: package name to version specifier
    runtime: Mapping[str, str]
    #: CUDA compute capability, such as "8.7"; None without an NVIDIA GPU
    sm: str | None = None
    #: cores of the deep learning accelerator that the runtime can use, and their generation
    dla_cores: int = 0
    dla_generation: int = 0
    #: the software it carries, such as "jetpack-6.2", and all its profile knows; "" and () without a choice
    stack: str = ""
    stacks: tuple[str, ...] = ()
    #: whatever else is known: values of TOML by name
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    #: where each fact comes from and how sure it is; a nested fact is `table.fact`, or covered by `table`
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)
    #: steps by name, with options: tables of `use`, `optional` and whatever the step takes
    recipe: tuple[Mapping[str, Any], ...] = ()
    #: the machine we run on is such a device, so that what is timed here holds for it
    here: bool = False

    def __str__(self) -> str:
        return f"{self.name}@{self.stack}" if self.stack else self.name


def builtin_profiles() -> list[Path]:
    """Return the profiles that come with Penjing."""
    return sorted((Path(__file__).parent / "devices").glob("*.toml"))


def find_device(name: str, profiles: Iterable[Path]) -> Device:
    """Return the device called `name`: "NAME", "NAME@STACK", "this-machine" or the path of a profile.

    Raises PlanError for a name or stack that is not known, InputError for a profile that cannot be used.
    """
    from penjing import here  # which imports this module

    if name == THIS_MACHINE:
        return here.this_machine()
    if name.endswith(".toml"):
        device = read_profile(Path(name))
    else:
        base, _, stack = name.rpartition("@") if "@" in name else (name, "", None)
        path = Path(base) if base.endswith(".toml") else _choose(base, profiles)
        device = read_profile(path, stack)
    return dataclasses.replace(device, here=here.is_here(device))


def read_profile(path: Path, stack: str | None = None) -> Device:
    """Return the device that the profile at `path` describes, with the stack named or the default one.

    All its stacks are checked, whichever is chosen. Raises InputError naming file and field for a profile
    that cannot be used, PlanError for a stack it does not have.
    """
    table = _load(path)
    try:
        devices = _read_stacks(table, path.stem)
    except (_ProfileError, RecursionError) as error:
        raise InputError(
            f"The device profile {path} cannot be used: {error}",
            hint="docs/devices.md tells how to write a profile.",
        ) from error
    if stack is None:
        return devices[0]
    for device in devices:
        if device.stack == stack:
            return device
    raise PlanError(
        f"{devices[0].name} has no stack {stack!r}.",
        hint=did_you_mean(stack, devices[0].stacks) if devices[0].stacks else "It has none: leave out the @.",
    )


def _choose(name: str, profiles: Iterable[Path]) -> Path:
    """Return the profile called `name`; files bear the name of the device, so that only one need be read."""
    paths = list(profiles)
    matching = [path for path in paths if path.stem == name]
    if len(matching) > 1:
        raise PlanError(f"Two profiles are called {name!r}: {matching[0]} and {matching[1]}.")
    if not matching:
        known = [THIS_MACHINE, *(path.stem for path in paths)]
        raise PlanError(f"There is no device {name!r}.", hint=did_you_mean(name, known))
    return matching[0]


def _load(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_PROFILE + 1)
    except OSError as error:
        raise InputError(f"The device profile {path} cannot be read: {error.strerror}.") from error
    if len(content) > LARGEST_PROFILE:
        raise InputError(f"The device profile {path} is larger than {LARGEST_PROFILE / 1e6:g} MB.")
    try:
        return toml.loads(content.decode())
    except (UnicodeDecodeError, toml.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"The device profile {path} is not TOML: {error}") from error


class _ProfileError(Exception):
    """A fault in a profile, told by its field; `read_profile` adds the file."""


def _read_stacks(table: dict[str, Any], stem: str) -> list[Device]:
    """Return a device for each stack of a profile, the default one first."""
    common = dict(table)
    stacks = common.pop("stack", None)
    if stacks is None:
        return [_read(common, stem)]
    if not isinstance(stacks, list) or not stacks or not all(isinstance(s, dict) for s in stacks):
        raise _ProfileError("stack: must be [[stack]] tables.")
    names = tuple(_field(f"stack[{i}].name", _name, s.get("name")) for i, s in enumerate(stacks))
    if len(set(names)) < len(names):
        raise _ProfileError(f"stack: two have the same name, among {', '.join(names)}.")
    if [s.get("default", False) for s in stacks].count(True) != 1:
        raise _ProfileError("stack: exactly one needs default = true.")
    devices = []
    for name, own in zip(names, stacks, strict=True):
        try:
            device = _read(_override(common, own), stem)
        except _ProfileError as error:
            raise _ProfileError(f"in stack {name}, {error}") from error
        devices.append((not own.get("default"), dataclasses.replace(device, stack=name, stacks=names)))
    return [device for _, device in sorted(devices, key=lambda pair: pair[0])]


def _override(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the profile with what a stack says instead; facts and sources are merged one by one."""
    if not isinstance(own.get("default", False), bool):
        raise _ProfileError("default: must be true or false.")
    own = {key: value for key, value in own.items() if key not in ("name", "default")}
    for key in ("title", "backend"):
        if key in own:
            raise _ProfileError(f"{key}: belongs to the whole profile.")
    merged = {**common, **own}
    for key in ("facts", "sources"):
        parts = [part[key] for part in (common, own) if key in part]
        if not all(isinstance(part, dict) for part in parts):
            raise _ProfileError(f"{key}: must be a table.")
        merged[key] = {name: value for part in parts for name, value in part.items()}
    return merged


def _read(table: Mapping[str, Any], stem: str) -> Device:
    for key in table:
        if key not in _FIELDS:
            raise _ProfileError(f"{key}: not a field of a profile. {did_you_mean(key, _FIELDS)}")
    missing = [key for key, (_, required) in _FIELDS.items() if required and key not in table]
    if missing:
        raise _ProfileError(f"{missing[0]}: missing.")
    values = {key: _field(key, _FIELDS[key][0], value) for key, value in table.items()}
    if values["name"] != stem:
        raise _ProfileError(f"name: is {values['name']!r}, but the file is called {stem!r}; they must agree.")
    if values["name"] == THIS_MACHINE:
        raise _ProfileError(f"name: {THIS_MACHINE} stands for the machine we run on.")
    _check_sources(values)
    return Device(**values)


def _check_sources(values: Mapping[str, Any]) -> None:
    """Demand a source for every fact, and a fact for every source."""
    facts, sources = values.get("facts", {}), values["sources"]
    for key in facts:
        if key in _FIELDS:
            raise _ProfileError(f"facts.{key}: is a field of the profile; write it above [facts].")
    names = _names_in({key: value for key, value in values.items() if key not in _UNSOURCED} | facts)
    for key in sources:
        if key not in names:
            raise _ProfileError(f"sources.{key}: there is no such fact. {did_you_mean(key, names)}")
    for name, value in names.items():
        if not isinstance(value, dict) and not any(covering in sources for covering in _prefixes(name)):
            raise _ProfileError(f"{name}: has no source under [sources].")


def _names_in(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return every value in nested tables, and the tables themselves, by dotted name."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        found[prefix + key] = value
        if isinstance(value, dict):
            found |= _names_in(value, f"{prefix}{key}.")
    return found


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: n + 1]) for n in range(len(parts))]


def _field(name: str, kind: Callable[[Any], Any], value: Any) -> Any:
    try:
        return kind(value)
    except _ProfileError as error:
        raise _ProfileError(f"{name}: {error}") from error


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _ProfileError("must be text.")
    return value


def _pattern(pattern: str, meaning: str) -> Callable[[Any], str]:
    def kind(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise _ProfileError(f"must be {meaning}.")
        return value

    return kind


_name = _pattern(r"[a-z0-9][a-z0-9._-]*", "a name of small letters, digits, dots, dashes and underscores")


def _several_of(known: frozenset[str]) -> Callable[[Any], tuple[str, ...]]:
    def kind(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise _ProfileError("must be a list of names.")
        for item in map(str, value):
            if item not in known:
                raise _ProfileError(f"{item!r} is not known. {did_you_mean(item, known)}")
        return tuple(value)

    return kind


def _number(low: float, high: float, *, whole: bool) -> Callable[[Any], float]:
    def kind(value: Any) -> float:
        right = int if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, right) or not low <= value <= high:
            raise _ProfileError(f"must be {'a whole' if whole else 'a'} number from {low:g} to {high:g}.")
        return value if whole else float(value)

    return kind


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _ProfileError("must be a table.")
    return value


def _facts(value: Any) -> dict[str, Any]:
    for name, fact in _names_in(_table(value)).items():
        for part in fact if isinstance(fact, list) else [fact]:
            if not isinstance(part, str | int | float | dict) or part != part or part in _INFINITE:
                raise _ProfileError(
                    f"{name} must be text, a finite number, true or false, or a list of these."
                )
    identity = value.get("identity", ["-"])
    if not isinstance(identity, list) or not all(isinstance(text, str) and text.strip() for text in identity):
        raise _ProfileError("identity must be a list of names by which the board or CPU is recognised.")
    return dict(value)


def _versions(value: Any) -> dict[str, str]:
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    for package, versions in _table(value).items():
        try:
            SpecifierSet(_text(versions))
        except (_ProfileError, InvalidSpecifier) as error:
            raise _ProfileError(f'{package} must be versions, such as ">=1.21,<2".') from error
    if not value:
        raise _ProfileError("must name a package.")
    return dict(value)


def _texts(value: Any) -> dict[str, str]:
    """Return texts by dotted name: TOML nests the key gpu.int8_tops unless it is quoted."""
    leaves = {name: text for name, text in _names_in(_table(value)).items() if not isinstance(text, dict)}
    return {name: _field(name, _text, text) for name, text in leaves.items()}


def _steps(value: Any) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, list) or not value:
        raise _ProfileError("must be [[recipe]] tables.")
    for number, step in enumerate(value, start=1):
        if not isinstance(step, dict) or not isinstance(step.get("use"), str):
            raise _ProfileError(f'step {number} needs use = "the name of a step".')
        if not isinstance(step.get("optional", False), bool):
            raise _ProfileError(f"step {number} ({step['use']}): optional must be true or false.")
    return tuple(value)


#: fields of a profile: how each is read, and whether it must be there
_FIELDS: Mapping[str, tuple[Callable[[Any], Any], bool]] = {
    "name": (_name, True),
    "title": (_text, True),
    "backend": (_name, True),
    "arch": (_pattern("x86_64|aarch64", '"x86_64" or "aarch64"'), True),
    "isa": (lambda value: frozenset(_several_of(ISA)(value)), True),
    "precisions": (_several_of(PRECISIONS), True),
    "channel_multiple": (_number(1, 256, whole=True), True),
    "max_opset": (_number(7, 100, whole=True), True),
    "memory_gb": (_number(0.01, 10_000, whole=False), True),
    "runtime": (_versions, True),
    "sm": (_pattern(r"\d{1,2}\.\d", 'a compute capability such as "8.7"'), False),
    "dla_cores": (_number(0, 16, whole=True), False),
    "dla_generation": (_number(0, 16, whole=True), False),
    "facts": (_facts, False),
    "sources": (_texts, True),
    "recipe": (_steps, True),
}
#: what a profile calls itself and decides, rather than states as a fact
_UNSOURCED = frozenset({"name", "title", "backend", "facts", "sources", "recipe"})
