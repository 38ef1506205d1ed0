"""Trying build choices on the device: precision, batch and optimisation level, each built and timed by trtexec.

Each choice that is measured lies sealed in RUN/tune/, so that a search that is stopped takes up where it was.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penjing import sealed
from penjing.errors import InputError, PlanError, StepError
from penjing.files import digest, sha256_of, write_text

from penjing_tensorrt import output
from penjing_tensorrt.graph import Graph, read
from penjing_tensorrt.trtexec import build_command, measure_command, run
from penjing_tensorrt.versions import Target

if TYPE_CHECKING:
    from penjing.device import Device
    from penjing.model import Model
    from penjing.step import Progress

    from penjing_tensorrt.backend import TensorRT
    from penjing_tensorrt.installed import Installed

PRECISIONS = ("fp32", "fp16", "int8", "best")
#: batches that are tried where the graph leaves its batch open
BATCHES = (1, 2, 4, 8, 16)
FOLDER = "tune"


@dataclasses.dataclass(frozen=True)
class Choice:
    """One way to build an engine."""

    precision: str
    batch: int
    level: int | None
    #: the column of the run whose graph is built
    column: str

    def __str__(self) -> str:
        return f"{self.precision}, batch {self.batch}" + (
            f", level {self.level}" if self.level is not None else ""
        )


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a choice came to; `failed` says why it has no figures."""

    choice: Choice
    median_ms: float | None = None
    p90_ms: float | None = None
    images_per_s: float | None = None
    engine_bytes: int | None = None
    build_s: float | None = None
    command: tuple[str, ...] = ()
    failed: str = ""
    reused: bool = False


@dataclasses.dataclass(frozen=True)
class Found:
    """The whole search: what was measured, and what was left out and why."""

    measured: tuple[Measured, ...]
    left_out: tuple[tuple[str, str], ...]
    tensorrt: str
    gpu: str

    @property
    def quickest(self) -> Measured | None:
        """Return the choice of least time for one batch."""
        timed = [entry for entry in self.measured if entry.median_ms is not None]
        return min(timed, key=lambda entry: entry.median_ms or 0, default=None)

    @property
    def most(self) -> Measured | None:
        """Return the choice of most images a second."""
        timed = [entry for entry in self.measured if entry.images_per_s is not None]
        return max(timed, key=lambda entry: entry.images_per_s or 0, default=None)


def choices(
    graphs: dict[str, Graph],
    device: Device,
    aim: Target,
    weak: bool,
    precisions: Sequence[str],
    batches: Sequence[int],
    levels: Sequence[int | None],
) -> tuple[list[Choice], list[tuple[str, str]]]:
    """Return what to try, and what is left out and why. `graphs` are those of the columns that were made."""
    wanted: list[Choice] = []
    left_out: list[tuple[str, str]] = []
    for precision in precisions or PRECISIONS:
        column, why = _column(precision, graphs, device, aim, weak)
        if why:
            left_out.append((precision, why))
            continue
        fixed = graphs[column].shape[0]
        for batch in batches or ((fixed,) if fixed else BATCHES):
            if fixed and batch != fixed:
                why = f"the graph takes {fixed} at a time; compress with --set onnx.export.batch=0"
                left_out.append((f"{precision}, batch {batch}", why))
                continue
            wanted += [Choice(precision, batch, level, column) for level in levels or (None,)]
    return wanted, left_out


def _column(
    precision: str, graphs: dict[str, Graph], device: Device, aim: Target, weak: bool
) -> tuple[str, str]:
    """Return whose graph serves a precision, or why none does."""
    if precision in ("fp16", "int8") and precision not in device.precisions:
        return "", f"{device.title} does not compute in it"
    if precision == "best" and not (weak and aim.has("--best")):
        return "", "a strongly typed engine has the precision of its graph"
    if precision in ("int8", "best"):
        column = next((name for name in ("optimised", "direct") if "int8" in _formats(graphs, name)), "")
        if not column and precision == "int8":
            return "", "no model of the run is quantised: quant.static makes one"
        return column or "original", ""
    if precision == "fp16" and not weak:
        halves = (
            name
            for name in graphs
            if "fp16" in _formats(graphs, name) and "int8" not in _formats(graphs, name)
        )
        column = next(halves, "")
        return column, "" if column else "no model of the run is in half precision: quant.fp16 makes one"
    return "original", ""


