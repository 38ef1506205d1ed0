"""A small real network, photographs it tells apart, and the command line without a new process for each command."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

#: trained on nothing: each layer passes the three colours on beside a little of everything, the head compares them
MODEL = '''"""A network of a few layers that tells red, green and blue."""

import torch
from torch import nn


def network():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
    )
    with torch.no_grad():
        for layer in (net[0], net[3]):
            layer.weight.mul_(0.01)
            for channel in range(3):
                layer.weight[channel, channel, 1, 1] += 1
        net[3].bias.zero_()
        net[7].bias.zero_()
        net[7].weight[:, :3] += 10 * torch.eye(3)
    return net
'''
PREPROCESS = """resize = 36
crop = 32
mean = [0.0, 0.0, 0.0]
std = [1.0, 1.0, 1.0]
"""
COLOURS = ("a-red", "b-green", "c-blue")


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def photographs(folder: Path, each: int = 20, seed: int = 0) -> Path:
    """Write `each` photographs for each of three colours."""
    random = np.random.default_rng(seed)
    for channel, colour in enumerate(COLOURS):
        (folder / colour).mkdir(parents=True)
        for number in range(each):
            pixels = random.integers(0, 140, (40, 40, 3))
            pixels[..., channel] += random.integers(15, 90)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / colour / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def command() -> Callable[..., Answer]:
    """Return a function that runs `penjing` with arguments, in a folder, in this process."""
    from penjing.cli import main

    def run(*arguments: object, cwd: Path) -> Answer:
        out, err = io.StringIO(), io.StringIO()
        before, argv = Path.cwd(), sys.argv
        os.chdir(cwd)
        sys.argv = ["penjing", *map(str, arguments)]
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            os.chdir(before)
            sys.argv = argv
        return Answer(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(autouse=True, scope="session")
def little_time() -> Iterator[None]:
    """Time networks for a moment rather than twenty seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("penjing.compare.TIMING", 0.1)
        yield


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with model.py, preprocess.toml and photos/."""
    folder = tmp_path_factory.mktemp("place")
    photographs(folder / "photos")
    (folder / "model.py").write_text(MODEL)
    (folder / "preprocess.toml").write_text(PREPROCESS)
    return folder


@pytest.fixture(scope="session")
def finished(place: Path, command: Callable[..., Answer]) -> Path:
    """Return the folder of a finished run, not to be changed: `workplace` has a copy of it."""
    answer = command(*COMPRESS, "--max-size", 1, "--out", "finished", "--json", cwd=place)
    assert answer.code == 0, answer.err
    (place / "finished.txt").write_text(answer.out)
    (place / "progress.txt").write_text(answer.err)
    return place / "finished"


@pytest.fixture
def workplace(tmp_path: Path, place: Path, finished: Path) -> Path:
    """Return a folder with copies of the model, the photographs, and the finished run as run/."""
    folder = tmp_path / "work"
    folder.mkdir()
    for name in ("model.py", "preprocess.toml"):
        shutil.copy(place / name, folder)
    shutil.copytree(place / "photos", folder / "photos")
    shutil.copytree(finished, folder / "run")
    return folder


#: layers that stay float are otherwise chosen by timing, and results compared here must not depend on the clock
COMPRESS = (
    *("compress", "model.py:network", "--data", "photos", "--preprocess", "preprocess.toml"),
    *("--set", "quant.static.float_layers=0"),
)


@pytest.fixture(scope="session")
def compress() -> tuple[str, ...]:
    """Return the command that made the finished run."""
    return *COMPRESS, "--out", "run"
