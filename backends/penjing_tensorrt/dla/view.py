"""Showing a placement: in the report, and on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING

from penjing.exhibit import Lanes, Table
from penjing.report.words import percent

if TYPE_CHECKING:
    from penjing.step import Context

    from penjing_tensorrt.dla.place import Layer, Placement

#: rows of a table in the report; report.json has them all
MOST = 400
HEAD = ("layer", "operator", "output", "runs on", "rule", "why")


def show(context: Context, placement: Placement, before: Placement | None = None) -> None:
    """Put a placement into the report: totals, a picture of the order of execution, and every layer."""
    title = "Predicted placement"
    context.show(totals(placement, before))
    context.show(picture(placement, title))
    context.show(Table(f"{title} of each layer", HEAD, [row(layer) for layer in placement.layers[:MOST]]))
    for note in placement.notes:
        context.warn(note)


def totals(placement: Placement, before: Placement | None = None) -> Table:
    """Return the totals of a placement, beside those of the network as it came."""
    both = [placement] if before is None else [before, placement]
    rows = [
        ("layers on the DLA", *(f"{len(p.on_dla)} of {len(p.layers)}" for p in both)),
        ("multiply-accumulates on the DLA", *("–" if p.share is None else percent(p.share) for p in both)),
        ("loadables", *(str(p.loadables) for p in both)),
        ("crossings to the DLA", *(str(p.to_dla) for p in both)),
        ("crossings to the GPU", *(str(p.to_gpu) for p in both)),
    ]
    head = ("", *(("as it came", "rewritten") if before is not None else ("",)))
    return Table(f"Predicted for {placement.target.title}", head, rows)


def picture(placement: Placement, title: str) -> Lanes:
    """Return the order of execution as a lane for each device; neighbours on the same device are one segment."""
    return Lanes(
        f"{title}: layers in the order of execution, as wide as they are many",
        ("DLA", "GPU"),
        [(name, lane, float(count)) for name, lane, count in _segments(placement)],
    )


def _segments(placement: Placement) -> Iterator[tuple[str, str, int]]:
    for (device, loadable), group in groupby(placement.layers, lambda layer: (layer.device, layer.loadable)):
        layers = list(group)
        names = layers[0].name if len(layers) == 1 else f"{layers[0].name} … {layers[-1].name}"
        label = names if loadable is None else f"loadable {loadable}: {names}"
        yield label, device, len(layers)


def row(layer: Layer) -> tuple[str, ...]:
    """Return a layer as cells of a table."""
    where = (
        layer.device
        if layer.loadable is None
        else f"{layer.device}, loadable {layer.loadable}, {layer.precision}"
    )
    return (layer.name, layer.op, "×".join(map(str, layer.shape)) or "?", where, layer.rule, layer.why)
