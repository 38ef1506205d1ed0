"""`penjing explain`: where the quantised model of a finished run loses what, layer by layer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from penjing.errors import InputError

if TYPE_CHECKING:
    import onnx
    from penjing.data import Data
    from penjing.host import Host
    from penjing.model import Model

    from penjing_quant.judge import Judge, Verdict
    from penjing_quant.layerwise import Layer, Tensor

#: photographs that layers are compared on, and rows that the terminal shows
LAYERED, ROWS = 32, 15


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What `penjing explain` tells."""

    run: str
    column: str
    #: SHA-256 of the model, as the report has it
    sha256: str
    #: the float network that layers are compared with, relative to the run
    compared_with: str
    split: str
    photographs: int
    metric: str
    #: by what is quantised in them: nothing, weights, activations, both
    networks: dict[str, Verdict]
    layers: list[Layer]
    tensors: list[Tensor]

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON values, layers and tensors in the network's order."""
        return dataclasses.asdict(self) | {
            "networks": {name: verdict.told() for name, verdict in self.networks.items()}
        }


def explain(
    run: Path, column: str, most: int, root: Path | None = None, host: Host | None = None
) -> Explanation:
    """Compare the quantised model `column` of a run with the float one, on `most` photographs of its select split.

    `root` is where the photographs lie now, if they moved. InputError where there is nothing to explain.
    """
    from penjing import onnx_file
    from penjing.again import report_of
    from penjing.api import described
    from penjing.host import Host

    from penjing_quant.graph import load
    from penjing_quant.judge import Judge
    from penjing_quant.layerwise import Reading, examine

    asked, host = described(run), host or Host()
    report_of(run)
    quantised = onnx_file.read(_existing(run, column))
    if not any(node.op_type == "DequantizeLinear" for node in quantised.graph.node):
        raise InputError(
            f"The {column} model of {run} is not quantised: it holds no Q/DQ.",
            hint="Explain another --column, or a run with quant.static, quant.mixed or quant.qat.",
        )
    sha256 = _hash_of(run, column)
    original = _existing(run, "original")
    given = host.open(str(original))
    data = _photographs(run, asked, given, root)
    split = data.select if len(data.select) else data.calibrate
    judge = Judge(load(original), split, given.preprocess, host.tasks.get(asked["task"]), most)
    path = _float_of(run, column) or original
    exact = load(path)
    reading = Reading.of(quantised)
    networks = {
        "nothing": judge(exact),
        "weights": judge(weights_alone(exact, reading)),
        "activations": judge(activations_alone(exact, quantised, reading)),
        "both": judge(quantised),
    }
    layers, tensors = examine(exact, quantised, judge.images[:LAYERED])
    return Explanation(
        str(run), column, sha256, path.relative_to(run).as_posix(), judge.where, len(judge.images), _metric(judge),
        networks, layers, tensors,
    )  # fmt: skip


def _hash_of(run: Path, column: str) -> str:
    """Return the SHA-256 of a column's model as the report has it; InputError where it tells of another."""
    from penjing import report as reports
    from penjing.again import report_of
    from penjing.files import sha256_of

    found = sha256_of(run / column / "model.onnx")
    told = [entry["sha256"] for entry in reports.read(report_of(run))["columns"] if entry["name"] == column]
    if found not in told:
        raise InputError(
            f"The {column} model of {run} is not the one that report.json tells of.",
            hint="Run the same `penjing compress` again, which renews both.",
        )
    return found


def _metric(judge: Judge) -> str:
    return judge.task.metric if judge.task is not None and judge.labelled else ""


def _existing(run: Path, column: str) -> Path:
    path = run / column / "model.onnx"
    if not path.is_file():
        raise InputError(f"{run} has no {column} model as ONNX.", hint="Explain another --column.")
    return path


def _float_of(run: Path, column: str) -> Path | None:
    """Return the float network that a step of the run kept beside the column's model; None where none did."""
    from penjing import sealed
    from penjing.files import sha256_of

    from penjing_quant.static import FLOAT

    wanted = sha256_of(run / column / "model.onnx")
    for record in sorted((run / "steps").glob("[!.]*/step.json")):
        files = (sealed.read(record) or {}).get("files", {})
        if files.get("model.onnx") == wanted and FLOAT in files:
            return record.parent / FLOAT
    return None


