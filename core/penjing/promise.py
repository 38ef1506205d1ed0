"""What the host relies on in other people's steps, checked where a plugin can break it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from penjing.errors import PenjingError, PluginError, first_line

if TYPE_CHECKING:
    from penjing.step import Step

#: what a step may say it needs
NEEDS = frozenset({"calibration", "training", "labels"})


@contextmanager
def kept(name: str, method: str) -> Iterator[None]:
    """Make a PluginError naming both of whatever `method` of the step, or plugin, `name` raises by mistake."""
    try:
        yield
    except PenjingError:
        raise  # said on purpose
    except Exception as error:
        raise PluginError(
            f"{name} fails in {method}: {type(error).__name__}: {first_line(error)}",
            hint="This is a fault of the plugin that brings it. --debug shows where it happened.",
        ) from error


def fault(kind: type[Step]) -> str:
    """Return what is wrong with how a step is declared; "" where the host can work with it."""
    from penjing.options import options_of

    if not re.fullmatch(
        r"[A-Za-z0-9_][A-Za-z0-9_.-]*", kind.name
    ):  # it names folders, and options on a command line
        return "its name must be of letters, digits, dots, dashes and underscores"
    if missing := sorted(kind.__abstractmethods__):
        return f"it has no method {missing[0]}"
    if not _texts(getattr(kind, "accepts", None)):
        return 'accepts must be a frozenset of forms, such as frozenset({"onnx"})'
    if not isinstance(getattr(kind, "produces", None), str):
        return 'produces must be a form, such as "onnx"'
    if not _texts(kind.needs) or not kind.needs <= NEEDS:
        return f"needs must be a frozenset of {', '.join(sorted(NEEDS))}"
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]  # Host.steps saw that it is a dataclass
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            return f"its field {field.name} has no default"
    try:
        options_of(kind)
    except Exception as error:  # annotations are evaluated, and may be any expression
        return f"its options cannot be read: {first_line(error)}"
    return ""


def _texts(value: Any) -> bool:
    return isinstance(value, frozenset) and all(isinstance(item, str) for item in value)
