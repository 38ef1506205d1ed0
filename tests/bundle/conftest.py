"""A bundle of a tiny network, whose answers can be told by hand: it names the brightest channel."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from penjing import bundle
from penjing.bundle import runner
from penjing.data import open_data
from penjing.here import this_machine
from penjing.model import Model, Tensor
from penjing.preprocess import Preprocess
from penjing.task import Classification, Fidelity
from penjing_onnxrt.backend import OnnxRuntime
from PIL import Image

LABELS = ("red", "green", "blue")
REPORT: dict[str, Any] = {
    "penjing": "0.1.0",
    "created": "2026-11-25T05:00:00+00:00",
    "source": "tiny.onnx",
    "command": "penjing compress tiny.onnx",
    "environment": {"packages": {"onnx": "1.19"}},
}


def network(path: Path, batch: int | None) -> Path:
    side: list[Any] = ["batch" if batch is None else batch]
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [*side, 3, 8, 8])],
        [helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, [*side, 3])],
        [numpy_helper.from_array(np.eye(3, dtype=np.float32), "weight")],
    )
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=7), path)
    return path


def paint(folder: Path, count: int) -> Path:
    """Save photographs in which one channel is the brightest, in a folder of its name."""
    generator = np.random.default_rng(0)
    for index, label in enumerate(LABELS):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 100, (12, 10, 3), np.uint8)
            pixels[..., index] += 120
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return folder


Make = Callable[..., Path]


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint(tmp_path_factory.mktemp("photographs"), 4)


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Make:
    """Return what makes a bundle in a run folder."""

    def make(
        *,
        batch: int | None = 1,
        folder: Path | None = None,
        data: bool = True,
        images: Path = photographs,
        task: str = "classification",
        **fields: Any,
    ) -> Path:
        folder = folder or tmp_path_factory.mktemp("run")
        source = network(folder / "tiny.onnx", batch)
        table = fields.pop("preprocess", Preprocess(resize=(8, 8)))
        device = dataclasses.replace(this_machine(), **fields)
        model = Model(
            "onnx", source, "tiny.onnx", "0", (Tensor("image", (batch, 3, 8, 8)),), (Tensor("scores", (batch, 3)),),
            table, LABELS,
        )  # fmt: skip
        photos = open_data(images, outputs=3, labels=LABELS, max_broken=1) if data else None
        kind = Classification() if task == "classification" else Fidelity()
        plan: Any = SimpleNamespace(device=device, backend=OnnxRuntime(), data=photos, task=kind)
        report: Any = REPORT
        return bundle.write(folder, model, plan, report)

    return make


@pytest.fixture(scope="session")
def pristine(make: Make) -> Path:
    return make()


@pytest.fixture
def copied(pristine: Path, tmp_path: Path) -> Path:
    """Return a bundle to spoil."""
    return shutil.copytree(pristine, tmp_path / "bundle")


def reseal(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest as one would who means harm: with the right digest."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    manifest["digest"] = runner.digest(manifest)
    path.write_text(json.dumps(manifest))


@pytest.fixture(name="reseal")
def _reseal() -> Callable[..., None]:
    return reseal
