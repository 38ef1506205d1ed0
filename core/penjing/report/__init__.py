"""The report of a run: report.json, and the same content for people as HTML, Markdown and on the terminal."""

from __future__ import annotations

import json
from pathlib import Path

from penjing.files import read_json, write_text
from penjing.report import html, markdown
from penjing.report.schema import Report, check

__all__ = ["Report", "check", "read", "write"]


def write(report: Report, folder: Path) -> None:
    """Write report.html, report.md and, last, report.json into `folder`, each atomically."""
    report = check(report)
    write_text(folder / "report.html", html.render(report))
    write_text(folder / "report.md", markdown.render(report))
    # ASCII, because a file name that is no text (a lone surrogate) has no other way into JSON
    write_text(folder / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")


def read(path: Path) -> Report:
    """Read a report.json from anywhere; InputError names what is wrong with it."""
    return check(read_json(path))
