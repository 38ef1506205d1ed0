"""JSON that trtexec exports: times of each query, the profile, and what each layer became. Bad files are errors."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from penjing_tensorrt.output import Layer, MalformedError

#: bytes; ten seconds of a fast network are 20 MB of times
_LARGEST = 2**28
_TIMES = ("h2dMs", "computeMs", "d2hMs", "latencyMs")
_NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
#: a row of the profile: the name is not escaped, so that JSON cannot always read it
_ROW = re.compile(
    rf'^\s*,?\s*\{{\s*"name"\s*:\s*"(.*)",\s*"timeMs"\s*:\s*{_NUMBER},\s*"averageMs"\s*:\s*{_NUMBER}'
    rf'(?:,\s*"medianMs"\s*:\s*{_NUMBER})?,\s*"percentage"\s*:\s*{_NUMBER}\s*\}}\s*,?\s*$'
)
_COUNT = re.compile(r'"count"\s*:\s*(\d+)')


@dataclasses.dataclass(frozen=True)
class Query:
    """One run of the batch, in milliseconds."""

    h2d: float
    compute: float
    d2h: float
    latency: float


@dataclasses.dataclass(frozen=True)
class EngineLayer:
    """What the builder made of one or several nodes; kind and precisions are "" where only names were exported."""

    name: str
    kind: str = ""
    #: formats of its outputs, as TensorRT says them: "Int8", "Half", "Float"
    precisions: tuple[str, ...] = ()


def read_times(path: Path) -> list[Query]:
    """Return the queries that --exportTimes wrote."""
    rows = _list(_json(path), path)
    if not rows:
        raise MalformedError(f"{path.name} holds no query.")
    return [Query(*(_number(row, key, path) for key in _TIMES)) for row in rows]


def read_profile(path: Path) -> list[Layer]:
    """Return the layers that --exportProfile wrote, whose names may hold quotes that nobody escaped."""
    text = _text(path)
    try:
        return _profile(_list(json.loads(text), path), path)
    except (ValueError, RecursionError):
        return _profile_by_line(text, path)


def read_layers(path: Path) -> list[EngineLayer]:
    """Return the layers that --exportLayerInfo wrote: names alone, or details where they were asked for."""
    table = _json(path)
    if not isinstance(table, dict) or not isinstance(table.get("Layers"), list):
        raise MalformedError(f"{path.name} has no list of Layers.")
    return [_layer(entry, path) for entry in table["Layers"]]


def _layer(entry: Any, path: Path) -> EngineLayer:
    if isinstance(entry, str):
        return EngineLayer(entry)
    if not isinstance(entry, dict) or not isinstance(entry.get("Name"), str):
        raise MalformedError(f"{path.name}: a layer has no Name.")
    outputs = entry.get("Outputs", [])
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
        raise MalformedError(f"{path.name}: the Outputs of {entry['Name']!r} are no list of objects.")
    formats = (str(output.get("Format/Datatype", "")) for output in outputs)
    return EngineLayer(entry["Name"], str(entry.get("LayerType", "")), tuple(map(_precision, formats)))


def _precision(description: str) -> str:
    """Return the number format in a description such as "Thirty-two wide channel vectorized row major Int8 format"."""
    found = re.search(
        r"\b(FP32|FP16|FP8|BF16|INT8|INT32|INT64|INT4|BOOL|Float|Half|Int8|Int32)\b", description, re.I
    )
    names = {
        "fp32": "Float",
        "fp16": "Half",
        "float": "Float",
        "half": "Half",
        "int8": "Int8",
        "int32": "Int32",
    }
    return names.get(found[1].lower(), found[1]) if found else description[:40]


def _profile(rows: Sequence[Any], path: Path) -> list[Layer]:
    if not rows or not isinstance(rows[0], dict) or not isinstance(rows[0].get("count"), int):
        raise MalformedError(f"{path.name} does not begin with the count of runs.")
    return [
        Layer(
            _name(row, path),
            _number(row, "averageMs", path),
            _number(row, "medianMs" if "medianMs" in row else "averageMs", path),
            _number(row, "percentage", path),
        )
        for row in rows[1:]
        if isinstance(row, dict) or _refuse(path)
    ]


def _refuse(path: Path) -> bool:
    raise MalformedError(f"{path.name}: a row of the profile is no object.")


def _profile_by_line(text: str, path: Path) -> list[Layer]:
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < 3 or lines[0].strip() != "[" or lines[-1].strip() != "]" or not _COUNT.search(lines[1]):
        raise MalformedError(f"{path.name} is no profile, or is cut off.")
    layers = []
    for line in lines[2:-1]:
        found = _ROW.match(line)
        if not found:
            raise MalformedError(f"{path.name}: this line is no layer: {line.strip()[:80]!r}.")
        mean = float(found[3])
        layers.append(Layer(found[1], mean, float(found[4] or mean), float(found[5])))
    return layers


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"{path.name} is no JSON, or is cut off: {str(error)[:100]}.") from error


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise MalformedError(f"trtexec wrote no {path.name}: {error.strerror or error}.") from error
    if len(content) > _LARGEST:
        raise MalformedError(f"{path.name} is larger than {_LARGEST // 2**20} MiB.")
    return content.decode("utf-8", "replace")


def _list(value: Any, path: Path) -> list[Any]:
    if not isinstance(value, list):
        raise MalformedError(f"{path.name} holds no list.")
    return value


def _name(row: Mapping[str, Any], path: Path) -> str:
    if not isinstance(row.get("name"), str):
        raise MalformedError(f"{path.name}: a layer has no name.")
    return str(row["name"])


def _number(row: Any, key: str, path: Path) -> float:
    value = row.get(key) if isinstance(row, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise MalformedError(f"{path.name}: {key} is missing, or no time.")
    return float(value)
