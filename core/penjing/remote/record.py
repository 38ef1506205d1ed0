"""What was measured on a board, kept with the run: a report that is made anew tells of it again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from penjing import sealed
from penjing.goal import Goal
from penjing.verdict import judge

if TYPE_CHECKING:
    from penjing.report import Report

_KEPT = Path("measurements") / "on-board.json"


def keep(folder: Path, report: Report, record: dict[str, Any]) -> None:
    """Write down what was measured, under the hash of the model it was measured with."""
    (folder / _KEPT).parent.mkdir(exist_ok=True)
    sealed.write(folder / _KEPT, {"sha256": report["columns"][-1]["sha256"], "record": record})


def recall(folder: Path, sha256: str | None) -> dict[str, Any] | None:
    """Return what was last measured on a board with the model of that hash; None where nothing was."""
    kept = sealed.read(folder / _KEPT)
    if kept is None or sha256 is None or kept["sha256"] != sha256:
        return None
    return {"original": None, **kept["record"]}  # which records had none of, before it was timed there


def apply(report: Report, record: dict[str, Any]) -> None:
    """Put a measurement into a report: into the columns timed too, unless this machine is the device."""
    report["on_board"] = record  # type: ignore[typeddict-item]  # `reports.write` checks every field of it
    column = report["columns"][-1]
    if not report["device"]["here"]:
        column["latency"], column["latency_why"] = record["latency"], ""
        original, found = report["columns"][0], record["original"]
        if found or original["latency"]:
            original["latency"], original["latency_why"] = found, "" if found else "left out on the board"
        goal = Goal(**{demand["name"]: demand["bound"] for demand in report["goals"]})
        report["goals"] = judge(goal, column)  # type: ignore[typeddict-item]  # as in again.py
