"""The report's pictures as inline SVG. Widths are percentages, so that letters keep their size on a phone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from penjing.report import story, words
from penjing.report.markup import Markup, join, tag
from penjing.report.schema import Column, Report

#: height of one column's line in a picture, and of the axis under them, in pixels
LINE, AXIS = 46, 26
#: a box of the pipeline: width, height and the gap to the next, in user units
WIDE, HIGH, GAP = 176, 66, 32


@dataclasses.dataclass(frozen=True)
class Entry:
    """One column in a picture: its value, the interval around it, and a tick (the 90th percentile)."""

    name: str
    text: str
    value: float | None
    ends: Sequence[float] | None = None
    tick: float | None = None


def overview(report: Report) -> list[Markup]:
    """Return three pictures, against the original: size, speed, and accuracy kept (or agreement)."""

    def timed(one: Column) -> float | None:
        return one["latency"]["speedup"] if one["latency"] else None

    pictures = [
        bars(
            "size",
            "Share of the original’s size",
            _entries(report, lambda one: one["size_ratio"], words.percent),
        ),
        bars("speed", "Speed against the original", _entries(report, timed, words.times)),
    ]
    same = _entries(
        report, lambda one: one["fidelity"]["agreement"] if one["fidelity"] else None, words.percent
    )
    if not any(one["accuracy"] for one in report["columns"]) and any(
        entry.value is not None for entry in same
    ):
        return [*pictures, bars("same", "Same answer as the original", same[1:], 1.0)]
    kept = _entries(
        report, lambda one: one["accuracy"]["retained"] if one["accuracy"] else None, words.percent
    )
    return [*pictures, bars("kept", "Accuracy kept", [_whole(report, kept[0]), *kept[1:]], 1.0)]


def _whole(report: Report, entry: Entry) -> Entry:
    """The original keeps all of its accuracy, where it has any."""
    scored = report["columns"][0]["accuracy"]
    return (
        dataclasses.replace(entry, value=1.0, text=words.percent(1.0))
        if scored and scored["value"]
        else entry
    )


def _entries(
    report: Report, read: Callable[[Column], float | None], shown: Callable[[float], str]
) -> list[Entry]:
    entries = []
    for one in report["columns"]:
        value = None if one["failed"] is not None else read(one)
        entries.append(Entry(one["name"], _absent(one) if value is None else shown(value), value))
    return entries


def _absent(one: Column) -> str:
    return "not measured" if one["failed"] is None else "could not be made"


def quality(report: Report) -> Markup | None:
    """Return accuracy, or agreement, or SQNR, with whiskers for intervals; None where none is known."""
    live = [one for one in report["columns"] if one["failed"] is None]
    scored = [(one["name"], one["accuracy"]) for one in live if one["accuracy"]]
    if scored:
        entries = [
            Entry(name, words.percent(it["value"]), it["value"], it["interval"]) for name, it in scored
        ]
        return whiskers("accuracy", "Accuracy with its 95 % interval", entries)
    alike = [(one["name"], one["fidelity"]) for one in live if one["fidelity"]]
    entries = [
        Entry(name, words.percent(it["agreement"]), it["agreement"], it["agreement_interval"])
        for name, it in alike
        if it["agreement"] is not None
    ]
    if entries:
        return whiskers("agreement", "Same answer as the original, with its 95 % interval", entries)
    entries = [
        Entry(name, words.decibels(it["sqnr_db"]), max(0.0, it["sqnr_db"]))
        for name, it in alike
        if it["sqnr_db"] is not None
    ]
    return bars("sqnr", "Output SQNR: more is nearer to the original", entries) if entries else None


def latency(report: Report) -> Markup | None:
    """Return median latency as bars with a tick at the 90th percentile; None where nothing was timed."""
    entries = []
    for one in report["columns"]:
        it = one["latency"] if one["failed"] is None else None
        if it is None:
            entries.append(Entry(one["name"], _absent(one), None))
        else:
            text = f"{words.milliseconds(it['median_ms'])}, p90 {words.milliseconds(it['p90_ms'])}"
            entries.append(Entry(one["name"], text, it["median_ms"], tick=it["p90_ms"]))
    if all(entry.value is None for entry in entries):
        return None
    return bars("latency", "Latency: bar to the median, tick at the 90th percentile", entries)


def bars(key: str, title: str, entries: Sequence[Entry], least: float = 0.0) -> Markup:
    """Return horizontal bars from 0 to `least` or more, one to a line, each under its name and value."""
    most = max([least, *(n for entry in entries for n in (entry.value, entry.tick) if n is not None)]) or 1.0
    lines: list[Markup] = []
    for index, entry in enumerate(entries):
        top = index * LINE
        lines += _labels(entry, top)
        lines.append(tag("rect", x=0, y=top + 24, width="100%", height=9, rx=2, class_="track"))
        if entry.value is not None:
            width = f"{100 * entry.value / most:.2f}%"
            lines.append(
                tag("rect", x=0, y=top + 24, width=width, height=9, rx=2, class_=f"bar {entry.name}")
            )
        if entry.tick is not None:
            at = f"{99.7 * entry.tick / most:.2f}%"
            lines.append(tag("line", x1=at, x2=at, y1=top + 20, y2=top + 37, class_="tick"))
    return _picture(key, title, entries, len(entries) * LINE, lines)


def whiskers(key: str, title: str, entries: Sequence[Entry]) -> Markup:
    """Return dots with whiskers over an axis of percentages that spans the intervals, not 0 to 100."""
    ends = [end for entry in entries for end in (entry.value or 0.0, *(entry.ends or ()))]
    step = _step(max(ends) - min(ends))
    low = max(0.0, math.floor(round(min(ends) / step, 6)) * step)
    high = min(1.0, math.ceil(round(max(ends) / step, 6)) * step)
    if high <= low:  # everything at one end of the scale
        low, high = (low - step, low) if low > 0 else (0.0, step)

    def at(share: float) -> str:
        return f"{3 + 94 * (share - low) / (high - low):.2f}%"

    lines: list[Markup] = []
    bottom = len(entries) * LINE
    for mark in range(round((high - low) / step) + 1):
        share = min(high, low + mark * step)
        lines.append(tag("line", x1=at(share), x2=at(share), y1=0, y2=bottom, class_="grid"))
        anchor = "middle" if 0 < mark < round((high - low) / step) else "start" if mark == 0 else "end"
        text = f"{100 * share:.4g} %"
        x = "0%" if mark == 0 else at(share) if anchor == "middle" else "100%"
        lines.append(tag("text", text, x=x, y=bottom + 18, text_anchor=anchor, class_="axis"))
    for index, entry in enumerate(entries):
        top, value = index * LINE, at(entry.value or 0.0)
        lines += _labels(entry, top)
        if entry.ends is not None:
            left, right = at(entry.ends[0]), at(entry.ends[1])
            lines.append(tag("line", x1=left, x2=right, y1=top + 30, y2=top + 30, class_="whisker"))
            lines += [
                tag("line", x1=x, x2=x, y1=top + 25, y2=top + 35, class_="whisker") for x in (left, right)
            ]
        lines.append(tag("circle", cx=value, cy=top + 30, r=5.5, class_=f"dot {entry.name}"))
    return _picture(key, title, entries, bottom + AXIS, lines)


def _step(spread: float) -> float:
    """Return a round step that divides `spread` into at most five."""
    raw = max(spread, 0.01) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)


def _labels(entry: Entry, top: int) -> list[Markup]:
    return [
        tag("text", entry.name, x=0, y=top + 15, class_="name"),
        tag(
            "text",
            entry.text,
            x="100%",
            y=top + 15,
            text_anchor="end",
            class_="value" if entry.value is not None else "none",
        ),
    ]


def _picture(key: str, title: str, entries: Sequence[Entry], height: int, lines: Sequence[Markup]) -> Markup:
    told = "; ".join(
        f"{entry.name} {entry.text}" + (f", {words.span(entry.ends, words.percent)}" if entry.ends else "")
        for entry in entries
    )
    drawn = _svg(key, title, told, lines, width="100%", height=height)
    return tag("figure", tag("figcaption", title), drawn)


def _svg(key: str, title: str, told: str, lines: Sequence[Markup], **attributes: str | float) -> Markup:
    head = [tag("title", title, id=f"{key}-title"), tag("desc", told, id=f"{key}-told")]
    return tag("svg", *head, *lines, role="img", aria_labelledby=f"{key}-title {key}-told", **attributes)


def pipeline(report: Report) -> Markup:
    """Return source, steps of the optimised column and device as boxes: in rows, and one by one on phones."""
    boxes = _boxes(report)
    return join(
        tag("div", _flow("wide", boxes, min(5, len(boxes))), class_="wide"),
        tag("div", _flow("narrow", boxes, 1), class_="narrow"),
    )


def _boxes(report: Report) -> list[tuple[str, str, str]]:
    """Return (name, second line, class) of each box."""

    def measured(size_bytes: int | None) -> str:
        return "" if size_bytes is None else words.size(size_bytes)

    boxes = [(words.visible(report["source"]), measured(report["columns"][0]["size_bytes"]), "source")]
    boxes += [
        (words.visible(step["name"]), measured(step["size_bytes"]), "step")
        for step in report["steps"]
        if "optimised" in step["columns"]
    ]
    result = story.column(report, "optimised")
    speed = (
        words.milliseconds(result["latency"]["median_ms"]) if result and result["latency"] else "not measured"
    )
    return [*boxes, (story.device(report), speed, "device")]


def _flow(key: str, boxes: Sequence[tuple[str, str, str]], per_row: int) -> Markup:
    """Draw boxes joined by arrows, `per_row` to a row."""
    width = WIDE if per_row > 1 else 2 * WIDE
    places = [
        (index % per_row * (width + GAP) + 1, index // per_row * (HIGH + GAP) + 1)
        for index in range(len(boxes))
    ]
    room = 18 if per_row > 1 else 36
    drawn: list[Markup] = []
    for (name, second, kind), (x, y) in zip(boxes, places, strict=True):
        middle = x + width / 2
        short = words.clipped(name, room)
        text = tag(
            "text",
            tag("title", name),
            short,
            x=middle,
            y=y + (29 if second else 39),
            text_anchor="middle",
            class_="name",
        )
        drawn.append(tag("rect", x=x, y=y, width=width, height=HIGH, rx=6, class_=f"box {kind}"))
        drawn += [text, tag("text", second, x=middle, y=y + 49, text_anchor="middle", class_="axis")]
    drawn += [_arrow(here, there, width) for here, there in pairwise(places)]
    extent = per_row * (width + GAP) - GAP + 2, places[-1][1] + HIGH + 1
    told = " → ".join(f"{name} {second}".strip() for name, second, _ in boxes)
    view = f"0 0 {extent[0]} {extent[1]}"
    style = f"max-width:{extent[0]}px"
    return _svg(
        f"pipeline-{key}",
        "From the source to the device",
        told,
        drawn,
        viewBox=view,
        width="100%",
        style=style,
    )


def _arrow(here: tuple[int, int], there: tuple[int, int], width: int) -> Markup:
    (x, y), (to_x, to_y) = here, there
    if y == to_y:
        line, head = (
            f"M{x + width + 5} {y + HIGH / 2}H{to_x - 6}",
            f"M{to_x - 11} {y + HIGH / 2 - 5}l5 5l-5 5",
        )
    else:
        middle, end = x + width / 2, to_x + width / 2
        line = f"M{middle} {y + HIGH + 4}V{y + HIGH + GAP / 2}H{end}V{to_y - 5}"
        head = f"M{end - 5} {to_y - 10}l5 5l5 -5"
    return tag("path", d=f"{line}{head}", class_="arrow")
