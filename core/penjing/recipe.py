"""A recipe: steps by name with their options. It is data, and nothing is checked against a device yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from penjing import toml
from penjing.errors import InputError, PlanError, did_you_mean

#: bytes; no recipe is longer
LARGEST = 2**16
#: stands in a recipe for the steps of the device's own
DEVICE = "device"


@dataclasses.dataclass(frozen=True)
class Use:
    """One line of a recipe: a step by name, with options; an `optional` one is left out where it cannot run."""

    name: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    optional: bool = False


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Steps to take, in order, and where the recipe came from."""

    uses: tuple[Use, ...]
    origin: str


def from_tables(tables: Iterable[Mapping[str, Any]], origin: str) -> Recipe:
    """Read `[[recipe]]` tables: `use` names the step, `optional` may follow, the rest are its options."""
    uses = []
    for number, table in enumerate(tables, 1):
        options = {key: value for key, value in table.items() if key not in ("use", "optional")}
        name, optional = table.get("use"), table.get("optional", False)
        if not isinstance(name, str) or not isinstance(optional, bool):
            raise InputError(
                f"{origin}: step {number} of the recipe is not readable.",
                hint='Each [[recipe]] table needs `use = "name.of.step"`; `optional` is true or false.',
            )
        uses.append(Use(name, options, optional))
    if not uses:
        raise InputError(f"{origin}: the recipe has no steps.", hint="Add [[recipe]] tables.")
    return Recipe(tuple(uses), origin)


def builtin_recipes() -> dict[str, Path]:
    """Return the recipes that come with Penjing, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "recipes").glob("*.toml"))}


def from_toml(path: Path) -> Recipe:
    """Read a recipe file, a TOML file of `[[recipe]]` tables, or the built-in recipe of that name."""
    path = builtin_recipes().get(str(path), path)
    if not path.suffix and not path.exists():
        raise PlanError(f"There is no recipe {str(path)!r}.", hint=did_you_mean(str(path), builtin_recipes()))
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise InputError(f"{path} is larger than {LARGEST // 1024} KiB: no recipe is.")
        table = toml.loads(text.decode())
    except OSError as error:
        raise InputError(f"The recipe {path} cannot be read: {error.strerror or error}.") from error
    except (toml.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            f"The recipe {path} is not valid TOML: {error}.", hint="It holds [[recipe]] tables."
        ) from error
    tables = table.pop("recipe", [])
    if table:
        raise InputError(
            f"{path}: unknown key {next(iter(table))!r}.", hint="A recipe file holds [[recipe]] tables."
        )
    if not isinstance(tables, list) or not all(isinstance(entry, dict) for entry in tables):
        raise InputError(
            f"{path}: `recipe` is not a list of tables.", hint="Write [[recipe]] with two brackets."
        )
    return from_tables(tables, str(path))


def with_device(recipe: Recipe, own: Recipe) -> Recipe:
    """Return `recipe` with the steps of `own`, the device's recipe, where it says `use = "device"`.

    `instead = { "quant.static" = "quant.mixed" }` beside it puts other steps in the place of some of those.
    """
    uses: list[Use] = []
    for use in recipe.uses:
        uses += _replaced(own, use, recipe.origin) if use.name == DEVICE else [use]
    return Recipe(tuple(uses), recipe.origin)


def _replaced(own: Recipe, place: Use, origin: str) -> list[Use]:
    instead = place.options.get("instead", {})
    readable = isinstance(instead, Mapping) and all(isinstance(name, str) for name in instead.values())
    if place.optional or not readable or set(place.options) - {"instead"}:
        raise PlanError(
            f'{origin}: use = "{DEVICE}" takes nothing but instead = {{ "step" = "other step" }}.',
            hint="Change options of its steps with --set STEP.OPTION=VALUE.",
        )
    names = {use.name for use in own.uses}
    if missing := sorted(set(instead) - names):
        raise PlanError(
            f"{origin}: {own.origin} has no step {missing[0]!r} to replace.",
            hint=did_you_mean(missing[0], names),
        )
    return [Use(instead[use.name]) if use.name in instead else use for use in own.uses]


def ending_with(recipe: Recipe, settings: Iterable[str], backends: Collection[str]) -> Recipe:
    """Return `recipe` with another backend as its last step where a setting is of one that it does not have.

    `backends` are the names of those installed. Raises PlanError for settings of two of them.
    """
    had = {use.name for use in recipe.uses}
    named = {setting.partition("=")[0].strip().rpartition(".")[0] for setting in settings}
    wanted = sorted((named & set(backends)) - had)
    if len(wanted) > 1:
        raise PlanError(f"A plan ends with one backend, and settings are of {' and '.join(wanted)}.")
    if not wanted or recipe.uses[-1].name not in backends:
        return recipe
    return Recipe((*recipe.uses[:-1], Use(wanted[0])), recipe.origin)


def override(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """Apply settings of the form STEP.OPTION=VALUE, as `--set` takes them, to the steps of that name."""
    uses = list(recipe.uses)
    for setting in settings:
        path, equals, value = setting.partition("=")
        name, dot, key = path.strip().rpartition(".")
        if not (equals and dot and name and key):
            raise PlanError(f"--set {setting!r} is not readable.", hint="Write --set STEP.OPTION=VALUE.")
        if name not in {use.name for use in uses}:
            raise PlanError(
                f"--set {setting!r}: the recipe has no step {name!r}.",
                hint=did_you_mean(name, {use.name for use in uses}),
            )
        uses = [
            dataclasses.replace(use, options={**use.options, key: value.strip()}) if use.name == name else use
            for use in uses
        ]
    return Recipe(tuple(uses), recipe.origin)
