"""Arguments that several commands have in common."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)


class Finite(click.FloatRange):
    """A number within bounds, and not one that compares with nothing or is beyond them all."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


def asks(command: F) -> F:
    """Give a command the arguments that describe a compression."""
    options = [
        click.argument("source"),
        click.option("--device", default="this-machine", show_default=True, metavar="NAME",
                     help="Device profile: NAME, NAME@STACK, or a TOML file; see `penjing devices`."),
        click.option("--data", type=PATH, metavar="DIR",
                     help="Photographs: class sub-folders, train/ select/ validation/ test/ of such, or unlabelled."),
        click.option("--weights", type=PATH, metavar="FILE", help="State dict to load: .pt or .safetensors."),
        click.option("--preprocess", type=PATH, metavar="FILE",
                     help="TOML: resize, crop, interpolation, scale, mean, std, channels."),
        click.option("--recipe", type=PATH, metavar="FILE",
                     help="TOML of [[recipe]] steps in place of the device's, or one that "
                     "comes with Penjing: mixed, qat, smaller."),
        click.option("--set", "settings", multiple=True, metavar="STEP.OPTION=VALUE",
                     help="Change an option of a step; may be repeated."),
        click.option("--max-drop", type=Finite(min=0), metavar="POINTS",
                     help="Accuracy that may be lost, in percentage points."),
        click.option("--max-latency", type=Finite(min=0, min_open=True), metavar="MS",
                     help="Median latency that must be kept, in milliseconds."),
        click.option("--max-size", type=Finite(min=0, min_open=True), metavar="MB",
                     help="Size of the model file that must be kept, in megabytes."),
        click.option("--max-broken", type=Finite(0, 1), default=0.05, show_default=True, metavar="SHARE",
                     help="Share of unreadable photographs that is put up with."),
        click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, metavar="N",
                     help="Seed of everything drawn at random."),
        click.option("--out", type=PATH, metavar="RUN", help="Run folder; default runs/MODEL-DEVICE."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def speaks(command: F) -> F:
    """Give a command the arguments that say how it talks."""
    command = click.option("--quiet", "-q", is_flag=True, help="Print errors only.")(command)
    return click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")(command)


def reaches(command: F) -> F:
    """Give a command the arguments that name a board."""
    options = [
        click.option("--host", metavar="USER@BOARD", help="The board, as ssh knows it."),
        click.option("--path", default="", metavar="DIR",
                     help="Folder for the bundle there; default penjing-bundles/RUN in the home."),
        click.option("--ssh", default="ssh", show_default=True, metavar="COMMAND",
                     help='The ssh to use, with options: "ssh -p 2222".'),
        click.option("--python", default="", metavar="PATH",
                     help="Python on the board; default ~/penjing/bin/python, else python3."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command
