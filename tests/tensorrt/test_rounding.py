"""Float16 graphs answer on a CPU as they would on the device: what overflows there is infinite here."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from penjing.model import Model, Tensor
from penjing_tensorrt.rounding import rounded
from penjing_tensorrt.simulate import session


def graph(*factors, kind=np.float16):
    half = kind is np.float16
    nodes = [helper.make_node("Cast", ["x"], ["t0"], to=TensorProto.FLOAT16 if half else TensorProto.FLOAT)]
    nodes += [helper.make_node("Mul", [f"t{i}", f"f{i}"], [f"t{i + 1}"]) for i in range(len(factors))]
    nodes.append(helper.make_node("Cast", [f"t{len(factors)}"], ["y"], to=TensorProto.FLOAT))
    net = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 4, 4])],
        [numpy_helper.from_array(kind(factor), f"f{i}") for i, factor in enumerate(factors)],
    )
    return helper.make_model(net, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def run(tmp_path):
    """Return a function that runs a graph on a batch as the backend does where the device is elsewhere."""

    def answer(model, batch):
        path = tmp_path / "net.onnx"
        onnx.save(model, path)
        return session(Model("onnx", path, "net", "0", (Tensor("x", (1, 3, 4, 4)),)))(batch)[0]

    return answer


def test_what_overflows_on_the_way_is_infinite(run):
    batch = np.full((1, 3, 4, 4), 2, np.float32)

    assert np.isinf(run(graph(60000, 1 / 60000), batch)).all()
    assert run(graph(30000, 1 / 30000), batch) == pytest.approx(2, rel=1e-2)


def test_each_tensor_is_rounded(run):
    batch = np.random.default_rng(0).standard_normal((1, 3, 4, 4)).astype(np.float32)

    expected = (batch.astype(np.float16) * np.float16(0.1) * np.float16(0.3)).astype(np.float32)
    assert np.array_equal(run(graph(0.1, 0.3), batch), expected)


def test_a_float32_graph_is_left_alone():
    model = graph(0.1, 0.3, kind=np.float32)

    assert rounded(model) is model
