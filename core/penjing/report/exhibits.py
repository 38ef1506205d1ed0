"""Pictures and tables that steps show (`penjing.exhibit`), for the report and for pages of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import cycle

from penjing.report import words
from penjing.report.markup import Markup, join, tag
from penjing.report.schema import ExhibitRecord

#: height of a bar's line, of the field of curves, and of the axis under it, in pixels
LINE, FIELD, AXIS = 22, 180, 40
#: height of a lane, the gap between two, and where lanes start, in percent of the width
LANE, GAP, LEFT = 26, 14, 12.0
#: where bars start and end, in percent of the width: names stand before, values behind
START, END = 40.0, 86.0
#: more bars or rows than this are in a box of their own that scrolls
TALL = 24
#: how curves are told apart, also without colours
DASHES = ("", "7 4", "2 3", "10 3 2 3")


def render(exhibit: ExhibitRecord) -> Markup:
    """Return an exhibit as HTML, its text escaped."""
    drawn: dict[str, Callable[[ExhibitRecord], Markup]] = {
        "bars": _bars,
        "lines": _lines,
        "table": _table,
        "lanes": _lanes,
    }
    return tag(
        "figure",
        tag("figcaption", words.visible(exhibit["title"])),
        drawn[exhibit["kind"]](exhibit),
        class_="exhibit",
    )


def markdown(exhibit: ExhibitRecord) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Return an exhibit as the head and rows of a table: all that Markdown can show of it."""
    if exhibit["kind"] == "bars":
        unit = exhibit["unit"]
        marked = set(exhibit["marked"])
        rows = [
            [f"{name} *" if name in marked else name, _shown(value)]
            for name, value in exhibit["values"].items()
        ]
        return ["", unit], rows
    if exhibit["kind"] == "lines":
        ends = [
            [name, _shown(points[0][1]), _shown(points[-1][1])]
            for name, points in exhibit["series"].items()
            if points
        ]
        return [exhibit["y"], "first", "last"], ends
    if exhibit["kind"] == "lanes":
        parts = [[part["lane"], part["name"], _shown(part["width"])] for part in exhibit["segments"]]
        return ["lane", "part", "width"], parts
    return exhibit["head"], exhibit["rows"]


def _shown(value: float | None) -> str:
    return words.ABSENT if value is None else words.decimal(value)


def _bars(exhibit: ExhibitRecord) -> Markup:
    values, marked = exhibit["values"], set(exhibit["marked"])
    known = [value for value in values.values() if value is not None]
    low, high = min([0.0, *known]), max([0.0, *known])
    width = (high - low) or 1.0

    def at(value: float) -> float:
        return START + (END - START) * (value - low) / width

    lines: list[Markup] = []
    for index, (name, value) in enumerate(values.items()):
        middle = index * LINE + LINE / 2
        shown = words.clipped(words.visible(name), 30)
        kind = "marked" if name in marked else "plain"
        label = tag("text", tag("title", words.visible(name)), shown, x=0, y=15, class_=f"name {kind}")
        # in a field of its own, so that a long name ends before its bar on a narrow screen
        lines.append(
            tag(
                "svg",
                label,
                y=index * LINE,
                width=f"{START - 1}%",
                height=LINE,
                class_="clip",
                aria_hidden="true",
            )
        )
        text = (
            f"{_shown(value)} {words.visible(exhibit['unit'])}".strip() if value is not None else words.ABSENT
        )
        lines.append(tag("text", text, x="100%", y=middle + 4, text_anchor="end", class_="value"))
        if value is not None:
            left, right = sorted((at(0.0), at(value)))
            lines.append(
                tag("rect", x=f"{left:.2f}%", y=middle - 5, width=f"{max(right - left, 0.3):.2f}%",
                    height=10, rx=2, class_=f"mark {kind}")
            )  # fmt: skip
    told = "; ".join(f"{name} {_shown(value)}" for name, value in values.items())
    return _boxed(_svg(exhibit["title"], told, lines, len(values) * LINE), len(values))


