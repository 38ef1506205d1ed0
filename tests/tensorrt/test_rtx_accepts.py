"""Every graph that quant.static writes for TensorRT is parsed and built by TensorRT-RTX, without a GPU."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from penjing import Host
from penjing_tensorrt.rtx import available, gate
from penjing_tensorrt.scheme import scheme

pytestmark = pytest.mark.skipif(bool(available()), reason=available() or "TensorRT-RTX is installed")


class Net:
    """A network in the making: each method adds a layer behind `at` and returns the name of what it puts out."""

    def __init__(self, channels=3, size=16):
        self.nodes, self.weights, self.count = [], {}, 0
        self.channels = {"x": channels}
        self.shape = [1, channels, size, size]
        self.random = np.random.default_rng(0)

    def add(self, kind, *inputs, channels=None, **attributes):
        self.count += 1
        name = f"t{self.count}"
        self.nodes.append(
            helper.make_node(kind, list(inputs), [name], name=f"{kind}_{self.count}", **attributes)
        )
        self.channels[name] = channels or self.channels.get(inputs[0])
        return name

    def constant(self, array):
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(array)
        return name

    def conv(self, at, out, kernel=3, stride=1, group=1):
        within = self.channels[at] // group
        scale = (within * kernel * kernel) ** -0.5
        weight = self.constant(self.random.normal(0, scale, (out, within, kernel, kernel)).astype(np.float32))
        bias = self.constant(self.random.normal(0, 0.1, out).astype(np.float32))
        return self.add(
            "Conv", at, weight, bias, channels=out, pads=[kernel // 2] * 4, strides=[stride] * 2, group=group
        )  # fmt: skip

    def relu(self, at):
        return self.add("Relu", at)

    def relu6(self, at):
        return self.add("Clip", at, self.constant(np.float32(0)), self.constant(np.float32(6)))

    def silu(self, at):
        return self.add("Mul", at, self.add("Sigmoid", at))

    def head(self, at, classes=10):
        pooled = self.add("Flatten", self.add("GlobalAveragePool", at))
        weight = self.random.normal(0, 0.1, (classes, self.channels[at])).astype(np.float32)
        bias = self.constant(np.zeros(classes, np.float32))
        return self.add("Gemm", pooled, self.constant(weight), bias, transB=1)

    def model(self, *outputs, batch=1, opset=17):
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *self.shape[1:]])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def mobilenet():
    net = Net()
    at = net.relu6(net.conv("x", 16, stride=2))
    for _ in range(2):
        wide = net.relu6(net.conv(net.relu6(net.conv(at, 64, 1)), 64, group=64))
        at = net.add("Add", at, net.conv(wide, 16, 1))
    return net.model(net.head(net.relu6(net.conv(at, 32, 1))))


def residual():
    net = Net()
    at = net.relu(net.conv("x", 32))
    at = net.relu(net.add("Add", net.conv(net.relu(net.conv(at, 32)), 32), at))
    skip = net.conv(at, 64, 1, 2)
    at = net.relu(net.add("Add", net.conv(net.relu(net.conv(at, 64, stride=2)), 64), skip))
    return net.model(net.head(net.relu(net.conv(at, 64))))


def silu():
    """A C2f block: halves, a residual addition of what SiLU puts out, and a Concat."""
    net = Net()
    at = net.silu(net.conv("x", 32))
    wide = net.silu(net.conv(at, 64, 1))
    net.weights["parts"] = np.array([32, 32], np.int64)
    net.nodes.append(helper.make_node("Split", [wide, "parts"], ["a", "b"], name="split", axis=1))
    net.channels |= {"a": 32, "b": 32}
    inner = net.silu(net.conv(net.silu(net.conv("b", 32)), 32))
    joined = net.add("Concat", "a", "b", net.add("Add", "b", inner), axis=1, channels=96)
    return net.model(net.head(net.silu(net.conv(joined, 64, 1))))


def squeeze():
    net = Net()
    at = net.add("HardSwish", net.conv("x", 32))
    gate = net.add("GlobalAveragePool", at)
    gate = net.add("HardSigmoid", net.conv(net.relu(net.conv(gate, 16, 1)), 32, 1))
    return net.model(net.head(net.conv(net.add("Mul", at, gate), 64, 1)))


def detector():
    """SPP, upsampling, a neck's Concat, and a head that puts out boxes and scores side by side."""
    net = Net()
    fine = net.relu(net.conv("x", 32))
    at = net.relu(net.conv(fine, 32, stride=2))
    pools = [at]
    for _ in range(3):
        pools.append(net.add("MaxPool", pools[-1], kernel_shape=[5, 5], pads=[2] * 4))
    at = net.relu(net.conv(net.add("Concat", *pools, axis=1, channels=128), 32, 1))
    scales = net.constant(np.array([1, 1, 2, 2], np.float32))
    up = net.add("Resize", at, "", scales, mode="nearest")
    at = net.relu(net.conv(net.add("Concat", up, fine, axis=1, channels=64), 32))
    boxes, scores = net.conv(at, 64, 1), net.add("Sigmoid", net.conv(at, 80, 1))
    shape = net.constant(np.array([1, 4, 16, 256], np.int64))
    distances = net.add(
        "Softmax", net.add("Transpose", net.add("Reshape", boxes, shape), perm=[0, 2, 1, 3]), axis=1
    )
    net.channels[distances] = 16
    weight = net.constant(np.arange(16, dtype=np.float32).reshape(1, 16, 1, 1))
    decoded = net.add("Conv", distances, weight, channels=1)
    flat = net.constant(np.array([1, 4, 256], np.int64))
    rows = net.constant(np.array([1, 80, 256], np.int64))
    pixels = net.add("Mul", net.add("Reshape", decoded, flat), net.constant(np.float32(8)))
    return net.model(net.add("Concat", pixels, net.add("Reshape", scores, rows), axis=1))


