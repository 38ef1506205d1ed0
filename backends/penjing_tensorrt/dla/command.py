"""`penjing dla`: where the layers of an ONNX file would run on a Jetson's DLA. No board is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from penjing_tensorrt.dla.place import Placement


def add(cli: click.Group) -> None:
    """Add the command to the command line."""
    cli.add_command(dla)


@click.command()
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@click.option(
    "--device",
    default="jetson-agx-orin",
    show_default=True,
    metavar="NAME",
    help="Device profile of a board with a DLA: NAME, NAME@STACK, or a TOML file.",
)
@click.option(
    "--precision",
    type=click.Choice(["int8", "fp16"]),
    default="int8",
    show_default=True,
    help="What the layers of a float network would run in; of a quantised one, its ranges tell.",
)
@click.option(
    "--batch",
    type=click.IntRange(1, 4096),
    default=1,
    show_default=True,
    metavar="N",
    help="Images in a batch, where the file leaves that open.",
)
@click.option("--adapt", is_flag=True, help="Rewrite the network as the step dla.adapt does, and compare.")
@click.option("--all", "everything", is_flag=True, help="List the layers on the DLA too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
def dla(
    model: Path,
    device: str,
    precision: Literal["int8", "fp16"],
    batch: int,
    adapt: bool,
    everything: bool,
    as_json: bool,
) -> None:
    """Predict which layers of MODEL.onnx run on the DLA of a Jetson, and why others do not.

    Exits with 0 where the network could be placed, wherever its layers run; with 3 where the board has no DLA or its
    TensorRT cannot use it.
    """
    import dataclasses

    from penjing.host import Host

    from penjing_tensorrt.dla.graph import checked, load
    from penjing_tensorrt.dla.limits import dla_of
    from penjing_tensorrt.dla.place import place
    from penjing_tensorrt.dla.strip import is_quantised, strip

    target = dla_of(Host().device(device), precision)
    graph, scales = checked(load(model), model), None
    if is_quantised(graph):
        stripped = strip(graph)
        graph, scales = stripped.plain, set(stripped.scales)
        target = dataclasses.replace(target, precision="int8")
    placement, before = place(graph, target, batch=batch, scales=scales), None
    rewrites: dict[str, int] = {}
    if adapt:
        from penjing_tensorrt.dla.adapt import adapted
        from penjing_tensorrt.dla.graph import prepare

        after, rewrites, _, _ = adapted(prepare(graph, batch)[0], target)
        placement, before = place(after, target, scales=scales), placement
    if as_json:
        table = placement.to_dict() | {"rewrites": rewrites}
        click.echo(json.dumps(table | {"before": before.to_dict() if before else None}, indent=1))
    else:
        _print(placement, before, rewrites, everything)


def _print(
    placement: Placement, before: Placement | None, rewrites: dict[str, int], everything: bool
) -> None:
    from penjing.console import wrapped

    if before is not None:
        click.echo(wrapped(f"As it is: {before.summary}"))
        for name, count in rewrites.items():
            click.echo(wrapped(f"{count} × {name}", first="  ", then="    "))
        click.echo(wrapped(f"Rewritten: {placement.summary}"))
    else:
        click.echo(wrapped(placement.summary))
    for note in placement.notes:
        click.echo(wrapped(f"! {note}").replace("!", click.style("!", fg="yellow"), 1))
    for layer in placement.layers if everything else placement.on_gpu:
        mark = click.style(layer.device, fg="green" if layer.device == "DLA" else "yellow")
        size = "×".join(map(str, layer.shape)) or "?"
        line = f"{layer.device}  {layer.name}  {layer.op} {size}: {layer.why} [{layer.rule}]"
        click.echo(wrapped(line, then="     ").replace(layer.device, mark, 1))
