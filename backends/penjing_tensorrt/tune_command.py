"""`penjing tune`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from penjing.device import Device
    from penjing.model import Model

    from penjing_tensorrt.backend import TensorRT
    from penjing_tensorrt.installed import Installed
    from penjing_tensorrt.tune import Found


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(["fp32", "fp16", "int8", "best"]),
    help="Precision to try; may be repeated. All by default.",
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(1, 65536),
    metavar="N",
    help="Batch to try; may be repeated. The graph's own, or 1 to 16 where it is open, by default.",
)
@click.option(
    "--level",
    "levels",
    multiple=True,
    type=click.IntRange(0, 5),
    metavar="N",
    help="Optimisation level to try; may be repeated. TensorRT's own by default.",
)
@click.option(
    "--seconds", type=click.IntRange(1, 600), default=10, show_default=True, help="Time to measure each for."
)
@click.option(
    "--trtexec",
    "program",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The trtexec to use; by default the one on PATH, or at /usr/src/tensorrt/bin.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
@click.option("--quiet", "-q", is_flag=True, help="Print errors only.")
def tune(
    run: Path,
    precisions: tuple[str, ...],
    batches: tuple[int, ...],
    levels: tuple[int, ...],
    seconds: int,
    program: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Try build choices for the folder RUN on this device, and say which is quickest.

    Each precision, batch and optimisation level is built and timed by trtexec. What was measured is kept in RUN/tune
    and not measured again. Accuracy is not measured here: a report of `compress` has it for INT8; FP16 and best change
    answers as well.
    """
    from contextlib import nullcontext

    from penjing.console import Lines, Terminal
    from penjing.errors import StepError
    from penjing.run import locked
    from penjing.step import Silent
    from rich.console import Console

    from penjing_tensorrt import tune as search

    device, backend, models = _open(run)
    found = _found(program)
    _refuse(run, device, backend, models, found)
    console = Console(stderr=True)
    shown = Terminal(console) if console.is_terminal else Lines(console)
    with locked(run), nullcontext(Silent()) if quiet else shown as progress:
        result = search.search(
            run, models, device, backend, found, progress,
            precisions=precisions, batches=batches, levels=levels, seconds=seconds,
        )  # fmt: skip
        if result.quickest is not None:
            search.keep(result, run)
    if as_json:
        click.echo(json.dumps(search.as_json(result), indent=1))
    elif not quiet:
        _show(result)
    if result.quickest is None:
        raise StepError(
            f"Nothing could be timed: {result.measured[0].choice}: {result.measured[0].failed}",
            hint="A choice that failed is tried again next time.",
        )


def _open(run: Path) -> tuple[Device, TensorRT, dict[str, Model]]:
    """Return the device, the backend and the models of a run."""
    from penjing.api import described
    from penjing.errors import InputError
    from penjing.host import Host
    from penjing.options import build

    from penjing_tensorrt.backend import TensorRT

    host, asked = Host(), described(run)
    if asked["backend"]["name"] != TensorRT.name:
        raise InputError(
            f"{run} was made for the backend {asked['backend']['name']}; tune tries engines of tensorrt.",
            hint="Compress for a device with TensorRT: `penjing devices` lists them.",
        )
    backend = build(TensorRT, TensorRT.name, asked["backend"]["options"])
    files = {name: run / name / "model.onnx" for name in ("original", "direct", "optimised")}
    models = {name: host.open(str(path)) for name, path in files.items() if path.is_file()}
    if "original" not in models:
        raise InputError(
            f"{run} holds no original/model.onnx.", hint="Compress again: the run was not finished."
        )
    return host.device(asked["device"]), backend, models


def _found(program: Path | None) -> Installed:
    """Return what is installed here, with the trtexec that was named."""
    import dataclasses

    from penjing.doctor import output, parse_trtexec
    from penjing.errors import InputError

    from penjing_tensorrt import installed

    found = installed.look()
    if program is None:
        return found
    if not program.is_file():
        raise InputError(f"There is no file {program}.", hint="Give the path of trtexec, or leave it out.")
    if not (version := parse_trtexec(output([str(program.resolve()), "--help"]))):
        raise InputError(
            f"{program} does not say that it is trtexec.", hint="Run it by hand: a library may be missing."
        )
    return dataclasses.replace(found, trtexec=str(program.resolve()), trtexec_version=version)


def _refuse(run: Path, device: Device, backend: TensorRT, models: dict[str, Model], found: Installed) -> None:
    """Raise PlanError where this machine is not the device, with the commands to run there."""
    from penjing.errors import PlanError

    from penjing_tensorrt import installed
    from penjing_tensorrt.trtexec import build_command
    from penjing_tensorrt.versions import target

    why = installed.why_no_engine(device, found)
    if not why and not found.trtexec:
        why = "trtexec is not here; it comes with TensorRT's apt or tar package, not with pip's"
    if not why:
        return
    model = models.get("optimised", models["original"])
    build = backend.build_of(model, device)
    command = build_command(target(device), build, onnx="model.onnx", engine="model.plan")
    raise PlanError(
        f"Build choices for {device.title} cannot be tried here: {why}.",
        hint=f"Copy {run} to the device and run there: penjing tune {shlex.quote(str(run))}\n"
        f"Without Penjing there, one by one in the folder of the model: {shlex.join(command)}",
    )


def _show(found: Found) -> None:
    from penjing.console import wrapped
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from penjing_tensorrt.tune import HEAD, rows

    table = Table(
        title=f"{found.gpu}, TensorRT {found.tensorrt}, time on the GPU", title_justify="left",
        box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1),
    )  # fmt: skip
    every = list(rows(found))
    # an optimisation level that nobody asked for is no column
    shown = [index for index in range(len(HEAD)) if index != 3 or any(row[3] != "–" for row in every)]
    for index in shown:
        widest = max(len(row[index]) for row in every)
        table.add_column(
            HEAD[index],
            justify="left" if index in (0, 1, 8) else "right",
            min_width=None if index == 8 else max(len(HEAD[index]), widest),
        )
    for row in every:
        table.add_row(*(row[index] for index in shown))
    Console().print(table)
    for entry in found.measured:
        if entry.failed:
            click.echo(wrapped(f"failed: {entry.choice}: {entry.failed}"))
    for what, why in found.left_out:
        click.echo(wrapped(f"left out: {what}: {why}"))
    if found.most is not None and found.quickest is not None:
        click.echo(wrapped(f"Quickest: {found.quickest.choice}. Most images a second: {found.most.choice}."))
