"""Penjing's static quantisation beside onnxruntime's own, on trained networks: one table, printed as Markdown.

    python benchmarks/quant.py [--only NAME] [--keep FOLDER]

All models of a row see the same photographs: calibrated with the same, scored on the same others, and timed in
interleaved rounds at one thread. Networks and photographs are read from `../shared`, which is no part of the
project; a row whose files are missing is skipped, with the reason.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import logging
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from penjing import demo, measure
from penjing.api import Request, compress, plan
from penjing.errors import InputError
from penjing.here import this_machine
from penjing.host import Host
from penjing.preprocess import Preprocess
from penjing.step import Silent

if TYPE_CHECKING:
    from penjing.plan import Plan

SHARED = Path(__file__).resolve().parents[2] / "shared"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: photographs to calibrate and to score with, where a row draws them itself
CIFAR, SAMPLES = (300, 2000), (200, 300)


class MissingError(Exception):
    """What a row needs is not here."""


def shared(name: str) -> Path:
    """Return a file or folder of `../shared`."""
    path = SHARED / name
    if not path.exists():
        raise MissingError(f"there is no {path}")
    return path


def clothing(folder: Path) -> Request:
    """Return MobileNetV2, trained on clothes of ten classes."""
    return Request(
        "torchvision:mobilenet_v2?num_classes=10",
        "this-machine",
        data=shared("data/clothing"),
        weights=shared("models/mobilenet_v2_clothing160.pt"),
        preprocess=Preprocess(resize=(176, 176), crop=160, mean=MEAN, std=STD),
    )


def lite0(folder: Path) -> Request:
    """Return EfficientNet-Lite0 with ImageNet weights; the photographs are probably ones it was trained on."""
    photographs = sorted(shared("data/imagenet-samples").glob("*/*.jpg"))
    try:
        demo.network()
    except InputError as error:
        raise MissingError(error.message) from error
    count = sum(SAMPLES)
    for number, photograph in enumerate(photographs[:count]):
        part = "train" if number * SAMPLES[0] % count < SAMPLES[0] else "test"
        target = folder / part / photograph.parent.name / photograph.name
        target.parent.mkdir(parents=True)
        target.symlink_to(photograph)
    return Request("penjing.demo:network", "this-machine", data=folder, preprocess=demo.PREPROCESS)


def resnet20(folder: Path) -> Request:
    """Return ResNet-20, trained on CIFAR-10."""
    import numpy as np

    for split, file, count in (("train", "train", CIFAR[0]), ("test", "test-dev", CIFAR[1])):
        with np.load(shared(f"data/cifar10/{file}.npz")) as archive:
            data, offsets, labels = archive["jpeg"], archive["offsets"], archive["labels"]
            classes = archive["classes"]
        for i in range(count):
            target = folder / split / f"{labels[i]}-{classes[labels[i]]}" / f"{i:05}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data[offsets[i] : offsets[i + 1]].tobytes())
    return Request(
        f"{shared('models/cifar_resnet.py')}:resnet20",
        "this-machine",
        data=folder,
        weights=shared("models/resnet20_cifar10.pt"),
        preprocess=Preprocess(resize=(32, 32), mean=MEAN, std=STD),
    )


ROWS: dict[str, Callable[[Path], Request]] = {
    "MobileNetV2, clothing": clothing,
    "EfficientNet-Lite0, ImageNet samples": lite0,
    "ResNet-20, CIFAR-10": resnet20,
}


def onnxruntime_peers(original: Path, folder: Path, planned: Plan) -> dict[str, Path]:
    """Quantise with onnxruntime's quantize_static as it comes, and as its guide advises for this CPU."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quant_pre_process, quantize_static

    assert planned.data is not None and planned.model.preprocess is not None
    calibrate, preprocess = planned.data.calibrate, planned.model.preprocess
    name = input_name(original)

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
        def __init__(self) -> None:
            self.batches: Iterator[Any] = calibrate.batches(1, preprocess)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {name: batch.inputs}

    logging.getLogger().setLevel(logging.ERROR)
    prepared = folder / "prepared.onnx"
    quant_pre_process(str(original), str(prepared), skip_symbolic_shape=True)
    paths = {
        "onnxruntime, defaults": folder / "default.onnx",
        "onnxruntime, per channel": folder / "channel.onnx",
    }
    plain, best = paths.values()
    quantize_static(original, plain, Reader())
    quantize_static(
        prepared,
        best,
        Reader(),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=not this_machine().isa & {"avx512_vnni", "avx_vnni", "amx"},
    )
    return paths


