"""What can go wrong, and when.

PenjingError            message, hint; every error a user can meet
├── PlanError           it cannot be carried out: nothing has run
│   └── InputError      a file the user gave is at fault: model, weights, images, profile, recipe
├── StepError           a step failed while running: what came before is intact
└── PluginError         a plugin broke its promise
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class PenjingError(Exception):
    """An error with a `hint`: what to do about it."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class PlanError(PenjingError):
    """What was asked for cannot be carried out; nothing has run."""

    exit_code = 3


class InputError(PlanError):
    """A file or folder the user gave cannot be used; nothing has run."""


class StepError(PenjingError):
    """A step failed while running; the results of the steps before it are intact."""

    exit_code = 4


class PluginError(PenjingError):
    """A plugin broke its promise."""

    exit_code = 5


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that says anything, cut at 300; its type where none does."""
    said = (line.strip() for line in str(error).splitlines())
    return next((line[:300] for line in said if line), type(error).__name__)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint for a mistyped `name`: the nearest known names, else all of them."""
    known = sorted(known)
    near = get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return f"Did you mean {' or '.join(near)}?"
    return f"Known: {', '.join(known)}." if known else "There are none."
