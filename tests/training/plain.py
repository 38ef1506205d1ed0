"""A plugin whose backend runs PyTorch networks, so that a run takes seconds; and a run to be killed.

`python plain.py FOLDER` carries out FOLDER/recipe.toml, printing a line for each step of training.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penjing import Backend, Host, Request, Scheme, compress, hookimpl

MODEL = """
import torch
from torch import nn


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 3),
    )


def student():
    torch.manual_seed(1)
    layers = (nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return nn.Sequential(*layers)
"""
PREPROCESS = "resize = [20, 20]\ncrop = 16\n"


@dataclass(frozen=True)
class Runtime(Backend):
    """Run the PyTorch network."""

    name = "plain.run"
    accepts = frozenset({"torch"})
    produces = "torch"
    exact = True

    def available(self, device: Any) -> str:
        return "it is for tests"

    def scheme(self, device: Any) -> Scheme | None:
        return None

    def apply(self, model: Any, context: Any) -> Any:
        return model

    def open(self, model: Any, device: Any) -> Any:
        import torch

        def run(batch: Any) -> list[Any]:
            with torch.no_grad():
                return [model.value(torch.from_numpy(batch)).numpy()]

        return run


@hookimpl
def penjing_backends() -> list[type[Backend]]:
    return [Runtime]


class Told:
    """Prints a line for each step of training."""

    def __init__(self) -> None:
        self._open: list[str] = []

    def begin(self, what: str, total: int | None = None) -> None:
        self._open.append(what)

    def advance(self, count: int = 1) -> None:
        if count and self._open[-1].startswith("epoch"):
            print("step", count, flush=True)

    def end(self, result: str = "") -> None:
        self._open.pop()

    def warn(self, message: str) -> None: ...


def request(folder: Path, out: str = "run", **changes: Any) -> Request:
    """Return what to ask for in a folder that `lay_out` made."""
    given = {"data": folder / "photos", "preprocess": folder / "preprocess.toml", **changes}
    return Request(
        f"{folder / 'model.py'}:network",
        "this-machine",
        recipe=folder / "recipe.toml",
        out=folder / out,
        **given,
    )


def lay_out(folder: Path, *steps: str) -> None:
    """Write model, preprocessing and a recipe of steps with their options, ended by the backend."""
    (folder / "model.py").write_text(MODEL)
    (folder / "preprocess.toml").write_text(PREPROCESS)
    tables = [f"[[recipe]]\nuse = {step}\n" for step in (*steps, '"plain.run"')]
    (folder / "recipe.toml").write_text("".join(tables))


def host() -> Host:
    """Return a host of all plugins and this one."""
    return Host([sys.modules[__name__]])


if __name__ == "__main__":
    compress(request(Path(sys.argv[1]), sys.argv[2]), host=host(), progress=Told())