def attention():
    net = Net(size=32)
    at = net.conv("x", 32, 4, stride=4)
    tokens = net.add("Reshape", at, net.constant(np.array([1, 32, 81], np.int64)))
    tokens = net.add("Transpose", tokens, perm=[0, 2, 1])
    norm = [net.constant(np.ones(32, np.float32)), net.constant(np.zeros(32, np.float32))]
    at = net.add("LayerNormalization", tokens, *norm, axis=-1)

    def linear(at, out, depth=32):
        weight = net.constant(net.random.normal(0, 0.1, (depth, out)).astype(np.float32))
        return net.add("Add", net.add("MatMul", at, weight), net.constant(np.zeros(out, np.float32)))

    query, key, value = (linear(at, 32) for _ in range(3))
    scores = net.add("Softmax", net.add("MatMul", query, net.add("Transpose", key, perm=[0, 2, 1])), axis=-1)
    at = net.add("Add", tokens, linear(net.add("MatMul", scores, value), 32))
    half = net.constant(np.float32(0.5))
    hidden = linear(net.add("LayerNormalization", at, *norm, axis=-1), 64)
    gelu = net.add("Mul", net.add("Mul", hidden, half), net.add("Add", net.add("Erf", hidden), half))
    return net.model(net.add("Add", at, linear(gelu, 32, 64)))


def transposed():
    net = Net()
    at = net.relu(net.conv("x", 32))
    weight = net.random.normal(0, 0.1, (32, 32, 2, 2)).astype(np.float32)
    return net.model(
        net.conv(net.relu(net.add("ConvTranspose", at, net.constant(weight), strides=[2, 2])), 16)
    )


NETS = [mobilenet, residual, silu, squeeze, detector, attention, transposed]
each_net = pytest.mark.parametrize("net", NETS)


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a network for a device: quantised, in float16, or both, with ranges of noise."""
    import onnx_ir as ir
    from penjing_quant.calibrate import calibrate
    from penjing_quant.fp16 import _with_half_scales, halve
    from penjing_quant.graph import load, prepared
    from penjing_quant.half import floats
    from penjing_quant.placement import observed
    from penjing_quant.write import write

    def ranges(graph, names, wanted):
        shape = [d.dim_value for d in graph.graph.input[0].type.tensor_type.shape.dim]
        images = np.random.default_rng(1).standard_normal((4, *shape[1:])).astype(np.float32)
        photos = lambda: ((f"{i}", image[None]) for i, image in enumerate(images))  # noqa: E731 - short
        return calibrate(graph, names, photos, wanted).ranges

    def run(model, device, *, int8=False, fp16=False, dla=False):
        target = Host().device(device)
        wanted = scheme(target, dla=dla)
        path = tmp_path / "net.onnx"
        onnx.save(model, path)
        graph, written = load(path), None
        if int8:
            found = ranges(graph, observed(ir.from_proto(graph).graph, wanted), wanted)
            written = write(graph, found, wanted)
            graph = written.model
        if fp16:
            graph, scales = _with_half_scales(graph, target.max_opset)
            graph = ir.to_proto(prepared(graph))
            names = [value.name for value in floats(ir.from_proto(graph).graph)]
            graph, _ = halve(graph, ranges(graph, names, wanted), 4.0, scales=scales)
        onnx.save(graph, path)
        return path, written

    return run


def explain(verdict):
    return [str(refusal) for refusal in verdict.refusals] + [verdict.reason]


@each_net
@pytest.mark.parametrize(
    "precision", [{"int8": True}, {"fp16": True}, {"int8": True, "fp16": True}], ids=" and ".join
)
def test_every_kind_of_network_is_parsed_and_built(net, precision, write):
    path, _ = write(net(), "rtx-3090", **precision)

    verdict = gate(path)

    assert verdict.accepted, explain(verdict)
    assert verdict.engine_bytes


@each_net
def test_every_kind_of_network_passes_its_own_linter(net, write):
    from penjing_quant.lint import lint

    for dla in (False, True):
        path, written = write(net(), "rtx-3090", int8=True, dla=dla)
        assert written.integer

        found = lint(path, Host().device("rtx-3090"), backend(dla))

        assert [finding.what for finding in found] == []


def backend(dla):
    import types

    from penjing_tensorrt.operators import oldest, readable

    return types.SimpleNamespace(
        name="tensorrt",
        scheme=lambda device: scheme(device, dla=dla),
        operators=lambda device: readable(oldest(device)),
    )


REAL = ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf"]


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_networks_of_torchvision_are_parsed_and_built(name, write, tmp_path):
    import dataclasses

    import torch
    from penjing.goal import Goal
    from penjing.step import Context
    from penjing_onnx.export import Export
    from penjing_quant.lint import lint
    from penjing_torch.module import as_model
    from torchvision import models

    torch.manual_seed(0)
    model = as_model(getattr(models, name)(weights=None).eval(), name, _preprocess())
    device = Host().device("rtx-3090")
    context = Context(device, Goal(), None, tmp_path, backend(False))
    exported = Export().apply(dataclasses.replace(model, preprocess=None), context)
    for precision in ({"int8": True}, {"int8": True, "fp16": True}):
        path, _ = write(onnx.load(exported.value), "rtx-3090", **precision)

        verdict = gate(path)

        assert verdict.accepted, explain(verdict)
        if "fp16" not in precision:
            assert [finding.what for finding in lint(path, device, backend(False))] == []


def _preprocess():
    from penjing.preprocess import Preprocess

    return Preprocess(crop=224)
