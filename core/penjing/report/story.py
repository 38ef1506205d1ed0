"""What a report says, whatever it is written in: the headline, the comparison and the goals, in words.

Nothing here decides how good a result is beyond what its interval allows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from penjing.report import words
from penjing.report.schema import Accuracy, Column, GoalRecord, Latency, OnBoard, Report

GOALS = {"max_drop": "Accuracy drop", "max_latency": "Latency", "max_size": "Size"}
GOAL_UNITS: dict[str, Callable[[float], str]] = {
    "points": words.points,
    "ms": words.milliseconds,
    "MB": lambda value: f"{words.decimal(value)} MB",
}


def column(report: Report, name: str) -> Column | None:
    """Return the column called `name`, where there is one and it could be made."""
    return next((one for one in report["columns"] if one["name"] == name and one["failed"] is None), None)


def device(report: Report) -> str:
    """Return the device's name in words."""
    return words.clipped(words.visible(report["device"]["title"] or report["device"]["name"]), 80)


def headline(report: Report) -> str:
    """Return the result in one sentence without its full stop; it claims nothing that was not measured."""
    named = {one["name"]: one for one in report["columns"]}
    result = named.get("optimised")
    if result is None:
        return "No optimised model was asked for"
    if result["failed"] is not None:
        return "The optimised model could not be made"
    parts = [part for part in (_size(result), _speed(result), _quality(result)) if part]
    absent = [
        what
        for what, there in (
            ("size", result["size_bytes"] is not None),
            ("speed", result["latency"] is not None),
            ("accuracy", result["accuracy"] is not None or _quality(result)),
        )
        if not there
    ]
    if absent:
        parts.append(f"{' and '.join(absent)} not measured")
    sentence = ", ".join(parts)
    return sentence[0].upper() + sentence[1:]


def _size(result: Column) -> str:
    ratio = result["size_ratio"]
    if ratio is None:
        return words.size(result["size_bytes"]) if result["size_bytes"] is not None else ""
    return (
        f"{words.percent(ratio)} of the size"
        if ratio < 1
        else f"not smaller ({words.percent(ratio)} of the size)"
    )


def _speed(result: Column) -> str:
    latency = result["latency"]
    if latency is None:
        return ""
    speedup, ends = latency["speedup"], latency["speedup_interval"]
    if speedup is None:
        return words.milliseconds(latency["median_ms"])
    low, high = ends or (speedup, speedup)
    if high < 1:
        return f"slower ({words.times(speedup)} the speed)"
    if low <= 1:
        return (
            f"not measurably faster ({words.times(speedup)})"
            if ends
            else f"not faster ({words.times(speedup)})"
        )
    return f"{words.times(speedup)} as fast"


def _quality(result: Column) -> str:
    accuracy, fidelity = result["accuracy"], result["fidelity"]
    if accuracy is not None:
        n, kept = words.photographs(accuracy["n"]), accuracy["retained"]
        if kept is None:
            return f"{_metric(accuracy)} {words.percent(accuracy['value'])} ({n})"
        if kept > 1:
            return f"accuracy no lower ({n})"
        return f"{words.percent(kept)} of the accuracy kept ({n})"
    if fidelity is not None:
        n = words.photographs(fidelity["n"])
        if fidelity["agreement"] is not None:
            return f"the original’s answer on {words.percent(fidelity['agreement'])} of {n}"
        if fidelity["sqnr_db"] is not None:
            return f"outputs at {words.decibels(fidelity['sqnr_db'])} of the original’s ({n})"
    return ""


def _metric(accuracy: Accuracy) -> str:
    return words.clipped(words.visible(accuracy["metric"]), 24)


def lede(report: Report) -> list[str]:
    """Return the sentences under the headline: what it rests on, and why something was not measured."""
    failed = [
        f"The {one['name']} model could not be made: {_sentence(one['failed'])}"
        for one in report["columns"]
        if one["failed"] is not None
    ]
    result = column(report, "optimised")
    if result is None:
        return failed
    engine = ["Sizes are of the graph: the engine that the device builds of it has another."]
    sized = engine if report["device"]["builds_engine"] else []
    return [_timing(report, result), _drop(report, result), *sized, *failed, *_verdicts(report["goals"])]


