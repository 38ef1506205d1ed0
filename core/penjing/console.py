"""What the command line shows while it works: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID


def wrapped(text: str, *, first: str = "", then: str = "  ") -> str:
    """Return text in lines no wider than the terminal, the first after `first`, the others after `then`.

    Words stay whole, so that names and commands can be copied; what a terminal would obey is replaced.
    """
    plain = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    return textwrap.fill(
        plain,
        shutil.get_terminal_size().columns,
        initial_indent=first,
        subsequent_indent=then,
        break_long_words=False,
        break_on_hyphens=False,
    )


@dataclasses.dataclass
class _Piece:
    what: str
    total: int | None
    start: float
    bar: TaskID | None = None


class Terminal:
    """Progress on a terminal: finished pieces as lines, the one at work as a bar below them."""

    def __init__(self, console: Console) -> None:
        from rich.progress import (
            BarColumn,
            Progress,
            ProgressColumn,
            SpinnerColumn,
            Task,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class Count(ProgressColumn):
            """How many of how many, where that is known."""

            def render(self, task: Task) -> Text:
                known = task.total is not None
                return Text(f"{task.completed:.0f}/{task.total:.0f}" if known else "")

        self._console = console
        self._bars: Bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            Count(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._open: list[_Piece] = []

    def __enter__(self) -> Terminal:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def begin(self, what: str, total: int | None = None) -> None:
        """Start a piece; pieces inside one another are indented."""
        bar = self._bars.add_task("  " * len(self._open) + what, total=total)
        self._open.append(_Piece(what, total, time.monotonic(), bar))

    def advance(self, count: int = 1) -> None:
        """Move the bar of the piece begun last."""
        if self._open and (bar := self._open[-1].bar) is not None:
            self._bars.advance(bar, count)

    def end(self, result: str = "") -> None:
        """Turn the bar into a line."""
        from rich.text import Text

        piece = self._open.pop()
        if piece.bar is not None:
            self._bars.remove_task(piece.bar)
        line = Text("  " * len(self._open)).append("✓ ", "green").append(piece.what)
        self._console.print(line.append(f"  {result or _seconds(piece.start)}", "dim"), highlight=False)

    def warn(self, message: str) -> None:
        """Print a warning above the bars."""
        from rich.text import Text

        self._console.print(Text("! ", "yellow").append(message), highlight=False)


class Lines:
    """Progress where no terminal is: one plain line for each finished piece."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._open: list[_Piece] = []

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None: ...

    def begin(self, what: str, total: int | None = None) -> None:
        """Remember when the piece started."""
        self._open.append(_Piece(what, total, time.monotonic()))

    def advance(self, count: int = 1) -> None:
        """Say nothing: a log is no place for a bar."""

    def end(self, result: str = "") -> None:
        """Print the finished piece."""
        piece = self._open.pop()
        self._print(f"{'  ' * len(self._open)}{piece.what}: {result or _seconds(piece.start)}")

    def warn(self, message: str) -> None:
        """Print a warning."""
        self._print(f"warning: {message}")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _seconds(start: float) -> str:
    return f"{time.monotonic() - start:.1f} s"
