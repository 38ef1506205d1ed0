"""The report on a terminal: the short form, readable at 80 columns and in a pipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penjing.report import story, words
from penjing.report.schema import Report

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

#: sign and style of a verdict; the sign tells it without colour
VERDICTS = {"met": ("✓", "green"), "not met": ("✗", "bold red"), "not decidable": ("?", "yellow")}


def render(report: Report) -> RenderableType:
    """Return headline, comparison, goals and warnings for `rich.console.Console.print`."""
    from rich.console import Group
    from rich.text import Text

    table = story.comparison(report)
    notes = [_item(words.superscript(number), note, "dim") for number, note in enumerate(table.notes, 1)]
    parts: list[RenderableType] = [Text(f"{story.headline(report)}.", style="bold")]
    parts += [Text(sentence) for sentence in story.lede(report)]
    parts += [_comparison(table), *notes]
    parts += _list("Goals", [_goal(report, index) for index in range(len(report["goals"]))])
    parts += _list("Warnings", [_item("!", text, "yellow") for text in story.warnings(report)])
    left_out = [_item("–", f"{one['name']}: {one['why']}", "dim") for one in report["left_out"]]
    return Group(*parts, *_list("Left out", left_out))


def _comparison(comparison: story.Comparison) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("", overflow="fold")
    for name in comparison.names:
        table.add_column(name, justify="right", overflow="fold", style="bold" if name == "optimised" else "")
    for label, cells in comparison.rows:
        shown = [
            Text(cell.marked) + Text(f"\n{cell.under}" if cell.under else "", style="not bold dim")
            for cell in cells
        ]
        table.add_row(label, *shown)
    return table


def _list(title: str, items: list[Table]) -> list[RenderableType]:
    from rich.text import Text

    return [Text(f"\n{title}", style="bold"), *items] if items else []


def _goal(report: Report, index: int) -> Table:
    one = report["goals"][index]
    sign, style = VERDICTS[one["verdict"]]
    return _item(sign, f"{one['verdict']}: {story.GOALS[one['name']]} {story.goal(one)}. {one['why']}", style)


def _item(sign: str, text: str, style: str) -> Table:
    """Return a line with a hanging sign."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(sign, style=style), Text(words.visible(text)))
    return grid
