"""What report.json holds, field by field, and the check that a file of that name really holds it.

The types below are the one declaration: the check walks them, and a test holds docs/report.md to their words.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Sequence
from datetime import timezone
from typing import Annotated, Any, Literal, TypedDict, cast

from penjing.errors import InputError, did_you_mean
from penjing.report.words import instant

#: JSON nested deeper than this, in a step's details say, is no report
DEEPEST = 12
#: beyond this a number in a report is a fault, and float arithmetic on it may overflow
LARGEST = 10**18


@dataclasses.dataclass(frozen=True)
class Rule:
    """A condition on a value of the right type, in words that follow "must be"."""

    words: str
    holds: Callable[[Any], bool]


def _is_moment(text: str) -> bool:
    try:
        return instant(text).astimezone(timezone.utc).tzinfo is not None and len(text) > len("2026-11-25")
    except (ValueError, OverflowError):
        return False


Share = Annotated[float, Rule("from 0 to 1", lambda value: 0 <= value <= 1)]
Amount = Annotated[float, Rule("0 or more", lambda value: value >= 0)]
Positive = Annotated[float, Rule("above 0", lambda value: value > 0)]
Points = Annotated[float, Rule("from -100 to 100", lambda value: -100 <= value <= 100)]
Count = Annotated[int, Rule("0 or more", lambda value: value >= 0)]
Several = Annotated[int, Rule("1 or more", lambda value: value >= 1)]
Moment = Annotated[str, Rule("a date and time as in 2026-11-25T05:00:00Z", _is_moment)]
Interval = Annotated[
    Sequence[float],
    Rule("a low and a high end, in this order", lambda ends: len(ends) == 2 and ends[0] <= ends[1]),
]
Point = Annotated[Sequence[float], Rule("an x and a y", lambda pair: len(pair) == 2)]
Json = Any


class Use(TypedDict):
    """One step of a recipe."""

    use: Annotated[str, "name of the step"]
    options: Annotated[dict[str, Json], "its options by name"]


class Latency(TypedDict):
    """How long one inference takes on the device."""

    median_ms: Annotated[Positive, "median, in milliseconds"]
    p90_ms: Annotated[Positive, "90th percentile, in milliseconds"]
    median_interval: Annotated[Interval, "95 % interval of the median, in milliseconds"]
    throughput_per_s: Annotated[Positive, "images per second"]
    runs: Annotated[Several, "timed runs"]
    threads: Annotated[Several, "threads of the runtime"]
    speedup: Annotated[
        Positive | None, "median of the original over this median; null where the original was not timed"
    ]
    speedup_interval: Annotated[Interval | None, "95 % interval of `speedup`"]


class Accuracy(TypedDict):
    """How often the model is right, on the *test* split."""

    metric: Annotated[str, "name of the metric, as in `top-1`"]
    value: Annotated[Share, "the metric, from 0 to 1"]
    n: Annotated[Several, "photographs scored"]
    interval: Annotated[Interval, "95 % interval of `value`, from 0 to 1"]
    drop: Annotated[
        Points | None, "accuracy of the original less this one, in percentage points; null for the original"
    ]
    drop_interval: Annotated[Interval | None, "95 % paired interval of `drop`, in percentage points"]
    retained: Annotated[Amount | None, "`value` over the original's; null where that is 0"]


class Fidelity(TypedDict):
    """How near the outputs stay to those of the original, on the same photographs."""

    agreement: Annotated[Share | None, "share of photographs with the same first class as the original"]
    agreement_interval: Annotated[Interval | None, "95 % interval of `agreement`, from 0 to 1"]
    sqnr_db: Annotated[float | None, "signal to quantisation noise ratio of the outputs, in decibels"]
    n: Annotated[Several, "photographs compared"]


class Column(TypedDict):
    """One model of the comparison."""

    name: Annotated[Literal["original", "direct", "optimised"], "which of the three"]
    recipe: Annotated[Sequence[Use], "the steps that made it, in order"]
    file: Annotated[str | None, "the model's interchange file, relative to the run folder"]
    sha256: Annotated[str | None, "hash of that file, in hexadecimal"]
    size_bytes: Annotated[Count | None, "size of that file, in bytes"]
    size_ratio: Annotated[Amount | None, "that size over the original's"]
    parameters: Annotated[Count | None, "weights in the model"]
    macs: Annotated[Count | None, "multiply-accumulate operations of one inference"]
    latency: Annotated[Latency | None, "speed; null where not measured"]
    latency_why: Annotated[str, "why `latency` is null; empty where measured"]
    accuracy: Annotated[Accuracy | None, "score against labels; null without labels"]
    fidelity: Annotated[
        Fidelity | None, "nearness to the original; null for the original and without photographs"
    ]
    failed: Annotated[str | None, "why this model could not be made; null where it was"]


class Score(TypedDict):
    """What a step's result scored while the run was choosing, on another split than *test*."""

    metric: Annotated[str, "name of the metric"]
    value: Annotated[float, "the metric; a share from 0 to 1 for `top-1`"]
    n: Annotated[Several, "photographs scored"]
    split: Annotated[str, "the split they are from, as in `select`"]


