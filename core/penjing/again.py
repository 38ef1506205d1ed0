"""Using a finished run again: timing its models anew, and asking them about photographs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penjing.api import described
from penjing.errors import InputError, PlanError, StepError
from penjing.goal import Goal
from penjing.host import Host
from penjing.measurements import content, times
from penjing.options import build
from penjing.preprocess import Preprocess
from penjing.step import Backend
from penjing.verdict import judge

if TYPE_CHECKING:
    import numpy as np

    from penjing.model import Model
    from penjing.report import Report
    from penjing.report.schema import Column as ReportColumn
    from penjing.step import Progress, Session


def measure_again(folder: Path, seconds: float, progress: Progress, host: Host | None = None) -> Report:
    """Time the models of a run beside each other for about `seconds`, and write its report anew.

    PlanError where this machine is not the run's device.
    """
    from penjing import report as reports
    from penjing.environment import environment
    from penjing.run import locked

    host = host or Host()
    asked = described(folder)
    device = host.device(asked["device"])
    backend = backend_of(host, asked)
    if why := backend.available(device):
        raise PlanError(
            f"Latency on {device.title} cannot be measured here: {why}.", hint="Measure on the device."
        )
    with locked(folder):
        report = reports.read(report_of(folder))
        models: dict[str, Model] = {
            column["name"]: reported_model(host, folder, column)
            for column in report["columns"]
            if column["file"]
        }
        sessions: dict[str, Session] = {name: backend.open(model, device) for name, model in models.items()}
        latencies = times(
            folder, models, lambda: sessions, backend, device, progress, seconds=seconds, renew=True
        )
        for column in report["columns"]:
            if column["name"] in sessions:
                column["latency"], column["latency_why"] = latencies[column["name"]], ""  # type: ignore[typeddict-item]
        goal = Goal(**{demand["name"]: demand["bound"] for demand in report["goals"]})
        report["goals"] = judge(goal, report["columns"][-1])  # type: ignore[typeddict-item]
        report["environment"] = environment(backend.threads, asked["seed"])  # type: ignore[typeddict-item]
        reports.write(report, folder)
    return report


def predict(
    folder: Path, images: Sequence[Path], top: int, column: str = "optimised", host: Host | None = None
) -> list[dict[str, Any]]:
    """Return what a model of the run answers for each image: the `top` classes, or each output's shape and range."""
    from penjing.data import read_photo

    host = host or Host()
    asked = described(folder)
    device, backend = host.device(asked["device"]), backend_of(host, asked)
    model = _model(host, folder, column)
    if model.preprocess is None:
        raise InputError(
            f"{folder} does not say how a photograph becomes an input.", hint="Compress with --preprocess."
        )
    session = backend.open(model, device)
    found = []
    for image in images:
        pixels = model.preprocess(read_photo(image))
        batch = model.inputs[0].shape[0] or 1
        outputs = session(pixels[None].repeat(batch, axis=0))
        found.append({"image": str(image), **_answers(model, outputs, asked, top)})
    return found


def _answers(
    model: Model, outputs: Sequence[np.ndarray[Any, Any]], asked: dict[str, Any], top: int
) -> dict[str, Any]:
    import numpy as np

    if asked["task"] != "classification":
        named = zip(model.outputs, outputs, strict=True)
        return {"answers": [], "outputs": [
            {"name": tensor.name, "shape": list(value.shape), "low": float(value.min()), "high": float(value.max())}
            for tensor, value in named
        ]}  # fmt: skip
    scores = outputs[0][0].astype(np.float64)
    if not np.isfinite(scores).all():
        raise StepError(
            f"The model answers with scores that are no finite numbers: {scores.tolist()[:5]}.",
            hint="Ask another --column, or compare the accuracies in the report.",
        )
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    labels = model.labels or tuple(asked["classes"])
    if len(labels) != len(scores):
        labels = tuple(f"class {index}" for index in range(len(scores)))
    best = np.argsort(-shares, kind="stable")[:top]
    return {"outputs": [], "answers": [
        {"label": labels[index], "index": int(index), "share": float(shares[index])} for index in best
    ]}  # fmt: skip


def report_of(folder: Path) -> Path:
    """Return the path of a run's report; InputError where it has none yet."""
    path = folder / "report.json"
    if not path.is_file():
        raise InputError(
            f"{folder} has no report yet.", hint="Run the same `penjing compress` again to finish it."
        )
    return path


def reported_model(host: Host, folder: Path, column: ReportColumn) -> Model:
    """Return the model of a column, if it still is the one that the report tells of."""
    model = _model(host, folder, column["name"])
    if content(model) != column["sha256"]:
        raise InputError(
            f"{model.value} is not the model that report.json tells of.",
            hint="Run the same `penjing compress` again, which renews both.",
        )
    return model


def _model(host: Host, folder: Path, column: str) -> Model:
    path = folder / column / "model.onnx"
    if not path.is_file():
        raise InputError(
            f"{folder} has no {column} model.", hint="Run the same `penjing compress` again to finish it."
        )
    table = described(folder)["preprocess"]  # a model from an ONNX file does not carry it
    return host.open(str(path), preprocess=Preprocess.from_dict(table) if table else None)


def backend_of(host: Host, asked: dict[str, Any]) -> Backend:
    kind = host.step(asked["backend"]["name"])
    backend = build(kind, asked["backend"]["name"], asked["backend"]["options"])
    if not isinstance(backend, Backend):
        raise InputError(f"run.json names {asked['backend']['name']!r} as backend, which is none.")
    return backend
