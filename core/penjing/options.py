"""Options of a step: declared once as dataclass fields, read from recipes, `--set` and Python alike."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from penjing.errors import PlanError, did_you_mean, first_line

T = TypeVar("T")


def option(
    default: Any,
    help: str,  # noqa: A002 - the field's own word
    *,
    between: tuple[float, float] | None = None,
) -> Any:
    """Declare an option of a step.

    `default` also fixes what `--set` may be given through the field's annotation: bool, int, float, str,
    a `Literal`, a tuple of one of these, or any of them `| None`. `between` bounds a number, both ends included.
    """
    return dataclasses.field(default=default, metadata={"help": help, "between": between})


@dataclasses.dataclass(frozen=True)
class Option:
    """One option as declared: its name, type, default, help and bounds."""

    name: str
    type: Any
    default: Any
    help: str
    between: tuple[float, float] | None

    @property
    def kind(self) -> str:
        """Return the type in words, for help and error messages."""
        return _in_words(self.type) + (
            f" from {self.between[0]:g} to {self.between[1]:g}" if self.between else ""
        )

    def read(self, value: Any) -> Any:
        """Return `value`, given as text or as TOML, as this option's type; ValueError where it is not."""
        result = _read(value, self.type)
        if self.between and isinstance(result, int | float):
            low, high = self.between
            if not low <= result <= high:
                raise ValueError(f"{value!r} is out of range")
        return result


def options_of(cls: type) -> dict[str, Option]:
    """Return the options of the dataclass `cls`: its own in the order of their declaration, then inherited ones."""
    hints = typing.get_type_hints(cls)
    inherited = {field.name for base in cls.__mro__[1:] for field in _fields(base)}
    return {
        field.name: Option(
            field.name,
            hints[field.name],
            field.default,
            field.metadata["help"],
            field.metadata["between"],
        )
        for field in sorted(_fields(cls), key=lambda field: field.name in inherited)
        if "help" in field.metadata
    }


def _fields(cls: type) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()


def build(cls: type[T], name: str, values: Mapping[str, Any]) -> T:
    """Make an instance of the step class `cls`, called `name`, from option values given as text or TOML.

    Raises PlanError for an unknown option (with the nearest known ones) and for a value of the wrong kind.
    """
    known = options_of(cls)
    arguments = {}
    for key, value in values.items():
        if key not in known:
            raise PlanError(f"{name} has no option {key!r}.", hint=did_you_mean(key, known))
        try:
            arguments[key] = known[key].read(value)
        except ValueError as error:
            raise PlanError(
                f"{name}.{key} takes {known[key].kind}; {error}.",
                hint=f"Its default is {known[key].default}. `penjing plugins` lists all options.",
            ) from error
    try:
        return cls(**arguments)
    except ValueError as error:  # of a __post_init__ that found options that do not go together
        raise PlanError(f"{name} does not take these options together: {first_line(error)}.") from error


def _in_words(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if a is type(None) else _in_words(a) for a in arguments)
    if origin is tuple:
        one = _in_words(arguments[0])
        return f"a list of {one.removeprefix('an ').removeprefix('a ')}s"
    names = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
    return names.get(annotation, str(annotation))


def _read(value: Any, annotation: Any) -> Any:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            return None
        return _read(value, next(a for a in arguments if a is not type(None)))
    if origin is Literal:
        for choice in arguments:
            if value == choice or (isinstance(value, str) and value == str(choice)):
                return choice
        raise ValueError(f"{value!r} is none of them")
    if origin is tuple:
        items = (
            [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )
        if not isinstance(items, list | tuple):
            raise ValueError(f"{value!r} is not a list")
        return tuple(_read(item, arguments[0]) for item in items)
    return _read_scalar(value, annotation)


def _read_scalar(value: Any, kind: type) -> Any:
    if kind is bool:
        words = {
            "true": True,
            "yes": True,
            "on": True,
            "1": True,
            "false": False,
            "no": False,
            "off": False,
            "0": False,
        }
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in words:
            return words[value.lower()]
        raise ValueError(f"{value!r} is neither")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not")  # noqa: TRY004 - one kind of error for a value that does not fit
    if kind is str:
        return str(value)
    if kind is int and isinstance(value, int):
        return value
    try:
        if kind is int and isinstance(value, str) and value.strip().lstrip("+-").isdecimal():
            return int(value)  # a float would round it beyond 2**53
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{str(value)[:40]!r} is not one") from None
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError(f"{value!r} is not finite")
    if kind is int:
        if not number.is_integer():
            raise ValueError(f"{value!r} is not whole")
        return int(number)
    return number