class Segment(TypedDict):
    """One part of a whole that a step shows in lanes."""

    name: Annotated[str, "what it is"]
    lane: Annotated[str, "the lane it is drawn in"]
    width: Annotated[Amount, "its share, in any unit"]


class ExhibitRecord(TypedDict):
    """A picture or table that a step shows; which fields say something depends on `kind`."""

    kind: Annotated[Literal["bars", "lines", "table", "lanes"], "what it is"]
    title: Annotated[str, "what it shows"]
    unit: Annotated[str, "of bars: the unit of their values"]
    values: Annotated[dict[str, float | None], "of bars: length by name, in order; null where absent"]
    marked: Annotated[Sequence[str], "of bars: the names told apart"]
    x: Annotated[str, "of lines: what runs to the right"]
    y: Annotated[str, "of lines: what runs upwards"]
    series: Annotated[dict[str, Sequence[Point]], "of lines: points (x, y) by the name of each line"]
    head: Annotated[Sequence[str], "of a table: titles of its columns"]
    rows: Annotated[Sequence[Sequence[str]], "of a table: its cells, as text"]
    lanes: Annotated[Sequence[str], "of lanes: their names, from the top"]
    segments: Annotated[Sequence[Segment], "of lanes: the parts, in order"]


class StepRecord(TypedDict):
    """One step as it was carried out."""

    name: Annotated[str, "name of the step"]
    columns: Annotated[Sequence[str], "the columns it helped to make"]
    options: Annotated[dict[str, Json], "its options by name"]
    why: Annotated[str, "why it is in the plan"]
    seconds: Annotated[Amount, "time it took, in seconds; where reused, when it was first made"]
    reused: Annotated[bool, "true where an earlier run's result was taken"]
    size_bytes: Annotated[Count | None, "size of the model after it, in bytes"]
    details: Annotated[dict[str, Json], "what the step has to tell: any JSON"]
    exhibits: Annotated[Sequence[ExhibitRecord], "pictures and tables that the step shows"]
    warnings: Annotated[Sequence[str], "what needs the reader's eye"]
    score: Annotated[Score | None, "score after it, where one was taken"]


class LeftOut(TypedDict):
    """A step of the recipe that was not carried out."""

    name: Annotated[str, "name of the step"]
    why: Annotated[str, "why it was left out"]


class GoalRecord(TypedDict):
    """One demand of the user and what became of it."""

    name: Annotated[Literal["max_drop", "max_latency", "max_size"], "which demand"]
    bound: Annotated[float, "the most allowed, in `unit`"]
    unit: Annotated[Literal["points", "ms", "MB"], "percentage points, milliseconds, or 10^6 bytes"]
    value: Annotated[float | None, "what the optimised model has, in `unit`; null where not measured"]
    interval: Annotated[Interval | None, "95 % interval of `value`"]
    verdict: Annotated[Literal["met", "not met", "not decidable"], "what follows from value and interval"]
    why: Annotated[str, "the verdict's reason in words"]


class Broken(TypedDict):
    """A photograph that could not be read."""

    file: Annotated[str, "its path, relative to the data's root"]
    reason: Annotated[str, "what is wrong with it"]


class DataRecord(TypedDict):
    """The photographs of the run."""

    root: Annotated[str, "the folder"]
    classes: Annotated[
        Sequence[str], "names of the classes, in the order of the model's outputs; empty without labels"
    ]
    labelled: Annotated[bool, "true where folders name the classes"]
    splits: Annotated[dict[str, Count], "photographs in each of the disjoint splits, by name"]
    broken: Annotated[Sequence[Broken], "files that were left out because they cannot be read"]


class DeviceRecord(TypedDict):
    """The target."""

    name: Annotated[str, "name of its profile"]
    title: Annotated[str, "its name in words"]
    stack: Annotated[str, "the software on it, as in `JetPack 6.2, TensorRT 10.3`"]
    here: Annotated[bool, "true where this machine can run models as the device would"]
    builds_engine: Annotated[
        bool, "true where it runs an engine built of the model file, which has another size"
    ]