def _timing(report: Report, result: Column) -> str:
    latency = result["latency"]
    if latency is None:
        return f"Speed on {device(report)} is not measured: {_sentence(why_untimed(result))}"
    threads = "one thread" if latency["threads"] == 1 else f"{latency['threads']} threads"
    board = report["on_board"]
    if board is not None and not report["device"]["here"]:
        mode = f", power mode {words.visible(board['power_mode'])}" if board["power_mode"] else ""
        turn = ", in turn with the original" if board["original"] else ""
        return f"Timed on {_board(board)}{mode}, {threads}{turn}: median of {latency['runs']:,} runs."
    return f"Timed on {device(report)}, {threads}: medians of {latency['runs']:,} runs."


def _board(board: OnBoard) -> str:
    """Return which machine a board is, as in "Raspberry Pi 5 Model B (pi@kitchen)"."""
    host = words.clipped(words.visible(board["host"]), 60)
    return f"{words.clipped(words.visible(board['machine']), 80)} ({host})" if board["machine"] else host


def _drop(report: Report, result: Column) -> str:
    accuracy = result["accuracy"]
    if accuracy is None:
        return f"Accuracy is not measured: {_sentence(why_unscored(report, result))}"
    drop, ends = accuracy["drop"], accuracy["drop_interval"]
    if drop is None or ends is None:
        return f"The 95 % interval of its accuracy is {words.span(accuracy['interval'], words.percent)}."
    interval = f"95 % interval {words.span(ends, words.points)}"
    if ends[0] <= 0 <= ends[1]:
        n = words.photographs(accuracy["n"])
        return f"The accuracy drop of {words.points(drop)} ({interval}) cannot be told from none with {n}."
    if drop < 0:
        return f"The accuracy rose by {words.points(-drop)}; of the drop, {interval}."
    return f"The accuracy dropped by {words.points(drop)} ({interval})."


def _verdicts(goals: Any) -> list[str]:
    if not goals:
        return []
    verdicts = [goal["verdict"] for goal in goals]
    counts = [(verdict, verdicts.count(verdict)) for verdict in ("met", "not met", "not decidable")]
    return ["Goals: " + ", ".join(f"{count} {verdict}" for verdict, count in counts if count) + "."]


def _sentence(text: str | None) -> str:
    text = words.visible(text or "")
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


def why_untimed(one: Column) -> str:
    """Return why a column has no latency."""
    why = one["latency_why"] or one["failed"] or "the run did not time it"
    return why.removeprefix("not measured").lstrip(": ") or "the run did not time it"


