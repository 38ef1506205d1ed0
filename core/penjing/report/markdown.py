"""The report as GitHub Flavoured Markdown, compact enough for a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from penjing.report import exhibits, story, words
from penjing.report.schema import Report


def render(report: Report) -> str:
    """Return the report as Markdown; text from outside cannot become markup, a link or a mention."""
    return "\n\n".join(part for part in _parts(report) if part) + "\n"


def _parts(report: Report) -> Iterable[str]:
    yield f"## {_safe(story.headline(report))}"
    yield f"{_code(report['source'])} for {_safe(story.device(report))}, {words.moment(report['created'])}"
    yield " ".join(map(_safe, story.lede(report)))
    yield from _comparison(report)
    yield _section("Goals", _goals(report))
    yield _section("Warnings", [f"- {_safe(text)}" for text in story.warnings(report)])
    yield _section("Plan", _plan(report))
    yield from _exhibits(report)
    yield _section("Left out", [f"- {_code(one['name'])}: {_safe(one['why'])}" for one in report["left_out"]])
    broken = report["data"]["broken"] if report["data"] else []
    yield _section(
        "Photographs that cannot be read",
        [f"- {_code(one['file'])}: {_safe(one['reason'])}" for one in broken],
    )
    yield _section(
        "Ground", _table(["", ""], [[_safe(name), _safe(value)] for name, value in story.facts(report)])
    )
    yield f"### Repeat\n\n{_block(report['command'])}"


def _section(title: str, lines: Sequence[str]) -> str:
    return f"### {title}\n\n" + "\n".join(lines) if lines else ""


def _comparison(report: Report) -> Iterable[str]:
    table = story.comparison(report)
    rows = [
        [_safe(label), *("<br>".join(map(_safe, [cell.marked, *cell.under.splitlines()])) for cell in cells)]
        for label, cells in table.rows
    ]
    yield "\n".join(_table(["", *table.names], rows))
    yield "\n".join(
        f"{words.superscript(number)} {_safe(note)}<br>" for number, note in enumerate(table.notes, 1)
    )


def _goals(report: Report) -> list[str]:
    return [
        f"- **{one['verdict']}**: {story.GOALS[one['name']]} {_safe(story.goal(one))}. {_safe(one['why'])}"
        for one in report["goals"]
    ]


def _plan(report: Report) -> list[str]:
    if not report["steps"]:
        return []
    rows = []
    for step in report["steps"]:
        reused = ", reused" if step["reused"] else ""
        cells = [step["name"], ", ".join(step["columns"]), words.plain(step["options"]), step["why"]]
        after = words.size(step["size_bytes"]) if step["size_bytes"] is not None else words.ABSENT
        rows.append([_safe(cell) for cell in (*cells, after, words.seconds(step["seconds"]) + reused)])
    return _table(["Step", "For", "Options", "Why", "Size after", "Time"], rows)


def _exhibits(report: Report) -> Iterable[str]:
    """Return what the steps show as tables, folded up: a pull request is to stay readable."""
    for step in report["steps"]:
        for exhibit in step["exhibits"]:
            head, rows = exhibits.markdown(exhibit)
            table = _table([_safe(cell) for cell in head], [[_safe(cell) for cell in row] for row in rows])
            title = f"<summary>{_safe(step['name'])}: {_safe(exhibit['title'])}</summary>"
            yield "\n".join(["<details>", title, "", *table, "", "</details>"])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _safe(text: str) -> str:
    """Return text that Markdown shows as it is: also no HTML, no mention of a person, no link by itself."""
    text = re.sub(r"([\\`*~|\[\]$])|((?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1\2", words.visible(text))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "&#64;")
    return re.sub(
        r"(?i)(https?|ftp)://|www\.", lambda found: found[0].replace(":", "&#58;").replace(".", "&#46;"), text
    )


def _code(text: str) -> str:
    """Return text as code in a line, also inside a table."""
    text = words.visible(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text[:1] == "`" or text[-1:] == "`" or not text else ""
    return f"{fence}{space}{text}{space}{fence}".replace("|", "\\|")


def _block(text: str) -> str:
    """Return text as a block of code."""
    text = words.visible(text)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}sh\n{text}\n{fence}"