class Checked(TypedDict):
    """How near the board's answers to recorded inputs were to those recorded."""

    distance: Annotated[dict[str, float | None], "by output: |a - b| / |b|; null where they do not compare"]
    tolerance: Annotated[Share, "distance allowed"]


class OnBoard(TypedDict):
    """What `penjing measure --host` found on a board: of the bundle, run there."""

    host: Annotated[str, "the board, as it was given to ssh"]
    path: Annotated[str, "the bundle's folder there"]
    measured: Annotated[Moment, "when, ISO 8601 with time zone"]
    machine: Annotated[str, "what the board calls itself or its processor"]
    arch: Annotated[str, "architecture of its processor"]
    python: Annotated[str, "version of its Python"]
    runtime: Annotated[str, "what ran the model, and its version"]
    power_mode: Annotated[str, "of a Jetson, as `nvpmodel` names it; empty elsewhere"]
    batch: Annotated[Several, "images that went in together"]
    latency: Annotated[Latency, "how long one inference took"]
    original: Annotated[Latency | None, "the same of the original, timed in turn; null where it was left out"]
    state: Annotated[
        dict[str, dict[str, Json]], "what the board told of clocks, heat and throttling, `before` and `after`"
    ]
    engine: Annotated[dict[str, Json], "of TensorRT: the engine, and what it was built for; empty elsewhere"]
    check: Annotated[Checked, "the runner's own check"]
    accuracy: Annotated[Accuracy | None, "score of the answers given there; null where none was taken"]
    accuracy_why: Annotated[str, "why `accuracy` is null; empty where it is not"]
    agreement: Annotated[
        Share | None,
        "share of photographs with the same first class as on the workstation; null where not compared",
    ]
    agreement_n: Annotated[Several | None, "photographs compared; null where none were"]


class Environment(TypedDict):
    """The machine and the versions that the run used."""

    python: Annotated[str, "version of Python"]
    platform: Annotated[str, "operating system and architecture"]
    cpu: Annotated[str, "model of the processor"]
    cores: Annotated[Several, "processor cores that the run may use"]
    isa: Annotated[Sequence[str], "instruction sets that matter to speed, as in `avx2`"]
    packages: Annotated[dict[str, str], "versions by distribution"]
    threads: Annotated[Several, "threads that the runtime was given"]
    seed: Annotated[int, "seed of everything drawn at random"]


class Report(TypedDict):
    """The whole of report.json."""

    schema: Annotated[Literal[1], "version of this description"]
    penjing: Annotated[str, "version of Penjing"]
    created: Annotated[Moment, "when the report was made, ISO 8601 with time zone"]
    source: Annotated[str, "the model as the user named it"]
    command: Annotated[str, "the command that repeats the run"]
    device: Annotated[DeviceRecord, "the target"]
    task: Annotated[str, "how outputs are scored: `classification`, `fidelity`, or a plugin's task"]
    data: Annotated[DataRecord | None, "the photographs; null for a run without"]
    preprocess: Annotated[
        dict[str, Json] | None, "how a photograph becomes an input; null where the run had none"
    ]
    columns: Annotated[Sequence[Column], "the models compared; the first is the original"]
    steps: Annotated[Sequence[StepRecord], "what was done, in order"]
    left_out: Annotated[Sequence[LeftOut], "what the recipe asked for and the plan left out"]
    goals: Annotated[Sequence[GoalRecord], "what the user demanded"]
    warnings: Annotated[Sequence[str], "what needs the reader's eye, of the run as a whole"]
    environment: Annotated[Environment, "machine and versions"]
    on_board: Annotated[OnBoard | None, "what was measured on a board; null where nothing was"]


def check(report: object) -> Report:
    """Return `report` as a Report; InputError names the path of the first field that is wrong."""
    if isinstance(report, dict) and type(report.get("schema")) is int and report["schema"] != 1:
        raise InputError(
            f"The report has schema {_shown(report['schema'])}; this version of Penjing reads schema 1.",
            hint="Make the report again with `penjing compress`, or read it with the version that wrote it.",
        )
    if isinstance(report, dict):
        report = {"on_board": None, **report}  # written before boards could be measured
        if isinstance(report.get("device"), dict):
            report["device"] = {"builds_engine": False, **report["device"]}  # before reports told of it
        if isinstance(report["on_board"], dict):
            report["on_board"] = {
                "original": None,
                **report["on_board"],
            }  # before the original was timed there
    _check(report, Report, "")
    checked = cast(Report, report)
    names = [column["name"] for column in checked["columns"]]
    if not names or names[0] != "original":
        raise _wrong("columns", "must start with the original")
    for index, name in enumerate(names):
        if name in names[:index]:
            raise _wrong(f"columns[{index}].name", f"repeats {name!r}")
    return checked