def input_name(path: Path) -> str:
    """Return the name of an ONNX file's input."""
    import onnx

    return str(onnx.load(path, load_external_data=False).graph.input[0].name)


def row(name: str, folder: Path) -> list[dict[str, Any]]:
    """Make and measure all models of one row."""
    request = dataclasses.replace(ROWS[name](folder / "photographs"), out=folder / "run")
    host = Host()
    compress(request, host=host)
    planned = plan(request, host=host)
    data, backend, preprocess = planned.data, planned.backend, planned.model.preprocess
    assert data is not None and preprocess is not None
    original = folder / "run" / "original" / "model.onnx"
    paths = {
        "original": original,
        **onnxruntime_peers(original, folder, planned),
        "penjing": folder / "run" / "optimised" / "model.onnx",
    }
    image = planned.model.inputs[0]
    inputs = (dataclasses.replace(image, shape=(1, *image.shape[1:])),)
    models = {
        key: dataclasses.replace(planned.model, form="onnx", value=path, inputs=inputs)
        for key, path in paths.items()
    }
    sessions = {key: backend.open(model, planned.device) for key, model in models.items()}
    tallies = measure.answer(sessions, models["original"], data.test, preprocess, planned.task, Silent())
    batch = next(iter(data.test.batches(1, preprocess))).inputs
    timing = measure.interleave(sessions, batch, threads=1, seconds=20, progress=Silent())
    lines = []
    for key, path in paths.items():
        tally, speed = tallies[key], timing.record(key)
        lines.append(
            {
                "size": path.stat().st_size / original.stat().st_size,
                "accuracy": sum(tally.right) / len(tally.right),
                "agreement": sum(tally.agrees) / len(tally.agrees),
                "sqnr": tally.sqnr,
                "speed": speed["speedup"],
                "interval": speed["speedup_interval"],
                "name": "float" if key == "original" else key,
                "n": tally.n,
            }
        )
    return lines


def table(name: str, lines: list[dict[str, Any]]) -> str:
    """Return one row of networks as a Markdown table."""
    out = io.StringIO()
    print(f"\n**{name}**, {lines[0]['n']} photographs\n", file=out)
    print("| | size % | top-1 % | same answer % | SQNR dB | speed |\n|---|---|---|---|---|---|", file=out)
    for line in lines:
        low, high = line["interval"]
        fidelity = (
            "– | –" if line["name"] == "float" else f"{100 * line['agreement']:.1f} | {line['sqnr']:.1f}"
        )
        print(
            f"| {line['name']} | {100 * line['size']:.1f} | {100 * line['accuracy']:.1f} | {fidelity} "
            f"| {line['speed']:.2f} ({low:.2f}–{high:.2f}) |",
            file=out,
        )
    return out.getvalue()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", choices=list(ROWS), help="one row")
    parser.add_argument("--keep", type=Path, help="an empty folder to leave models and reports in")
    options = parser.parse_args()
    device = this_machine()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("penjing", "onnxruntime", "onnx"))
    print(f"{device.title} ({', '.join(sorted(device.isa))}), 1 thread; {versions}.")
    for name in [options.only] if options.only else ROWS:
        with TemporaryDirectory() as scratch:
            folder = (options.keep or Path(scratch)) / name.split(",")[0].lower()
            folder.mkdir(parents=True)
            try:
                print(table(name, row(name, folder)), flush=True)
            except MissingError as missing:
                print(f"\n**{name}**: skipped, {missing}", flush=True)


if __name__ == "__main__":
    main()
