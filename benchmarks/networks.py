"""The networks and photographs that the benchmarks ask about, each as a request to Penjing."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penjing import demo
from penjing.api import Request
from penjing.errors import InputError
from penjing.preprocess import Preprocess

if TYPE_CHECKING:
    from penjing.plan import Plan

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: photographs to calibrate and to score with, where a row draws them itself
CIFAR, SAMPLES = (300, 5000), (200, 300)


class MissingError(Exception):
    """What a row needs is not here."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where networks and photographs lie, and how many of each split to use at most (None for all)."""

    shared: Path
    limit: int | None = None

    def find(self, name: str) -> Path:
        """Return a file or folder of the shared ones."""
        path = self.shared / name
        if not path.exists():
            raise MissingError(f"there is no {path}")
        return path

    def most(self, count: int) -> int:
        """Return `count`, or the limit where that is less."""
        return count if self.limit is None else min(count, self.limit)


@dataclasses.dataclass(frozen=True)
class Row:
    """One network: how to ask for it, and how it is scored where the host's tasks do not."""

    request: Callable[[Place, Path], Request]
    metric: str = "top-1 %"
    #: given a session, the plan and the place; None for the host's own task
    score: Callable[[Any, Plan, Place], float] | None = None


def default_shared() -> Path:
    """Return the folder that PENJING_SHARED names, or the one beside the project."""
    return Path(os.environ.get("PENJING_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def clothing(place: Place, folder: Path) -> Request:
    """Return MobileNetV2, trained on clothes of ten classes."""
    data = place.find("data/clothing")
    if place.limit is not None:
        for part in ("train", "validation"):
            photographs = sorted((data / part).glob("*/*"))
            _link(photographs[:: max(1, len(photographs) // place.limit)], folder / part)
        data = folder
    return Request(
        "torchvision:mobilenet_v2?num_classes=10",
        "this-machine",
        data=data,
        weights=place.find("models/mobilenet_v2_clothing160.pt"),
        preprocess=Preprocess(resize=(176, 176), crop=160, mean=MEAN, std=STD),
    )


def lite0(place: Place, folder: Path) -> Request:
    """Return EfficientNet-Lite0 with ImageNet weights; the photographs are probably ones it was trained on."""
    photographs = sorted(place.find("data/imagenet-samples").glob("*/*.jpg"))
    try:
        demo.network()
    except InputError as error:
        raise MissingError(error.message) from error
    calibrate, test = SAMPLES
    drawn = [i * calibrate % (calibrate + test) < calibrate for i in range(len(photographs))]
    for part, wanted in (("train", True), ("test", False)):
        chosen = [path for path, is_drawn in zip(photographs, drawn, strict=True) if is_drawn is wanted]
        _link(chosen[: place.most(calibrate if wanted else test)], folder / part)
    return Request("penjing.demo:network", "this-machine", data=folder, preprocess=demo.PREPROCESS)


def cifar(entry: str, place: Place, folder: Path, train: int = CIFAR[0]) -> Request:
    """Return one of the ResNets trained on CIFAR-10, with so many photographs of its training part at most."""
    import numpy as np

    for split, file, count in (("train", "train", train), ("test", "test-dev", CIFAR[1])):
        with np.load(place.find(f"data/cifar10/{file}.npz")) as archive:
            data, offsets, labels = archive["jpeg"], archive["offsets"], archive["labels"]
            classes = archive["classes"]
        for i in range(min(len(labels), max(100, place.most(count)))):  # fewer would not show all ten classes
            target = folder / split / f"{labels[i]}-{classes[labels[i]]}" / f"{i:05}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data[offsets[i] : offsets[i + 1]].tobytes())
    return Request(
        f"{place.find('models/cifar_resnet.py')}:{entry}",
        "this-machine",
        data=folder,
        weights=place.find(f"models/{entry}_cifar10.pt"),
        preprocess=Preprocess(resize=(32, 32), mean=MEAN, std=STD),
    )


def fastestdet(place: Place, folder: Path) -> Request:
    """Return FastestDet, trained on COCO, with photographs of COCO."""
    data = place.find("data/coco128")
    for part, target in (("train", "train"), ("validation", "test")):
        photographs = sorted((data / part / "images").glob("*.jpg"))
        (folder / target).mkdir(parents=True)
        for photograph in photographs[: place.most(len(photographs))]:
            (folder / target / photograph.name).symlink_to(photograph)
    return Request(
        str(place.find("models/fastestdet.onnx")),
        "this-machine",
        data=folder,
        preprocess=Preprocess(resize=(352, 352), mean=(0.0,) * 3, std=(1.0,) * 3, channels="BGR"),
    )


def extra(model: Path, preprocess: Path, data: Path) -> Row:
    """Return a classifier given as an ONNX file with its preprocessing and labelled photographs."""
    return Row(lambda place, folder: Request(str(model), "this-machine", data=data, preprocess=preprocess))


def _link(photographs: Iterable[Path], folder: Path) -> None:
    for photograph in photographs:
        target = folder / photograph.parent.name / photograph.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(photograph)


def rows() -> dict[str, Row]:
    """Return the rows of the table of accuracy."""
    from detection import ap50

    return {
        "MobileNetV2, clothing": Row(clothing),
        "EfficientNet-Lite0, ImageNet samples": Row(lite0),
        "ResNet-20, CIFAR-10": Row(partial(cifar, "resnet20")),
        "FastestDet, COCO": Row(fastestdet, "AP50 %", ap50),
    }