def _formats(graphs: dict[str, Graph], name: str) -> frozenset[str]:
    return graphs[name].formats if name in graphs else frozenset()


def search(
    folder: Path,
    models: dict[str, Model],
    device: Device,
    backend: TensorRT,
    found: Installed,
    progress: Progress,
    *,
    precisions: Sequence[str] = (),
    batches: Sequence[int] = (),
    levels: Sequence[int | None] = (),
    seconds: int = 10,
) -> Found:
    """Build and time every choice, those of an earlier search excepted; `folder` is the run's.

    A choice that fails is told with its reason, and tried again next time. PlanError where nothing can be tried.
    """
    from penjing_tensorrt.versions import of_version

    aim = of_version(found.trtexec_version)
    weak = backend.adapter(aim).typing == "weak"
    if any(level is not None for level in levels) and not aim.has("--builderOptimizationLevel"):
        raise PlanError(
            f"TensorRT {found.trtexec_version} has no optimisation level; 8.6 and later have it.",
            hint="Leave out --level.",
        )
    graphs = {name: read(Path(model.value)) for name, model in models.items()}
    wanted, left_out = choices(graphs, device, aim, weak, precisions, batches, levels)
    if not wanted:
        whats: dict[str, list[str]] = {}
        for what, why in left_out:
            whats.setdefault(why, []).append(what)
        reasons = "; ".join(f"{' and '.join(said)}: {why}" for why, said in whats.items())
        raise PlanError(
            f"There is nothing to try: {reasons}.", hint="Compress again, or ask for other choices."
        )
    (folder / FOLDER).mkdir(exist_ok=True)
    progress.begin("trying build choices", len(wanted))
    measured = []
    for choice in wanted:
        progress.begin(str(choice))
        entry = _one(folder / FOLDER, models[choice.column], choice, device, backend, found, aim, seconds)
        measured.append(entry)
        progress.end(entry.failed or f"{entry.median_ms:.3g} ms" + (", already done" if entry.reused else ""))
        progress.advance()
    progress.end()
    gpu = found.gpus[0] if found.gpus else device.title
    return Found(tuple(measured), tuple(left_out), found.trtexec_version, gpu)


def _one(
    folder: Path,
    model: Model,
    choice: Choice,
    device: Device,
    backend: TensorRT,
    found: Installed,
    aim: Target,
    seconds: int,
) -> Measured:
    facts = {
        "choice": dataclasses.asdict(choice),
        "options": dataclasses.asdict(backend),
        "model": sha256_of(Path(model.value)),
        "tensorrt": found.trtexec_version,
        "gpu": [*found.gpus, str(device)],
        "seconds": seconds,
    }
    key = digest(json.dumps(facts, sort_keys=True, default=str))[:16]
    if (kept := sealed.read(folder / f"{key}.json")) is not None:
        return _restored(choice, kept["result"])
    work = folder / f".{key}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        entry = _measure(work, model, choice, device, backend, found, aim, seconds)
    except (StepError, PlanError) as error:
        return Measured(choice, failed=error.message)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    result = {**dataclasses.asdict(entry), "choice": None}
    sealed.write(folder / f"{key}.json", {"facts": facts, "result": result})
    return entry


