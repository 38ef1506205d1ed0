"""Photographs of three colours, and small networks that can learn to tell them apart."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from penjing import Context, Data, Goal, Model, Preprocess, Tensor, open_data
from PIL import Image
from torch import nn

SIZE = 16
PREPROCESS = Preprocess(resize=(20, 20), crop=SIZE)


def photographs(folder: Path, each: int = 40) -> Path:
    """Write photographs of three colours, in class folders."""
    random = np.random.default_rng(0)
    for channel, colour in enumerate(("a", "b", "c")):
        (folder / colour).mkdir(parents=True)
        for number in range(each):
            pixels = random.integers(0, 160, (24, 22, 3))
            pixels[..., channel] += random.integers(10, 90)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / colour / f"{number}.png")
    return folder


def network(seed: int = 0, *, norm: bool = True, classes: int = 3, width: int = 8) -> nn.Module:
    """Return a small network with random weights, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [
            nn.Conv2d(3, width, 3, padding=1, stride=2),
            nn.BatchNorm2d(width) if norm else nn.Identity(),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(width, classes),
        ]
        return nn.Sequential(*layers).eval()


def as_model(module: nn.Module, preprocess: Preprocess = PREPROCESS) -> Model:
    """Return a module as the host hands it to a step."""
    inputs = (Tensor("input", (1, 3, SIZE, SIZE)),)
    return Model("torch", module, "test", "0", inputs, preprocess=preprocess)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return open_data(photographs(tmp_path_factory.mktemp("colours") / "photos"), outputs=3)


@pytest.fixture
def unlabelled(data: Data) -> Data:
    """Return the same photographs without their labels."""

    def without(split: Any) -> Any:
        photos = tuple(dataclasses.replace(photo, label=None) for photo in split.photos)
        return dataclasses.replace(split, photos=photos, labelled=False)

    return dataclasses.replace(data, train=without(data.train), select=without(data.select))


@pytest.fixture
def make_context(data: Data, tmp_path: Path) -> Callable[..., Context]:
    """Return a function that makes a context with these photographs, changes being given by name."""
    (tmp_path / "room").mkdir()

    def make(**changes: Any) -> Context:
        given = {"data": data, "original": as_model(network(1)), **changes}
        device = SimpleNamespace(name="board", here=False)
        return Context(device, Goal(), folder=tmp_path / "room", backend=None, **given)  # type: ignore[arg-type]  # none is asked for

    return make


@pytest.fixture
def context(make_context: Callable[..., Context]) -> Context:
    return make_context()


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """Return what the tests build networks and models with."""
    return SimpleNamespace(network=network, as_model=as_model, photographs=photographs, preprocess=PREPROCESS)


@pytest.fixture(scope="session")
def plain() -> ModuleType:
    """Return plain.py of this folder, a plugin and a script."""
    path = Path(__file__).with_name("plain.py")
    specification = importlib.util.spec_from_file_location("penjing_plain", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["penjing_plain"] = module
    specification.loader.exec_module(module)
    return module