def why_unscored(report: Report, one: Column) -> str:
    """Return why a column has no accuracy."""
    if one["failed"] is not None:
        return one["failed"]
    if report["data"] is None:
        return "no photographs were given"
    return "the run did not score it" if report["data"]["labelled"] else "the photographs have no labels"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One value of the comparison: its text, the lines that qualify it, and the number of its note."""

    text: str
    under: str = ""
    note: int = 0

    @property
    def marked(self) -> str:
        """Return the text with the mark of its note."""
        return f"{self.text} {words.superscript(self.note)}" if self.note else self.text


@dataclasses.dataclass
class Comparison:
    """The three columns side by side: names, rows of (label, cells), and notes by number from 1."""

    names: list[str]
    rows: list[tuple[str, list[Cell]]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def absent(self, why: str) -> Cell:
        """Return the cell of something that was not measured, its reason kept as a note."""
        why = words.visible(why)
        if why not in self.notes:
            self.notes.append(why)
        return Cell(words.ABSENT, note=self.notes.index(why) + 1)


def comparison(report: Report) -> Comparison:
    """Return the comparison; a row that no column can fill is left out, save size, latency and accuracy."""
    table = Comparison([one["name"] for one in report["columns"]])

    def row(label: str, read: Callable[[Column], Cell | None], why: Callable[[Column], str] | None) -> None:
        cells = [None if one["failed"] is not None else read(one) for one in report["columns"]]
        if why is None and all(cell is None or cell.text == "reference" for cell in cells):
            return
        table.rows.append(
            (
                label,
                [
                    cell or table.absent(_reason(one, why))
                    for cell, one in zip(cells, report["columns"], strict=True)
                ],
            )
        )

    sized = "Size of the graph" if report["device"]["builds_engine"] else "Size"
    row(sized, lambda one: _cell(words.size, one["size_bytes"]), lambda one: "Size: not measured")
    row("Share of the size", lambda one: _cell(words.percent, one["size_ratio"]), None)
    row("Latency, median", _latency(_median), lambda one: f"Latency: not measured: {why_untimed(one)}")
    row("Latency, p90", _latency(lambda it: Cell(words.milliseconds(it["p90_ms"]))), None)
    row("Images per second", _latency(lambda it: Cell(words.decimal(it["throughput_per_s"]))), None)
    row("Speed ratio", _speedup, None)
    metrics = dict.fromkeys(_metric(one["accuracy"]) for one in report["columns"] if one["accuracy"])
    row(
        ", ".join(["Accuracy", *metrics]),
        _accuracy,
        lambda one: f"Accuracy: not measured: {why_unscored(report, one)}",
    )
    row("Accuracy drop", _dropped, None)
    row("Accuracy kept", _kept, None)
    row("Same answer", _agreement, None)
    row("Output SQNR", _sqnr, None)
    row("Parameters", lambda one: _cell(words.many, one["parameters"]), None)
    row("MACs", lambda one: _cell(words.many, one["macs"]), None)
    row("Recipe", lambda one: Cell(recipe(one)), None)
    return table


def _reason(one: Column, why: Callable[[Column], str] | None) -> str:
    if one["failed"] is not None:
        return f"The {one['name']} model could not be made: {one['failed']}"
    return why(one) if why is not None else f"The {one['name']} model: not measured"


def recipe(one: Column) -> str:
    """Return the names of the steps that made a column, in order."""
    return ", ".join(words.clipped(words.visible(use["use"]), 48) for use in one["recipe"]) or "none"


def _cell(shown: Callable[[Any], str], value: float | None) -> Cell | None:
    return None if value is None else Cell(shown(value))


def _latency(read: Callable[[Latency], Cell | None]) -> Callable[[Column], Cell | None]:
    return lambda one: None if one["latency"] is None else read(one["latency"])


def _median(latency: Latency) -> Cell:
    return Cell(
        words.milliseconds(latency["median_ms"]), words.span(latency["median_interval"], words.milliseconds)
    )


def _speedup(one: Column) -> Cell | None:
    latency = one["latency"]
    if one["name"] == "original":
        return Cell("reference")
    if latency is None or latency["speedup"] is None:
        return None
    ends = latency["speedup_interval"]
    return Cell(words.times(latency["speedup"]), words.span(ends, words.times) if ends else "")


def _accuracy(one: Column) -> Cell | None:
    accuracy = one["accuracy"]
    if accuracy is None:
        return None
    under = f"{words.span(accuracy['interval'], words.percent)}\nn = {accuracy['n']:,}"
    return Cell(words.percent(accuracy["value"]), under)


def _dropped(one: Column) -> Cell | None:
    accuracy = one["accuracy"]
    if one["name"] == "original":
        return Cell("reference")
    if accuracy is None or accuracy["drop"] is None:
        return None
    ends = accuracy["drop_interval"]
    return Cell(
        words.points(accuracy["drop"]), words.span(ends, words.points).removesuffix(" points") if ends else ""
    )


def _kept(one: Column) -> Cell | None:
    if one["name"] == "original":
        return Cell("reference")
    return _cell(words.percent, one["accuracy"]["retained"]) if one["accuracy"] else None


def _agreement(one: Column) -> Cell | None:
    fidelity = one["fidelity"]
    if one["name"] == "original":
        return Cell("reference")
    if fidelity is None or fidelity["agreement"] is None:
        return None
    ends, n = fidelity["agreement_interval"], f"n = {fidelity['n']:,}"
    return Cell(
        words.percent(fidelity["agreement"]), f"{words.span(ends, words.percent)}\n{n}" if ends else n
    )


def _sqnr(one: Column) -> Cell | None:
    if one["name"] == "original":
        return Cell("reference")
    return _cell(words.decibels, one["fidelity"]["sqnr_db"]) if one["fidelity"] else None


def goal(one: GoalRecord) -> str:
    """Return a demand and what was found, as in "at most 5.00 ms; found 4.66 ms (4.59 to 4.72 ms)"."""
    shown = GOAL_UNITS[one["unit"]]
    found = f"found {shown(one['value'])}" if one["value"] is not None else "not measured"
    interval = f" ({words.span(one['interval'], shown)})" if one["interval"] else ""
    return f"at most {shown(one['bound'])}; {found}{interval}"


def facts(report: Report) -> list[tuple[str, str]]:
    """Return what the run stood on, by name: device, photographs, preprocessing, machine, versions."""
    target, machine = report["device"], report["environment"]
    here = "this machine" if target["here"] else "not this machine"
    rows = [("Device", f"{device(report)} ({words.visible(target['name'])})")]
    rows += [
        ("Runtime", words.visible(target["stack"])),
        ("Where it is", here),
        ("Task", words.visible(report["task"])),
    ]
    rows += _board_facts(report)
    rows += _data_facts(report)
    rows += [
        ("Input: " + words.visible(key), words.plain(value))
        for key, value in (report["preprocess"] or {}).items()
    ]
    rows += [
        (
            "Processor",
            f"{words.visible(machine['cpu'])}, {machine['cores']} cores, {words.plain(machine['isa'])}",
        ),
        ("System", f"{words.visible(machine['platform'])}, Python {words.visible(machine['python'])}"),
        ("Threads, seed", f"{machine['threads']}, {machine['seed']}"),
        ("Versions", words.plain({"penjing": report["penjing"], **machine["packages"]})),
    ]
    return rows


def _board_facts(report: Report) -> list[tuple[str, str]]:
    """Return what was measured on a board."""
    board = report["on_board"]
    if board is None:
        return []
    latency, accuracy = board["latency"], board["accuracy"]
    median, slow = words.milliseconds(latency["median_ms"]), words.milliseconds(latency["p90_ms"])
    rows = [
        ("Board", f"{_board(board)}, {words.moment(board['measured'])}"),
        ("Board: runtime", f"{words.visible(board['runtime'])}, Python {words.visible(board['python'])}"),
        ("Board: latency", f"median {median}, p90 {slow}, batch {board['batch']}"),
    ]
    if board["original"] is not None and latency["speedup"] is not None:
        theirs, ratio = words.milliseconds(board["original"]["median_ms"]), words.times(latency["speedup"])
        rows += [("Board: original, in turn", f"median {theirs}; the optimised one is {ratio} as fast")]
    if accuracy is None:
        rows += [("Board: accuracy", f"not measured: {words.visible(board['accuracy_why'])}")]
    else:
        span = words.span(accuracy["interval"], words.percent)
        rows += [("Board: accuracy", f"{words.percent(accuracy['value'])} ({span}), n = {accuracy['n']:,}")]
    if board["agreement"] is not None and board["agreement_n"] is not None:
        same = f"{words.percent(board['agreement'])} of {words.photographs(board['agreement_n'])}"
        rows += [("Board: same answer as here", same)]
    rows += [(f"Board: {words.visible(when)}", words.plain(state)) for when, state in board["state"].items()]
    if board["engine"]:
        rows += [("Board: engine", words.plain(board["engine"]))]
    return rows


def _data_facts(report: Report) -> list[tuple[str, str]]:
    data = report["data"]
    if data is None:
        return [("Photographs", "none were given")]
    kinds = (
        f"{len(data['classes'])} classes: {words.plain(data['classes'])}" if data["labelled"] else "no labels"
    )
    return [
        ("Photographs", f"{words.visible(data['root'])}; {kinds}"),
        ("Splits", ", ".join(f"{words.visible(name)} {count:,}" for name, count in data["splits"].items())),
    ]


def warnings(report: Report) -> list[str]:
    """Return what needs the reader's eye, of the run and of its steps, each once."""
    steps = [f"{step['name']}: {text}" for step in report["steps"] for text in step["warnings"]]
    return list(dict.fromkeys([*report["warnings"], *steps]))
