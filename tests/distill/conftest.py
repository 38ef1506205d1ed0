"""Photographs of three colours, a trained teacher and untrained networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from penjing import Context, Data, Goal, Model, Preprocess, Source, Tensor, open_data
from penjing_training import TrainingOptions
from penjing_training.loop import train
from PIL import Image
from torch import nn

PREPROCESS = Preprocess(resize=(20, 20), crop=16)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Return 180 photographs."""
    folder, random = tmp_path_factory.mktemp("colours") / "photos", np.random.default_rng(0)
    for channel, colour in enumerate(("a", "b", "c")):
        (folder / colour).mkdir(parents=True)
        for number in range(60):
            pixels = random.integers(0, 160, (24, 22, 3))
            pixels[..., channel] += random.integers(30, 90)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / colour / f"{number}.png")
    return open_data(folder, outputs=3)


def network(seed: int = 0, width: int = 8, classes: int = 3) -> nn.Module:
    """Return a network of `width` channels with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = (
            nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1, stride=2), nn.ReLU()),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, classes),
        )
        return nn.Sequential(*layers).eval()


def as_model(module: nn.Module, labels: tuple[str, ...] = ()) -> Model:
    """Return a module as the host hands it to a step."""
    inputs = (Tensor("input", (1, 3, 16, 16)),)
    return Model("torch", module, "test", "0", inputs, preprocess=PREPROCESS, labels=labels)


@pytest.fixture
def context(data: Data, tmp_path: Path) -> Context:
    """Return a context whose original has eight channels; the source "wide" has twelve, "other" five classes."""
    folder = tmp_path / "room"
    folder.mkdir()
    known = {"wide": network(2, 12), "narrow": network(3, 4), "other": network(1, 8, 5)}

    def opened(source: Source) -> Model:
        return as_model(known[source.name])

    device: Any = SimpleNamespace(name="board", here=False)
    backend: Any = None
    return Context(device, Goal(), data, folder, backend, original=as_model(network(1)), open=opened)


@pytest.fixture(scope="session")
def taught(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Return a network that tells the colours."""
    device: Any = SimpleNamespace(name="board", here=False)
    context = Context(device, Goal(), data, tmp_path_factory.mktemp("room"), device)
    options = TrainingOptions(epochs=20, learning_rate=2e-2, batch_size=8)
    module = network(1)
    return as_model(train(module, options, as_model(module), context))


@pytest.fixture
def kit() -> SimpleNamespace:
    """Return what the tests build networks with."""
    return SimpleNamespace(network=network, as_model=as_model)


@pytest.fixture
def right(data: Data) -> Callable[[nn.Module], float]:
    """Return a function that tells which share of the test photographs a network gets right."""

    def share(module: nn.Module) -> float:
        (batch,) = data.test.batches(200, PREPROCESS)
        with torch.no_grad():
            answers = module(torch.from_numpy(batch.inputs)).argmax(1).numpy()
        return float((answers == batch.labels).mean())

    return share
