"""Whether the user's demands are met: yes, no, or not to be told from so few photographs or runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from penjing.goal import Goal

Record = Mapping[str, Any]

MET, MISSED, OPEN = "met", "not met", "not decidable"


def judge(goal: Goal, column: Record) -> list[dict[str, Any]]:
    """Return the report's goal records for the optimised `column`."""
    accuracy, latency, size = column["accuracy"], column["latency"], column["size_bytes"]
    demands: list[dict[str, Any]] = []
    if goal.max_drop is not None:
        value, interval = (accuracy["drop"], accuracy["drop_interval"]) if accuracy else (None, None)
        why = "" if accuracy else "Without labels there is no accuracy."
        n = f" on {accuracy['n']} photographs" if accuracy else ""
        demands.append(_demand("max_drop", goal.max_drop, "points", value, interval, why, n))
    if goal.max_latency is not None:
        value, interval = (latency["median_ms"], latency["median_interval"]) if latency else (None, None)
        n = f" in {latency['runs']} runs" if latency else ""
        demands.append(
            _demand("max_latency", goal.max_latency, "ms", value, interval, column["latency_why"], n)
        )
    if goal.max_size is not None:
        value = size / 1e6 if size is not None else None
        interval = None if value is None else [value, value]
        demands.append(_demand("max_size", goal.max_size, "MB", value, interval, "The model is no file.", ""))
    return demands


def _demand(
    name: str,
    bound: float,
    unit: str,
    value: float | None,
    interval: Sequence[float] | None,
    why: str,
    n: str,
) -> dict[str, Any]:
    if value is None or interval is None:
        verdict = OPEN
    else:
        low, high = interval
        verdict = MET if high <= bound else MISSED if low > bound else OPEN
        what = (
            "It"
            if low == high
            else f"The whole 95 % interval{n}"
            if verdict != OPEN
            else f"The 95 % interval{n}"
        )
        where = {MET: "is within", MISSED: "is beyond", OPEN: "lies on both sides of"}[verdict]
        why = f"{what} {where} the bound."
        if verdict == OPEN:
            why += " More photographs would tell." if name == "max_drop" else " More runs would tell."
    return {
        "name": name, "bound": bound, "unit": unit, "value": value,
        "interval": None if interval is None else list(interval), "verdict": verdict, "why": why,
    }  # fmt: skip


def overall(goals: Sequence[Record]) -> str:
    """Return the verdict over all demands: missed where one is, else open where one is, else met."""
    verdicts = {goal["verdict"] for goal in goals}
    return MISSED if MISSED in verdicts else OPEN if OPEN in verdicts else MET
