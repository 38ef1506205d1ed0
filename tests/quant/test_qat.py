"""Training with integers in place: the graph that is trained is the graph that runs."""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections import Counter
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from penjing.errors import PlanError, StepError
from penjing.host import Host
from penjing.testing import small_context, torch_model
from penjing_quant.operators import OPERATORS
from penjing_quant.qat import FLOAT_AGREES, QuantisationAwareTraining, _settle
from penjing_quant.session import Network
from penjing_quant.static import StaticQuantisation
from penjing_quant.trainable import Trainable
from penjing_training import TrainingOptions
from penjing_training.loop import train
from torch import nn

QUICK = {"epochs": 6, "batch_size": 8, "learning_rate": 2e-3, "float_layers": 0}


class Residual(nn.Module):
    """A network with a residual, a depthwise layer, a Relu6 and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.ReLU6())
        self.block = nn.Sequential(
            nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 1)
        )
        self.head = nn.Linear(12, 2)

    def forward(self, images):
        x = self.stem(images)
        return self.head((x + self.block(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Return a trained network as an ONNX file, and a context."""
    folder = tmp_path_factory.mktemp("world")
    context = small_context(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch_model(Residual())
    options = TrainingOptions(epochs=15, batch_size=8, learning_rate=1e-2)
    trained = model.become("torch", train(model.value, options, model, context))
    for name in ("onnx.export", "onnx.simplify"):
        trained = apply(Host().step(name)(), trained, context)[0]
    return trained, context


def apply(step, model, context):
    room = context.folder / f"room{len(list(context.folder.iterdir()))}"
    room.mkdir()
    context = dataclasses.replace(context, folder=room, details={}, exhibits=[], warnings=[])
    return step.apply(model, context), context


@pytest.fixture
def net(build):
    """Return a network of many operators with random weights."""

    def random(*shape):
        return (np.random.default_rng(len(shape)).standard_normal(shape) / 3).astype(np.float32)

    return build(
        [
            ("Conv", ["x", "w1", "b1"], ["c1"], {"pads": [1, 1, 1, 1]}),
            ("Clip", ["c1", "zero", "six"], ["r1"], {}),
            ("Conv", ["r1", "w2", "b2"], ["c2"], {"pads": [0, 0, 1, 1], "strides": [2, 2]}),
            ("Sigmoid", ["c2"], ["s2"], {}),
            ("Mul", ["c2", "s2"], ["m2"], {}),
            ("ConvTranspose", ["m2", "w3"], ["t3"], {"strides": [2, 2]}),
            ("Add", ["t3", "r1"], ["a3"], {}),
            ("MaxPool", ["a3"], ["p3"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
            ("GlobalAveragePool", ["p3"], ["g"], {}),
            ("Flatten", ["g"], ["f"], {}),
            ("Gemm", ["f", "w4", "b4"], ["y"], {"transB": 1}),
        ],
        {
            "w1": random(6, 3, 3, 3), "b1": random(6), "w2": random(8, 6, 3, 3), "b2": random(8),
            "w3": random(8, 6, 2, 2), "w4": random(5, 6), "b4": random(5),
            "zero": np.float32(0), "six": np.float32(6),
        },
    )  # fmt: skip


@pytest.fixture
def pixels():
    return np.random.default_rng(3).standard_normal((12, 3, 8, 8)).astype(np.float32)


@pytest.fixture(params=["cpu", "tensorrt"])
def scheme(request):
    return request.getfixturevalue(request.param)


def run(graph, pixels):
    network = Network(graph, simulated=True)
    return np.concatenate([next(iter(network(image[None]).values())) for image in pixels])


def test_in_pytorch_a_graph_computes_what_it_computes_in_onnx_runtime(net, scheme, quantise, pixels):
    written = quantise(net.model, scheme, pixels)
    assert len(written.integer) > 4
    with torch.no_grad():
        exact = Trainable(net.model)(torch.from_numpy(pixels)).numpy()
        rounded = Trainable(net.model, written.model, scheme)(torch.from_numpy(pixels)).numpy()

    np.testing.assert_allclose(exact, run(net.model, pixels), rtol=1e-4, atol=1e-5)
    expected = run(written.model, pixels)
    step = (expected.max() - expected.min()) / 255
    assert np.abs(rounded - expected).max() <= 1.01 * step
    assert np.abs(exact - expected).max() > np.abs(rounded - expected).max()


@pytest.mark.parametrize("learn", [False, True])
def test_every_weight_has_a_gradient_and_scales_have_one_where_they_are_learnt(
    net, scheme, quantise, pixels, learn
):
    written = quantise(net.model, scheme, pixels)
    module = Trainable(net.model, written.model, scheme, learn_scales=learn)
    module(torch.from_numpy(pixels)).square().sum().backward()

    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters_by_name.values())
    assert len(module.parameters_by_name) == 7
    assert all((scale.grad is not None) == learn for scale in module.scales.values())


@pytest.mark.parametrize("dynamo", [True, False])
def test_both_of_torchs_exporters_give_clean_qdq(net, tensorrt, quantise, pixels, dynamo):
    """Faults R11 and R12: modules of torch.ao do not export, and ranges such as -127…127 do not either."""
    pytest.importorskip("onnxscript")
    written = quantise(net.model, tensorrt, pixels)
    module = Trainable(net.model, written.model, tensorrt).eval()
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        example = (torch.from_numpy(pixels[:2]),)
        if dynamo:
            torch.onnx.export(module, example, dynamo=True, verbose=False).save(buffer)
        else:
            torch.onnx.export(module, example, buffer, dynamo=False, opset_version=17)
    found = onnx.load_model_from_string(buffer.getvalue()).graph
    kinds = Counter(node.op_type for node in found.node)
    wanted = Counter(node.op_type for node in written.model.graph.node)

    assert kinds["DequantizeLinear"] >= wanted["DequantizeLinear"]
    assert not {op for op in kinds if "Fake" in op or "ATen" in op}


def test_training_wins_back_what_4_bits_lose(world):
    """Weights of 4 bits, so that there is something to win."""
    model, context = world
    lost = apply(QuantisationAwareTraining(weight_bits=4, **{**QUICK, "epochs": 0}), model, context)[1]
    _, told = apply(QuantisationAwareTraining(weight_bits=4, **QUICK), model, context)
    loss = next(e for e in told.exhibits if e.title == "training: loss").series["select"]

    assert "training" not in lost.details
    assert told.details["sqnr_db"]["trained"] > lost.details["sqnr_db"]["plain"]
    assert min(value for _, value in loss) < loss[0][1]


@pytest.mark.parametrize("learn", [False, True])
def test_where_training_does_harm_the_result_is_that_of_quant_static_to_the_bit_and_the_user_is_told(
    world, learn
):
    model, context = world
    plain, _ = apply(StaticQuantisation(), model, context)
    step = QuantisationAwareTraining(learning_rate=100.0, learn_scales=learn, epochs=1, batch_size=8)
    result, told = apply(step, model, context)

    assert result.value.read_bytes() == plain.value.read_bytes()
    assert "nothing scored better" in told.warnings[-1]
    assert "trained" not in told.details["sqnr_db"]


@pytest.mark.parametrize("learn", [False, True])
def test_the_file_has_the_integers_that_were_trained(world, learn, monkeypatch):
    model, context = world
    kept = []

    def remember(*arguments, **options):
        kept.append(train(*arguments, **options))
        return kept[-1]

    monkeypatch.setattr("penjing_training.loop.train", remember)
    step = QuantisationAwareTraining(learn_scales=learn, **{**QUICK, "epochs": 2})
    result, told = apply(step, model, context)
    graph = onnx.load(result.value).graph
    numbers = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    readers = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    (trained,) = kept
    compared = 0
    for node in graph.node:
        name = trained.weight_of.get(node.name)
        if name is None:
            continue
        dequantise = readers[node.input[1]]
        weight = trained.parameters_by_name[trained._keys[name]].detach()
        scale = trained.scale_of(name, weight).detach()
        with torch.no_grad():
            rounded = trained.rounded(name, weight)
        shape = [-1 if i == trained._weights[name].axis else 1 for i in range(weight.ndim)]
        steps = (rounded / scale.view(shape)).round().numpy()
        np.testing.assert_allclose(numbers[dequantise.input[1]], scale.numpy(), rtol=1e-6)
        assert np.abs(numbers[dequantise.input[0]].astype(int) - steps).max() <= 1
        compared += 1
    assert compared >= 4

    images = np.concatenate([b.inputs for b in context.data.test.batches(8, model.preprocess)])
    expected = run(onnx.load(result.value), images)
    with torch.no_grad():
        found = trained(torch.from_numpy(images)).numpy()
    assert np.abs(found - expected).max() <= 2.1 * (expected.max() - expected.min()) / 255
    assert told.details["training"]["steps"] > 0


def test_the_naive_form_does_not_train():
    step = QuantisationAwareTraining()
    assert step.naive().epochs == 0
    assert step.naive().method == "minmax"
    assert "5 epochs of training" in step.explain(Host().device("x86-64-avx2"), Host().backend("onnxrt"))


def test_rounding_that_training_would_undo_is_refused_in_the_plan():
    device, backend = Host().device("x86-64-avx2"), Host().backend("onnxrt")
    with pytest.raises(PlanError, match="undoes what AdaRound learns"):
        QuantisationAwareTraining(adaround=True).check(device, backend)


def test_an_operator_that_cannot_be_trained_is_named(build):
    net = build([("Hardmax", ["x"], ["y"], {})], {})
    with pytest.raises(StepError, match="operator Hardmax cannot be trained") as error:
        Trainable(net.model)
    assert "quant.static" in error.value.hint


def test_images_go_one_by_one_through_a_network_that_mixes_those_of_a_batch(build, pixels):
    """Its shapes were written down for a batch of one, in a way that a larger one goes through wrongly."""
    net = build([("ReduceMax", ["x"], ["m"], {"axes": [0]}), ("Add", ["x", "m"], ["y"], {})], {})
    judges = SimpleNamespace(judges=[image[None] for image in pixels])
    module = Trainable(net.model)
    assert not np.allclose(module(torch.from_numpy(pixels)).numpy(), run(net.model, pixels))
    _settle(module, net.model, judges, FLOAT_AGREES)

    assert module.one_by_one
    np.testing.assert_allclose(module(torch.from_numpy(pixels)).numpy(), run(net.model, pixels), rtol=1e-6)


def test_a_network_that_computes_something_else_is_refused(build, pixels, monkeypatch):
    net = build([("Elu", ["x"], ["y"], {})], {})
    judges = SimpleNamespace(judges=[image[None] for image in pixels])
    monkeypatch.setitem(OPERATORS, "Elu", lambda inputs, attributes: -inputs[0])
    with pytest.raises(StepError, match="something else in PyTorch"):
        _settle(Trainable(net.model), net.model, judges, FLOAT_AGREES)


CASES = {
    "HardSigmoid": ({"alpha": 0.3, "beta": 0.4}, []),
    "HardSwish": ({}, []),
    "LeakyRelu": ({"alpha": 0.2}, []),
    "Elu": ({}, []),
    "PRelu": ({}, [np.full((3, 1, 1), 0.2, np.float32)]),
    "Softmax": ({"axis": 1}, []),
    "Erf": ({}, []),
    "AveragePool": ({"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}, []),
    "MaxPool": ({"kernel_shape": [3, 3], "pads": [0, 0, 1, 1], "strides": [2, 2]}, []),
    "ReduceMean": ({"axes": [2, 3]}, []),
    "Transpose": ({"perm": [0, 2, 3, 1]}, []),
    "Reshape": ({}, [np.array([0, -1, 4])]),
    "Slice": ({}, [np.array([1, 0]), np.array([-1, 9]), np.array([2, 3]), np.array([2, 1])]),
    "Gather": ({"axis": 2}, [np.array([3, -1])]),
    "Unsqueeze": ({}, [np.array([-1, 1])]),
    "Tile": ({}, [np.array([1, 2, 1, 1])]),
    "Pad": ({}, [np.array([0, 0, 1, 2, 0, 0, 3, 0]), np.float32(0.5)]),
    "Expand": ({}, [np.array([1, 3, 8, 8])]),
    "DepthToSpace": ({"blocksize": 2}, []),
    "SpaceToDepth": ({"blocksize": 2}, []),
    "Resize": (
        {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
        [np.array([], np.float32), np.array([1, 1, 2, 2], np.float32)],
    ),
    "LayerNormalization": ({"axis": -1}, [np.full(8, 1.5, np.float32), np.full(8, 0.1, np.float32)]),
    "Conv": (
        {"auto_pad": "SAME_UPPER", "strides": [2, 2], "kernel_shape": [3, 3]},
        [np.full((4, 3, 3, 3), 0.1, np.float32)],
    ),
}


@pytest.mark.parametrize("operator", sorted(CASES))
def test_operators_compute_what_they_do_in_onnx_runtime(build, pixels, operator):
    attributes, constants = CASES[operator]
    image = (4, 8, 8) if operator == "DepthToSpace" else (3, 8, 8)
    given = np.resize(pixels, (4, *image))
    names = [f"k{i}" for i in range(len(constants))]
    net = build(
        [(operator, ["x", *names], ["y"], attributes)], dict(zip(names, constants, strict=True)), image=image
    )
    with torch.no_grad():
        found = Trainable(net.model)(torch.from_numpy(given)).numpy()
    np.testing.assert_allclose(found, run(net.model, given), rtol=1e-4, atol=1e-5)


def test_every_operator_is_one_of_onnx():
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    assert set(OPERATORS) <= known