def _photographs(run: Path, asked: dict[str, Any], given: Model, root: Path | None) -> Data:
    from penjing import report as reports
    from penjing.again import report_of
    from penjing.data import open_data

    record = reports.read(report_of(run))["data"]
    if root is None and record is None:
        raise InputError(f"{run} was made without photographs.", hint="Name their folder with --data.")
    folder = root or Path(record["root"] if record is not None else "")
    if not folder.is_dir():
        raise InputError(
            f"The photographs of the run are no longer at {folder}.", hint="Name their folder with --data."
        )
    outputs = given.outputs[0].shape[1] if asked["task"] == "classification" else None
    return open_data(folder, outputs=outputs, labels=given.labels, max_broken=1.0, seed=asked["seed"])


def weights_alone(exact: onnx.ModelProto, reading: Any) -> onnx.ModelProto:
    """Return the float network with the weights and biases that the quantised one's codes stand for."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    probe = onnx.ModelProto()
    probe.CopyFrom(exact)
    layers = {node.name: node for node in reading.layers()}
    for node in probe.graph.node:
        for index, entry in enumerate(layers[node.name].input if node.name in layers else ()):
            if not index or (values := reading.values(entry)) is None:
                continue
            name = f"{node.name}.penjing.{index}"
            probe.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
            while index >= len(node.input):
                node.input.append("")
            node.input[index] = name
    return probe


def activations_alone(exact: onnx.ModelProto, quantised: onnx.ModelProto, reading: Any) -> onnx.ModelProto:
    """Return the quantised network with the float one's weights and biases."""
    import onnx

    probe = onnx.ModelProto()
    probe.CopyFrom(quantised)
    before = {node.name: node for node in exact.graph.node}
    constants = {tensor.name: tensor for tensor in exact.graph.initializer}
    names = {node.name for node in reading.layers()} & before.keys()
    for node in probe.graph.node:
        for index, entry in enumerate(before[node.name].input if node.name in names else ()):
            if index and entry in constants:
                tensor = probe.graph.initializer.add()
                tensor.CopyFrom(constants[entry])
                tensor.name = f"{node.name}.penjing.{index}"
                node.input[index] = tensor.name
    return probe


@click.command("explain")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--column", type=click.Choice(["direct", "optimised"]), default="optimised", show_default=True,
    help="Which model of the run.",
)  # fmt: skip
@click.option(
    "--images", type=click.IntRange(1, 100_000), default=200, show_default=True, help="Photographs at most."
)
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR", help="Where the photographs lie now.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
def command(run: Path, column: str, images: int, data: Path | None, as_json: bool) -> None:
    """Show where the quantised model of the folder RUN loses accuracy: weights or activations, and which layers.

    Photographs are of the select split, so that test stays untouched. Writes RUN/explain.html too, which the
    report then links to.
    """
    from penjing import report as reports
    from penjing.again import report_of
    from penjing.api import described
    from penjing.files import write_text
    from penjing.run import locked

    from penjing_quant.explain_page import render

    described(run)
    with locked(run):
        found = explain(run, column, images, data)
        write_text(run / "explain.html", render(found))
        reports.write(reports.read(report_of(run)), run)  # which links to the page now
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=1))
        return
    _print(found)
    click.echo(f"\nPage: {run / 'explain.html'}")


def _print(found: Explanation) -> None:
    from penjing_quant.explain_page import layer_rows, network_rows, tensor_rows, worst

    click.echo(f"{found.column} model, {found.photographs} photographs of the {found.split} split")
    _table(*network_rows(found))
    click.echo("\nLayers, the one that loses most by itself first")
    head, rows = layer_rows(worst(found.layers))
    _table(head, rows[:ROWS])
    click.echo("\nActivations, most clipped first")
    head, rows = tensor_rows(sorted(found.tensors, key=lambda tensor: -tensor.clipped))
    _table(head, rows[:ROWS])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(str(row[i])) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        click.echo("  " + "  ".join(cells).rstrip())