def _measure(
    work: Path,
    model: Model,
    choice: Choice,
    device: Device,
    backend: TensorRT,
    found: Installed,
    aim: Target,
    seconds: int,
) -> Measured:
    """Build and time one engine in the folder `work`."""
    weak = backend.adapter(aim).typing == "weak"
    # strongly typed graphs carry the precision, and the graph was chosen by it
    precision: Any = choice.precision if weak and choice.precision != "int8" else "auto"
    step = dataclasses.replace(
        backend, precision=precision, batch=choice.batch, max_batch=0, level=choice.level, timing_cache=True
    )
    build = dataclasses.replace(step.build_of(model, device), timing_cache=str(Path("..") / "timing.cache"))
    shutil.copyfile(model.value, work / "model.onnx")
    command = build_command(aim, build, onnx="model.onnx", engine="model.plan", program=found.trtexec)
    built = output.read_log(run(command, work))
    timing = measure_command(aim, build, engine="model.plan", seconds=seconds, program=found.trtexec)
    summary = output.read_log(run(timing, work), timed=True).summary
    assert summary is not None, "read_log(timed=True) promises one"
    plan = work / "model.plan"
    if not plan.is_file():
        raise StepError("trtexec says PASSED and left no engine.")
    return Measured(
        choice,
        median_ms=summary.gpu.median,
        p90_ms=summary.gpu.percentiles.get(90.0),
        images_per_s=summary.throughput * choice.batch,
        engine_bytes=plan.stat().st_size,
        build_s=built.build_seconds,
        command=tuple(command),
    )


def _restored(choice: Choice, result: dict[str, Any]) -> Measured:
    try:
        return Measured(**{**result, "choice": choice, "command": tuple(result["command"]), "reused": True})
    except (TypeError, KeyError) as error:
        raise InputError(
            "A result under tune/ is of another version of Penjing.",
            hint="Remove the folder tune/ of the run.",
        ) from error


def rows(found: Found) -> Iterator[list[str]]:
    """Yield the table: one row for each choice, with what it is the best at, or that it failed."""
    for entry in found.measured:
        best = [word for word, top in (("quickest", found.quickest), ("most", found.most)) if top == entry]
        yield [
            entry.choice.precision.upper() if entry.choice.precision != "best" else "best",
            entry.choice.column,
            str(entry.choice.batch),
            "–" if entry.choice.level is None else str(entry.choice.level),
            _shown(entry.median_ms),
            _shown(entry.p90_ms),
            _shown(entry.images_per_s),
            "–" if entry.engine_bytes is None else f"{entry.engine_bytes / 1e6:.1f} MB",
            ", ".join(best) or ("failed" if entry.failed else ""),
        ]


HEAD = ("format", "model", "batch", "level", "median ms", "p90 ms", "images/s", "engine", "")


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def as_json(found: Found) -> dict[str, Any]:
    """Return the search as JSON values."""
    return {
        "tensorrt": found.tensorrt,
        "gpu": found.gpu,
        "measured": [dataclasses.asdict(entry) for entry in found.measured],
        "left_out": [{"what": what, "why": why} for what, why in found.left_out],
        "quickest": str(found.quickest.choice) if found.quickest else None,
        "most_images": str(found.most.choice) if found.most else None,
    }


def keep(found: Found, folder: Path) -> None:
    """Write the search into tune/tune.json and show it in the run's report, in place of an earlier one."""
    from penjing import report as reports
    from penjing.exhibit import Bars, Table, to_dict

    write_text(folder / FOLDER / "tune.json", json.dumps(as_json(found), indent=1, allow_nan=False) + "\n")
    if not (folder / "report.json").is_file():
        return
    title = "Build choices, built and timed on the device by trtexec"
    speed: dict[str, float | None] = {str(entry.choice): entry.images_per_s for entry in found.measured}
    exhibits = [
        to_dict(Table(f"{title} ({found.gpu}, TensorRT {found.tensorrt})", HEAD, list(rows(found)))),
        to_dict(Bars(f"{title}: images a second", "1/s", speed)),
    ]
    report = reports.read(folder / "report.json")
    steps: list[Any] = [step for step in report["steps"] if step["name"] == "tensorrt"]
    for step in steps[-1:]:
        step["exhibits"] = [*_others(step["exhibits"], title), *exhibits]
    reports.write(report, folder)


def _others(exhibits: Iterable[dict[str, Any]], title: str) -> list[dict[str, Any]]:
    return list(itertools.filterfalse(lambda exhibit: exhibit["title"].startswith(title), exhibits))
