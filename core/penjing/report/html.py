"""The report as one HTML file that needs neither network nor script."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from penjing.report import exhibits, pictures, story, words
from penjing.report.markup import Markup, join, tag
from penjing.report.schema import Report, StepRecord

#: nothing is fetched and nothing runs, whatever a report's text holds
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
#: sign of a verdict, so that colour is not all that tells it
SIGNS = {"met": "✓", "not met": "✗", "not decidable": "?"}
#: a list in a step's details is shown up to this many entries; report.json has all
SHOWN = 40
#: more options than this are folded up
MANY = 8


def render(report: Report, beside: Sequence[str] = ()) -> str:
    """Return the report as an HTML document, with links to pages in its folder."""
    return page(f"{words.visible(report['source'])} – Penjing report", _parts(report, beside))


def page(title: str, parts: Iterable[Markup]) -> str:
    """Return parts of markup as a document in the report's look."""
    style = Markup(files(__package__).joinpath("style.css").read_text(encoding="utf-8"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", style),
    )
    body = tag("body", tag("main", *(part for part in parts if part)))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _parts(report: Report, beside: Sequence[str]) -> Iterable[Markup]:
    yield _header(report)
    yield _comparison(report)
    if beside:
        links = [
            join(" ", tag("a", words.visible(name), href=quote(name, errors="replace"))) for name in beside
        ]
        yield tag("p", "More about these models:", *links, class_="beside")
    yield _section("At a glance", _glance(report))
    yield _section("Goals", _goals(report))
    yield _section("Warnings", _warnings(report))
    yield _section("Plan", _plan(report))
    yield _section("Left out", _pairs((one["name"], one["why"]) for one in report["left_out"]))
    broken = report["data"]["broken"] if report["data"] else []
    yield _section("Photographs that cannot be read", _pairs((one["file"], one["reason"]) for one in broken))
    yield _section("What this rests on", _pairs(story.facts(report)))
    yield _section("Files", _files(report))
    yield _section("How to repeat it", tag("pre", tag("code", _code(report["command"])), tabindex=0))
    yield tag(
        "footer",
        f"Penjing {words.visible(report['penjing'])}. Intervals are 95 %. Sizes are in MB of 10⁶ bytes.",
    )


def _section(title: str, content: str) -> Markup:
    return tag("section", tag("h2", title), content) if content else Markup("")


def _foreign(text: str) -> Markup:
    """Return text from outside, its direction kept to itself."""
    return tag("bdi", words.visible(text))


def _code(text: str) -> str:
    return words.visible(text)


def _prose(text: str) -> str:
    """Return a sentence whose numbers stay with their units at the end of a line."""
    return re.sub(
        r"(?<=\d) (?=[%×MkGmd])|(?<=\d) (?=(?:points|photograph))", "\N{NO-BREAK SPACE}", words.visible(text)
    )


def _header(report: Report) -> Markup:
    mark = tag(
        "svg",
        tag("path", d="M4 24h24l-2.5 5h-19z", class_="tray"),
        tag("path", d="M13 24c0-5 6-5 4-13M15 18c-2-2-4-2-5-2", class_="trunk"),
        tag(
            "path",
            d="M11 11a3 3 0 0 1 2-5a5 5 0 0 1 9 0a3 3 0 0 1 2 5zM5 17a2.4 2.4 0 0 1 3-3a2.6 2.6 0 0 1 4 3z",
            class_="crown",
        ),
        viewBox="0 0 32 32",
        width=34,
        height=34,
        aria_hidden="true",
    )
    line = join(_foreign(report["source"]), " for ", tag("bdi", story.device(report)))
    return tag(
        "header",
        tag(
            "p",
            mark,
            tag("span", "Penjing report"),
            tag("time", words.moment(report["created"])),
            class_="brand",
        ),
        tag("p", line, class_="subject"),
        tag("h1", _prose(story.headline(report)) + "."),
        *(tag("p", _prose(sentence), class_="lede") for sentence in story.lede(report)),
    )


def _comparison(report: Report) -> Markup:
    """Return the three columns; roles are spelt out as the style sheet lays rows out anew on a phone."""
    table = story.comparison(report)
    head = tag(
        "tr",
        tag("th", "", role="columnheader", aria_label="Quantity"),
        *(tag("th", name, scope="col", role="columnheader", class_=name) for name in table.names),
        role="row",
    )
    rows = [
        tag(
            "tr",
            tag("th", label, scope="row", role="rowheader"),
            *(
                tag("td", _cell(cell), role="cell", class_=name)
                for name, cell in zip(table.names, cells, strict=True)
            ),
            role="row",
            class_="words" if label == "Recipe" else None,
        )
        for label, cells in table.rows
    ]
    notes = (
        tag("ol", *(tag("li", tag("bdi", note)) for note in table.notes), class_="notes")
        if table.notes
        else ""
    )
    drawn = tag(
        "table",
        tag("thead", head, role="rowgroup"),
        tag("tbody", *rows, role="rowgroup"),
        role="table",
        class_="comparison",
        style=f"--columns:{len(table.names)}",
    )
    return tag("section", tag("h2", "Original, direct, optimised"), drawn, notes)


def _cell(cell: story.Cell) -> Markup:
    mark = tag("sup", str(cell.note), aria_label=f"note {cell.note}") if cell.note else ""
    value = tag("span", cell.text, mark, class_="quiet" if cell.note or cell.text == "reference" else None)
    return join(value, tag("small", cell.under) if cell.under else "")


def _glance(report: Report) -> Markup:
    more = [picture for picture in (pictures.quality(report), pictures.latency(report)) if picture]
    legend = [tag("li", tag("i", "", class_=one["name"]), one["name"]) for one in report["columns"]]
    return join(
        tag("ul", *legend, class_="legend"),
        tag("div", *pictures.overview(report), class_="three"),
        tag("div", *more, class_="two") if more else "",
    )


def _goals(report: Report) -> str:
    if not report["goals"]:
        return ""
    items = [
        tag(
            "li",
            tag(
                "span",
                f"{SIGNS[one['verdict']]} {one['verdict']}",
                class_=f"badge {one['verdict'].replace(' ', '-')}",
            ),
            tag(
                "div",
                tag("strong", story.GOALS[one["name"]]),
                " ",
                _prose(story.goal(one)),
                tag("p", _foreign(one["why"])),
            ),
        )
        for one in report["goals"]
    ]
    return tag("ul", *items, class_="goals")


def _warnings(report: Report) -> str:
    told = [tag("li", _foreign(text)) for text in report["warnings"]]
    told += [
        tag("li", tag("code", _code(step["name"])), " ", _foreign(text))
        for step in report["steps"]
        for text in step["warnings"]
    ]
    # both columns that share a step's weakness say so; once is enough
    return tag("ul", *dict.fromkeys(told), class_="warnings") if told else ""


def _plan(report: Report) -> str:
    if not report["steps"]:
        return ""
    return join(pictures.pipeline(report), tag("ol", *map(_step, report["steps"]), class_="steps"))


def _step(step: StepRecord) -> Markup:
    measured = [f"{words.seconds(step['seconds'])}{', reused' if step['reused'] else ''}"]
    if step["size_bytes"] is not None:
        measured.insert(0, f"{words.size(step['size_bytes'])} after it")
    score = step["score"]
    if score is not None:
        shown = words.percent(score["value"]) if 0 <= score["value"] <= 1 else words.decimal(score["value"])
        measured.append(f"{score['metric']} {shown} on {score['n']:,} of the {score['split']} split")
    chips = [
        tag("span", words.visible(name), class_=f"chip {name if name in ('direct', 'optimised') else ''}")
        for name in step["columns"]
    ]
    return tag(
        "li",
        tag("h3", tag("code", _code(step["name"])), *chips),
        tag("p", _foreign(step["why"])) if step["why"] else "",
        tag("p", _prose(" · ".join(measured)), class_="measured"),
        _options(
            [f"{words.visible(name)} = {words.plain(value)}" for name, value in step["options"].items()]
        ),
        *map(exhibits.render, step["exhibits"]),
        tag("details", tag("summary", "Details"), _value(step["details"])) if step["details"] else "",
    )


def _options(shown: Sequence[str]) -> Markup:
    """Return options side by side, folded up where there are many."""
    if not shown:
        return Markup("")
    chips = tag("p", *(tag("code", text) for text in shown), class_="options")
    return chips if len(shown) <= MANY else tag("details", tag("summary", f"{len(shown)} options"), chips)


def _value(value: Any) -> Markup:
    """Return a JSON value: objects as pairs, lists of objects as tables, long lists cut at SHOWN."""
    if isinstance(value, dict) and value:
        items = [(words.visible(key), _value(item)) for key, item in list(value.items())[:SHOWN]]
        pairs = [tag("div", tag("dt", tag("bdi", key)), tag("dd", item)) for key, item in items]
        return join(tag("dl", *pairs), _rest(len(value)))
    if isinstance(value, list | tuple) and value and all(isinstance(item, dict) and item for item in value):
        return join(_records(value[:SHOWN]), _rest(len(value)))
    if isinstance(value, list | tuple) and len(value) > 0:
        return join(tag("bdi", ", ".join(map(words.plain, value[:SHOWN]))), _rest(len(value)))
    return tag("bdi", words.plain(value))


def _records(records: Sequence[dict[str, Any]]) -> Markup:
    names = list(dict.fromkeys(name for record in records for name in record))[:12]
    head = tag("tr", *(tag("th", words.visible(name), scope="col") for name in names))
    rows = [
        tag(
            "tr",
            *(tag("td", words.plain(record[name]) if name in record else words.ABSENT) for name in names),
        )
        for record in records
    ]
    table = tag("table", tag("thead", head), tag("tbody", *rows), class_="records")
    return tag("div", table, class_="scroll", tabindex=0)


def _rest(count: int) -> str:
    return (
        tag("p", f"The first {SHOWN} of {count}; report.json has all.", class_="quiet")
        if count > SHOWN
        else ""
    )


def _files(report: Report) -> str:
    made = [
        (one["name"], f"{one['file']}{', SHA-256 ' + one['sha256'] if one['sha256'] else ''}")
        for one in report["columns"]
        if one["file"]
    ]
    return _pairs(made)


def _pairs(pairs: Iterable[tuple[str, str]]) -> Markup:
    items = [tag("div", tag("dt", _foreign(name)), tag("dd", _foreign(value))) for name, value in pairs]
    return tag("dl", *items) if items else Markup("")
