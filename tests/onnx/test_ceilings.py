"""What a runtime's parser does not read is written in simpler operators, by the same numbers, or refused by name."""

import types

import numpy as np
import onnx
import onnxruntime
import penjing_onnx
import penjing_torch.module
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from penjing.bundle import READS
from penjing.bundle.runner import older
from penjing.errors import StepError
from penjing.goal import Goal
from penjing.model import Model, Tensor
from penjing.preprocess import Preprocess
from penjing.step import Context
from penjing_tensorrt.operators import oldest, readable
from torch import nn

Export, Simplify = penjing_onnx.penjing_techniques()
#: newest opset and TensorRT version of JetPack 5, JetPack 4.6, and JetPack 6.2
JETPACK_5, JETPACK_4, JETPACK_6 = (17, (8, 5)), (13, (8, 2)), (20, (10, 3))


@pytest.fixture
def context(tmp_path):
    def make(stack, name="step"):
        folder = tmp_path / name
        folder.mkdir()
        device = types.SimpleNamespace(name="board", max_opset=stack[0])
        backend = types.SimpleNamespace(operators=lambda device: readable(stack[1]))
        return Context(device, Goal(), None, folder, backend)

    return make


class Modern(nn.Module):
    """Activations and normalisations that came late to ONNX, and later to TensorRT."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.group = nn.GroupNorm(2, 8)
        self.norm = nn.LayerNorm(8)
        with torch.no_grad():
            for p in (*self.group.parameters(), *self.norm.parameters()):
                p.uniform_(0.5, 2)

    def forward(self, x):
        x = self.group(nn.functional.hardswish(self.conv(x)))
        x = nn.functional.mish(x) + nn.functional.gelu(x) + nn.functional.gelu(x, approximate="tanh")
        return self.norm(x.flatten(2).transpose(1, 2))


def kinds(path):
    return {node.op_type for node in onnx.load(path).graph.node}


@pytest.mark.slow
@pytest.mark.parametrize("stack", [JETPACK_4, JETPACK_5, JETPACK_6])
def test_a_network_holds_no_operator_that_the_parser_lacks(stack, context):
    torch.manual_seed(0)
    model = penjing_torch.module.as_model(Modern().eval(), "here", Preprocess(crop=8))
    export, simplify = context(stack), context(stack, "simplified")

    result = Simplify().apply(Export().apply(model, export), simplify)

    assert kinds(result.value) <= readable(stack[1])
    assert onnx.load(result.value).opset_import[0].version <= stack[0]
    assert export.details["sqnr_db"] > 90
    assert {"HardSwish", "LayerNormalization"} & kinds(result.value) == set() or stack is JETPACK_6


def opened(path):
    return Model("onnx", path, "late.onnx", "0", (Tensor("x", (2, 8, 4, 6)),))


def graph(kind, inputs, opset, constants=(), **attributes):
    shape = [2, 8, 4, 6]
    net = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["r"]),
            helper.make_node(kind, ["r", *inputs], ["y"], "late", **attributes),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(np.asarray(array, np.float32), name)
            for name, array in dict(constants).items()
        ],
    )
    return helper.make_model(
        net, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 20 else 10
    )


_ramp = np.linspace(0.5, 2, 8)
_last = np.linspace(0.5, 2, 6)
LATE = {
    "HardSwish": graph("HardSwish", [], 17),
    "LayerNormalization": graph("LayerNormalization", ["s", "b"], 17, {"s": _last, "b": _last}, epsilon=1e-3),
    "two axes": graph("LayerNormalization", ["s"], 17, {"s": np.ones((4, 6))}, axis=2),
    "one axis of 18": graph("LayerNormalization", ["s"], 18, {"s": _last}),
    "Mish": graph("Mish", [], 18),
    "Gelu": graph("Gelu", [], 20),
    "tanh": graph("Gelu", [], 20, approximate="tanh"),
    "GroupNormalization": graph(
        "GroupNormalization", ["s", "b"], 21, {"s": _ramp, "b": -_ramp}, num_groups=4
    ),
    "RMSNormalization": graph("RMSNormalization", ["s"], 23, {"s": _last}),
    "Swish": graph("Swish", [], 24),
    "Swish of 2": graph("Swish", [], 24, alpha=2.0),
}


@pytest.mark.parametrize("name", LATE)
def test_each_late_operator_is_written_in_others_by_the_same_numbers(name, context, tmp_path):
    opset = LATE[name].opset_import[0].version
    if opset > max(highest for release, highest in READS if not older(onnxruntime.__version__, release)):
        pytest.skip(f"onnxruntime {onnxruntime.__version__} runs no opset {opset} to compare with")
    path = tmp_path / "late.onnx"
    onnx.save(LATE[name], path)
    model = opened(path)
    step = context(JETPACK_5)

    result = Export(batch=2).apply(model, step)

    late = LATE[name].graph.node[1].op_type
    assert late not in kinds(result.value)
    assert kinds(result.value) <= readable((8, 5))
    assert step.details["sqnr_db"] > 90


def test_what_cannot_be_written_in_others_is_refused_by_name(context, tmp_path):
    path = tmp_path / "late.onnx"
    onnx.save(graph("Hardmax", [], 13), path)
    model = opened(path)

    with pytest.raises(StepError, match=r"does not read Hardmax \(late\)") as raised:
        Export(batch=2).apply(model, context(JETPACK_5))

    assert "newer runtime" in raised.value.hint


def test_operators_of_a_maker_pass(context, tmp_path):
    late = graph("Relu", [], 13)
    late.graph.node[1].op_type, late.graph.node[1].domain = "EfficientNMS_TRT", "TRT"
    late.opset_import.append(helper.make_opsetid("TRT", 1))
    onnx.save(late, tmp_path / "late.onnx")
    model = opened(tmp_path / "late.onnx")

    result = Export(batch=2).apply(model, context(JETPACK_5))

    assert "EfficientNMS_TRT" in kinds(result.value)


@pytest.mark.parametrize(
    ("specifier", "version"),
    [
        ("==8.5.*", (8, 5)),
        (">=10.0,<11", (10, 0)),
        ("==11.4.*", (11, 4)),
        ("~=10.3", (10, 3)),
        ("==8.2.1", (8, 2)),
    ],
)
def test_the_oldest_version_of_a_profile_decides(specifier, version):
    assert oldest(types.SimpleNamespace(runtime={"tensorrt": specifier})) == version


def test_a_version_between_two_known_ones_reads_what_the_older_does():
    assert readable((10, 7)) == readable((10, 1))
    assert readable((8, 0)) == readable((8, 2))
    assert "Gelu" in readable((11, 4))
    assert "Gelu" not in readable((8, 6))
    assert "QLinearConv" not in readable((11, 4))
