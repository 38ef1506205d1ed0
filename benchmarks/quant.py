"""Penjing's quantisation beside others', on trained networks: tables, printed as Markdown.

    python benchmarks/quant.py accuracy [--only NAME] [--keep FOLDER]
    python benchmarks/quant.py w4a8
    python benchmarks/quant.py memory

All models of a row see the same photographs: calibrated with the same, scored on the same others, and timed in
interleaved rounds at one thread. Networks and photographs are read from --shared, else PENJING_SHARED, else
`../shared`; they are no part of the project, and a row whose files are missing is skipped, with the reason.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import memory
import networks
from networks import MissingError, Place, Row
from peers import nncf_peer, onnxruntime_peers
from penjing import compare, measure
from penjing.api import compress, plan
from penjing.here import this_machine
from penjing.host import Host
from penjing.step import Silent

#: settings of quant.static for weights of 4 bits, by what is done
W4A8 = {
    "min-max, one scale a tensor": (
        "method=minmax",
        "per_channel=false",
        "equalise=false",
        "bias_correction=false",
    ),
    "min-max, one scale a channel": ("method=minmax", "equalise=false", "bias_correction=false"),
    "with equalisation and bias correction": (),
    "with AdaRound": ("adaround=true",),
}


def accuracy(
    name: str, row: Row, place: Place, folder: Path, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Make and measure all models of one row."""
    settings = tuple(options.set or ())
    request = row.request(place, folder / "photographs")
    request = dataclasses.replace(request, out=folder / "run", settings=settings, recipe=options.recipe)
    host = Host()
    compress(request, host=host)
    planned = plan(request, host=host)
    original = folder / "run" / "original" / "model.onnx"
    paths = {"original": original}
    paths |= onnxruntime_peers(original, folder, planned)
    if not options.no_nncf:
        paths |= nncf_peer(original, folder, planned, options.environments / "nncf")
    paths["penjing"] = folder / "run" / "optimised" / "model.onnx"
    return _measured(planned, paths, row, place, options.seconds)


