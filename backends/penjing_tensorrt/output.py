"""What trtexec prints, read: the summary, its result, the profile. The same words from 8.5 to 11.

NVIDIA/TensorRT, samples/common/sampleReporting.cpp and logging.h at v8.5.3 to 11.1. A log that does not say
what a successful one says is an error: nothing missing is taken for 0.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from penjing.errors import StepError

from penjing_tensorrt import failures

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_PREFIX = re.compile(
    r"^\[\d\d/\d\d/\d{4}-\d\d:\d\d:\d\d\] \[(?P<severity>[FEWIV])\] (?:\[TRT\] )?(?P<text>.*)$"
)
_RESULT = re.compile(
    r"^&&&& (?P<status>RUNNING|PASSED|FAILED|WAIVED) TensorRT\.trtexec \[TensorRT v(?P<version>\d+)\]"
    r"(?: \[b(?P<build>\d+)\])? # (?P<command>.*)$"
)
_FIELDS = ("Latency", "Enqueue Time", "H2D Latency", "GPU Compute Time", "D2H Latency")
_STATISTICS = re.compile(
    rf"^(?P<field>{'|'.join(_FIELDS)}): min = (?P<min>{_NUMBER}) ms, max = (?P<max>{_NUMBER}) ms, "
    rf"mean = (?P<mean>{_NUMBER}) ms, median = (?P<median>{_NUMBER}) ms"
    rf"(?P<percentiles>(?:, percentile\({_NUMBER}%\) = {_NUMBER} ms)*)$"
)
_PERCENTILE = re.compile(rf"percentile\(({_NUMBER})%\) = ({_NUMBER}) ms")
_THROUGHPUT = re.compile(rf"^Throughput: ({_NUMBER}) qps$")
_TOTAL = re.compile(rf"^Total (Host Walltime|GPU Compute Time): ({_NUMBER}) s$")
_TRACE = re.compile(rf"^Timing trace has (\d+) queries over ({_NUMBER}) s$")
_BUILT = re.compile(rf"Engine built in ({_NUMBER}) sec")
_SIZE = re.compile(rf"Created engine with size: ({_NUMBER}) MiB")
_PROFILE = re.compile(r"^=== Profile \((\d+) iterations ?\) ===$")
#: numbers of a row of the profile's table, in the order in which 8.5 and 10 both print them
_COLUMNS = ("total_ms", "mean_ms", "median_ms", "percent")
#: longest line that is looked at
_LONGEST = 20_000


class MalformedError(StepError):
    """What trtexec left cannot be read."""


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Times of one kind over all queries, in milliseconds."""

    min: float
    max: float
    mean: float
    median: float
    #: by percent: {90.0: 1.27}
    percentiles: Mapping[float, float]