def check_told(record: dict[str, Any]) -> None:
    """Check what a step tells the report, fields of a StepRecord by name; FieldError names the first that is wrong."""
    fields = typing.get_type_hints(StepRecord, include_extras=True)
    for name in ("details", "exhibits", "warnings"):
        _check(record[name], fields[name], name)


class FieldError(InputError):
    """A field of a report is not as declared; `what` tells which and how."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(f"This is no report of Penjing: {what}.", hint=hint)
        self.what = what


def _wrong(path: str, what: str, hint: str = "") -> FieldError:
    subject = f"its field {path}" if path else "it"
    return FieldError(
        f"{subject} {what}",
        hint or "Fields are described in docs/report.md; `penjing compress` writes them.",
    )


def _check(value: object, kind: Any, path: str, depth: int = 0) -> None:
    """Compare `value` with a type as declared above."""
    if depth > DEEPEST:
        raise _wrong(path[:80], f"is nested more than {DEEPEST} deep")
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        _check(value, arguments[0], path, depth)
        for rule in arguments[1:]:
            if isinstance(rule, Rule) and not rule.holds(value):
                raise _wrong(path, f"must be {rule.words}, not {_shown(value)}")
    elif origin in (typing.Union, types.UnionType):
        if value is not None:
            _check(value, next(part for part in arguments if part is not type(None)), path, depth)
    elif origin is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in arguments):
            raise _wrong(path, f"must be {' or '.join(map(repr, arguments))}, not {_shown(value)}")
    elif origin is Sequence:
        _expect(value, (list, tuple), "a list", path)
        for index, item in enumerate(cast(Sequence[object], value)):
            _check(item, arguments[0], f"{path}[{index}]", depth + 1)
    elif origin is dict:
        _expect(value, (dict,), "an object", path)
        for key, item in cast(dict[object, object], value).items():
            _expect(key, (str,), "an object with text for keys", path)
            _check(item, arguments[1], f"{path}.{_clipped(str(key))}", depth + 1)
    elif typing.is_typeddict(kind):
        _check_record(value, kind, path, depth)
    elif kind is Any:
        _check_json(value, path, depth)
    else:
        _check_scalar(value, kind, path)


def _check_record(value: object, kind: Any, path: str, depth: int) -> None:
    _expect(value, (dict,), "an object", path)
    record = cast(dict[object, object], value)
    fields = typing.get_type_hints(kind, include_extras=True)
    for name, field in fields.items():
        inner = f"{path}.{name}" if path else name
        if name not in record:
            raise _wrong(inner, "is missing")
        _check(record[name], field, inner, depth + 1)
    for key in record:
        if key not in fields:
            name = _clipped(str(key)) if isinstance(key, str) else _shown(key)
            raise _wrong(f"{path}.{name}" if path else name, "is unknown", hint=did_you_mean(name, fields))


def _check_json(value: object, path: str, depth: int) -> None:
    if isinstance(value, dict):
        _check(value, dict[str, Any], path, depth)
    elif isinstance(value, list | tuple):
        _check(value, Sequence[Any], path, depth)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        _check_scalar(value, float, path)
    elif value is not None and not isinstance(value, str | bool):
        raise _wrong(path, f"must be JSON, not {_shown(value)}")


def _check_scalar(value: object, kind: type, path: str) -> None:
    words = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}[kind]
    _expect(value, (int, float) if kind is float else (kind,), words, path)
    if kind in (int, float):
        number = cast(float, value)
        if isinstance(value, bool) or not math.isfinite(number if isinstance(value, float) else 0):
            raise _wrong(path, f"must be {words}, not {_shown(value)}")
        if not -LARGEST <= number <= LARGEST:
            raise _wrong(path, "is too large a number to be true")


def _expect(value: object, kinds: tuple[type, ...], words: str, path: str) -> None:
    if not isinstance(value, kinds):
        raise _wrong(path, f"must be {words}, not {_shown(value)}")


def _shown(value: object) -> str:
    """Say what was found instead, never at length."""
    if value is None:
        return "null"
    if isinstance(value, bool | str | float):
        return _clipped(repr(value))
    if isinstance(value, int):
        return repr(value) if -LARGEST <= value <= LARGEST else "a number too large"
    if isinstance(value, dict | list | tuple):
        return "an object" if isinstance(value, dict) else "a list"
    return f"a {type(value).__name__}"


def _clipped(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"