def _lines(exhibit: ExhibitRecord) -> Markup:
    series = {name: points for name, points in exhibit["series"].items() if points}
    if not series:
        return tag("p", "There is nothing to draw.", class_="quiet")
    across = [point[0] for points in series.values() for point in points]
    upward = [point[1] for points in series.values() for point in points]

    def x(value: float) -> float:
        return 600 * (value - min(across)) / ((max(across) - min(across)) or 1.0)

    def y(value: float) -> float:
        return 10 + (FIELD - 20) * (1 - (value - min(upward)) / ((max(upward) - min(upward)) or 1.0))

    curves = [
        tag("polyline", points=" ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points),
            class_=f"curve c{number % 4}", stroke_dasharray=dash or None, vector_effect="non-scaling-stroke")
        for number, (points, dash) in enumerate(zip(series.values(), cycle(DASHES)))
    ]  # fmt: skip
    curves += [
        tag(
            "circle",
            cx=f"{x(points[0][0]):.1f}",
            cy=f"{y(points[0][1]):.1f}",
            r=3,
            class_=f"dot c{number % 4}",
        )
        for number, points in enumerate(series.values())
        if len(points) == 1
    ]
    field = tag(
        "svg",
        *curves,
        viewBox=f"0 0 600 {FIELD}",
        width="100%",
        height=FIELD,
        preserveAspectRatio="none",
        aria_hidden="true",
    )
    axes = [
        tag("text", f"{words.visible(exhibit['y'])}, {_shown(max(upward))} at the top", x=0, y=12, class_="axis"),
        tag("text", f"{_shown(min(upward))} at the bottom", x=0, y=FIELD + 34, class_="axis"),
        tag("text", f"{words.visible(exhibit['x'])} {_shown(min(across))} to {_shown(max(across))}", x="100%",
            y=FIELD + 34, text_anchor="end", class_="axis"),
        tag("line", x1=0, x2="100%", y1=FIELD + 18, y2=FIELD + 18, class_="grid"),
    ]  # fmt: skip
    told = "; ".join(f"{name} from {_shown(p[0][1])} to {_shown(p[-1][1])}" for name, p in series.items())
    legend = [
        tag(
            "li",
            tag("i", "", class_=f"c{number % 4}"),
            f"{words.visible(name)}: {_shown(points[-1][1])} at last",
        )
        for number, (name, points) in enumerate(series.items())
    ]
    inner = tag("svg", field, y=18, width="100%", height=FIELD, overflow="visible", aria_hidden="true")
    drawn = _svg(exhibit["title"], told, [*axes, inner], FIELD + AXIS)
    return join(tag("ul", *legend, class_="legend"), drawn)


def _lanes(exhibit: ExhibitRecord) -> Markup:
    segments = exhibit["segments"]
    whole = sum(part["width"] for part in segments) or 1.0
    lanes = list(dict.fromkeys([*exhibit["lanes"], *(part["lane"] for part in segments)]))
    step = LANE + GAP
    lines: list[Markup] = [
        tag("text", words.visible(lane), x=0, y=number * step + LANE / 2 + 4, class_="name")
        for number, lane in enumerate(lanes)
    ]
    at, before = LEFT, None
    for part in segments:
        top = lanes.index(part["lane"]) * step
        width = (100 - LEFT) * part["width"] / whole
        if before is not None and before != top:  # from lane to lane
            ends = sorted((before, top))
            x = f"{at:.3f}%"
            lines.append(tag("line", x1=x, x2=x, y1=ends[0] + LANE, y2=ends[1], class_="tick"))
        name = f"{words.visible(part['lane'])}: {words.visible(part['name'])} ({_shown(part['width'])})"
        kind = f"lane c{lanes.index(part['lane']) % 4}"
        lines.append(
            tag(
                "rect",
                tag("title", name),
                x=f"{at:.3f}%",
                y=top,
                width=f"{width:.3f}%",
                height=LANE,
                class_=kind,
            )
        )
        at, before = at + width, top
    told = "; ".join(f"{part['lane']}: {part['name']}" for part in segments)
    return _svg(exhibit["title"], told, lines, max(1, len(lanes)) * step - GAP)


def _table(exhibit: ExhibitRecord) -> Markup:
    head = tag("tr", *(tag("th", words.visible(name), scope="col") for name in exhibit["head"]))
    rows = [tag("tr", *(tag("td", words.visible(cell)) for cell in row)) for row in exhibit["rows"]]
    drawn = tag("table", tag("thead", head), tag("tbody", *rows), class_="records")
    return _boxed(drawn, len(rows))


def _boxed(drawn: Markup, lines: int) -> Markup:
    return tag("div", drawn, class_="scroll tall" if lines > TALL else "scroll", tabindex=0)


def _svg(title: str, told: str, lines: Sequence[Markup], height: float) -> Markup:
    key = "e" + hashlib.sha256(f"{title}\n{told}".encode(errors="replace")).hexdigest()[:12]
    head = [
        tag("title", words.visible(title), id=f"{key}-title"),
        tag("desc", words.visible(told), id=f"{key}-told"),
    ]
    return tag(
        "svg",
        *head,
        *lines,
        role="img",
        aria_labelledby=f"{key}-title {key}-told",
        width="100%",
        height=height,
    )
