"""Compress networks for NVIDIA devices that are not here, and print what can be proved of each without them.

    python benchmarks/targets.py [--device NAME ...] [--network NAME ...] [--keep FOLDER]

A line is one network for one device: whether the graph keeps to the rules of the device (`penjing lint`), what
TensorRT-RTX's builder says of it where that is installed (`pip install "penjing[rtx]"`), how near its outputs stay to
the float network's on photographs it was not calibrated with, its size, and how the bundle has it built. Nothing is
timed: that needs the device. Networks of torchvision without weights are random; SQNR and size mean something for
them, accuracy does not. Photographs and trained weights are read from PENJING_SHARED, else `../shared`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from networks import default_shared
from penjing.api import Request, compress
from penjing.errors import PenjingError
from penjing.host import Host
from penjing.preprocess import Preprocess

SHARED = default_shared()
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PHOTOGRAPHS = SHARED / "data" / "coco128"
DEVICES = (
    "rtx-3090",
    "jetson-orin-nano",
    "jetson-agx-orin",
    "jetson-agx-orin+dla",
    "jetson-xavier-nx",
    "jetson-thor",
)
RANDOM = ("resnet18", "resnet50", "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf")


def networks() -> dict[str, Request]:
    """Return what is compressed, by name, for no device yet."""
    clothing = Request(
        "torchvision:mobilenet_v2?num_classes=10",
        "",
        data=SHARED / "data" / "clothing",
        weights=SHARED / "models" / "mobilenet_v2_clothing160.pt",
        preprocess=Preprocess(resize=(176, 176), crop=160, mean=MEAN, std=STD),
    )
    found = {"mobilenet_v2-clothing": clothing}
    for name in RANDOM:
        found[name] = Request(f"torchvision:{name}?weights=none", "", data=PHOTOGRAPHS / "train" / "images")
    detector = Preprocess(resize=(352, 352), channels="BGR", mean=(0.0,) * 3, std=(1.0,) * 3)
    found["fastestdet"] = Request(
        str(SHARED / "models" / "fastestdet.onnx"),
        "",
        data=PHOTOGRAPHS / "train" / "images",
        preprocess=detector,
    )
    return found


def line(host: Host, name: str, request: Request, device: str, folder: Path) -> str:
    """Return the line of one network for one device."""
    from penjing_quant.lint import lint

    board, _, dla = device.partition("+")
    settings = ("dla.core=0",) if dla else ()
    request = dataclasses.replace(request, device=board, settings=settings, out=folder)
    try:
        report = compress(request, host=host)
    except PenjingError as error:
        return f"| {name} | {device} | refused: {error.message} | | | | |"
    result = report["columns"][-1]
    target = host.device(board)
    backend = host.steps["dla" if dla else target.backend]()
    broken = lint(folder / "optimised" / "model.onnx", target, backend)
    details = [step["details"] for step in report["steps"] if step["name"] == backend.name][-1]
    manifest = json.loads((folder / "bundle" / "manifest.json").read_text())
    build: dict[str, Any] = manifest["runtime"].get("build", {})
    cells = [
        name,
        device,
        ", ".join(sorted({finding.rule for finding in broken})) or "clean",
        outcome(details.get("rtx", "–")),
        f"{result['fidelity']['sqnr_db']:.1f}",
        f"{100 * result['size_ratio']:.1f}",
        " ".join(word for word in build.get("command", []) if word.startswith("--") and "=" not in word),
    ]
    return f"| {' | '.join(cells)} |"


def outcome(verdict: Any) -> str:
    """Return what TensorRT-RTX said, in a word."""
    return str(verdict.get("outcome", verdict)) if isinstance(verdict, dict) else str(verdict).split(":")[0]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--device", action="append", choices=DEVICES, help="one device; may be repeated")
    parser.add_argument("--network", action="append", help="one network; may be repeated")
    parser.add_argument("--keep", type=Path, help="an empty folder to leave runs in")
    options = parser.parse_args()
    host = Host()
    print(
        "| network | device | rules | TensorRT-RTX | SQNR dB | size % | flags |\n|---|---|---|---|---|---|---|"
    )
    with TemporaryDirectory() as scratch:
        for name, request in networks().items():
            if options.network and name not in options.network:
                continue
            if request.data is None or not request.data.exists():
                print(f"| {name} | | skipped: there is no {request.data} | | | | |")
                continue
            for device in options.device or DEVICES:
                folder = (options.keep or Path(scratch)) / f"{name}-{device}"
                print(line(host, name, request, device, folder), flush=True)


if __name__ == "__main__":
    main()
