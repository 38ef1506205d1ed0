"""How commands talk: progress on standard error, results on standard output, verdicts as exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from penjing.report import Report
    from penjing.step import Progress

#: exit codes besides those of the errors: demands of the user that are not met, or cannot be decided
NOT_MET, NOT_DECIDABLE = 10, 11
#: an error that nobody foresaw (EX_SOFTWARE of sysexits.h)
FAULT = 70


@contextmanager
def shown(quiet: bool) -> Iterator[Progress]:
    """Yield what shows progress, on standard error; what a source prints meanwhile goes there too."""
    from rich.console import Console

    from penjing.console import Lines, Terminal
    from penjing.step import Silent

    screen = Console(stderr=True)
    lively = Terminal(screen) if screen.is_terminal else Lines(screen)
    with redirect_stdout(sys.stderr), nullcontext(Silent()) if quiet else lively as progress:
        yield progress


def console() -> Console:
    """Open the terminal, for what is laid out by its width."""
    from rich.console import Console

    return Console()


def show(report: Report, folder: Path, as_json: bool, quiet: bool) -> None:
    """Print a report, and exit by its verdict."""
    from penjing.report import terminal
    from penjing.verdict import MISSED, OPEN, overall

    if as_json:
        click.echo(json.dumps(report, indent=1))
    elif not quiet:
        screen = console()
        screen.print(terminal.render(report))
        screen.print(f"Report: {folder / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
    codes = {MISSED: NOT_MET, OPEN: NOT_DECIDABLE}
    sys.exit(codes.get(overall(report["goals"]), 0))
