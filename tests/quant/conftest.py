"""Small networks, the schemes of two backends, and photographs, for the tests of quantisation."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from hypothesis import settings
from onnx import helper, numpy_helper
from penjing.data import Batch
from penjing.goal import Goal
from penjing.model import Model, Tensor
from penjing.preprocess import Preprocess
from penjing.step import Context, Scheme

# a machine that does other work besides is slow, not wrong
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

CPU = Scheme(
    activation="uint8",
    weight="int8",
    symmetric=False,
    per_channel=True,
    reduce_range=False,
    bias="int32",
    placement="all",
    operators=frozenset(
        {"Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "Sigmoid", "MaxPool", "Flatten", "Reshape"}
        | {"AveragePool", "GlobalAveragePool"}
    ),
    source="tests",
)
TENSORRT = dataclasses.replace(
    CPU,
    activation="int8",
    symmetric=True,
    bias="float32",
    placement="inputs",
    operators=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Concat", "GlobalAveragePool"}),
)


class Split:
    """Photographs from an array, in batches of whatever sizes are wanted."""

    def __init__(self, pixels, sizes=None, labels=None, name="calibrate"):
        self.pixels = pixels
        self.sizes = sizes
        self.labels = labels
        self.name = name

    def __len__(self):
        return len(self.pixels)

    def batches(self, size, preprocess, limit=None):
        end = len(self.pixels) if limit is None else min(limit, len(self.pixels))
        start, sizes = 0, iter(self.sizes or [])
        while start < end:
            stop = min(start + next(sizes, size), end)
            photos = tuple(SimpleNamespace(path=Path(f"photo{i}.jpg")) for i in range(start, stop))
            labels = None if self.labels is None else self.labels[start:stop]
            yield Batch(self.pixels[start:stop], labels, photos)
            start = stop


@pytest.fixture
def split():
    return Split


@pytest.fixture
def cpu():
    return CPU


@pytest.fixture
def tensorrt():
    return TENSORRT


@pytest.fixture
def build(tmp_path):
    """Return a function that writes a network of one image input and reads it as the quantiser does."""

    def make(nodes, weights, *, image=(3, 8, 8), outputs=("y",), batch="N", name="net.onnx", opset=17):
        from penjing_quant.graph import load

        path = tmp_path / name
        graph = helper.make_graph(
            [helper.make_node(op, i, o, name=o[0] + "_node", **attributes) for op, i, o, attributes in nodes],
            "net",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [batch, *image])],
            [helper.make_tensor_value_info(o, onnx.TensorProto.FLOAT, None) for o in outputs],
            [numpy_helper.from_array(np.asarray(array), key) for key, array in weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        onnx.save(model, path)
        loaded = load(path)
        return SimpleNamespace(path=path, model=loaded)

    return make


@pytest.fixture
def quantise():
    """Return a function that measures ranges on photographs and writes Q/DQ, with no recovery."""
    import onnx_ir as ir
    from penjing_quant.calibrate import calibrate
    from penjing_quant.placement import observed
    from penjing_quant.write import write

    def run(model, scheme, pixels, exclude=(), **options):
        tensors = observed(ir.from_proto(model).graph, scheme, exclude)
        photos = lambda: ((f"photo{i}", image[None]) for i, image in enumerate(pixels))  # noqa: E731 - short
        ranges = calibrate(model, tensors, photos, scheme).ranges
        written = write(model, ranges, scheme, exclude, **options)
        onnx.checker.check_model(written.model, full_check=True)
        return written

    return run


@pytest.fixture
def apply(tmp_path):
    """Return a function that carries out a step and returns its result and context."""

    def run(step, net, scheme, pixels, sizes=None, arch="x86_64", select=None, task=None, goal=None):
        backend = SimpleNamespace(
            name="backend.test", scheme=lambda device: scheme, available=lambda device: "elsewhere"
        )
        chosen = Split(pixels[:0], name="select") if select is None and pixels is not None else select
        data = None if pixels is None else SimpleNamespace(calibrate=Split(pixels, sizes), select=chosen)
        folder = tmp_path / f"step{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        device = SimpleNamespace(name="board", arch=arch, here=False)
        context = Context(device, goal or Goal(), data, folder, backend, task=task)
        image = Tensor("x", (None, 3, 8, 8))
        model = Model("onnx", net.path, "net", "0", (image,), preprocess=Preprocess())
        return step.apply(model, context), context

    return run


@pytest.fixture
def fused(tmp_path):
    """Return a function that lists the operators onnxruntime really runs."""
    import onnxruntime as ort

    def run(model):
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(tmp_path / "fused.onnx")
        ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        return [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node]

    return run


@pytest.fixture
def outputs():
    """Return a function that runs a network photograph by photograph, Q/DQ computed in float."""
    from penjing_quant.session import Network

    def run(model, pixels):
        network = Network(model, simulated=True)
        results = [network(image[None]) for image in pixels]
        return [np.concatenate([result[name] for result in results]) for name in network.names]

    return run


@pytest.fixture
def photographs():
    return np.random.default_rng(5).standard_normal((20, 3, 8, 8)).astype(np.float32)