@dataclasses.dataclass(frozen=True)
class Summary:
    """The performance summary: one query is one run of the whole batch."""

    #: queries per second
    throughput: float
    #: from the input's copy to the output's; the copies are 0 where they are left out
    latency: Statistics
    enqueue: Statistics
    h2d: Statistics
    gpu: Statistics
    d2h: Statistics
    host_seconds: float
    gpu_seconds: float
    queries: int | None


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of an engine, as the profiler timed it."""

    name: str
    mean_ms: float
    median_ms: float
    percent: float


@dataclasses.dataclass(frozen=True)
class Log:
    """A log of trtexec that ended with PASSED."""

    #: "10.3.0"
    version: str
    command: str
    summary: Summary | None
    profile: tuple[Layer, ...]
    warnings: tuple[str, ...]
    build_seconds: float | None
    engine_mib: float | None


def read_version(tag: str) -> str:
    """Return the version that a tag of digits means, such as "10.3.0" for "100300" and "8.5.2" for "8502"."""
    number = int(tag)
    unit = 10_000 if number >= 100_000 else 1_000
    return f"{number // unit}.{number % unit // 100}.{number % 100}"


def read_log(text: str, *, timed: bool = False) -> Log:
    """Return what a log says; with `timed` it must hold a performance summary.

    Raises StepError with the first error and its cure where trtexec ended with FAILED, MalformedError where the log
    is cut off, is another program's, or says something twice or half.
    """
    lines = [line[:_LONGEST] for line in text.splitlines()]
    results = [found for line in lines if (found := _RESULT.match(line))]
    ends = [found for found in results if found["status"] != "RUNNING"]
    if not results:
        raise MalformedError(
            "This is no log of trtexec: it does not say `&&&& RUNNING TensorRT.trtexec`." + _last(lines),
            hint="Run the command by hand and see what it prints.",
        )
    if not ends:
        raise MalformedError(
            "The log of trtexec is cut off: it says neither PASSED nor FAILED." + _last(lines),
            hint="The process was killed, as happens where memory runs out: lower tensorrt.workspace or add swap.",
        )
    said = [(found["severity"], found["text"]) for line in lines if (found := _PREFIX.match(line))]
    if ends[-1]["status"] != "PASSED":
        raise failures.explained(lines, said, ends[-1]["status"])
    summary = _summary([text for severity, text in said if severity == "I"])
    if timed and summary is None:
        raise MalformedError(
            "The log of trtexec holds no performance summary.",
            hint="There is none with --skipInference, nor with a profiler and without --separateProfileRun.",
        )
    return Log(
        version=read_version(ends[-1]["version"]),
        command=ends[-1]["command"],
        summary=summary,
        profile=tuple(_profile([text for severity, text in said if severity == "I"])),
        warnings=tuple(dict.fromkeys(text for severity, text in said if severity == "W")),
        build_seconds=_one(_BUILT, said),
        engine_mib=_one(_SIZE, said),
    )


def _summary(said: Sequence[str]) -> Summary | None:
    """Return the summary; None where its header is not there."""
    if "=== Performance summary ===" not in said:
        return None
    # everything after the header of the last one; what is printed before it may hold the same words
    block = said[len(said) - 1 - said[::-1].index("=== Performance summary ===") :]
    statistics = {found["field"]: _statistics(found) for text in block if (found := _STATISTICS.match(text))}
    throughput = next((found[1] for text in block if (found := _THROUGHPUT.match(text))), None)
    totals = {found[1]: found[2] for text in block if (found := _TOTAL.match(text))}
    missing = [f"{field}" for field in _FIELDS if field not in statistics]
    missing += [] if throughput is not None else ["Throughput"]
    missing += [f"Total {name}" for name in ("Host Walltime", "GPU Compute Time") if name not in totals]
    if missing:
        raise MalformedError(
            f"The performance summary lacks {missing[0]}, or says it in another form.",
            hint="The log is cut off, or of a release that Penjing does not know.",
        )
    trace = next((found for text in said if (found := _TRACE.match(text))), None)
    return Summary(
        _number(str(throughput)),
        latency=statistics["Latency"],
        enqueue=statistics["Enqueue Time"],
        h2d=statistics["H2D Latency"],
        gpu=statistics["GPU Compute Time"],
        d2h=statistics["D2H Latency"],
        host_seconds=_number(totals["Host Walltime"]),
        gpu_seconds=_number(totals["GPU Compute Time"]),
        queries=int(trace[1]) if trace else None,
    )


def _statistics(found: re.Match[str]) -> Statistics:
    low, high, mean, median = (_number(found[name]) for name in ("min", "max", "mean", "median"))
    percentiles = {_number(p): _number(value) for p, value in _PERCENTILE.findall(found["percentiles"])}
    if not all(low <= value <= high for value in (mean, median, *percentiles.values())):
        raise MalformedError(f"{found['field']} of the summary contradicts itself: {found[0]}")
    return Statistics(low, high, mean, median, percentiles)


def _profile(said: Sequence[str]) -> Iterator[Layer]:
    """Yield the rows of the profile's table: the layer's name comes first in 8.5, and last from 10 on."""
    start = next((index for index, text in enumerate(said) if _PROFILE.match(text)), None)
    if start is None:
        return
    if start + 1 >= len(said):
        raise MalformedError("The profile has no table.")
    head = said[start + 1].split()
    first = bool(head) and head[0] == "Layer"
    if not first and not (head and head[-1] == "Layer"):
        raise MalformedError(f"The profile's table has another head: {said[start + 1]!r}.")
    numbers = rf"({_NUMBER})\s+({_NUMBER})\s+({_NUMBER})\s+({_NUMBER})"
    row = re.compile(rf"^\s*(\S.*?)\s+{numbers}\s*$" if first else rf"^\s*{numbers}\s+(\S.*?)\s*$")
    for text in said[start + 2 :]:
        found = row.match(text)
        if not found:
            raise MalformedError(f"The profile's table ends without its row Total, at {text[:80]!r}.")
        name, values = (found[1], found.groups()[1:]) if first else (found[5], found.groups()[:4])
        if name == "Total":
            return
        times = dict(zip(_COLUMNS, map(_number, values), strict=True))
        yield Layer(name, times["mean_ms"], times["median_ms"], times["percent"])
    raise MalformedError("The profile's table is cut off: it has no row Total.")


def _one(pattern: re.Pattern[str], said: Sequence[tuple[str, str]]) -> float | None:
    return next((_number(found[1]) for _, text in said if (found := pattern.search(text))), None)


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise MalformedError(f"{text} is too large a number to be true.")
    return number


def _last(lines: Sequence[str]) -> str:
    """Return what the last line says, as the clue that is left."""
    told = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f" It ends with: {told[:200]}" if told else " It is empty."


def as_json(log: Log) -> dict[str, Any]:
    """Return a log's figures as JSON values, percentiles by their name ("90")."""
    values = dataclasses.asdict(log)
    for kind in (values["summary"] or {}).values():
        if isinstance(kind, dict):
            kind["percentiles"] = {f"{percent:g}": value for percent, value in kind["percentiles"].items()}
    return values
