"""The report of a run: report.json, and the same content for people as HTML, Markdown and on the terminal."""

from __future__ import annotations

import json
from pathlib import Path

from penjing.files import read_json, write_text
from penjing.report import html, markdown
from penjing.report.schema import Report, check

__all__ = ["Report", "check", "read", "write"]

#: bytes of a page beside the report that may be looked into
MAX_PAGE = 2**26


def write(report: Report, folder: Path) -> None:
    """Write report.html, report.md and, last, report.json into `folder`, each atomically."""
    report = check(report)
    write_text(folder / "report.html", html.render(report, _beside(report, folder)))
    write_text(folder / "report.md", markdown.render(report))
    # ASCII, because a file name that is no text (a lone surrogate) has no other way into JSON
    write_text(folder / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")


def _beside(report: Report, folder: Path) -> list[str]:
    """Return the names of pages beside the report that tell of a model of this very report, by its SHA-256.

    A page about a model that the folder held before is left out.
    """
    hashes = [column["sha256"] for column in report["columns"] if column["sha256"]]
    found = []
    for path in sorted(folder.glob("*.html")):
        if path.name != "report.html" and path.stat().st_size <= MAX_PAGE:
            text = path.read_text(encoding="utf-8", errors="replace")
            found += [path.name] if any(sha256 in text for sha256 in hashes) else []
    return found


def read(path: Path) -> Report:
    """Read a report.json from anywhere; InputError names what is wrong with it."""
    return check(read_json(path))
