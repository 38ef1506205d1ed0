"""What a step shows in the report: a picture or a table, as data. Any step may show any number (`Context.show`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Bars:
    """Horizontal bars from 0, in the order given; a value of None is shown as absent.

    `marked` names those to be told apart, such as layers that stayed float; the title says what the mark means.
    """

    title: str
    unit: str
    values: Mapping[str, float | None]
    marked: Sequence[str] = ()
    kind: Literal["bars"] = "bars"


@dataclasses.dataclass(frozen=True)
class Lines:
    """Curves over a common x: points (x, y) of each series by name."""

    title: str
    x: str
    y: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    kind: Literal["lines"] = "lines"


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under a head; numbers come as text, with their units."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    kind: Literal["table"] = "table"


@dataclasses.dataclass(frozen=True)
class Lanes:
    """Parts of a whole in order, each in a lane and as wide as its share: which device runs which layers, say.

    `segments` are (name, lane, width), of any unit; `lanes` names the lanes from the top.
    """

    title: str
    lanes: Sequence[str]
    segments: Sequence[tuple[str, str, float]]
    kind: Literal["lanes"] = "lanes"


Exhibit = Bars | Lines | Table | Lanes


def to_dict(exhibit: Exhibit) -> dict[str, Any]:
    """Return an exhibit as the JSON of report.json, where each has the fields of all kinds."""
    empty: dict[str, Any] = {
        "unit": "", "values": {}, "marked": [], "x": "", "y": "", "series": {}, "head": [], "rows": [],
        "lanes": [], "segments": [],
    }  # fmt: skip
    record = empty | dataclasses.asdict(exhibit)
    record["segments"] = [{"name": n, "lane": lane, "width": width} for n, lane, width in record["segments"]]
    return record
