"""Whole networks: what falls back as they come, and what is left after dla.adapt."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import onnx
import pytest
from dla_graphs import ORIN, XAVIER, fitted, graph, weight
from penjing.host import Host
from penjing.testing import small_context, torch_model
from penjing_tensorrt.dla.limits import Target
from penjing_tensorrt.dla.place import place

slow = pytest.mark.slow


def exported(module: Any, folder: Path, size: int) -> onnx.ModelProto:
    """Return a module as `onnx.export` writes it."""
    import dataclasses

    from penjing.model import Tensor

    host = Host()
    work = folder / "work-of-export"
    work.mkdir()
    model = dataclasses.replace(torch_model(module.eval()), inputs=(Tensor("input", (1, 3, size, size)),))
    base = small_context(folder, device="jetson-agx-orin", backend=host.backend("dla"))
    context = dataclasses.replace(base, folder=work, data=None)
    return onnx.load(host.step("onnx.export")().apply(model, context).value)


def torchvision(name: str, folder: Path, size: int = 224) -> onnx.ModelProto:
    import torch
    import torchvision

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return exported(getattr(torchvision.models, name)(weights=None), folder, size)


def test_a_detectors_spp_and_silu_head_is_told_layer_by_layer() -> None:
    """A YOLO-like neck and head: SPP over three windows, SiLU, upsampling, and boxes in five dimensions."""
    model = graph(
        """(float[N,8,16,16] x) => (float[N] y) {
            a = Conv(x, w); s = Sigmoid(a); b = Mul(a, s);
            p5 = MaxPool<kernel_shape=[5,5], pads=[2,2,2,2]>(b);
            p9 = MaxPool<kernel_shape=[9,9], pads=[4,4,4,4]>(b);
            p13 = MaxPool<kernel_shape=[13,13], pads=[6,6,6,6]>(b);
            c = Concat<axis=1>(b, p5, p9, p13); d = Conv(c, v);
            u = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(d, , scales);
            h = Conv(u, boxes); five = Reshape(h, shape); t = Transpose<perm=[0,1,3,4,2]>(five);
            xy = Slice(t, zero, two, four); y = Sigmoid(xy)
        }""",
        w=weight(8, 8, 1, 1), v=weight(8, 32, 1, 1), boxes=weight(18, 8, 1, 1), scales=[1.0, 1.0, 2.0, 2.0],
        shape=[1, 3, 6, 32, 32], zero=[0], two=[2], four=[4],
    )  # fmt: skip
    before = place(model, ORIN)
    after, done, placement = fitted(model)

    assert {layer.op: layer.rule for layer in before.on_gpu} == {
        "MaxPool": "pooling window",
        "Reshape": "shuffle rank",
        "Transpose": "shuffle rank",
        "Slice": "slice rank",
    }
    assert [layer.precision for layer in before.layers if layer.op == "Sigmoid"] == ["fp16", "fp16"]
    assert done == {"maximum in small windows": 2}
    assert {layer.op for layer in placement.on_gpu} == {"Reshape", "Transpose", "Slice"}
    assert (before.loadables, placement.loadables) == (3, 2)
    assert [node.op_type for node in after.graph.node].count("MaxPool") == 5


@slow
def test_resnet18_runs_on_the_dla_but_for_the_view_at_its_end(tmp_path: Path) -> None:
    model = torchvision("resnet18", tmp_path)
    before = place(model, ORIN)
    _, done, after = fitted(model)

    assert [layer.op for layer in before.on_gpu] == ["GlobalAveragePool", "Flatten", "Gemm"]
    assert done == {"average in small windows": 1, "matrix as convolution": 1}
    assert [layer.op for layer in after.on_gpu] == ["Reshape"]
    assert (after.loadables, after.to_dla, after.to_gpu, after.share) == (1, 0, 1, 1.0)


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """Return ResNet-50 with random weights, and a softmax at its end."""
    import torch
    import torchvision as tv

    torch.manual_seed(0)
    network = torch.nn.Sequential(tv.models.resnet50(weights=None), torch.nn.Softmax(1))
    return exported(network, tmp_path_factory.mktemp("resnet50"), 224)


@slow
@pytest.mark.parametrize(
    "target",
    [ORIN, XAVIER, Target(2, (8, 5, 2)), Target(2, precision="fp16")],
    ids=lambda target: str(target.title),
)
def test_resnet50_with_softmax_runs_on_the_dla_and_crosses_once(
    resnet50: onnx.ModelProto, target: Target
) -> None:
    """Xavier has no softmax; on Orin the DLA takes it, so that the view alone is left."""
    _, _, after = fitted(resnet50, target)

    left = ["Softmax", "Reshape"] if target.generation == 1 else ["Reshape"]
    assert [layer.op for layer in after.on_gpu] == left
    assert (after.loadables, after.to_dla, after.to_gpu, after.share) == (1, 0, 1, 1.0)
    assert len(after.on_dla) > 120


@slow
def test_the_fallbacks_of_mobilenet_v3_are_told_and_all_of_them_can_be_rewritten(tmp_path: Path) -> None:
    model = torchvision("mobilenet_v3_small", tmp_path)
    before = place(model, ORIN)
    _, done, after = fitted(model)

    assert set(before.reasons()) == {
        "HardSwish: not mapped",
        "GlobalAveragePool: not mapped",
        "HardSigmoid: not mapped",
        "Gemm: matrix",
        "Flatten: not mapped",
    }
    assert before.loadables > ORIN.most_loadables
    assert done["clip for hard sigmoid"] == 28
    assert [layer.op for layer in after.on_gpu] == ["Reshape"]
    assert after.loadables == 1


@slow
def test_a_channel_shuffle_runs_on_the_dla_as_a_convolution(tmp_path: Path) -> None:
    model = torchvision("shufflenet_v2_x0_5", tmp_path, 64)
    before = place(model, ORIN)
    _, done, after = fitted(model)

    assert before.loadables > ORIN.most_loadables
    assert done["convolution for moved values"] == 16
    assert (after.loadables, [layer.op for layer in after.on_gpu]) == (1, ["Reshape"])


@slow
def test_a_network_compressed_for_the_dla_has_a_range_for_every_tensor_of_its_integer_layers(
    tmp_path: Path,
) -> None:
    """From the photographs to the cache: export, adapt, quantise, strip; the answers stay near the float ones."""
    import dataclasses

    import numpy as np
    import torch
    from penjing.plan import make_plan
    from penjing.recipe import from_tables
    from penjing.run import Run
    from penjing.testing import photographs
    from torch import nn

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
            self.last = nn.Linear(16, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.first(x))
            x = nn.functional.max_pool2d(torch.relu(x + self.second(x)), 2)
            return self.last(x.mean((2, 3)))

    from penjing.data import open_data
    from penjing.goal import Goal
    from penjing_tensorrt.dla.calibration_cache import read

    torch.manual_seed(0)
    host = Host()
    device = host.device("jetson-agx-orin")
    tables = [*({"use": name} for name in ("onnx.export", "dla.adapt", "quant.static", "dla"))]
    model = torch_model(Small().eval())
    data = open_data(photographs(tmp_path / "photographs"), outputs=2)
    plan = make_plan(host, from_tables(tables, "a test"), device, model, data, Goal())
    run = Run(host, plan, tmp_path / "run")
    with run.opened({}):
        columns = run.make()

    done = columns["optimised"].done[-1]
    folder = Path(done.model.value).parent
    scales = read((folder / "calibration.cache").read_text()).scales
    plain = onnx.load(folder / "dla.onnx")
    computed = {name for node in plain.graph.node for name in node.output}
    layers = done.record["details"]["placement"]["layers"]
    assert computed <= set(scales)
    assert [layer["op"] for layer in layers if layer["device"] == "GPU"] == ["Reshape"]
    assert {layer["precision"] for layer in layers if layer["device"] == "DLA"} == {"int8"}
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    answers = [plan.backend.open(columns[name].model, device)(x)[0] for name in ("original", "optimised")]
    assert np.abs(answers[0] - answers[1]).max() < 0.1 * np.abs(answers[0]).max() + 0.01
    assert dataclasses.asdict(plan.backend)["gpu_fallback"] is True  # type: ignore[call-overload]  # a dataclass
