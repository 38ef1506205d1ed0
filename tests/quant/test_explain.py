"""`penjing explain`: where a run's model loses accuracy."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from penjing.api import Request, compress
from penjing.cli import cli
from penjing.errors import InputError
from penjing.preprocess import Preprocess
from penjing_quant.explain import explain
from PIL import Image

MODEL = '''"""A network of a few layers."""

import torch
from torch import nn


def network():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 2),
    )
    with torch.no_grad():
        net[2].weight[0] *= 200  # with one scale for all, the other channels drown
    return net
'''


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explain")
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(30):
            pixels = random.integers(0, 256 if name == "a" else 120, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{number}.png")
    (folder / "model.py").write_text(MODEL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("penjing.compare.TIMING", 0.1)
        compress(
            Request(
                f"{folder / 'model.py'}:network", "x86-64-avx2", folder / "photos",
                preprocess=Preprocess(resize=(16, 16)), out=folder / "run",
                settings=("quant.static.float_layers=0", "quant.static.per_channel=false"),
            )
        )  # fmt: skip
    return folder / "run"


def test_weights_and_activations_are_told_apart(run):
    found = explain(run, "optimised", 50)
    weights, activations, both = (found.networks[key].sqnr for key in ("weights", "activations", "both"))
    assert found.networks["nothing"].sqnr > 100
    assert weights < activations
    assert both == pytest.approx(weights, abs=3)
    assert found.split == "select"
    assert found.metric == "top-1"
    assert found.compared_with.startswith("steps/quant.static")


def test_the_layer_at_fault_loses_most_by_itself(run):
    layers = explain(run, "direct", 50).layers
    worst = min(layers, key=lambda layer: layer.isolated)
    assert len(layers) == 3
    assert worst.name == layers[1].name


def test_the_command_prints_tables_and_writes_a_page(run):
    result = CliRunner().invoke(cli, ["explain", str(run), "--images", "20"])
    assert result.exit_code == 0, result.output
    for words in ("weights alone", "activations alone", "by itself", "clipped", "Page:"):
        assert words in result.output
    page = (run / "explain.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert page.count("<svg") >= 3
    assert "<script" not in page


def test_the_report_and_the_page_link_to_each_other(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "explain.html").unlink(missing_ok=True)
    before = (tmp_path / "run" / "report.json").read_bytes()
    assert CliRunner().invoke(cli, ["report", str(tmp_path / "run")]).exit_code == 0
    assert "explain.html" not in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")

    result = CliRunner().invoke(cli, ["explain", str(tmp_path / "run"), "--images", "5"])

    assert result.exit_code == 0, result.output
    assert '<a href="explain.html">' in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert '<a href="report.html">' in (tmp_path / "run" / "explain.html").read_text(encoding="utf-8")
    assert (tmp_path / "run" / "report.json").read_bytes() == before


def test_a_model_that_the_report_does_not_tell_of_is_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.copy(run / "direct" / "model.onnx", tmp_path / "run" / "optimised" / "model.onnx")

    with pytest.raises(InputError, match=r"not the one that report\.json tells of"):
        explain(tmp_path / "run", "optimised", 5)


def test_a_model_that_is_cut_short_is_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "optimised" / "model.onnx"
    path.write_bytes(path.read_bytes()[:1000])

    with pytest.raises(InputError, match="cut short"):
        explain(tmp_path / "run", "optimised", 5)


def test_json_has_every_layer_and_tensor(run):
    result = CliRunner().invoke(cli, ["explain", str(run), "--json"])
    found = json.loads(result.stdout)
    assert set(found["networks"]) == {"nothing", "weights", "activations", "both"}
    assert [layer["op"] for layer in found["layers"]] == ["Conv", "Conv", "Gemm"]
    assert all(0 <= tensor["clipped"] <= 1 for tensor in found["tensors"])
    assert {"low", "high", "kept_low", "kept_high", "scale"} <= set(found["tensors"][0])


def test_a_run_without_the_float_network_is_compared_with_the_original(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    for path in (tmp_path / "run" / "steps").glob("quant.static-*"):
        shutil.rmtree(path)
    found = explain(tmp_path / "run", "direct", 20)
    assert found.compared_with == "original/model.onnx"
    assert len(found.layers) == 3


def test_what_cannot_be_explained_is_said(run, tmp_path):
    with pytest.raises(InputError, match="not the folder of a run"):
        explain(tmp_path, "optimised", 10)
    with pytest.raises(InputError, match="not quantised: it holds no Q/DQ"):
        explain(run, "original", 10)
    shutil.copytree(run, tmp_path / "run")
    shutil.move(tmp_path / "run" / "direct", tmp_path / "direct")
    with pytest.raises(InputError, match="no direct model"):
        explain(tmp_path / "run", "direct", 10)
    with pytest.raises(InputError, match=r"lie|holds|readable|no ") as caught:
        explain(tmp_path / "run", "optimised", 10, root=tmp_path / "nowhere")
    assert "--data" in caught.value.hint
