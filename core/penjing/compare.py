"""The report of a run: the columns measured beside each other, and everything that explains them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, cast

from penjing import __version__, measure, promise
from penjing.environment import environment
from penjing.files import sha256_of
from penjing.measurements import remembered, times
from penjing.remote.record import apply, recall
from penjing.verdict import judge

if TYPE_CHECKING:
    from penjing.model import Model
    from penjing.plan import Plan
    from penjing.report import Report
    from penjing.run import Column, Run
    from penjing.step import Session, Step

#: seconds to time the columns for, together
TIMING = 20.0


def compare(run: Run, columns: Mapping[str, Column], command: str) -> Report:
    """Measure the columns and return the report."""
    plan = run.plan
    backend, device = plan.backend, plan.device
    with promise.kept(backend.name, "available"):
        why_not_timed = backend.available(device)
    made = {name: column for name, column in columns.items() if not column.failed}
    unique = _unique(made)
    sessions: dict[str, Session] = {}

    def opened() -> dict[str, Session]:
        """Open the sessions at first need: a run that is only read again needs none."""
        if not sessions:
            with promise.kept(backend.name, "open"):
                sessions.update({name: backend.open(made[name].model, device) for name in unique.values()})
        return sessions

    tallies = _answers(run, unique, made, opened)
    models = {name: made[name].model for name in sorted(set(unique.values()))}
    latencies = (
        {}
        if why_not_timed
        else times(run.folder, models, opened, backend, device, run.progress, seconds=TIMING)
    )
    records = [
        _column(run, columns[name], tallies.get(unique.get(name, ""), None), tallies.get("original"),
                latencies.get(unique.get(name, "")), why_not_timed)
        for name in plan.columns
    ]  # fmt: skip
    _relate_sizes(records)
    scores = _scores(run, columns)
    steps = _steps(plan, columns, scores)
    report = {
        "schema": 1,
        "penjing": __version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "source": plan.model.source,
        "command": command,
        "device": {
            "name": device.name,
            "title": device.title,
            "stack": device.stack,
            "here": device.here,
            "builds_engine": backend.builds_engine,
        },
        "task": plan.task.name,
        "data": _data(plan),
        "preprocess": plan.model.preprocess.to_dict() if plan.model.preprocess else None,
        "columns": records,
        "steps": steps,
        "left_out": [{"name": line.use.name, "why": line.left_out} for line in plan.lines if line.left_out],
        "goals": judge(plan.goal, records[-1]),
        "warnings": _warnings(plan),
        "environment": environment(backend.threads, run.seed),
        "on_board": None,
    }
    whole = cast("Report", report)
    if (measured := recall(run.folder, records[-1]["sha256"])) is not None:
        apply(whole, measured)
    return whole


def _unique(made: Mapping[str, Column]) -> dict[str, str]:
    """Return for each column the first one that has the very same model, so that nothing is measured twice."""
    first: dict[str, str] = {}
    return {name: first.setdefault(column.model.fingerprint, name) for name, column in made.items()}


def _answers(
    run: Run, unique: Mapping[str, str], made: Mapping[str, Column], opened: Any
) -> dict[str, measure.Tally]:
    data, preprocess = run.plan.data, run.plan.model.preprocess
    if data is None or preprocess is None or not len(data.test):
        return {}
    facts = {
        "models": {name: made[name].model.fingerprint for name in sorted(set(unique.values()))},
        "photographs": data.test.fingerprint,
        "preprocess": preprocess.to_dict(),
        "task": run.plan.task.name,
        "runtime": run.plan.backend.resources(run.plan.device, run.plan.backend),
        "here": run.plan.device.here,
    }

    def ask() -> dict[str, Any]:
        tallies = measure.answer(
            opened(), made["original"].model, data.test, preprocess, run.plan.task, run.progress
        )
        return {
            "tallies": {name: dataclasses.asdict(tally) for name, tally in tallies.items()},
            "broken": list(data.broken),
        }

    found = remembered(run.folder, "answers", facts, ask)
    run.remember_broken(found["broken"])
    return {name: measure.Tally(**tally) for name, tally in found["tallies"].items()}


def _column(
    run: Run,
    column: Column,
    tally: measure.Tally | None,
    original: measure.Tally | None,
    latency: dict[str, Any] | None,
    why_not_timed: str,
) -> dict[str, Any]:
    is_original = column.name == "original"
    path = run.folder / column.name / "model.onnx"
    exists = not column.failed and path.exists()
    details = _export_details(column)
    return {
        "name": column.name,
        "recipe": [_use(step) for step in column.steps],
        "file": f"{column.name}/model.onnx" if exists else None,
        "sha256": sha256_of(path) if exists else None,
        "size_bytes": path.stat().st_size if exists else None,
        "size_ratio": None,
        "parameters": details.get("parameters"),
        "macs": details.get("macs"),
        "latency": latency,
        "latency_why": "" if latency else (column.failed or why_not_timed),
        "accuracy": measure.accuracy(tally, None if is_original else original, run.plan.task.metric)
        if tally
        else None,
        "fidelity": None if is_original or tally is None else measure.fidelity(tally),
        "failed": column.failed or None,
    }


def _use(step: Step) -> dict[str, Any]:
    options: dict[str, Any] = dataclasses.asdict(step)  # type: ignore[call-overload]  # as in Host.steps
    return {"use": step.name, "options": options}


def _export_details(column: Column) -> dict[str, Any]:
    """Return the count of parameters and MACs by the last step that counted them."""
    counted = [done.record["details"] for done in column.done if "parameters" in done.record["details"]]
    return counted[-1] if counted else {}


def _relate_sizes(records: Sequence[dict[str, Any]]) -> None:
    whole = records[0]["size_bytes"]
    for record in records:
        if whole and record["size_bytes"] is not None:
            record["size_ratio"] = record["size_bytes"] / whole


def _scores(run: Run, columns: Mapping[str, Column]) -> dict[str, dict[str, Any]]:
    """Return how each step's result of the optimised column does on the select split, by the step's key."""
    plan = run.plan
    data, preprocess = plan.data, plan.model.preprocess
    backend = plan.backend
    changed = [
        done.model
        for step, done in zip(columns["optimised"].steps, columns["optimised"].done, strict=True)
        if not step.exact and done.model.form in backend.accepts
    ]
    if data is None or preprocess is None or not len(data.select) or not changed:
        return {}
    original = columns["original"].model
    facts = {
        "models": [original.fingerprint, *(model.fingerprint for model in changed)],
        "photographs": data.select.fingerprint,
        "preprocess": preprocess.to_dict(),
        "task": plan.task.name,
        "runtime": backend.resources(plan.device, backend),
        "here": plan.device.here,
    }

    def ask() -> dict[str, Any]:
        with promise.kept(backend.name, "open"):
            sessions = {"original": backend.open(original, plan.device)}
            sessions |= {model.fingerprint: backend.open(model, plan.device) for model in changed}
        tallies = measure.answer(sessions, original, data.select, preprocess, plan.task, run.progress)
        return {
            "scores": {name: _score(tally, plan.task.metric) for name, tally in tallies.items()},
            "broken": list(data.broken),
        }

    found = remembered(run.folder, "scores", facts, ask)
    run.remember_broken(found["broken"])
    scores: dict[str, dict[str, Any]] = found["scores"]
    return scores


def _score(tally: measure.Tally, metric: str) -> dict[str, Any] | None:
    for name, values in ((metric, tally.right), ("agreement", tally.agrees)):
        if values:
            return {"metric": name, "value": sum(values) / len(values), "n": len(values), "split": "select"}
    return (
        None
        if tally.sqnr is None
        else {"metric": "SQNR (dB)", "value": tally.sqnr, "n": tally.n, "split": "select"}
    )


def _steps(
    plan: Plan, columns: Mapping[str, Column], scores: Mapping[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    steps: dict[str, dict[str, Any]] = {}
    for name, column in columns.items():
        for step, done in zip(column.steps, column.done, strict=False):
            record = done.record
            entry = steps.setdefault(record["key"], {
                "name": step.name, "columns": [], "options": _use(step)["options"],
                "why": step.explain(plan.device, plan.backend),
                "seconds": record["seconds"], "reused": done.reused, "size_bytes": _size(done.model),
                "details": record["details"], "exhibits": record["exhibits"], "warnings": record["warnings"],
                "score": scores.get(done.model.fingerprint),
            })  # fmt: skip
            entry["columns"].append(name)
            entry["reused"] = entry["reused"] and done.reused
    return list(steps.values())


def _size(model: Model) -> int | None:
    from pathlib import Path

    return model.value.stat().st_size if isinstance(model.value, Path) else None


def _data(plan: Plan) -> dict[str, Any] | None:
    data = plan.data
    if data is None:
        return None
    splits = (data.calibrate, data.train, data.select, data.test)
    return {
        "root": str(data.root),
        "classes": list(data.classes),
        "labelled": data.test.labelled,
        "splits": {split.name: len(split) for split in splits},
        "broken": [{"file": name, "reason": reason} for name, reason in sorted(data.broken)],
    }


def _warnings(plan: Plan) -> list[str]:
    return [*plan.model.warnings, *(plan.data.warnings if plan.data else ())]
