"""A plugin of steps that work on files of a few bytes, so that a whole run takes milliseconds.

A model is a text of three gains, one for each class; a photograph's scores are the means of its channels times
those. `python toy.py FOLDER` kills runs at every file that is written and takes each up again: see test_run.py.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from penjing.files import digest
from penjing.hookspecs import hookimpl
from penjing.model import Model, Tensor
from penjing.options import option
from penjing.preprocess import Preprocess
from penjing.step import Backend, Scheme, Technique

PREPROCESS = Preprocess(resize=(8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
#: names of the steps applied in this process
applied: list[str] = []


@dataclass(frozen=True)
class Tidy(Technique):
    """Copy the model."""

    name = "toy.tidy"
    accepts = frozenset({"onnx"})
    produces = "onnx"
    exact = True

    def apply(self, model, context):
        return _write(self, model, context, model.value.read_text())


@dataclass(frozen=True)
class Round(Technique):
    """Round the gains."""

    name = "toy.round"
    accepts = frozenset({"onnx"})
    produces = "onnx"
    needs = frozenset({"calibration"})

    digits: int = option(1, "Digits after the point.", between=(0, 9))
    fails: str = option("", "An error to raise, by its name.")

    def apply(self, model, context):
        for _ in context.data.calibrate.batches(4, model.preprocess):
            pass
        if self.fails:
            raise {"OSError": OSError, "ValueError": ValueError}[self.fails]("as asked")
        context.warn("Rounded.")
        gains = [round(float(gain), self.digits) for gain in model.value.read_text().split()]
        return _write(self, model, context, " ".join(map(str, gains)))

    def naive(self):
        return Round(0, "ValueError" if self.digits == 9 else "")


@dataclass(frozen=True)
class Trained(Technique):
    """Need what photographs alone do not give."""

    name = "toy.train"
    accepts = frozenset({"onnx"})
    produces = "onnx"
    needs = frozenset({"calibration", "training", "labels"})

    def apply(self, model, context):
        return model


@dataclass(frozen=True)
class Runtime(Backend):
    """Multiply in numpy."""

    name = "toy.run"
    accepts = frozenset({"onnx"})
    produces = "onnx"
    exact = True

    threads: int = option(1, "Threads.", between=(1, 8))

    def available(self, device):
        return "" if device.here else "it is elsewhere"

    def scheme(self, device):
        return Scheme("uint8", "int8", False, True, False, "float32", "all", frozenset(), "toy")

    def apply(self, model, context):
        applied.append(self.name)
        return model

    def open(self, model, device):
        import numpy as np

        gains = np.array(model.value.read_text().split(), np.float32)
        return lambda batch: [batch.mean(axis=(2, 3)) * gains]


def _write(step, model, context, text):
    applied.append(step.name)
    path = context.folder / "model.onnx"
    path.write_text(text)
    return model.become("onnx", path)


@hookimpl
def penjing_techniques():
    return [Tidy, Round, Trained]


@hookimpl
def penjing_backends():
    return [Runtime]


@hookimpl
def penjing_open(source, weights, preprocess):
    path = Path(source)
    inputs, outputs = (Tensor("x", (None, 3, 8, 8)),), (Tensor("y", (None, 3)),)
    return Model("onnx", path, source, digest(path.read_bytes()), inputs, outputs, preprocess or PREPROCESS)


def recipe(folder: Path, *tables: str) -> Path:
    """Write a recipe of steps by name, options after them."""
    path = folder / "recipe.toml"
    path.write_text("".join(f"[[recipe]]\nuse = {table}\n" for table in tables))
    return path


def lay_out(folder: Path, each: int = 8) -> None:
    """Write photographs of three classes, a model and a recipe."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for channel, name in enumerate(("a", "b", "c")):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(each):
            pixels = random.integers(0, 200, (8, 8, 3))
            pixels[..., channel] += 40
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "photos" / name / f"{number}.png")
    (folder / "model.onnx").write_text("1.04 1.01 0.97")
    recipe(folder, '"toy.tidy"', '"toy.round"', '"toy.run"')


def request(folder: Path, out: str = "run", **changes):
    """Return what to ask for in a folder that was laid out."""
    from penjing.api import Request

    asked = {"data": folder / "photos", "recipe": folder / "recipe.toml", "out": folder / out, **changes}
    return Request(str(folder / "model.onnx"), asked.pop("device", "this-machine"), **asked)


def results(report) -> list[tuple]:
    """Return what of a report does not depend on the clock."""
    return [
        (column["name"], column["sha256"], column["accuracy"], column["fidelity"])
        for column in report["columns"]
    ]


def kill_everywhere(folder: Path) -> dict:
    """Kill a run at the first, second, … file it touches, until one comes to its end; finish each."""
    from penjing import compare
    from penjing.api import compress
    from penjing.host import Host

    compare.TIMING = 0.001
    os.fsync = lambda handle: None  # a process that is killed does not take the system's buffers with it
    host = Host([sys.modules[__name__]], entry_points=False)
    whole = results(compress(request(folder, "whole"), host=host))
    problems, at = [], 0
    while True:
        at += 1
        child = os.fork()
        if not child:
            _die_at(at)
            compress(request(folder, f"run{at}"), host=host)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            return {"moments": at - 1, "problems": problems}
        run = folder / f"run{at}"
        before = {path.parent.name: path.stat().st_mtime_ns for path in run.glob("steps/[!.]*/step.json")}
        if results(compress(request(folder, f"run{at}"), host=host)) != whole:
            problems.append(f"{at}: another result")
        after = {path.parent.name: path.stat().st_mtime_ns for path in run.glob("steps/*/step.json")}
        if not before.items() <= after.items():
            problems.append(f"{at}: finished steps were done again")
        if left := [str(path) for path in run.rglob(".*") if path.name != ".lock"]:
            problems.append(f"{at}: left behind: {left}")


def _die_at(moment: int) -> None:
    """Make this process vanish at the `moment`-th call that makes, syncs, moves or removes a file."""
    calls = iter(range(1, 1_000_000))

    def deadly(function):
        def call(*arguments, **options):
            if next(calls) == moment:
                os._exit(9)
            return function(*arguments, **options)

        return call

    for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "fdopen"):
        setattr(os, name, deadly(getattr(os, name)))


if __name__ == "__main__":
    lay_out(Path(sys.argv[1]))
    print(json.dumps(kill_everywhere(Path(sys.argv[1]))))
