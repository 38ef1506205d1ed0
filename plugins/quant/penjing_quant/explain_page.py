"""What `penjing explain` tells as rows of tables, and as a page in the report's look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

from penjing.exhibit import Bars, Exhibit, Table, to_dict

if TYPE_CHECKING:
    from penjing.report.markup import Markup
    from penjing.report.schema import ExhibitRecord

    from penjing_quant.explain import Explanation
    from penjing_quant.layerwise import Layer, Tensor

Rows = tuple[list[str], list[list[str]]]


def worst(layers: Sequence[Layer]) -> list[Layer]:
    """Return layers, the one that adds most noise by itself first."""
    return sorted(layers, key=lambda layer: float("inf") if layer.isolated is None else layer.isolated)


def network_rows(found: Explanation) -> Rows:
    """Return a row for each network: what in it is quantised, and what that costs."""
    names = {
        "nothing": "float", "weights": "weights alone", "activations": "activations alone", "both": "both",
    }  # fmt: skip
    head = ["quantised", "SQNR", "same answer", found.metric or "score", "drop"]
    rows = []
    for key, verdict in found.networks.items():
        drop = "–"
        if verdict.drop is not None and verdict.drop_interval is not None:
            low, high = verdict.drop_interval
            drop = f"{verdict.drop:.1f} points ({low:.1f} to {high:.1f})"
        rows.append(
            [names[key], _decibels(None if verdict.sqnr >= 200 else verdict.sqnr), _percent(verdict.agreement),
             _percent(verdict.score), drop if key != "nothing" else "–"]
        )  # fmt: skip
    return head, rows


def layer_rows(layers: Sequence[Layer]) -> Rows:
    """Return a row for each layer."""
    head = ["layer", "operator", "by itself", "with all before", "runs on"]
    return head, [
        [layer.name, layer.op, _decibels(layer.isolated), _decibels(layer.cumulative),
         "integers" if layer.integer else "float"]
        for layer in layers
    ]  # fmt: skip


def tensor_rows(tensors: Sequence[Tensor]) -> Rows:
    """Return a row for each quantised activation."""
    head = ["activation", "range", "kept", "clipped", "step"]
    return head, [
        [tensor.name, f"{tensor.low:.4g} to {tensor.high:.4g}", f"{tensor.kept_low:.4g} to {tensor.kept_high:.4g}",
         f"{100 * tensor.clipped:.3g} %", f"{tensor.scale:.3g}"]
        for tensor in tensors
    ]  # fmt: skip


def _decibels(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} dB"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def pictures(found: Explanation) -> Iterator[Exhibit]:
    """Yield the pictures and tables of the page."""
    yield Table("What quantising costs, by what is quantised", *network_rows(found))
    marked = [layer.name for layer in found.layers if not layer.integer]
    alone = {layer.name: _rounded(layer.isolated) for layer in found.layers}
    yield Bars(
        "SQNR of each layer by itself: its weights and input quantised alone; the marked ones compute in float",
        "dB", alone, marked,
    )  # fmt: skip
    after = {layer.name: _rounded(layer.cumulative) for layer in found.layers}
    yield Bars("SQNR of each layer’s output, all before it quantised too", "dB", after, marked)
    yield Bars(
        "Share of each activation’s values that saturate", "%",
        {tensor.name: round(100 * tensor.clipped, 4) for tensor in found.tensors},
    )  # fmt: skip
    yield Table("Layers, the one that loses most by itself first", *layer_rows(worst(found.layers)))
    yield Table("Activations", *tensor_rows(found.tensors))


def render(found: Explanation) -> str:
    """Return the page as an HTML document."""
    from penjing.report import exhibits, html, words
    from penjing.report.markup import tag

    lede = (
        f"{found.photographs} photographs of the {found.split} split; compared with {found.compared_with}. "
        "SQNR is the signal-to-quantisation-noise ratio: 20 dB is an error of a tenth, 40 dB of a hundredth."
    )
    header = tag(
        "header",
        tag("p", words.visible(found.run), class_="subject"),
        tag("h1", f"Where the {found.column} model loses accuracy"),
        tag("p", words.visible(lede), class_="lede"),
        # by the hash the report knows that this page is about its model, and links to it
        tag(
            "p",
            tag("a", "The report", href="report.html"),
            f" of this run. SHA-256 of the model: {found.sha256}",
        ),
    )

    def parts() -> Iterator[Markup]:
        yield header
        for exhibit in pictures(found):
            yield tag("section", exhibits.render(cast("ExhibitRecord", to_dict(exhibit))))

    return html.page(f"{words.visible(found.run)} – Penjing explain", parts())