def w4a8(place: Place, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Make and measure ResNet-20 with weights of 4 bits, simulated."""
    row, host = Row(networks.resnet20), Host()
    request = row.request(place, folder / "photographs")
    paths: dict[str, Path] = {}
    for number, (label, settings) in enumerate(W4A8.items()):
        common = ("quant.static.weight_bits=4", "quant.static.float_layers=0")
        asked = (*common, *(f"quant.static.{setting}" for setting in settings))
        run = dataclasses.replace(request, settings=asked, out=folder / f"run{number}")
        compress(run, host=host)
        paths.setdefault("original", folder / "run0" / "original" / "model.onnx")
        paths[label] = folder / f"run{number}" / "optimised" / "model.onnx"
    return _measured(plan(request, host=host), paths, row, place, options.seconds)


def _measured(
    planned: Any, paths: dict[str, Path], row: Row, place: Place, seconds: float
) -> list[dict[str, Any]]:
    data, backend, preprocess = planned.data, planned.backend, planned.model.preprocess
    image = planned.model.inputs[0]
    inputs = (dataclasses.replace(image, shape=(1, *image.shape[1:])),)
    models = {
        key: dataclasses.replace(planned.model, form="onnx", value=path, inputs=inputs)
        for key, path in paths.items()
    }
    sessions = {key: backend.open(model, planned.device) for key, model in models.items()}
    tallies = measure.answer(sessions, models["original"], data.test, preprocess, planned.task, Silent())
    batch = next(iter(data.test.batches(1, preprocess))).inputs
    timing = measure.interleave(sessions, batch, threads=1, seconds=seconds, progress=Silent())
    lines = []
    for key, path in paths.items():
        tally, speed = tallies[key], timing.record(key)
        right = sum(tally.right) / len(tally.right) if tally.right else None
        lines.append(
            {
                "size": path.stat().st_size / paths["original"].stat().st_size,
                "accuracy": right if row.score is None else row.score(sessions[key], planned, place),
                "agreement": sum(tally.agrees) / len(tally.agrees) if tally.agrees else None,
                "sqnr": tally.sqnr,
                "speed": speed["speedup"],
                "interval": speed["speedup_interval"],
                "name": "float" if key == "original" else key,
                "n": tally.n,
            }
        )
    return lines


def table(title: str, metric: str, lines: list[dict[str, Any]]) -> str:
    """Return one row of networks as a Markdown table; what is retained is against the first line."""
    out = io.StringIO()
    print(f"\n**{title}**, {lines[0]['n']} photographs\n", file=out)
    head = ("", "size %", metric, "retained %", "same answer %", "SQNR dB", "speed")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", file=out)
    whole = lines[0]["accuracy"]
    for line in lines:
        low, high = line["interval"]
        kept = line["accuracy"] / whole if whole and line["accuracy"] is not None else None
        cells = [
            line["name"],
            f"{100 * line['size']:.1f}",
            _percent(line["accuracy"]),
            _percent(kept),
            "–" if line["name"] == "float" else _percent(line["agreement"]),
            "–" if line["name"] == "float" or line["sqnr"] is None else f"{line['sqnr']:.1f}",
            f"{line['speed']:.2f} ({low:.2f}–{high:.2f})",
        ]
        print(f"| {' | '.join(cells)} |", file=out)
    return out.getvalue()


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("table", nargs="?", choices=["accuracy", "w4a8", "memory"], default="accuracy")
    parser.add_argument("--only", choices=list(networks.rows()), help="one row of the table of accuracy")
    parser.add_argument("--keep", type=Path, help="an empty folder to leave models and reports in")
    parser.add_argument(
        "--shared", type=Path, default=networks.default_shared(), help="networks and photographs"
    )
    parser.add_argument("--limit", type=int, help="photographs of each split at most: to try the script out")
    parser.add_argument("--seconds", type=float, default=20, help="seconds to time each row for")
    parser.add_argument(
        "--extra", nargs=4, action="append", default=[], metavar=("NAME", "ONNX", "PREPROCESS", "DATA"),
        help="a further row: a classifier with its preprocessing and labelled photographs",
    )  # fmt: skip
    parser.add_argument(
        "--set", action="append", metavar="STEP.OPTION=VALUE", help="as `penjing compress` takes it"
    )
    parser.add_argument("--recipe", type=Path, help="a recipe in place of the device's, with quant.mixed say")
    parser.add_argument("--no-nncf", action="store_true", help="leave nncf out")
    parser.add_argument(
        "--environments", type=Path, default=Path.home() / ".cache" / "penjing-benchmarks",
        help="where peers are installed, each in a virtual environment of its own",
    )  # fmt: skip
    return parser.parse_args()


def main() -> None:
    """Print the table asked for."""
    options = _options()
    place = Place(options.shared, options.limit)
    compare.TIMING = min(compare.TIMING, options.seconds)
    device = this_machine()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("penjing", "onnxruntime", "onnx"))
    print(f"{device.title} ({', '.join(sorted(device.isa))}), 1 thread; {versions}.")
    rows = networks.rows()
    for name, model, preprocess, data in options.extra:
        rows[name] = networks.extra(Path(model), Path(preprocess), Path(data))
    try:
        if options.table == "memory":
            print("\n".join(memory.table(place)), flush=True)
            return
        with TemporaryDirectory() as scratch:
            base = options.keep or Path(scratch)
            if options.table == "w4a8":
                print(table("ResNet-20, CIFAR-10, W4A8 simulated", "top-1 %", w4a8(place, base, options)))
                return
            for name in [options.only] if options.only else rows:
                folder = base / name.split(",")[0].lower().replace(" ", "-")
                folder.mkdir(parents=True)
                try:
                    lines = accuracy(name, rows[name], place, folder, options)
                    print(table(name, rows[name].metric, lines), flush=True)
                except MissingError as missing:
                    print(f"\n**{name}**: skipped, {missing}", flush=True)
    except MissingError as missing:
        print(f"\nskipped, {missing}", flush=True)


if __name__ == "__main__":
    main()
